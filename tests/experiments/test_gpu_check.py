"""The GPU check: its parts run on a CPU at tiny sizes, and one that fails or is ended loses nothing of the others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.benchmarks import gpu_check, gpu_environments, gpu_speed
from rlmix.experiments.benchmarks.gpu_check import GpuCheckConfig, run_part
from rlmix.experiments.benchmarks.gpu_sizes import FULL, TINY, Case
from rlmix.experiments.benchmarks.training_speed import VARIANTS


@pytest.fixture
def found() -> dict[str, Any]:
    return {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_is_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gpu_check.main([])
    assert capsys.readouterr().out == "no CUDA device is there: nothing to check\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "nope"], "--parts must be among machine, tests, speed"),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--device", "cpu", "--tests", "nowhere"], "--tests nowhere: no such folder"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], message: str, refused: Any) -> None:
    assert message in refused(gpu_check.main, arguments)


def test_the_machine_is_described_and_its_rates_are_measured(found: dict[str, Any]) -> None:
    gpu_speed.measure_machine("cpu", TINY, "", found.__setitem__)
    assert found["machine"]["torch"] in torch.__version__
    rates = ("bf16_flop_per_second", "fp32_flop_per_second", "tf32_flop_per_second", "copied_bytes_per_second")
    assert all(found[rate] > 0 for rate in rates)


def test_operations_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution and two heads of 3 classes: each product once forward, and once backward for its weights."""
    from rlmix.classifier.models import MODELS

    def network(classes: int, channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
        )

    monkeypatch.setitem(MODELS, "counted", network)
    case = Case("counted", 8, 1, 10, 3, 30)
    trainer = Trainer(case.training("cpu"), case.data())
    convolution, heads = 2 * 4 * 9 * 6 * 6, 2 * 2 * 4 * 3
    # The first layer has no gradient for its input; the others' is a third product.
    expected = 2 * convolution + 3 * heads
    assert gpu_speed.operations_per_image(trainer, VARIANTS["plain"]) == expected
    # Every other update of exact R-Mix makes a second forward pass, and a backward pass for the input alone.
    exact = expected + (2 * convolution + 2 * heads) / 2
    assert gpu_speed.operations_per_image(trainer, VARIANTS["rmix-exact"]) == exact


def test_speed_is_measured_for_every_network_and_contestant(found: dict[str, Any]) -> None:
    gpu_speed.measure_speed("cpu", TINY, "", found.__setitem__)
    for case in TINY.cases:
        for name in gpu_speed.CONTESTANTS:
            row = found[f"{case.name}: {name}"]
            if "left_out" in row:
                assert name == "puzzlemix" and "gco" in row["left_out"]
                continue
            rates = row["images_per_second"]
            assert len(rates["rounds"]) == TINY.rounds and rates["low"] > 0
            share = rates["median"] * row["flop_per_image"] / found["bf16_flop_per_second"]
            assert row["share_of_bf16_products"] == pytest.approx(share)
        assert set(found[f"{case.name}: cost of determinism"]) == {"any", "deterministic"}
    json.dumps(found, allow_nan=False)


def test_compiled_speed_is_measured(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []  # but not in truth, which takes minutes on a CPU
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    monkeypatch.setattr(gpu_speed, "why_not_compile", lambda device: None)
    gpu_speed.measure_compiled("cpu", TINY, "", found.__setitem__)
    (row,) = found.values()
    assert row["seconds_to_compile"] > 0 and row["images_per_second"]["low"] > 0 and compiled


@pytest.mark.slow
def test_trainings_an_hour_are_measured_for_each_number_of_processes(found: dict[str, Any]) -> None:
    gpu_environments.measure_environments("cpu", TINY, "", found.__setitem__)
    for count in TINY.processes:
        assert found[f"{count} processes"]["trainings_per_hour"]["low"] > 0


@pytest.mark.parametrize("sizes", [FULL, TINY])
def test_the_cases_can_be_trained(sizes: Any) -> None:
    for case in {*sizes.cases, *sizes.compiled}:
        assert case.images >= case.batch_size
        assert case.side % 4 == 0, "R-Mix's finer grid"
    assert len({case.name for case in sizes.cases}) == len(sizes.cases)


TESTS = """
import os, signal
def test_good(): pass
def test_bad(): assert 1 == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "counts", "error"),
    [
        ("", {"passed": 1, "failed": 1}, "pytest ended with status 1"),
        ("def test_lost(): os.kill(os.getpid(), signal.SIGKILL)", {"passed": 1, "failed": 1}, "status -9"),
    ],
)
def test_a_part_that_fails_keeps_what_it_has(more: str, counts: dict[str, int], error: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS + more)
    found = run_part("tests", GpuCheckConfig(device="cpu", tests=str(tmp_path), tiny=True), 500)
    assert found["state"] == "failed" and error in found["error"]
    assert found["results"]["counts"] == counts
    (text,) = found["results"]["failures"].values()
    assert "assert 1 == 2" in text


def test_a_part_that_takes_too_long_is_ended_and_one_without_time_is_left_out() -> None:
    config = GpuCheckConfig(device="cpu", tiny=True)
    assert run_part("machine", config, 0.1)["state"] == "timed out"
    assert run_part("machine", config, 0.0) == {"state": "left out", "seconds": 0.0, "results": {}}
