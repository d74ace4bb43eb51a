"""The Trainer on a GPU: the CPU's numbers, bit for bit the same again, no waiting within a segment, no memory lost."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlmix.classifier.data import ImageSet, Splits
from rlmix.classifier.files import load_state, save_state
from rlmix.classifier.hardware import deterministic_convolutions, why_not_compile
from rlmix.classifier.mixing import METHODS, MixPolicy
from rlmix.classifier.models import MODELS
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.draws import BLOCK
from rlmix.classifier.training.segment_sums import SegmentSums
from rlmix.classifier.training.stats import EvalStats, TrainStats
from rlmix.classifier.training.trainer import Trainer
from tests.gpu.conftest import CUDA, there

CLEAN, RMIX = MixPolicy({"clean": 1.0}), MixPolicy({"clean": 0.5, "rmix": 0.5})
CLASSES, BATCH = 5, 20


class DrawingNetwork(nn.Sequential):
    """Dropout draws from the device's own generator."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(8 * 36, classes),
        )


@pytest.fixture(autouse=True)
def drawing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "drawing", DrawingNetwork)


def image_set(count: int, seed: int) -> ImageSet:
    """Images of 12 pixels whose class shows in their first rows."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images[torch.arange(count), :, labels] += 100
    return ImageSet(images, labels)


DATA = Splits(
    train=image_set(90, 0),
    validation=image_set(530, 1),
    development=image_set(7, 2),
    test=image_set(0, 3),
    name="synthetic",
    class_names=tuple("abcde"),
    mean=(0.3, 0.35, 0.4),
    std=(0.2, 0.25, 0.3),
    flip=True,
    crop_padding=1,
)
CONFIG = TrainConfig(model="search", updates=2 * BLOCK, batch_size=BATCH, lr=0.05, precision="fp32")


def trainer_on(device: torch.device, seed: int = 0, **fields: Any) -> Trainer:
    return Trainer(replace(CONFIG, device=str(device), **fields), DATA, seed=seed)


def trainable(trainer: Trainer, policy: MixPolicy) -> None:
    """Skip where the method's library is not installed."""
    try:
        trainer.check(policy)
    except ValueError as error:
        pytest.skip(str(error))


