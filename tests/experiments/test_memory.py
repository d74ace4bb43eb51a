"""What a search needs of memory: counted by hand on small networks; a warning with the sum where it does not fit."""

import os
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlmix.classifier import hardware
from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.hardware import available_memory, require_memory, set_threads
from rlmix.classifier.training.trainer import EVALUATION_BATCH, TrainConfig
from rlmix.experiments import train_agent, train_rl_mix
from rlmix.experiments.runs import memory
from rlmix.experiments.runs.memory import GPU_CONTEXT, IMAGE_COPIES, PROCESS, WorkerMemory, shortage, worker_memory

HIDDEN, PIXELS, CLASSES = 32, 64, 10
TRAINING = TrainConfig(model="tests.experiments.test_memory:two_layers", batch_size=50, precision="fp32", device="cpu")


def two_layers(num_classes: int, in_channels: int) -> nn.Module:
    """Linear layers: each keeps its input for backward, ReLU its output, which is the next one's input."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS * in_channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes)
    )


@pytest.fixture(scope="module")
def digits() -> Splits:
    return split(load_dataset("digits"))


def test_every_part_is_what_is_counted_by_hand(digits: Splits) -> None:
    found = worker_memory(TRAINING, digits, digits.draw(100, data_seed=0))
    images = sum(len(part) for part in (digits.train, digits.validation, digits.development, digits.test))
    assert found.splits == images * (PIXELS + 8)
    side = 8 + 2 * digits.crop_padding
    assert found.training == 100 * (PIXELS + 8) + 100 * side**2
    # LaMix's second head reads the embedding, HIDDEN numbers, as the last layer does.
    weights = (PIXELS + 1) * HIDDEN + 2 * (HIDDEN + 1) * CLASSES
    assert found.network == 4 * 3 * weights
    kept = 4 * (PIXELS + HIDDEN)  # float32 inputs of the linear layers
    passing = 4 * (PIXELS + HIDDEN)  # of the first one, more than any other's input and output
    update = TRAINING.batch_size * (kept + passing + IMAGE_COPIES * 4 * PIXELS)
    assert found.activations == update + EVALUATION_BATCH * (2 * passing + 2 * 4 * PIXELS)


def test_what_grows_and_what_does_not(digits: Splits) -> None:
    task = digits.draw(100, data_seed=0)

    def of(**changes: Any) -> WorkerMemory:
        return worker_memory(replace(TRAINING, **changes), digits, task)

    small, medium, large = (of(batch_size=size).activations for size in (10, 20, 30))
    assert large - medium == medium - small > 0
    assert of(augmentation=False).training < of().training
    conv = {"model": "search"}
    assert (
        of(**conv, precision="bf16").activations < of(**conv).activations < 2 * of(**conv, precision="bf16").activations
    )
    before = torch.get_rng_state()
    of()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("splits", [1_000, 1_000_000])
def test_parting_the_data_or_training_whichever_takes_more(splits: int) -> None:
    parts = WorkerMemory(splits, 100, 2_000, 3_000).parts
    assert sum(parts.values()) == max(2 * splits, splits + 5_100)


def numbers_of(line: str) -> tuple[int, list[float], float, float]:
    """Workers, parts, sum and free memory that a warning tells, the last three in GB."""
    found = re.fullmatch(
        r"warning: (\d+) workers need about \1 x \((.*)\) = ([\d.]+) GB of .*, and ([\d.]+) GB are free; use .*", line
    )
    assert found is not None, line
    parts = [float(part.split()[0]) for part in found[2].split(" + ")]
    return int(found[1]), parts, float(found[3]), float(found[4])


def test_the_warning_tells_the_sum(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * (PROCESS + sum(worker_memory(TRAINING, digits, digits).parts.values()))
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    assert shortage(TRAINING, digits, digits, workers=3, on_one_gpu=3) == []
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    (line,) = shortage(TRAINING, digits, digits, workers=3, on_one_gpu=3)
    workers, parts, total, free = numbers_of(line)
    assert workers == 3 and total == pytest.approx(needed / 1e9, abs=0.06) == free
    assert workers * sum(parts) == pytest.approx(total, abs=0.1)
    assert "--workers" in line and "--batch-size" in line
    (line,) = shortage(TRAINING, digits, digits, workers=4, on_one_gpu=1)
    assert numbers_of(line)[0] == 4
    # Two environments in a process need the process once.
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * needed - 3 * PROCESS - 1)
    assert len(shortage(TRAINING, digits, digits, workers=3, on_one_gpu=3, held=2)) == 1
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * needed - 3 * PROCESS)
    assert shortage(TRAINING, digits, digits, workers=3, on_one_gpu=3, held=2) == []
    # In this process nothing is started, and one training fits where three workers nearly do.
    assert shortage(TRAINING, digits, digits, workers=1, on_one_gpu=1, own_processes=False) == []


def test_a_gpu_has_memory_of_its_own(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    training = replace(TRAINING, device="cuda:1")
    asked = []

    def mem_get_info(device: str) -> tuple[int, int]:
        asked.append(device)
        return 2 * GPU_CONTEXT, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**40)
    (line,) = shortage(training, digits, digits, workers=4, on_one_gpu=2)
    assert "memory of cuda:1" in line and numbers_of(line)[0] == 2 and asked == ["cuda:1"]
    assert shortage(training, digits, digits, workers=4, on_one_gpu=1) == []
    monkeypatch.setattr(memory, "available_memory", lambda: PROCESS)
    (line,) = shortage(training, digits, digits, workers=4, on_one_gpu=1)
    assert numbers_of(line)[0] == 4 and "network" not in line


def test_a_search_warns_before_it_starts_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10**8)
    monkeypatch.setattr(train_agent, "execute", lambda *_: None)
    monkeypatch.setattr(train_agent, "report", lambda *_: None)
    options = "--dataset digits --train-size 100 100 --updates 8 8 --validation-size 100 --workers 2 --compile off"
    train_agent.main([*options.split(), "--out", str(tmp_path / "search")])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert numbers_of(line)[0] == 2 and numbers_of(line)[3] == 0.1

    monkeypatch.setattr(memory, "available_memory", lambda: 10)
    monkeypatch.setattr(train_rl_mix, "train", lambda *_: None)
    options = "--dataset digits --train-size 100 --updates 8 --validation-size 100 --compile off"
    train_agent.main([*options.split(), "--out", str(tmp_path / "per batch")])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: it needs about ") and "process" not in line and "--workers" not in line


def system_of(folder: Path, *, free: int, groups: str, files: dict[str, str]) -> int:
    """What is available on a machine whose /proc and /sys/fs/cgroup hold this."""
    for name, text in {
        "proc/meminfo": f"MemTotal: 64000000 kB\nMemAvailable: {free // 1024} kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": groups,
        **{f"groups/{name}": text for name, text in files.items()},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return available_memory(system=folder / "proc", groups=folder / "groups")


GIB = 2**30
V1, V2 = "7:cpu:/\n4:cpuacct,memory:/a/b\n", "0::/a/b\n"


def group(prefix: str, limit: str, used: int, cache: int) -> dict[str, str]:
    if prefix.startswith("memory"):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
        names = ("memory.max", "memory.current", "inactive_file")
    return {
        f"{prefix}{names[0]}": f"{limit}\n",
        f"{prefix}{names[1]}": f"{used}\n",
        f"{prefix}memory.stat": f"anon 5\n{names[2]} {cache}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8 * GIB),
        (V2, group("a/b/", "max", 3 * GIB, GIB), 8 * GIB),
        (V2, group("a/b/", str(5 * GIB), 3 * GIB, GIB), 3 * GIB),  # cached files make room
        (V2, {**group("a/b/", str(5 * GIB), 3 * GIB, GIB), **group("a/", str(4 * GIB), 3 * GIB, 0)}, GIB),  # a parent's
        (V2, group("", str(2 * GIB), GIB, 0), GIB),  # seen from inside a container
        (V1, group("memory/a/b/", str(5 * GIB), 3 * GIB, GIB), 3 * GIB),
        (V1, group("memory/a/b/", "9223372036854771712", 3 * GIB, GIB), 8 * GIB),  # v1's "no limit"
        (V1, group("memory/", str(2 * GIB), GIB, 0), GIB),
        (V2, group("a/b/", str(GIB), 2 * GIB, 0), 0),
    ],
)
def test_available_memory_within_control_groups(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    assert system_of(tmp_path, free=8 * GIB, groups=groups, files=files) == expected


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 3_000_000_000)
    require_memory(3_000_000_000, "a rollout")
    with pytest.raises(ValueError, match=r"a rollout would take 3\.1 GB of memory, and 3\.0 GB are free"):
        require_memory(3_100_000_000, "a rollout")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + GIB, resource.RLIM_INFINITY))
    require_memory(GIB // 2, "a rollout")
    with pytest.raises(ValueError, match=r"would take 2\.1 GB of memory, and 1\.\d GB are free"):
        require_memory(2 * GIB, "a rollout")


def test_threads_of_a_training_that_goes_on_may_be_those_of_a_larger_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    set_threads(0)
    set_threads(64)
    set_threads(96, stored=True)
    assert asked == [64, 96]
    for threads, stored in ((65, False), (-1, False), (10**6, True)):
        with pytest.raises(ValueError, match="threads must be from 0"):
            set_threads(threads, stored=stored)
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    set_threads(96)
    assert asked == [64, 96, 96]
