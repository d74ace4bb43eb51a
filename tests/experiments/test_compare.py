"""Comparisons on tiny settings: paired seeds, nothing run twice, and statistics that are the textbook's."""

import csv
import json
import math
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.agent.agent import Agent
from rlmix.agent.loop_policy import policies_of
from rlmix.agent.rule import Rule
from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.evaluation.measure import Column, Measure, Subject, percent
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.mixing import METHODS, MixPolicy, PolicySchedule
from rlmix.experiments import compare
from rlmix.experiments.comparison import results, runner, trainings
from rlmix.experiments.comparison.config import ComparisonConfig, ComparisonTrainConfig
from rlmix.experiments.comparison.contestants import CONTESTANTS, Contestant
from rlmix.experiments.comparison.held_out import TEST_READS
from rlmix.experiments.comparison.intervals import format_interval, paired_difference
from rlmix.experiments.comparison.results import unpack_hits
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.options import DataConfig
from tests.agent.loops import agent, rule
from tests.experiments.inline import run_inline

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

SETTING = ("--dataset", "digits", "--train-size", "60", "--updates", "6", "--batch-size", "20")
PAIR = ("--contestants", "rmix", "rmix-exact", "--baseline", "rmix-exact")


def read_strictly(path: Path) -> Any:
    """JSON as others read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def squeezed(path: Path) -> str:
    """A Markdown file without the spaces that align its tables."""
    return re.sub(" +", " ", path.read_text())


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
    return run_inline(monkeypatch)


def test_the_comparison_reports_paired_seeds(comparison: Path) -> None:
    written = ["data.json", "report.html", "results.csv", "results.json", "results.md", "results.png", "runs.jsonl"]
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
    images = report["setting"]["updates"] * report["setting"]["batch_size"]
    row = report["methods"]["rmix"]
    first, second = (images / seconds for seconds in row["seconds"]["per_seed"])
    assert results.images_per_second(report["setting"], row) == pytest.approx((first + second) / 2)
    assert results.images_per_second(report["setting"], {**row, "ended": [False, True]}) == pytest.approx(second)
    assert set(report["less_baseline"]) == {"rmix"}
    gap = report["less_baseline"]["rmix"]
    assert (gap["mean"], gap["half_width"]) == pytest.approx(paired_difference(*accuracies.values()))
    assert 0 < gap["p_value"] <= 1


def test_the_comparisons_table_is_that_of_the_report(comparison: Path) -> None:
    report = read_strictly(comparison / "results.json")
    text = squeezed(comparison / "results.md")
    accuracies = {
        f"{100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['half_width']:.2f} "
        f"({100 * row['accuracy']['half_width_with_images']:.2f})"
        for row in report["methods"].values()
    }
    for accuracy in accuracies:
        assert f"| {accuracy} |" in text
    assert f"| {100 * report['less_baseline']['rmix']['mean']:+.2f} ± " in text
    assert report["command"] in text
    page = unescape((comparison / "report.html").read_text())
    for row in report["methods"].values():
        assert f">{row['title']}</th>" in page
    for accuracy in accuracies:
        assert f">{accuracy}</td>" in page
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


def test_results_of_other_images_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(images: int) -> None:
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (images, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "set.npz", train_images=pixels, train_labels=np.arange(images) % 2)
        trainings._loaded.cache_clear()  # as in another process

    out, file = tmp_path / "out", str(tmp_path / "set.npz")
    asked = ["--dataset", file, *SETTING[2:], "--seeds", "2", "--contestants", "plain", "--out", str(out)]
    write(400)
    compare.main(asked)
    write(600)
    for arguments in (asked, [*asked[:-1], str(tmp_path / "new"), "--collect", str(out)]):
        with pytest.raises(SystemExit):
            compare.main(arguments)
        told = capsys.readouterr().err
        assert told.startswith(f"error: {out}: expected the data set as it was when this run began")


def test_measures_are_told_with_the_images_that_they_were_taken_on(tmp_path: Path) -> None:
    asked = [*SETTING, "--seeds", "2", "--contestants", "plain", "--out", str(tmp_path)]
    compare.main([*asked, "--measures", "accuracy", "--measured-images", "20"])
    compare.main(asked)
    report = read_strictly(tmp_path / "results.json")
    assert report["measured_images"] == 20 and report["methods"]["plain"]["measures"]
    assert "on 20 development images" in (tmp_path / "results.md").read_text()


def test_an_option_of_training_is_part_of_the_setting(
    comparison: Path, tmp_path: Path, trained: list[tuple[str, int]], refused: Refused
) -> None:
    changed = ["--lr", "0.05", "--label-noise", "0.2", "--lr-milestones", "0.4", "--seeds", "2"]
    asked = ["--contestants", "plain", *SETTING, *changed, "--out", tmp_path / "out"]
    compare.main([str(option) for option in asked])
    report = read_strictly(tmp_path / "out" / "results.json")
    options = {"lr": 0.05, "label_noise": 0.2, "lr_milestones": [0.4]}
    assert options.items() <= report["setting"].items() and "warmup" not in report["setting"]
    assert "lr 0.05" in squeezed(tmp_path / "out" / "results.md")
    usual = read_strictly(comparison / "results.json")["setting"]
    assert [name for name in report["setting"] if name not in options] == list(usual), "defaults are not stored"
    assert len(usual) == 10
    setting = stored_config(trainings.Setting, report["setting"])
    assert (setting.data.label_noise, setting.train.lr, setting.train.lr_milestones) == (0.2, 0.05, (0.4,))
    trained.clear()
    compare.main([str(option) for option in asked])
    assert trained == []
    said = refused(compare.main, [*PAIR, *SETTING, "--lr", "0.05", "--seeds", "2", "--out", comparison])
    assert "(lr 0.2, not 0.05)" in said


def test_trainings_of_another_comparison_are_taken_over(
    comparison: Path, tmp_path: Path, trained: list[tuple[str, int]], refused: Refused
) -> None:
    before = {path.name: path.read_bytes() for path in comparison.iterdir()}
    asked = [*PAIR[:3], "plain", *PAIR[3:], *SETTING, "--seeds", "2", "--out", str(tmp_path), "--collect"]
    compare.main([*asked, str(comparison)])
    assert sorted(trained) == [("plain", 0), ("plain", 1)]
    one, other = (read_strictly(folder / "results.json")["methods"] for folder in (comparison, tmp_path))
    assert other["rmix-exact"] == one["rmix-exact"]
    assert {path.name: path.read_bytes() for path in comparison.iterdir()} == before
    assert "expected a comparison's folder" in refused(compare.main, [*asked, tmp_path / "nothing"])
    elsewhere = [*PAIR, *SETTING[:-1], "30", "--seeds", "2", "--out", tmp_path / "other", "--collect", comparison]
    assert "batch_size 20, not 30" in refused(compare.main, elsewhere)


def test_fewer_development_images_leave_more_to_train_on(
    tmp_path: Path, refused: Refused, trained: list[tuple[str, int]]
) -> None:
    images = len(load_dataset("digits").pool)
    validation = split(load_dataset("digits")).validation
    everything = images - len(validation) - 50
    asked = [*PAIR, "--dataset", "digits", "--train-size", str(everything), *SETTING[4:], "--seeds", "2"]
    assert "expected a train_size" in refused(compare.main, [*asked, "--out", tmp_path])
    compare.main([*asked, "--development-size", "50", "--out", str(tmp_path)])
    report = read_strictly(tmp_path / "results.json")
    assert report["measured_images"] == 50 and len(trained) == 4
    assert "<img" in (tmp_path / "report.html").read_text()  # the same images as each contestant mixes them
    said = refused(compare.main, [*asked, "--development-size", "49", "--out", tmp_path])
    assert "development_size 50, not 49" in said


def test_a_seed_gives_both_contestants_the_same_training_but_for_the_saliency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    class Watched(trainings.Trainer):
        def train(self, *arguments: Any, **keywords: Any) -> Any:
            weights = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
            started.append((weights, self.data.train.images, self.seed, asdict(self.config)))
            return super().train(*arguments, **keywords)

    monkeypatch.setattr(trainings, "Trainer", Watched)
    training = ComparisonTrainConfig(updates=6, batch_size=20, device="cpu", precision="fp32")
    setting = trainings.Setting(DataConfig("digits", train_size=60), training, torch.__version__)
    config = ComparisonConfig()
    runs = [trainings.train(name, CONTESTANTS[name], 3, setting, config) for name in ("rmix", "rmix-exact")]
    (weights, images, seed, one), (weights2, images2, seed2, other) = started
    assert torch.equal(weights, weights2)
    assert torch.equal(images, images2)
    assert seed == seed2 == 3
    assert {name for name in one if one[name] != other[name]} == {"saliency"}
    assert [run["setting"] for run in runs] == [setting.to_json()] * 2
    assert trainings.train("rmix-exact", CONTESTANTS["rmix-exact"], 4, setting, config)["seed"] == 4
    assert not torch.equal(started[2][1], images)


def test_a_per_batch_agent_is_compared_as_the_others_are(tmp_path: Path, trained: list[tuple[str, int]]) -> None:
    names = ("rl-mix", "rl-mix-random", "rmix-all")
    options = ("--contestants", *names, "--baseline", "rl-mix-random", *SETTING, "--seeds", "2")
    compare.main([*options, "--out", str(tmp_path)])
    report = read_strictly(tmp_path / "results.json")
    rows = report["methods"]
    assert (rows["rl-mix"]["per_batch"]["learned"], rows["rl-mix-random"]["per_batch"]["learned"]) == (True, False)
    assert "per_batch" not in rows["rmix-all"]
    assert {row["schedule"]["segments"][0]["policy"]["shares"]["rmix"] for row in rows.values()} == {1.0}
    logged = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for name in names[:2]:
        rewards = [run["last_quarter"]["reward"] for run in logged if run["method"] == name]
        assert rows[name]["reward"]["per_seed"] == rewards and all(0 < reward <= 1 for reward in rewards)
    assert set(report["less_baseline"]) == {"rl-mix", "rmix-all"}
    setting, config = stored_config(trainings.Setting, report["setting"]), ComparisonConfig()
    again = trainings.train("rl-mix", CONTESTANTS["rl-mix"], 1, setting, config)
    assert again["accuracy"] == rows["rl-mix"]["accuracy"]["per_seed"][1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dataset", "nope"), "data set 'nope'"),
        ((*SETTING, "--seeds", "1"), "seeds must be at least 2"),
        ((*SETTING, "--processes", "0"), "processes must be at least 1"),
        ((*SETTING, "--contestants", "plain", "nope"), "--contestants must be among plain, label-smoothing"),
        ((*SETTING, "--contestants", "plain", "cutmx"), "got 'cutmx'; did you mean cutmix"),
        ((*SETTING, "--contestants", "mixup", "cutmix"), "--baseline must be one of the contestants mixup cutmix"),
        ((*SETTING, "--model", "nope"), "unknown model 'nope'"),
        ((*SETTING, "--updates", "0"), "updates must be at least 1"),
        ((*SETTING, "--measures", "taste"), "--measures must be among accuracy, attacks"),
        ((*SETTING, "--measured-images", "1"), "measured_images must be at least 2"),
        ((*SETTING, "--schedules", "policy.json"), "--schedules must be NAME=FILE"),
        ((*SETTING, "--schedules", "cutmix=policy.json"), "'cutmix' stands for another contestant"),
        ((*SETTING, "--schedules", "mine=nowhere.json"), "nowhere.json: cannot be read"),
        ((*SETTING, "--agents", "runs"), "--agents must be shipped or surrogate or rule, or NAME=FOLDER"),
        ((*SETTING, "--agents", "plain=shipped"), "'plain' stands for another contestant"),
        ((*SETTING, "--agents", "mine=nowhere"), "nowhere"),
        ((*SETTING, "--train-size", "100000"), "train_size"),
        (("--train_size", "100000", *SETTING[:2], *SETTING[4:]), "train_size"),
        ((*SETTING, "--contestants", "plain", "rl-mix", "--batch-size", "61"), "got 60 training images for batches of"),
    ],
)
def test_the_comparison_refuses(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(compare.main, arguments)


def test_every_method_has_a_contestant() -> None:
    assert {
        method for entry in CONTESTANTS.values() for policy in policies_of(entry.policy) for method in policy.shares
    } == set(METHODS)
    assert len({entry.title for entry in CONTESTANTS.values()}) == len(CONTESTANTS)


def test_a_small_data_set_is_trained_on_whole_unless_a_number_is_given(
    tmp_path: Path, trained: list[tuple[str, int]], refused: Refused
) -> None:
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        for number in range(60):
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(images / name / f"{number}.png")
    options = ["--dataset", str(images), "--contestants", "plain", "cutmix", "--updates", "2", "--batch-size", "10"]
    options += ["--seeds", "2", "--out", str(tmp_path / "out")]
    compare.main(options)
    whole = len(split(load_dataset(str(images), None)).train)
    assert read_strictly(tmp_path / "out" / "results.json")["setting"]["train_size"] == whole < 1000
    page = (tmp_path / "out" / "report.html").read_text()
    assert "100 % cat" in page and "100 % dog" in page, "examples are of several classes, though the folder is sorted"
    assert f"got {10 * whole}" in refused(compare.main, [*options, "--train-size", 10 * whole])


def test_the_table_goes_from_the_best_to_the_worst(comparison: Path) -> None:
    report = read_strictly(comparison / "results.json")
    lines = [line for line in (comparison / "results.md").read_text().splitlines() if line.startswith("| ")][1:]
    accuracies = [float(line.split("|")[2].split("±")[0]) for line in lines]
    assert len(accuracies) == len(report["methods"])
    assert accuracies == sorted(accuracies, reverse=True)


# Schedules, measures, the test set


def two_stages(path: Path, last: str) -> str:
    """A schedule in a file: plain training, then another method."""
    plain, other = MixPolicy({"clean": 1.0}), MixPolicy({last: 1.0})
    PolicySchedule(((0.5, plain), (1.0, other))).save(path)
    return f"mine={path}"


def test_a_schedule_is_followed_and_told_from_another_by_its_name(
    tmp_path: Path, trained: list[tuple[str, int]], refused: Refused
) -> None:
    options = ["--contestants", "plain", *SETTING, "--seeds", "2", "--out", str(tmp_path / "out"), "--schedules"]
    schedule = two_stages(tmp_path / "policy.json", "cutmix")
    compare.main([*options, schedule])
    row = read_strictly(tmp_path / "out" / "results.json")["methods"]["mine"]
    assert PolicySchedule.from_json(row["schedule"]) == PolicySchedule.load(tmp_path / "policy.json")
    # By hand: half of the updates under either policy.
    splits = split(load_dataset("digits", None)).draw(60, data_seed=1)
    setting = stored_config(trainings.Setting, read_strictly(tmp_path / "out" / "results.json")["setting"])
    trainer = trainings.Trainer(setting.training("recycled"), splits, seed=1)
    for policy in (MixPolicy({"clean": 1.0}), MixPolicy({"cutmix": 1.0})):
        trainer.train(policy, 3, probe=False)
    assert row["accuracy"]["per_seed"][1] == trainer.evaluate("development").accuracy
    assert "mine" in (tmp_path / "out" / "report.html").read_text()
    trained.clear()
    compare.main([*options, schedule])
    assert trained == []
    two_stages(tmp_path / "policy.json", "mixup")
    assert "another schedule or agent by the name mine" in refused(compare.main, [*options, schedule])


def test_an_agent_is_asked_as_in_the_environment_and_its_choices_can_be_repeated(
    tmp_path: Path, trained: list[tuple[str, int]], refused: Refused
) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    agent(3).save(folder)
    out = tmp_path / "out"
    setting = (*SETTING[:4], "--updates", "24", *SETTING[6:], "--contestants", "plain", "--seeds", "2")
    options = [*setting, "--out", str(out), "--agents", f"mine={folder}"]
    compare.main(options)
    results = read_strictly(out / "results.json")
    row, drawn = results["methods"]["mine"], stored_config(trainings.Setting, results["setting"])
    assert row["agent_sha256"] == Agent.load(folder).checksum
    for seed, chosen in enumerate(row["chosen"]):
        # Under the same seed, as a fixed schedule.
        schedule = PolicySchedule.from_json(chosen)
        assert len(schedule.segments) == len(Agent.load(folder).segments)
        again = trainings.train("again", Contestant("again", schedule), seed, drawn, ComparisonConfig())
        assert again["accuracy"] == row["accuracy"]["per_seed"][seed]
    assert len({policy for chosen in row["chosen"] for _, policy in PolicySchedule.from_json(chosen).segments}) > 1
    assert "mine, an agent" in (out / "report.html").read_text()
    trained.clear()
    compare.main(options)
    assert trained == []
    agent(4).save(folder)
    assert "another schedule or agent by the name mine" in refused(compare.main, options)


def test_an_agent_is_called_shipped_by_where_it_lies(tmp_path: Path) -> None:
    rule("progress", 0.3).save(tmp_path)
    entries = (f"rule={tmp_path / 'rule.json'}", f"shipped={tmp_path}", "theirs=rule", "surrogate")
    contestants = trainings.select_contestants(ComparisonConfig(agents=entries))
    titles = [contestants[name].title for name in ("rule", "shipped", "theirs", "surrogate")]
    assert titles == ["rule, a rule", "shipped, a rule", "the shipped rule", "surrogate, an agent"]


def test_a_rule_is_a_contestant_as_an_agent_is(
    tmp_path: Path, trained: list[tuple[str, int]], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    rule("progress", 0.3).save(tmp_path)
    out = tmp_path / "out"
    setting = (*SETTING[:4], "--updates", "24", *SETTING[6:], "--contestants", "plain", "--seeds", "2")
    options = [*setting, "--out", str(out), "--agents", "rule", f"mine={tmp_path / 'rule.json'}"]
    compare.main(options)
    rows = read_strictly(out / "results.json")["methods"]
    assert [rows[name]["title"] for name in ("rule", "mine")] == ["the shipped rule", "mine, a rule"]
    (note,) = re.findall("^note: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert note.startswith("the shipped rule: far from all trainings") and "24 updates (200 to 1,996)" in note
    assert f"<p>Note: {note}.</p>" in (out / "report.html").read_text()
    assert rows["mine"]["agent_sha256"] == Rule.load(tmp_path).checksum
    asked = rule("progress", 0.3)
    expected = [asked.menu.policy(one) for one in (*asked.first, *asked.tree.below.actions)]  # type: ignore[union-attr]
    for chosen in rows["mine"]["chosen"]:
        assert [policy for _, policy in PolicySchedule.from_json(chosen).segments] == expected
    trained.clear()
    compare.main(options)
    assert trained == []
    rule("progress", 0.1).save(tmp_path)
    assert "mine" in refused(compare.main, options)


def test_measures_are_those_of_the_networks_and_intervals_go_over_images_too(
    tmp_path: Path, trained: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchmetrics", "torchattack"):
        pytest.importorskip(name)
    options = ["--contestants", "plain", "cutmix", *SETTING, "--precision", "fp32", "--seeds", "3"]
    options += ["--out", str(tmp_path)]
    compare.main(options)
    trained.clear()
    compare.main([*options, "--measures", "accuracy", "attacks", "--measured-images", "50"])
    assert len(trained) == 6  # the first time nothing was measured, and the networks are gone
    trained.clear()
    compare.main([*options, "--measures", "attacks", "--measured-images", "50"])
    assert trained == []
    log = (tmp_path / "runs.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_all", lambda asked, processes: trained.extend(asked) or iter(()))
        with pytest.raises(KeyError):  # nobody trains them here
            compare.main([*options, "--measures", "attacks", "--measured-images", "60"])
    assert len(trained) == 6 and (tmp_path / "runs.jsonl").read_bytes() == log
    report = read_strictly(tmp_path / "results.json")
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()][6:]
    right = {}
    for name, row in report["methods"].items():
        own = [line for line in lines if line["method"] == name]
        hits = right[name] = np.stack([unpack_hits(line["hits"], report["images"]) for line in own])
        assert hits.mean(axis=1) == pytest.approx(row["accuracy"]["per_seed"], abs=1e-6)  # both in float32
        assert row["accuracy"]["half_width_with_images"] > row["accuracy"]["half_width"]
        assert row["measures"]["FGSM"]["per_seed"] == [line["measures"]["attacks"]["accuracy"]["fgsm"] for line in own]
        assert [line["measures"]["accuracy"]["images"] for line in own] == [50] * 3
        assert [line["measures"]["accuracy"]["top1"] for line in own] == pytest.approx(hits[:, :50].mean(axis=1))
    gap = right["cutmix"] - right["plain"]  # paired by seed and image
    error = math.sqrt(np.var(gap.mean(1), ddof=1) / 3 + np.var(gap.mean(0), ddof=1) / report["images"])
    with_images = report["less_baseline"]["cutmix"]["half_width_with_images"]
    assert with_images == pytest.approx(4.302653 * error, rel=1e-5)  # the quantile of two degrees of freedom
    assert "| calibration error | FGSM | PGD |" in squeezed(tmp_path / "results.md")
    (plain, cutmix) = (report["methods"][name] for name in ("plain", "cutmix"))
    table = {line["method"]: line for line in csv.DictReader((tmp_path / "results.csv").read_text().splitlines())}
    assert float(table["cutmix"]["PGD"]) == cutmix["measures"]["PGD"]["mean"]
    assert float(table["cutmix"]["less_baseline"]) == pytest.approx(
        cutmix["accuracy"]["mean"] - plain["accuracy"]["mean"]
    )
    assert table["plain"]["less_baseline"] == ""
    with Image.open(tmp_path / "results.png") as image:
        assert image.width > image.height


def test_a_measure_that_is_added_to_the_registry_is_in_every_result(
    tmp_path: Path, trained: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of images that the network takes for class 0, which no program of this project knows of."""

    def zeros(subject: Subject) -> dict[str, Any]:
        return {"share": float((subject.predictions.logits.argmax(dim=1) == 0).float().mean())}

    added = Measure(
        summary="share of images taken for a zero",
        run=zeros,
        rows=lambda result: [("taken for a zero", percent(result["share"]))],
        columns={"zeros": Column(lambda result: result["share"])},
    )
    monkeypatch.setitem(MEASURES, "zeros", added)
    options = ["--contestants", "plain", "cutmix", *SETTING, "--seeds", "2", "--measures", "zeros"]
    compare.main([*options, "--out", str(tmp_path)])
    report = read_strictly(tmp_path / "results.json")
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for name, row in report["methods"].items():
        shares = [line["measures"]["zeros"]["share"] for line in lines if line["method"] == name]
        assert row["measures"]["zeros"]["per_seed"] == shares and max(shares) <= 1
    mean = report["methods"]["plain"]["measures"]["zeros"]["mean"]
    text = squeezed(tmp_path / "results.md")
    assert "| | zeros |" in text and f"| no mixing | {100 * mean:.2f} ± " in text
    assert "images: share of images taken for a zero. Means" in text
    table = {line["method"]: line for line in csv.DictReader((tmp_path / "results.csv").read_text().splitlines())}
    assert float(table["plain"]["zeros"]) == mean
    page = unescape((tmp_path / "report.html").read_text())
    assert ">zeros</th>" in page and f">{100 * mean:.2f} ± " in page