def bits(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and statistics as bytes: NaN equals NaN, 0 does not equal -0."""
    state = trainer.model.state_dict()
    return {name: tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for name, tensor in state.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(stats: TrainStats) -> TrainStats:
    return replace(stats, seconds=0.0)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "clean"])
@pytest.mark.parametrize("saliency", ["recycled", "exact"])
def test_a_training_has_the_cpus_numbers(method: str, saliency: Any, device: torch.device) -> None:
    policy = MixPolicy({"clean": 0.5, method: 0.5}, label_beta=0.5, label_smoothing=0.1)
    found: list[tuple[TrainStats, EvalStats]] = []
    for place in (torch.device("cpu"), device):
        trainer = trainer_on(place, saliency=saliency)
        trainable(trainer, policy)
        found.append((trainer.train(policy, 8), trainer.evaluate("validation")))
    (here, seen_here), (there, seen_there) = found
    assert there.methods == here.methods and not there.diverged
    # Eight updates of a network with batch statistics: rounding grows, a method that decides by it may mix otherwise.
    for kind in ("clean", "mixed"):
        assert getattr(there, kind).loss == pytest.approx(getattr(here, kind).loss, rel=0.02), kind
    assert there.saliency_entropy == pytest.approx(here.saliency_entropy, rel=0.05)
    assert there.gradient_norm == pytest.approx(here.gradient_norm, rel=0.2)
    assert seen_there.loss == pytest.approx(seen_here.loss, rel=0.05)


@pytest.mark.parametrize("model", ["search", "lenet", "residual_group_8", "plain_none_16"])
def test_the_first_update_has_the_cpus_gradients(model: str, device: torch.device) -> None:
    weights = []
    for place in (torch.device("cpu"), device):
        trainer = trainer_on(place, model=model, lr_schedule="multistep")
        trainer.train(CLEAN, 1)
        weights.append({name: tensor.float().cpu() for name, tensor in trainer.model.state_dict().items()})
    for name, expected in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["search", "drawing"])
def test_a_resumed_training_ends_bit_for_bit_as_an_uninterrupted_one(
    model: str, precision: Any, device: torch.device, tmp_path: Path
) -> None:
    build = partial(trainer_on, device, model=model, precision=precision)
    whole, again, stopped = build(), build(), build()
    expected = [without_time(whole.train(RMIX, 15)), without_time(whole.train(RMIX, 20))]
    assert [without_time(again.train(RMIX, 15)), without_time(again.train(RMIX, 20))] == expected
    assert same(bits(again), bits(whole)), "the same training twice"
    stopped.train(RMIX, 15)
    save_state(tmp_path / "state", stopped.state_dict())
    stopped.train(RMIX, 3)
    torch.rand(7, device=device)  # others draw, too
    resumed = build(seed=9)
    resumed.load_state_dict(load_state(tmp_path / "state"))
    assert without_time(resumed.train(RMIX, 20)) == expected[1]
    assert same(bits(resumed), bits(whole))
    assert resumed.evaluate("validation") == whole.evaluate("validation")


def test_a_training_leaves_the_users_generators_alone(device: torch.device) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3), torch.rand(3, device=device)
    torch.manual_seed(5)
    trainer_on(device, model="drawing").train(CLEAN, 2)
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.equal(torch.rand(3, device=device), expected[1])


def test_a_state_from_the_cpu_is_resumed(device: torch.device, tmp_path: Path) -> None:
    there = trainer_on(torch.device("cpu"))
    there.train(RMIX, 8)
    save_state(tmp_path / "state", there.state_dict())
    moved = trainer_on(device, seed=4)
    moved.load_state_dict(load_state(tmp_path / "state"))
    assert moved.updates_done == 8
    expected, found = there.train(RMIX, 8), moved.train(RMIX, 8)
    assert found.clean is not None and expected.clean is not None
    assert found.clean.loss == pytest.approx(expected.clean.loss, rel=0.02)


@contextmanager
def no_waiting(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse whatever waits for the GPU, until a segment's sums are read."""
    if device.type == "cpu":
        yield
        return
    read = SegmentSums.read

    def at_the_end(*arguments: Any, **keywords: Any) -> TrainStats:
        torch.cuda.set_sync_debug_mode("default")
        return read(*arguments, **keywords)

    monkeypatch.setattr(SegmentSums, "read", at_the_end)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("saliency", ["recycled", "exact"])
@pytest.mark.parametrize("method", [name for name in METHODS if "puzzlemix" not in name])  # cut on the host
def test_nothing_waits_for_the_gpu_within_a_segment(
    method: str, saliency: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(device, saliency=saliency)
    policy = MixPolicy({"clean": 0.5, method: 0.5} if method != "clean" else {"clean": 1.0}, label_beta=0.5)
    trainer.train(policy, 2)  # the libraries' handles are made
    with no_waiting(device, monkeypatch):
        stats = trainer.train(policy, BLOCK + 2)  # past the end of a block of draws
    assert stats.updates == BLOCK + 2


def test_only_deterministic_convolutions_are_taken_and_the_setting_is_restored(device: torch.device) -> None:
    seen = []

    class Looking(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.deterministic)
            return super().forward(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "looking", lambda classes, channels: nn.Sequential(Looking(), nn.Linear(432, classes)))
        trainer = trainer_on(device, model="looking")
        before, seen[:] = torch.backends.cudnn.deterministic, []
        trainer.train(CLEAN, 2)
    assert seen == [device.type == "cuda" or before] * 2
    assert torch.backends.cudnn.deterministic == before
    with deterministic_convolutions(torch.device("cuda")):
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic == before


def test_bf16_stays_near_float32(device: torch.device) -> None:
    logits = []
    for precision in ("fp32", "bf16"):
        trainer = trainer_on(device, precision=precision)  # type: ignore[arg-type]
        images = trainer.batches.batch(0).images
        local, glob = trainer._logits(trainer.model, images)
        assert local.dtype == glob.dtype == torch.float32
        logits.append(local.detach())
        stats = trainer.train(RMIX, 2 * BLOCK)
        assert not stats.diverged and stats.clean is not None and math.isfinite(stats.clean.loss)
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
        assert trainer.evaluate("validation").accuracy > 0.4
    assert (logits[0] - logits[1]).abs().max() <= 0.05 * logits[0].abs().max()


def test_images_weights_and_gradients_are_channels_last(device: torch.device) -> None:
    trainer = trainer_on(device)
    formats: list[bool] = []
    layout = torch.channels_last
    for module in trainer.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _i, hidden: formats.append(hidden.is_contiguous(memory_format=layout))
            )
    step = trainer._end_update

    def look() -> None:
        for parameter in trainer.model.parameters():
            if parameter.ndim == 4 and parameter.grad is not None:
                formats.append(parameter.is_contiguous(memory_format=layout))
                formats.append(parameter.grad.is_contiguous(memory_format=layout))
        step()

    trainer._end_update = look  # type: ignore[method-assign]
    trainer.train(RMIX, 4)
    assert formats and all(formats)
    assert trainer.last_mixed is not None and trainer.last_mixed[0].is_contiguous(memory_format=layout)


# On the CPU, where compiling takes two minutes, tests/classifier/test_trainer.py has the same test.
@pytest.mark.parametrize("place", [CUDA])
def test_a_compiled_training_has_the_eager_ones_numbers(place: str) -> None:
    device = there(place)
    if (reason := why_not_compile(device)) is not None:
        pytest.skip(reason)
    torch.compiler.reset()
    stats, seen = [], []
    for way in ("off", "on"):
        trainer = trainer_on(device, compile=way)
        stats.append(trainer.train(RMIX, 8))
        seen.append(trainer.evaluate("validation"))
    assert stats[1].clean is not None and stats[0].clean is not None
    assert stats[1].clean.loss == pytest.approx(stats[0].clean.loss, rel=0.02)
    assert seen[1].loss == pytest.approx(seen[0].loss, rel=0.05)


def test_a_training_keeps_no_memory(device: torch.device) -> None:
    used: Callable[[], int] = partial(torch.cuda.memory_allocated, device) if device.type == "cuda" else lambda: 0
    trainer = trainer_on(device, updates=6)
    after = []
    for episode in range(50 if device.type == "cuda" else 12):
        trainer.reset(episode, data=DATA)
        trainer.train(RMIX, 6)
        trainer.evaluate("validation", limit=20)
        after.append(used())
    assert max(after[10:]) - min(after[10:]) < 2**20, after
