"""What the processes of a search need of memory, part by part, and a warning where that will not fit.

An estimate from one small pass through the network; what libraries take for a moment, a compiler say, is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlmix.classifier.data import Images, ImageSet, Splits
from rlmix.classifier.hardware import available_memory
from rlmix.classifier.training.trainer import EVALUATION_BATCH, TrainConfig, Trainer

# Bytes of its own that a worker takes with nothing but its libraries, measured on Linux with Python 3.11 and torch 2.14
# on a CPU: resident memory without the pages that workers share.
PROCESS = 450 * 2**20
GPU_CONTEXT = 500 * 2**20  # bytes that CUDA takes for each process; an assumption, not measured
IMAGE_COPIES = 6  # of a batch, in float32: as drawn, mixed, with gradients, and kept for the update that follows
TRIED = (2, 4)  # images of the passes that are measured; what grows with the batch shows in their difference


@dataclass(frozen=True)
class WorkerMemory:
    """What one worker needs at most, in bytes.

    Attributes:
        splits: all images and labels.
        training: the task's own images and labels, and the padded copy that crops are taken from.
        network: weights, statistics, gradient and momentum.
        activations: of a training update and of a batch of evaluation; allocators keep the one's while the other runs.
    """

    splits: int
    training: int
    network: int
    activations: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for, while data are loaded or while the network is trained, whichever takes more."""
        trained = {"data": self.splits + self.training, "network and activations": self.network + self.activations}
        loaded = {"data while it is parted": 2 * self.splits}
        return max(trained, loaded, key=lambda parts: sum(parts.values()))


def worker_memory(training: TrainConfig, data: Splits, task: Splits) -> WorkerMemory:
    """What a worker needs besides its libraries.

    Args:
        training: the classifier's setting.
        data: all images.
        task: those of the largest task, drawn from `data`.

    Raises:
        ValueError: the network does not fit the images.
    """
    trainer = Trainer(TrainConfig(training.model, training.embedding, device="cpu", precision="fp32"), task)
    padding = data.crop_padding if training.crop_padding is None else training.crop_padding
    channels, height, width = data.train.image_shape
    side = 2 * padding if training.augmentation else 0
    padded = len(task.train) * channels * (height + side) * (width + side)
    own = 0 if task.train is data.train else _image_bytes(task.train)
    parameters = sum(_bytes(parameter) for parameter in trainer.model.parameters())
    return WorkerMemory(
        splits=sum(_image_bytes(part) for part in (data.train, data.validation, data.development, data.test)),
        training=own + (padded if isinstance(task.train, ImageSet) else 0),
        network=3 * parameters + sum(_bytes(buffer) for buffer in trainer.model.buffers()),
        activations=_activations(trainer.model, data.train.image_shape, training.batch_size, training.precision),
    )


def shortage(
    training: TrainConfig,
    data: Splits,
    task: Splits,
    *,
    workers: int,
    on_one_gpu: int,
    held: int = 1,
    own_processes: bool = True,
) -> list[str]:
    """What does not fit, a line for each kind of memory, with the sum; nothing where all fits.

    Args:
        training: the classifier's setting, its device and precision resolved.
        data: all images.
        task: those of the largest task, drawn from `data`.
        workers: how many run on this machine.
        on_one_gpu: how many of them share a GPU.
        held: environments that each of them holds.
        own_processes: whether each is a process of its own, rather than this one.
    """
    parts = {part: held * size for part, size in worker_memory(training, data, task).parts.items()}
    process = {"process": PROCESS} if own_processes else {}
    if not training.device.startswith("cuda"):
        lines = [_shortage("memory", workers, {**process, **parts}, available_memory())]
    else:
        loaded = {"data while it is loaded": sum(size for part, size in parts.items() if part.startswith("data"))}
        free, _ = torch.cuda.mem_get_info(training.device)
        lines = [
            _shortage("memory", workers, {**process, **loaded}, available_memory()),
            _shortage(f"memory of {training.device}", on_one_gpu, {"process": GPU_CONTEXT, **parts}, free),
        ]
    return [line for line in lines if line]


def _shortage(what: str, workers: int, parts: dict[str, int], free: int) -> str:
    total = workers * sum(parts.values())
    if total <= free:
        return ""
    summed = " + ".join(f"{size / 1e9:.2f} {part}" for part, size in parts.items())
    who, fewer = ("it needs", "") if workers == 1 else (f"{workers} workers need", "fewer --workers, ")
    times = f"{workers} x ({summed})" if workers > 1 else summed
    return (
        f"warning: {who} about {times} = {total / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are free; use "
        f"{fewer}a smaller --batch-size or a smaller --model"
    )


def _activations(model: nn.Module, image_shape: tuple[int, ...], batch_size: int, precision: str) -> int:
    """Bytes of a training update and of a batch of evaluation; allocators keep the one's while the other runs."""
    (few, _), (more, passing) = (_measured(model, image_shape, count, precision) for count in TRIED)
    growth = (more - few) / (TRIED[1] - TRIED[0])
    fixed = max(few - growth * TRIED[0], 0)
    passing = passing / TRIED[1]
    image = 4 * torch.Size(image_shape).numel()
    update = fixed + batch_size * (growth + passing + IMAGE_COPIES * image)
    # Twice: while a residual branch runs, its block's input stays.
    evaluation = EVALUATION_BATCH * (2 * passing + 2 * image)
    return round(update + evaluation)


def _measured(model: nn.Module, image_shape: tuple[int, ...], count: int, precision: str) -> tuple[int, int]:
    """Bytes that one forward pass of `count` images keeps for backward, and most that go into and out of a layer."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def look(_: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        nonlocal largest
        storages = [value.untyped_storage() for value in (*given, answer) if isinstance(value, Tensor)]
        # By place: what a layer only reshapes, or changes in place, is there once.
        largest = max(largest, sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))

    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    model.train()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
        ):
            # Held to the end of the block: what is kept must not be freed and its place taken while it is counted.
            answer = model(torch.zeros(count, *image_shape).contiguous(memory_format=torch.channels_last))
        del answer
    finally:
        for hook in hooks:
            hook.remove()
    return sum(kept.values()), largest


def _image_bytes(images: Images) -> int:
    return _bytes(images.labels) + (_bytes(images.images) if isinstance(images, ImageSet) else 0)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