def test_the_test_set_is_read_when_asked_and_written_down(
    comparison: Path, tmp_path: Path, trained: list[tuple[str, int]], refused: Refused
) -> None:
    assert not (comparison / TEST_READS).exists()
    options = ["--contestants", "plain", "rmix", *SETTING, "--seeds", "2", "--test-set"]
    for _ in range(2):
        compare.main([*options, "--out", str(tmp_path)])
    report = read_strictly(tmp_path / "results.json")
    test = load_dataset("digits", None).test
    assert report["images"] == len(test) and report["setting"]["split"] == "test"
    assert f"{len(test):,} test images" in (tmp_path / "results.md").read_text()
    (read,) = [json.loads(line) for line in (tmp_path / TEST_READS).read_text().splitlines()]
    assert "--test-set" in read["command"] and read["images"] == len(test)
    assert "split 'development', not 'test'" in refused(compare.main, [*options, "--out", comparison])


def test_a_log_without_a_split_is_one_of_development_images(
    comparison: Path, finished: Path, trained: list[tuple[str, int]]
) -> None:
    log = finished / "runs.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        del line["setting"]["split"], line["hits"], line["segments"], line["measures"], line["processor"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare.main([*PAIR, *SETTING, "--seeds", "2", "--out", str(finished)])
    assert trained == []
    before, after = (read_strictly(folder / "results.json")["methods"]["rmix"] for folder in (comparison, finished))
    assert after["accuracy"]["per_seed"] == before["accuracy"]["per_seed"]
    assert "half_width_with_images" not in after["accuracy"]
    assert "on a processor that was not recorded (4 trainings)" in (finished / "results.md").read_text()


