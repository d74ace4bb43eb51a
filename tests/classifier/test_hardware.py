"""Hardware: names that are not there are refused, and bf16 is only trusted where it agrees with fp32."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlmix.classifier import compilation, hardware
from rlmix.classifier.hardware import bf16_works, resolve_device, resolve_precision, set_threads, why_not_compile
from rlmix.classifier.limits import usable_cores
from rlmix.classifier.training.config import TrainConfig
from tests.envs.tiny import digits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_what_was_measured() -> Iterator[None]:
    bf16_works.cache_clear()
    yield
    bf16_works.cache_clear()


@pytest.fixture
def native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_amx", lambda device: True)


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "cuda:-1", "gpu", "meta", "mps", "xpu", "AUTO"])
def test_other_device_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(("count", "name"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch, count: int, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=f"{name}' is not available: torch sees {count} CUDA"):
        resolve_device(name)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto").type == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["fp16", "", "float32", "BF16", "bfloat16"])
def test_other_precisions_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="precision must be auto, bf16 or fp32"):
        resolve_precision(name, CPU)


@pytest.mark.parametrize("works", [True, False])
def test_auto_precision_is_bf16_only_where_it_works(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr(hardware, "bf16_works", lambda device: works)
    assert resolve_precision("auto", CPU) == ("bf16" if works else "fp32")
    assert resolve_precision("bf16", CPU) == "bf16"  # who asks for it gets it
    assert resolve_precision("fp32", CPU) == "fp32"


def test_bf16_is_not_used_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_amx", lambda device: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(hardware, "_bf16_agrees", lambda device: True)
    assert not bf16_works(CPU)


def test_bf16_is_used_where_it_is_native_and_agrees(native_bf16: None) -> None:
    assert bf16_works(CPU)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.8


@pytest.mark.parametrize(
    "damage",
    [
        lambda convolve, x, w: convolve(x, w) * 1.1,
        lambda convolve, x, w: convolve(x, w) * float("nan"),
        lambda convolve, x, w: convolve(WrongGradient.apply(x), w),
        lambda convolve, x, w: convolve(x, WrongGradient.apply(w)),
    ],
    ids=["wrong output", "NaN", "wrong input gradient", "wrong weight gradient"],
)
def test_bf16_is_not_used_where_a_convolution_disagrees(
    monkeypatch: pytest.MonkeyPatch, native_bf16: None, damage: Callable[..., Tensor]
) -> None:
    original = nn.functional.conv2d

    def convolution(x: Tensor, w: Tensor, **options: Any) -> Tensor:
        convolve = lambda a, b: original(a, b, **options)  # noqa: E731
        return damage(convolve, x, w) if torch.is_autocast_enabled("cpu") else convolve(x, w)

    monkeypatch.setattr(nn.functional, "conv2d", convolution)
    assert not bf16_works(CPU)


def test_the_check_leaves_the_global_random_state_alone(native_bf16: None) -> None:
    before = torch.get_rng_state()
    bf16_works(CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/box", {"box/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 2),
        ("0::/box", {"cpu.max": "50000 100000"}, 1),  # as it is seen from inside
        ("0::/box", {"box/cpu.max": "max 100000"}, 8),
        ("0::/box", {"box/cpu.max": "9900000 100000"}, 8),
        (
            "3:cpuset:/\n2:cpu,cpuacct:/a/b",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("2:memory:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("0::/box", {}, 8),
    ],
)
def test_a_quota_of_processor_time_counts_as_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, files: dict[str, str], cores: int
) -> None:
    """Containers have one, which libraries do not see: llvm/llvm-project#225493, OpenMathLib/OpenBLAS#6059."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    (tmp_path / "groups").mkdir()
    for name, content in {
        "proc/self/cgroup": groups,
        **{f"groups/{name}": text for name, text in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert usable_cores(system=tmp_path / "proc", groups=tmp_path / "groups") == cores


def test_threads_are_no_more_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for cores, asked, threads in ((8, 0, 3), (2, 0, 2), (1, 2, 2)):
            monkeypatch.setattr(hardware, "usable_cores", lambda cores=cores: cores)
            set_threads(asked)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_compiling_needs_a_compiler_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "g++" in str(why_not_compile(CPU))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert why_not_compile(CPU) is None


@pytest.mark.parametrize(("capability", "fits"), [((6, 1), False), ((7, 0), True), ((9, 0), True)])
def test_compiling_needs_a_gpu_that_is_new_enough(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (why_not_compile(torch.device("cuda")) is None) == fits


@pytest.mark.parametrize("side", [8, 7])
def test_whether_compiling_pays_is_tried_on_images_of_any_side(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eagerly both times, as compiling takes minutes."""
    built = compilation.Trainer
    monkeypatch.setattr(compilation, "has_amx", lambda _: True)
    monkeypatch.setattr(compilation, "why_not_compile", lambda _: None)
    monkeypatch.setattr(compilation, "Trainer", lambda config, data: built(replace(config, compile="off"), data))
    monkeypatch.setattr(compilation, "ROUND_UPDATES", 4)
    data = digits()
    cut = {
        part: replace(getattr(data, part), images=getattr(data, part).images[..., :side, :side])
        for part in ("train", "validation", "development", "test")
    }
    config = TrainConfig(model="residual_batch_8", batch_size=16, device="cpu", precision="fp32")
    pays = compilation.compiling_pays(config, replace(data, **cut), planned_updates=10**6)
    assert isinstance(pays, bool)
