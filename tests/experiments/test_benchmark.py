"""The two measuring commands on tiny settings: what they report fits what they measured, and nothing is run twice."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from classifier.data import load_dataset, split
from classifier.hardware import why_not_compile
from classifier.models import MODELS
from classifier.trainer import BLOCK
from experiments import benchmark_speed, recycled_saliency
from experiments.intervals import paired_difference

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

SPEED = ("--dataset", "digits", "--seconds", "0.01", "--batch-size", "20", "--episode-updates", "8")
SPEED += ("--episode-train-size", "50", "--validation-size", "100", "--rounds", "3")
SALIENCY = ("--dataset", "digits", "--train-size", "60", "--updates", "6", "--batch-size", "20")


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
        benchmark_speed.main([*SPEED, "--model", "search", "--no-compile", "--out", str(path)])
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]
    report = read_strictly(path)
    return report, benchmark_speed.text_report(report)


def test_the_report_says_on_what_and_how_it_was_measured(speed: tuple[Any, str]) -> None:
    report, _ = speed
    assert report["command"].startswith("python experiments/benchmark_speed.py --dataset digits --seconds 0.01")
    assert report["config"]["rounds"] == 3
    assert report["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert report["machine"]["cores"] >= 1
    (result,) = report["models"]
    assert (result["model"], result["image_shape"], result["threads"]) == ("search", [1, 8, 8], 1)


def test_ratios_are_those_of_each_round(speed: tuple[Any, str]) -> None:
    (result,) = speed[0]["models"]
    contestants = result["contestants"]
    assert set(contestants) == {name for name in benchmark_speed.CONTESTANTS if not name.endswith("compiled")}
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
    assert result["fast"] == "rmix-recycled"


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
    assert not hasattr(benchmark_speed.Trainer.train, "__wrapped__")
    assert not hasattr(benchmark_speed.Trainer.evaluate, "__wrapped__")


def test_every_round_runs_every_contestant_in_rotated_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def stretch(trainer: Any, contestant: benchmark_speed.Contestant, updates: int, *, seed: int) -> float:
        name = next(name for name, value in benchmark_speed.CONTESTANTS.items() if value is contestant)
        calls.append((name, seed))
        return 100.0 * (1 + seed)

    monkeypatch.setattr(benchmark_speed, "run_stretch", stretch)
    monkeypatch.setattr(benchmark_speed, "fitting_length", lambda *_: 2)
    config = benchmark_speed.BenchmarkConfig(rounds=3, compile=False)
    result = benchmark_speed.measure_model(config, "search", split(load_dataset("digits")))
    names = list(result["contestants"])
    for number in range(3):
        order = [name for name, seed in calls if seed == number]
        assert order == names[number:] + names[:number]
    # A round's disturbance, here a factor for all in it, is in no ratio.
    assert all(row["of_plain"]["rounds"] == [1, 1, 1] for row in result["contestants"].values())


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, 2), (3.5, 34), (10, 64), (70, 640)])
def test_a_stretch_is_even_and_bears_whole_blocks_of_draws(
    seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * BLOCK == 64
    data = split(load_dataset("digits"))
    trainer = benchmark_speed.Trainer(benchmark_speed.TrainConfig(batch_size=20, device="cpu"), data)
    monkeypatch.setattr(benchmark_speed, "run_stretch", lambda *_, **__: 200.001)  # an update in a tenth of a second
    contestant = benchmark_speed.CONTESTANTS["plain"]
    assert benchmark_speed.fitting_length(trainer, contestant, seconds) == expected


def test_other_networks_get_images_with_a_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    path = tmp_path / "report.json"
    arguments = ["--model", "tiny", "--image-side", "12", "--threads", "1", "--no-compile", "--out", str(path)]
    benchmark_speed.main([*SPEED, *arguments])
    report = read_strictly(path)
    assert report["models"][0]["image_shape"] == [1, 12, 12]
    assert report["episode"] is None  # the search network's alone


@pytest.mark.slow
@pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="nothing to compile with")
def test_the_compiled_fast_path_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    path = tmp_path / "report.json"
    arguments = ["--model", "tiny", "--image-side", "0", "--threads", "1", "--device", "cpu", "--out", str(path)]
    benchmark_speed.main([*SPEED, *arguments])
    result = read_strictly(path)["models"][0]
    contestants = result["contestants"]
    assert contestants["rmix-recycled-compiled"]["compiled"]
    assert result["fast"] == max(
        ("rmix-recycled", "rmix-recycled-compiled"), key=lambda name: contestants[name]["images_per_second"]["median"]
    )


def test_a_profile_is_printed_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    path = tmp_path / "report.json"
    benchmark_speed.main([*SPEED, "--model", "tiny", "--profile", "rmix-recycled", "--out", str(path)])
    out = capsys.readouterr().out
    assert "tiny, rmix-recycled, 10 updates" in out
    assert "aten::convolution_backward" in out
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dataset", "nope"), "data set 'nope'"),
        ((*SPEED, "--model", "search", "nope"), "unknown model 'nope'"),
        ((*SPEED, "--profile", "nope"), "--profile must be one of plain, "),
        ((*SPEED, "--rounds", "0"), "--rounds must be at least 1"),
        ((*SPEED, "--seconds", "0"), "--seconds must be"),
        ((*SPEED, "--threads", "0"), "--threads must be at least 1"),
        ((*SPEED, "--device", "abacus"), "--device"),
        ((*SPEED, "--no-compile", "--out", "."), "--out ."),
    ],
)
def test_the_benchmark_refuses(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(benchmark_speed.main, arguments)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison over two seeds."""
    folder = tmp_path_factory.mktemp("saliency") / "new" / "comparison"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        recycled_saliency.main([*SALIENCY, "--seeds", "2", "--out", str(folder)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return folder


@pytest.fixture
def finished(comparison: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may go on with."""
    folder = tmp_path / "comparison"
    folder.mkdir()
    (folder / "runs.jsonl").write_bytes((comparison / "runs.jsonl").read_bytes())
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which trainings are asked for; they are run here instead of in other processes."""
    jobs: list[tuple[str, int]] = []

    def run_all(asked: Sequence[tuple[str, int]], setting: recycled_saliency.Setting, config: Any) -> Any:
        jobs.extend(asked)
        return (recycled_saliency.train(name, seed, setting, config.data_root) for name, seed in asked)

    monkeypatch.setattr(recycled_saliency, "run_all", run_all)
    return jobs


def test_the_comparison_reports_paired_seeds(comparison: Path) -> None:
    assert sorted(entry.name for entry in comparison.iterdir()) == ["results.json", "results.md", "runs.jsonl"]
    report = read_strictly(comparison / "results.json")
    assert report["seeds"] == [0, 1]
    assert report["setting"]["precision"] in ("bf16", "fp32")
    assert report["machine"]["cores"] >= 1
    assert report["command"].startswith("python experiments/recycled_saliency.py --dataset digits")
    accuracies = {name: row["accuracy"]["per_seed"] for name, row in report["methods"].items()}
    assert set(accuracies) == {"rmix-recycled", "rmix-exact"}
    assert all(0 <= value <= 1 for values in accuracies.values() for value in values)
    assert all(second > 0 for row in report["methods"].values() for second in row["seconds"]["per_seed"])
    gap = report["recycled_less_exact"]
    ours, theirs = accuracies["rmix-recycled"], accuracies["rmix-exact"]
    np.testing.assert_allclose(gap["per_seed"], np.subtract(ours, theirs))
    assert (gap["mean"], gap["half_width"]) == pytest.approx(paired_difference(ours, theirs))


def test_the_comparisons_table_is_that_of_the_report(comparison: Path) -> None:
    report = read_strictly(comparison / "results.json")
    text = (comparison / "results.md").read_text()
    for row in report["methods"].values():
        assert f"| {100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['half_width']:.2f} |" in text
    assert f"**{100 * report['recycled_less_exact']['mean']:+.2f} ± " in text
    assert report["command"] in text


def test_a_finished_comparison_trains_nothing(
    comparison: Path, finished: Path, trained: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    recycled_saliency.main([*SALIENCY, "--seeds", "2", "--out", str(finished)])
    assert trained == []
    assert "4 trainings, 4 of them finished before" in capsys.readouterr().out
    assert (finished / "runs.jsonl").read_bytes() == (comparison / "runs.jsonl").read_bytes()
    first, second = (read_strictly(folder / "results.json") for folder in (comparison, finished))
    assert first["methods"] == second["methods"]
    assert first["recycled_less_exact"] == second["recycled_less_exact"]


def test_more_seeds_and_context_add_to_what_is_there(finished: Path, trained: list[tuple[str, int]]) -> None:
    recycled_saliency.main([*SALIENCY, "--seeds", "3", "--context", "--out", str(finished)])
    both, context = ("rmix-recycled", "rmix-exact"), ("cutmix", "plain")
    expected = {(name, 2) for name in both} | {(name, seed) for name in context for seed in range(3)}
    assert set(trained) == expected
    assert len(trained) == len(expected)
    assert set(read_strictly(finished / "results.json")["methods"]) == {*both, *context}
    assert len((finished / "runs.jsonl").read_text().splitlines()) == 12


def test_a_torn_line_is_trained_again_to_the_same_result(
    comparison: Path, finished: Path, trained: list[tuple[str, int]]
) -> None:
    log = finished / "runs.jsonl"
    whole = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text(log.read_text()[:-40])
    recycled_saliency.main([*SALIENCY, "--seeds", "2", "--out", str(finished)])
    assert trained == [(whole[-1]["method"], whole[-1]["seed"])]
    again = [json.loads(line) for line in log.read_text().splitlines()]
    assert [run["accuracy"] for run in again] == [run["accuracy"] for run in whole]


def test_results_of_another_setting_are_not_mixed_in(finished: Path, refused: Refused) -> None:
    arguments = [*SALIENCY[:-1], "30", "--seeds", "2", "--out", finished]
    assert "batch_size 20, not 30" in refused(recycled_saliency.main, arguments)


def test_a_seed_gives_both_contestants_the_same_training_but_for_the_saliency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    class Watched(recycled_saliency.Trainer):
        def train(self, *arguments: Any, **keywords: Any) -> Any:
            weights = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
            started.append((weights, self.data.train.images, self.seed, asdict(self.config)))
            return super().train(*arguments, **keywords)

    monkeypatch.setattr(recycled_saliency, "Trainer", Watched)
    setting = recycled_saliency.Setting("digits", "search", 60, 6, 20, "cpu", "fp32", torch.__version__)
    runs = [recycled_saliency.train(name, 3, setting, None) for name in ("rmix-recycled", "rmix-exact")]
    (weights, images, seed, config), (weights2, images2, seed2, config2) = started
    assert torch.equal(weights, weights2)
    assert torch.equal(images, images2)
    assert seed == seed2 == 3
    assert {name for name in config if config[name] != config2[name]} == {"saliency"}
    assert [run["setting"] for run in runs] == [asdict(setting)] * 2
    other = recycled_saliency.train("rmix-exact", 4, setting, None)
    assert other["seed"] == 4
    assert not torch.equal(started[2][1], images)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dataset", "nope"), "data set 'nope'"),
        ((*SALIENCY, "--seeds", "1"), "--seeds must be at least 2"),
        ((*SALIENCY, "--processes", "0"), "--processes must be at least 1"),
        ((*SALIENCY, "--model", "nope"), "unknown model 'nope'"),
        ((*SALIENCY, "--updates", "0"), "updates must be at least 1"),
        ((*SALIENCY, "--train-size", "100000"), "train_size"),
    ],
)
def test_the_comparison_refuses(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(recycled_saliency.main, arguments)
