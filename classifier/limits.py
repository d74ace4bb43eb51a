"""Memory and cores that this process may use, of the whole machine or a container's part; importing takes no torch."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from rlmix.classifier.errors import InputError

# Files of a control group, by version: limit, use and name of the cache's size; quota and period
MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
CPU_FILES = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}


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
    for folder, version in _control_groups("memory", system, groups):
        limit, used, cache = MEMORY_FILES[version]
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit; or the group is not visible here
            # Cached files count as used but can be dropped; container runtimes subtract them too.
            taken = int((folder / used).read_text()) - _counts(folder / "memory.stat")[cache]
            free = min(free, int((folder / limit).read_text()) - taken)
    return max(free, 0)


def usable_cores(*, system: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use, at least 1: a container may have a part of the machine.

    Args:
        system: mount point of Linux's proc file system.
        groups: mount point of its control groups, whose quota of processor time counts as that many cores.
    """
    cores = len(os.sched_getaffinity(0))
    for folder, version in _control_groups("cpu", system, groups):
        with contextlib.suppress(OSError, ValueError):  # "max": no quota; or the group is not visible here
            words = " ".join((folder / name).read_text() for name in CPU_FILES[version]).split()
            quota, period = int(words[0]), int(words[1])
            if quota > 0:  # v1 writes -1 for none
                cores = min(cores, -(-quota // period))
    return max(cores, 1)


def _control_groups(controller: str, system: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of each control group of this process with that controller, and the version, 1 or 2."""
    try:
        lines = (system / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        # Inside a container the group may be named as the host sees it, and lie at the root.
        for folder in (root / own.strip("/"), *(root / own.strip("/")).parents):
            yield folder, 1 if controllers else 2
            if folder == root:
                break


def _counts(path: Path) -> dict[str, int]:
    """Return the numbers, by name, of a file whose lines are a name and a number."""
    entries = (line.split() for line in path.read_text().splitlines())
    return {entry[0]: int(entry[1]) for entry in entries if len(entry) > 1}
