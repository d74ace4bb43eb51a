"""Capabilities of this machine: device, bf16 and torch.compile, each tested before use, and memory."""

import contextlib
import functools
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from rlmix.classifier.errors import InputError

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
    """Set torch's threads on the CPU; 0 leaves them as they are.

    Args:
        threads: number of threads.
        stored: whether the number is that of a resumed training, perhaps from a larger machine.

    Raises:
        InputError: the number is out of range.
    """
    most = MAX_STORED_THREADS if stored else max(MAX_THREADS, os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise InputError(f"threads must be from 0 (one for each core) to {most}, got {threads}")
    if threads:
        torch.set_num_threads(threads)


def require_memory(needed: int, what: str) -> None:
    """Raise, before anything is allocated, if it will not fit into memory or this process's limit.

    Args:
        needed: number of bytes.
        what: their purpose, for the error.

    Raises:
        InputError: fewer bytes are available.
    """
    free = available_memory()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError):  # not Linux
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            free = max(min(free, limit - taken), 0)
    if needed > free:
        raise InputError(f"{what} would take {needed / 1e9:,.1f} GB of memory, and {free / 1e9:.1f} GB are free")


def available_memory(*, system: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory available without swapping, within this process's control groups (v2 or v1).

    Args:
        system: mount point of Linux's proc file system.
        groups: mount point of its control groups.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, KeyError):  # not Linux
        free = _counts(system / "meminfo")["MemAvailable:"] * 1024
    for limit, used, cache in _memory_groups(system, groups):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit; or the group is not visible here
            # Cached files count as used but can be dropped; container runtimes subtract them too.
            taken = int(used.read_text()) - _counts(used.parent / "memory.stat")[cache]
            free = min(free, int(limit.read_text()) - taken)
    return max(free, 0)


def _memory_groups(system: Path, groups: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield the files with limit and use of each control group of this process, and the name of its cache size."""
    try:
        lines = (system / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the group may be named as the host sees it, and lie at the root.
        for folder in (root / own.strip("/"), *(root / own.strip("/")).parents):
            yield folder / names[0], folder / names[1], names[2]
            if folder == root:
                break


def _counts(path: Path) -> dict[str, int]:
    """Return the numbers, by name, of a file whose lines are a name and a number."""
    entries = (line.split() for line in path.read_text().splitlines())
    return {entry[0]: int(entry[1]) for entry in entries if len(entry) > 1}
