"""The speed benchmark on tiny settings: what it reports fits what it measured."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.hardware import why_not_compile
from rlmix.classifier.models import MODELS
from rlmix.classifier.training.draws import BLOCK
from rlmix.experiments.benchmarks import training_speed

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

SPEED = ("--dataset", "digits", "--seconds", "0.01", "--batch-size", "20", "--episode-updates", "8")
SPEED += ("--episode-train-size", "50", "--validation-size", "100", "--rounds", "3")


def tiny_network(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def read_strictly(path: Path) -> Any:
    """JSON as others read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def speed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The report of one benchmark, and its text."""
    path = tmp_path_factory.mktemp("speed") / "new" / "report.json"
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        training_speed.main([*SPEED, "--model", "search", "--no-compile", "--out", str(path)])
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]
    report = read_strictly(path)
    return report, training_speed.text_report(report)


def test_the_report_says_on_what_and_how_it_was_measured(speed: tuple[Any, str]) -> None:
    report, _ = speed
    assert report["command"].startswith(
        "python experiments/benchmarks/training_speed.py --dataset digits --seconds 0.01"
    )
    assert report["config"]["rounds"] == 3
    assert report["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert report["machine"]["cores"] >= 1
    (result,) = report["models"]
    assert (result["model"], result["image_shape"], result["threads"]) == ("search", [1, 8, 8], 1)


def test_ratios_are_those_of_each_round(speed: tuple[Any, str]) -> None:
    (result,) = speed[0]["models"]
    contestants = result["contestants"]
    assert set(contestants) == {name for name in training_speed.VARIANTS if not name.endswith("compiled")}
    for row in contestants.values():
        rates = np.array(row["images_per_second"]["rounds"])
        assert rates.shape == (3,)
        assert (rates > 0).all()
        for base, key in (("plain", "of_plain"), ("rmix-exact-fp32", "of_slow")):
            ratios = rates / contestants[base]["images_per_second"]["rounds"]
            np.testing.assert_allclose(row[key]["rounds"], ratios)
            assert row[key]["median"] == pytest.approx(np.median(ratios))
            assert (row[key]["low"], row[key]["high"]) == pytest.approx((ratios.min(), ratios.max()))
    assert contestants["plain"]["of_plain"]["rounds"] == [1, 1, 1]
    assert contestants["rmix-exact-fp32"]["precision"] == "fp32"
    assert result["fast"] == "rmix"


def test_an_episodes_time_adds_up(speed: tuple[Any, str]) -> None:
    episode = speed[0]["episode"]
    assert (episode["updates"], episode["train_size"], episode["validation_images"]) == (8, 50, 100)
    assert len(episode["seconds"]) == 3
    for number, seconds in enumerate(episode["seconds"]):
        inside = seconds["training"] + seconds["validation"]
        assert 0 < seconds["validation"] < inside < seconds["step"]
        overhead = 100 * (seconds["step"] - inside) / seconds["step"]
        assert episode["step_overhead_percent"]["rounds"][number] == pytest.approx(overhead)
        whole = seconds["reset"] + seconds["step"]
        assert episode["validation_percent"]["rounds"][number] == pytest.approx(100 * seconds["validation"] / whole)


def test_the_text_has_a_line_for_everything(speed: tuple[Any, str]) -> None:
    report, text = speed
    for name, row in report["models"][0]["contestants"].items():
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert f"{row['images_per_second']['median']:,.0f}" in line
    assert "step beyond training and validation" in text


def test_the_trainer_is_left_unclocked(speed: tuple[Any, str]) -> None:
    assert not hasattr(training_speed.Trainer.train, "__wrapped__")
    assert not hasattr(training_speed.Trainer.evaluate, "__wrapped__")


def test_every_round_runs_every_contestant_in_rotated_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def segment(trainer: Any, variant: training_speed.Variant, updates: int, *, seed: int) -> float:
        name = next(name for name, value in training_speed.VARIANTS.items() if value is variant)
        calls.append((name, seed))
        return 100.0 * (1 + seed)

    monkeypatch.setattr(training_speed, "run_segment", segment)
    monkeypatch.setattr(training_speed, "updates_per_segment", lambda *_: 2)
    config = training_speed.BenchmarkConfig(rounds=3, compile=False)
    result = training_speed.measure_model(config, "search", split(load_dataset("digits")))
    names = list(result["contestants"])
    for number in range(3):
        order = [name for name, seed in calls if seed == number]
        assert order == names[number:] + names[:number]
    # A round's disturbance, here a factor for all in it, is in no ratio.
    assert all(row["of_plain"]["rounds"] == [1, 1, 1] for row in result["contestants"].values())


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, 2), (3.5, 34), (10, 64), (70, 640)])
def test_a_segment_is_even_and_has_whole_blocks_of_draws(
    seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * BLOCK == 64
    data = split(load_dataset("digits"))
    trainer = training_speed.Trainer(training_speed.BenchmarkTrainConfig(batch_size=20, device="cpu"), data)
    monkeypatch.setattr(training_speed, "run_segment", lambda *_, **__: 200.001)  # an update in a tenth of a second
    contestant = training_speed.VARIANTS["plain"]
    assert training_speed.updates_per_segment(trainer, contestant, seconds) == expected


def test_other_networks_get_larger_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    path = tmp_path / "report.json"
    arguments = ["--model", "tiny", "--image-size", "12", "--threads", "1", "--no-compile", "--out", str(path)]
    training_speed.main([*SPEED, *arguments])
    report = read_strictly(path)
    assert report["models"][0]["image_shape"] == [1, 12, 12]
    assert report["episode"] is None  # the search network's alone
    measured = report["models"][0]["contestants"]
    assert "manifold" not in measured  # this network has no stages that it knows
    assert {"plain", "rmix", "puzzlemix", "rmix-exact-fp32"} < set(measured)


def test_named_contestants_are_measured_beside_those_of_the_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_speed, "run_segment", lambda *_, **__: 1.0)
    monkeypatch.setattr(training_speed, "updates_per_segment", lambda *_: 2)
    config = training_speed.BenchmarkConfig(rounds=1, compile=False, contestants=("cutmix",))
    result = training_speed.measure_model(config, "search", split(load_dataset("digits")))
    assert set(result["contestants"]) == {"plain", "cutmix", "rmix", "rmix-exact-fp32"}


@pytest.mark.slow
@pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="nothing to compile with")
def test_the_compiled_fast_path_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    path = tmp_path / "report.json"
    arguments = ["--model", "tiny", "--image-size", "None", "--threads", "1", "--device", "cpu", "--out", str(path)]
    training_speed.main([*SPEED, *arguments])
    result = read_strictly(path)["models"][0]
    contestants = result["contestants"]
    assert contestants["rmix-compiled"]["compiled"]
    assert result["fast"] == max(
        ("rmix", "rmix-compiled"), key=lambda name: contestants[name]["images_per_second"]["median"]
    )


def test_a_profile_is_printed_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    path = tmp_path / "report.json"
    training_speed.main([*SPEED, "--model", "tiny", "--profile", "rmix", "--out", str(path)])
    out = capsys.readouterr().out
    assert "tiny, rmix, 10 updates" in out
    assert "aten::convolution_backward" in out
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dataset", "nope"), "data set 'nope'"),
        ((*SPEED, "--model", "search", "nope"), "unknown model 'nope'"),
        ((*SPEED, "--profile", "nope"), "--profile must be one of plain, "),
        ((*SPEED, "--rounds", "0"), "rounds must be at least 1"),
        ((*SPEED, "--seconds", "0"), "seconds must be"),
        ((*SPEED, "--threads", "0"), "threads must be at least 1"),
        ((*SPEED, "--device", "abacus"), "device must be auto"),
        ((*SPEED, "--no-compile", "--out", "."), "--out ."),
    ],
)
def test_the_benchmark_refuses(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(training_speed.main, arguments)