def test_a_diverged_training_stands_at_chance_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[tuple[str, int]]
) -> None:
    true_training = trainings.Setting.training

    def training(self: trainings.Setting, saliency: str) -> Any:
        return replace(true_training(self, saliency), lr=1e30)

    monkeypatch.setattr(trainings.Setting, "training", training)
    options = ["--contestants", "plain", "mixup", *SETTING, "--seeds", "2", "--measures", "accuracy"]
    compare.main([*options, "--out", str(tmp_path)])
    row = read_strictly(tmp_path / "results.json")["methods"]["plain"]
    assert row["diverged"] == 2 and row["accuracy"]["mean"] == 0.1 and row["measures"] == {"calibration error": None}
    (line,) = [line for line in (tmp_path / "results.csv").read_text().splitlines() if line.startswith("plain,")]
    header = (tmp_path / "results.csv").read_text().splitlines()[0].split(",")
    assert line.split(",")[header.index("images_per_second")] == ""
    assert "| no mixing | – |" in squeezed(tmp_path / "results.md")


def test_what_cannot_be_measured_is_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, trained: list[tuple[str, int]], refused: Refused
) -> None:
    monkeypatch.setitem(sys.modules, "torchattack", None)
    told = refused(compare.main, ["--contestants", "plain", *SETTING, "--measures", "attacks"])
    assert "pip install 'rl-mix[evaluation]'" in told and trained == []


def test_the_documents_show_the_committed_comparisons_in_colour() -> None:
    page = (Path(__file__).parents[2] / "docs/results.md").read_text()
    one, other = (
        json.loads((Path(__file__).parents[2] / f"experiments/results/colour_{name}/results.json").read_bytes())
        for name in ("cifar10", "cifar100")
    )
    for name, row in one["methods"].items():
        cells = [row["title"].replace("the shipped agent", "the earlier agent")]  # as it is called now
        for result in (one, other):
            accuracy = result["methods"][name]["accuracy"]
            cells.append(format_interval(100 * accuracy["mean"], 100 * accuracy["half_width"]))
            less = result["less_baseline"].get(name)
            cells.append(
                "" if less is None else format_interval(100 * less["mean"], 100 * less["half_width"], signed=True)
            )
        assert f"| {' | '.join(cells)} |" in page
