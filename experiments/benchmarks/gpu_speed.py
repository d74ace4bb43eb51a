"""Parts of the GPU check that measure speed: the machine's attainable rates, and training images a second."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rlmix.classifier.data import Splits
from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import deterministic_convolutions, resolve_device, why_not_compile
from rlmix.classifier.models import build_model
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.benchmarks.gpu_sizes import Case, Note, Sizes
from rlmix.experiments.benchmarks.timing import summary
from rlmix.experiments.benchmarks.training_speed import VARIANTS, Variant, run_segment, updates_per_segment
from rlmix.experiments.runs.machine import machine

CONTESTANTS = ("plain", "rmix", "rmix-exact", "puzzlemix")
PRODUCTS = 20  # in a row
COUNTED = 4  # updates, half of them mixed where the policy mixes half


class CountedOperations(TorchDispatchMode):
    """Sum of the floating-point operations of convolutions and products while the block runs.

    torch's `FlopCounterMode` counts the same, but does not allow `torch.autograd.grad`, by which saliency is taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        out = func(*args, **keywords)
        if (operations := flop_registry.get(func.overloadpacket)) is not None:
            self.total += operations(*args, **keywords, out_val=out)
        return out


def measure_machine(device_name: str, sizes: Sizes, _tests: str, note: Note) -> None:
    """Note the machine, and its attainable rates of products and copies."""
    device = resolve_device(device_name)
    note("machine", machine())
    if device.type == "cuda":
        note("gpu", _gpu(device))
    for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        note(f"{kind}_flop_per_second", product_rate(device, sizes.matrix, dtype))
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    note("tf32_flop_per_second", product_rate(device, sizes.matrix, torch.float32))
    torch.backends.cuda.matmul.allow_tf32 = kept
    note("copied_bytes_per_second", copy_rate(device, sizes.copied))


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cudnn": torch.backends.cudnn.version(),
        "bf16_native": torch.cuda.is_bf16_supported(including_emulation=False),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }
    if (program := shutil.which("nvidia-smi")) is not None:
        asked = "driver_version,power.limit,clocks.max.sm,clocks.max.memory,mig.mode.current"
        options = [program, f"--query-gpu={asked}", "--format=csv,noheader"]
        answer = subprocess.run(options, capture_output=True, text=True, timeout=20, check=False)
        found |= dict(zip(asked.split(","), map(str.strip, answer.stdout.splitlines()[:1][0].split(",")), strict=False))
    return found


