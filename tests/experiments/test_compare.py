"""Comparisons on tiny settings: paired seeds, nothing run twice, and statistics that are the textbook's."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.mixing import METHODS
from experiments import compare
from experiments.contestants import CONTESTANTS
from experiments.intervals import paired_difference

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

SETTING = ("--dataset", "digits", "--train-size", "60", "--updates", "6", "--batch-size", "20")
PAIR = ("--contestants", "rmix", "rmix-exact", "--baseline", "rmix-exact")


def read_strictly(path: Path) -> Any:
    """JSON as others read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison over two seeds."""
    folder = tmp_path_factory.mktemp("saliency") / "new" / "comparison"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        compare.main([*PAIR, *SETTING, "--seeds", "2", "--out", str(folder)])
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

    def run_all(asked: Sequence[tuple[str, int]], setting: compare.Setting, config: Any) -> Any:
        jobs.extend(asked)
        return (compare.train(name, seed, setting, config.data_root) for name, seed in asked)

    monkeypatch.setattr(compare, "run_all", run_all)
    return jobs


def test_the_comparison_reports_paired_seeds(comparison: Path) -> None:
    written = ["report.html", "results.json", "results.md", "runs.jsonl"]
    assert sorted(entry.name for entry in comparison.iterdir()) == written
    report = read_strictly(comparison / "results.json")
    assert report["seeds"] == [0, 1]
    assert report["setting"]["precision"] in ("bf16", "fp32")
    assert report["machine"]["cores"] >= 1
    assert report["processors"] == {report["machine"]["processor"]: 4}
    assert report["command"].startswith("python experiments/compare.py --contestants rmix")
    accuracies = {name: row["accuracy"]["per_seed"] for name, row in report["methods"].items()}
    assert set(accuracies) == {"rmix", "rmix-exact"}
    assert all(0 <= value <= 1 for values in accuracies.values() for value in values)
    assert all(second > 0 for row in report["methods"].values() for second in row["seconds"]["per_seed"])
    assert set(report["less_baseline"]) == {"rmix"}
    gap = report["less_baseline"]["rmix"]
    assert (gap["mean"], gap["half_width"]) == pytest.approx(paired_difference(*accuracies.values()))
    assert 0 < gap["p_value"] <= 1


def test_the_comparisons_table_is_that_of_the_report(comparison: Path) -> None:
    report = read_strictly(comparison / "results.json")
    text = (comparison / "results.md").read_text()
    for row in report["methods"].values():
        assert f"| {100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['half_width']:.2f} |" in text
    assert f"| {100 * report['less_baseline']['rmix']['mean']:+.2f} ± " in text
    assert report["command"] in text
    page = unescape((comparison / "report.html").read_text())
    for row in report["methods"].values():
        assert f">{row['title']}</th>" in page
        assert f">{100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['half_width']:.2f}</td>" in page
    assert f">{100 * report['less_baseline']['rmix']['mean']:+.2f} ± " in page and report["command"] in page


def test_a_finished_comparison_trains_nothing(
    comparison: Path, finished: Path, trained: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main([*PAIR, *SETTING, "--seeds", "2", "--out", str(finished)])
    assert trained == []
    assert "4 trainings, 4 of them finished before" in capsys.readouterr().out
    assert (finished / "runs.jsonl").read_bytes() == (comparison / "runs.jsonl").read_bytes()
    first, second = (read_strictly(folder / "results.json") for folder in (comparison, finished))
    assert first["methods"] == second["methods"]
    assert first["less_baseline"] == second["less_baseline"]


def test_more_seeds_and_contestants_add_to_what_is_there(finished: Path, trained: list[tuple[str, int]]) -> None:
    four = ("--contestants", "cutmix", "rmix-exact", "plain", "rmix")
    compare.main([*four, *SETTING, "--seeds", "3", "--out", str(finished)])
    both, context = ("rmix", "rmix-exact"), ("cutmix", "plain")
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
    compare.main([*PAIR, *SETTING, "--seeds", "2", "--out", str(finished)])
    assert trained == [(whole[-1]["method"], whole[-1]["seed"])]
    again = [json.loads(line) for line in log.read_text().splitlines()]
    assert [run["accuracy"] for run in again] == [run["accuracy"] for run in whole]


def test_trainings_of_another_machine_are_told_apart(finished: Path, trained: list[tuple[str, int]]) -> None:
    log = finished / "runs.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    entries[0]["processor"] = "Abacus"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    compare.main([*PAIR, *SETTING, "--seeds", "2", "--out", str(finished)])
    here = entries[1]["processor"]
    assert read_strictly(finished / "results.json")["processors"] == {"Abacus": 1, here: 3}
    text = (finished / "results.md").read_text()
    assert "Abacus (1 training)" in text and f"{here} (3 trainings)" in text


def test_results_of_another_setting_are_not_mixed_in(finished: Path, refused: Refused) -> None:
    arguments = [*PAIR, *SETTING[:-1], "30", "--seeds", "2", "--out", finished]
    assert "batch_size 20, not 30" in refused(compare.main, arguments)


def test_a_seed_gives_both_contestants_the_same_training_but_for_the_saliency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    class Watched(compare.Trainer):
        def train(self, *arguments: Any, **keywords: Any) -> Any:
            weights = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
            started.append((weights, self.data.train.images, self.seed, asdict(self.config)))
            return super().train(*arguments, **keywords)

    monkeypatch.setattr(compare, "Trainer", Watched)
    setting = compare.Setting("digits", "search", 60, 6, 20, "cpu", "fp32", torch.__version__)
    runs = [compare.train(name, 3, setting, None) for name in ("rmix", "rmix-exact")]
    (weights, images, seed, config), (weights2, images2, seed2, config2) = started
    assert torch.equal(weights, weights2)
    assert torch.equal(images, images2)
    assert seed == seed2 == 3
    assert {name for name in config if config[name] != config2[name]} == {"saliency"}
    assert [run["setting"] for run in runs] == [asdict(setting)] * 2
    other = compare.train("rmix-exact", 4, setting, None)
    assert other["seed"] == 4
    assert not torch.equal(started[2][1], images)


def test_a_per_batch_agent_is_compared_as_the_others_are(tmp_path: Path, trained: list[tuple[str, int]]) -> None:
    names = ("rl-mix", "rl-mix-random", "rmix-all")
    options = ("--contestants", *names, "--baseline", "rl-mix-random", *SETTING, "--seeds", "2")
    compare.main([*options, "--out", str(tmp_path)])
    report = read_strictly(tmp_path / "results.json")
    rows = report["methods"]
    assert (rows["rl-mix"]["per_batch"]["learned"], rows["rl-mix-random"]["per_batch"]["learned"]) == (True, False)
    assert "per_batch" not in rows["rmix-all"]
    assert {row["policy"]["shares"]["rmix"] for row in rows.values()} == {1.0}
    logged = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for name in names[:2]:
        rewards = [run["last_quarter"]["reward"] for run in logged if run["method"] == name]
        assert rows[name]["reward"]["per_seed"] == rewards and all(0 < reward <= 1 for reward in rewards)
    assert set(report["less_baseline"]) == {"rl-mix", "rmix-all"}
    again = compare.train("rl-mix", 1, compare.Setting(**report["setting"]), None)
    assert again["accuracy"] == rows["rl-mix"]["accuracy"]["per_seed"][1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dataset", "nope"), "data set 'nope'"),
        ((*SETTING, "--seeds", "1"), "--seeds must be at least 2"),
        ((*SETTING, "--processes", "0"), "--processes must be at least 1"),
        ((*SETTING, "--contestants", "plain", "nope"), "--contestants must be among plain, label-smoothing"),
        ((*SETTING, "--contestants", "mixup", "cutmix"), "--baseline must be one of the contestants mixup cutmix"),
        ((*SETTING, "--model", "nope"), "unknown model 'nope'"),
        ((*SETTING, "--updates", "0"), "updates must be at least 1"),
        ((*SETTING, "--train-size", "100000"), "train_size"),
    ],
)
def test_the_comparison_refuses(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(compare.main, arguments)


def test_every_method_has_a_contestant() -> None:
    assert {method for entry in CONTESTANTS.values() for method in entry.policy.shares} == set(METHODS)
    assert len({entry.title for entry in CONTESTANTS.values()}) == len(CONTESTANTS)


def test_the_table_goes_from_the_best_to_the_worst(comparison: Path) -> None:
    report = read_strictly(comparison / "results.json")
    lines = [line for line in (comparison / "results.md").read_text().splitlines() if line.startswith("| ")][1:]
    accuracies = [float(line.split("|")[2].split("±")[0]) for line in lines]
    assert len(accuracies) == len(report["methods"])
    assert accuracies == sorted(accuracies, reverse=True)
