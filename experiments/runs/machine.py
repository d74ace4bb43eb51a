"""The machine a result was made on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rlmix.classifier.limits import usable_cores

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "torchvision", "gymnasium", "stable-baselines3", "numpy")


def machine() -> dict[str, Any]:
    """Return a description of this machine: processor, number formats, cores, threads, GPU, versions and load."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = processor.get("flags", "").split()
    return {
        "processor": processor.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "load_average": os.getloadavg(),
    }