def product_rate(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of products of random matrices: the best of three times 20.

    Args:
        device: where.
        side: side of the matrices.
        dtype: their number format.
    """
    generator = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    best = min(seconds_of(lambda: torch.mm(one, other, out=out), device, PRODUCTS) for _ in range(3))
    return 2 * side**3 / best


def copy_rate(device: torch.device, size: int) -> float:
    """Return the bytes a second of a copy within the device's memory, read and written ones counted.

    Args:
        device: where.
        size: bytes that are copied.
    """
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(seconds_of(lambda: target.copy_(source), device, PRODUCTS) for _ in range(3))


def seconds_of(operation: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of an operation, the mean of some in a row after one that warms up."""
    operation()
    _finish(device)
    started = time.perf_counter()
    for _ in range(repeats):
        operation()
    _finish(device)
    return (time.perf_counter() - started) / repeats


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_speed(device_name: str, sizes: Sizes, _tests: str, note: Note) -> None:
    """Note training images a second of every network and contestant, also as a share of the bf16 products' rate."""
    device = resolve_device(device_name)
    peak = product_rate(device, sizes.matrix, torch.bfloat16)
    note("bf16_flop_per_second", peak)
    for case in sizes.cases:
        trainer = Trainer(case.training(device_name), case.data())
        for name in CONTESTANTS:
            note(f"{case.name}: {name}", measure_variant(trainer, VARIANTS[name], sizes, peak))
        note(f"{case.name}: cost of determinism", determinism_cost(case, device, sizes))
        del trainer
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_variant(trainer: Trainer, variant: Variant, sizes: Sizes, peak: float) -> dict[str, Any]:
    """Return what `images_per_second` does; where the method's library is not installed, the reason.

    Arguments are those of `images_per_second`.
    """
    try:
        trainer.check(variant.policy)
    except InputError as error:
        return {"left_out": str(error)}
    return images_per_second(trainer, variant, sizes, peak, operations_per_image(trainer, variant))


def images_per_second(
    trainer: Trainer, variant: Variant, sizes: Sizes, peak: float, operations: float
) -> dict[str, Any]:
    """Return a contestant's images a second over some rounds, and the share of a rate.

    Args:
        trainer: trainer of the network.
        variant: the contestant.
        sizes: seconds and rounds.
        peak: rate that the share is of, in floating-point operations a second.
        operations: floating-point operations of an image.
    """
    updates = updates_per_segment(trainer, variant, sizes.seconds)
    rates = summary([run_segment(trainer, variant, updates, seed=number) for number in range(sizes.rounds)])
    memory = torch.cuda.max_memory_allocated(trainer.device) if trainer.device.type == "cuda" else None
    return {
        "precision": trainer.precision,
        "updates_per_round": updates,
        "images_per_second": rates,
        "flop_per_image": operations,
        "share_of_bf16_products": rates["median"] * operations / peak,
        "most_memory_bytes": memory,
    }


def operations_per_image(trainer: Trainer, variant: Variant) -> float:
    """Return the floating-point operations of convolutions and products for each image, passes for saliency included.

    Args:
        trainer: trainer of the network.
        variant: the contestant.
    """
    trainer.config = replace(trainer.config, saliency=variant.saliency)
    trainer.reset(0)
    with CountedOperations() as counted:
        stats = trainer.train(variant.policy, COUNTED, probe=False)
    return counted.total / stats.images


def determinism_cost(case: Case, device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Return the seconds of a forward and backward pass with deterministic convolutions, and with any.

    Args:
        case: the network.
        device: where.
        sizes: seconds of a measurement.
    """
    shape = (case.batch_size, case.channels, case.side, case.side)
    model = build_model(
        case.model, num_classes=case.classes, in_channels=case.channels, image_size=(case.side, case.side)
    )
    model.to(device).to(memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(shape, generator=generator, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits: Tensor = model(images)
        logits.float().square().mean().backward()
        model.zero_grad()

    def measured() -> float:
        once = seconds_of(step, device, 2)
        return seconds_of(step, device, max(int(sizes.seconds / once), 2))

    found = {"any": measured()}
    with deterministic_convolutions(device):
        found["deterministic"] = measured()
    return found


def measure_compiled(device_name: str, sizes: Sizes, _tests: str, note: Note) -> None:
    """Note images a second of compiled training, and the seconds that compiling takes."""
    device = resolve_device(device_name)
    if (reason := why_not_compile(device)) is not None:
        note("left_out", reason)
        return
    peak = product_rate(device, sizes.matrix, torch.bfloat16)
    for case in sizes.compiled:
        data = case.data()
        note(case.name, _compiled(case, data, device_name, sizes, peak))


def _compiled(case: Case, data: Splits, device_name: str, sizes: Sizes, peak: float) -> dict[str, Any]:
    variant = VARIANTS["rmix-compiled"]
    operations = operations_per_image(Trainer(case.training(device_name), data), variant)
    trainer = Trainer(case.training(device_name, compile="on"), data)
    started = time.perf_counter()
    run_segment(trainer, variant, 2, seed=0)
    compiling = time.perf_counter() - started
    found = images_per_second(trainer, variant, sizes, peak, operations)
    torch.compiler.reset()  # otherwise this network's graphs count towards the next one's limit of recompilations
    return found | {"seconds_to_compile": compiling}
