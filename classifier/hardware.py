"""Capabilities of this machine: device, bf16 and torch.compile, each tested before use; and the habits of a GPU."""

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from rlmix.classifier.errors import InputError
from rlmix.classifier.limits import usable_cores

BF16_TOLERANCE = 0.05  # largest error of a bf16 convolution, relative to the largest value; rounding gives about 0.01
MAX_THREADS = 64  # or as many as there are processors: each takes memory of its own
MAX_STORED_THREADS = 4096


def resolve_device(name: str) -> torch.device:
    """Return the device of a name: `auto` (CUDA if available, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: the name is not one of these, or the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without waiting for what the device is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def deterministic_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN take only algorithms that give the same bits every time, while the block runs.

    Some of its gradients of weights add up in the order in which threads happen to finish. A CPU's never do.

    Args:
        device: device of the network.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def has_amx(device: torch.device) -> bool:
    """Return whether the device is a CPU with AMX (bf16 matrix tiles), where torch.compile gains most."""
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


@functools.cache
def bf16_works(device: torch.device) -> bool:
    """Return whether bf16 is native on the device, and a convolution and its gradients agree with fp32.

    On a processor without bf16 instructions it is emulated, many times slower than fp32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = has_amx(device) or torch.cpu._is_avx512_bf16_supported()
    return native and _bf16_agrees(device)


def _bf16_agrees(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 16, 14, 14, generator=generator).to(device, memory_format=torch.channels_last)
    weight = torch.randn(32, 16, 3, 3, generator=generator).to(device)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = nn.functional.conv2d(x, w, stride=2, padding=1)
        output.float().square().mean().backward()
        results.append((output.detach().float(), x.grad, w.grad))
    return all(
        bool((low - full).abs().max() <= BF16_TOLERANCE * full.abs().max())
        for full, low in zip(*results, strict=True)
        if full is not None and low is not None
    )


def resolve_precision(name: str, device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the number format of a name; `auto` is bf16 where it is native and agrees with fp32, else fp32.

    Raises:
        InputError: the name is neither `auto`, `bf16` nor `fp32`.
    """
    if name == "auto":
        return "bf16" if bf16_works(device) else "fp32"
    if name not in ("bf16", "fp32"):
        raise InputError(f"precision must be auto, bf16 or fp32, got {name!r}")
    return "bf16" if name == "bf16" else "fp32"


def why_not_compile(device: torch.device) -> str | None:
    """Return the reason why torch.compile is not available on the device, or None if it is."""
    if device.type == "cpu" and shutil.which("g++") is None:
        return "torch.compile needs g++ on a CPU, and none was found"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "torch.compile needs a GPU of compute capability 7.0 or newer"
    return None


def set_threads(threads: int, *, stored: bool = False) -> None:
    """Set torch's threads on the CPU; 0 leaves them as they are, but at most one for each core that may be used.

    Args:
        threads: number of threads.
        stored: whether the number is that of a resumed training, perhaps from a larger machine.

    Raises:
        InputError: the number is out of range.
    """
    most = MAX_STORED_THREADS if stored else max(MAX_THREADS, os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise InputError(f"threads must be from 0 (one for each core) to {most}, got {threads}")
    if threads or usable_cores() < torch.get_num_threads():
        torch.set_num_threads(threads or usable_cores())
