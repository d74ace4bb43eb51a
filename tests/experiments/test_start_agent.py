"""An agent from the study's log, and the search for the best single fixed policy: on planted trainings."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.regression import Decisions, RegressionConfig
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.experiments.search.task_family import (
    MENU,
    PARTS,
    PLAIN,
    REFERENCE,
    SEGMENTS,
    SLOW,
    TASKS,
    environment,
    part_of,
    task,
)
from rlmix.experiments.studies.task_family import best_fixed, fit_agent
from tests.experiments.inline import run_inline

ACTIONS = MENU.actions()
GOOD = MENU.find(MixPolicy({"rmix": 1.0}))


def logged(number: int, action: tuple[int, ...], development: float, kind: str = "fixed") -> dict[str, Any]:
    rows = [[0.5] * len(DEFAULT_FEATURES) for _ in range(len(SEGMENTS) + 1)]
    return {
        "task": number, "training": 0, "kind": kind, "actions": [list(action)] * len(SEGMENTS),
        "observations": rows, "development": development, "diverged": False,
    }  # fmt: skip


def study(count: int) -> list[dict[str, Any]]:
    """R-Mix on all updates is three points above the reference, everything else one below."""
    random, lines = np.random.default_rng(0), []
    for number in range(count):
        level = float(random.uniform(0.5, 0.9))
        lines.append(logged(number, REFERENCE, level, "reference"))
        for action in {PLAIN, GOOD, ACTIONS[random.integers(len(ACTIONS))]} - {REFERENCE}:
            lines.append(logged(number, action, level + (0.03 if action == GOOD else -0.01)))
    return lines


def test_scores_are_standard_errors_from_the_reference_of_the_same_task_and_seed() -> None:
    lines = [logged(0, REFERENCE, 0.8, "reference"), logged(0, GOOD, 0.81), logged(1, GOOD, 0.9)]
    lines += [logged(2, REFERENCE, 0.5, "reference"), logged(2, PLAIN, 0.1)]
    found = fit_agent.episodes(lines)
    assert [episode.task for episode in found] == [0, 0, 2, 2], "a task without its reference says nothing"
    assert found[0].score == found[2].score == 0
    assert found[1].score == pytest.approx(0.01 / math.sqrt(0.8 * 0.2 / 3000))
    assert found[3].score == -10, "limited"
    assert found[0].observations.shape == (len(SEGMENTS), len(DEFAULT_FEATURES) + sum(MENU.sizes))
    hot = found[1].observations[:, len(DEFAULT_FEATURES) :]
    assert not hot[0].any() and (hot[1:].sum(axis=1) == 4).all()
    assert hot[1, GOOD[0]] == 1


def test_of_a_training_that_diverged_what_was_done_until_then_counts() -> None:
    """It was to switch after two segments, and diverged in the second: the switch has not happened."""
    line = logged(0, PLAIN, 0.1)
    line["actions"] = [list(PLAIN)] * 2 + [list(GOOD)] * 3
    line["observations"] = line["observations"][:3]
    _, diverged = fit_agent.episodes([logged(0, REFERENCE, 0.8, "reference"), line])
    assert diverged.actions == [PLAIN] * 2 and len(diverged.observations) == 2 and diverged.score == -10
    found = Decisions.from_episodes([diverged], MENU)
    assert found.actions.tolist() == [ACTIONS.index(PLAIN)] * 2 and found.weights.tolist() == [0.5] * 2


def test_the_agent_learns_what_the_log_says(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "episodes.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in study(40)))
    arguments = ["--log", str(log), "--regression.members", "2", "--regression.steps", "150", "--out"]
    fit_agent.main([*arguments, str(tmp_path / "one")])
    agent = Agent.load(tmp_path / "one")
    seen = fit_agent.episodes(study(40))[0].observations
    assert [agent.choose(row) for row in seen] == [GOOD] * len(SEGMENTS)
    told = json.loads((tmp_path / "one" / "start.json").read_text())["held_out_tasks"]
    assert min(told["explained"]) > 0.6
    assert told["first_choice"]["of the highest value"] == told["first_choice"]["the luckiest"]
    assert told["first_choice"]["all"][0] < told["first_choice"]["the luckiest"][0] - 1
    assert "held-out tasks" in capsys.readouterr().out
    fit_agent.main([*arguments, str(tmp_path / "again")])
    for name in ("agent.safetensors", "start.json"):
        one, again = ((tmp_path / folder / name).read_bytes() for folder in ("one", "again"))
        assert one.replace(b"/one", b"/again") == again


def test_a_part_is_foretold_from_the_other_parts_alone() -> None:
    """What is good in one part is bad in the other: each is chosen for wrongly from the other alone, not with both."""
    slow = PARTS["slow"].first
    random, lines = np.random.default_rng(0), []
    for number, good in [(number, GOOD) for number in range(30)] + [(slow + number, PLAIN) for number in range(30)]:
        level, seen = 0.01 * (number % 7), float(number < slow) + float(random.normal(0, 0.3))
        for action, gain, kind in ((REFERENCE, 0.0, "reference"), (PLAIN, -0.02, "plain"), (GOOD, -0.02, "fixed")):
            line = logged(number, action, 0.7 + level + (0.03 if action == good else gain), kind)
            line["observations"] = [[seen] * len(DEFAULT_FEATURES)] * (len(SEGMENTS) + 1)
            lines.append(line)
    config = RegressionConfig(members=2, hidden=32, steps=300)
    decisions = Decisions.from_episodes(fit_agent.episodes(lines), MENU)
    both = fit_agent.cross_validate(decisions, decisions, config, seed=0)["first_choice"]["of the highest value"]
    apart = fit_agent.leave_one_group_out(decisions, decisions, config, seed=0)
    assert both[0] == pytest.approx(0.03 / math.sqrt(0.73 * 0.27 / 3000), rel=0.1)
    assert apart.keys() == {"family", "slow"}
    assert all(part["of the highest value"][0] < -1 for part in apart.values())


@pytest.mark.parametrize(("count", "named"), [(None, "there is no file"), (9, "at least 10 tasks, got 9")])
def test_too_little_of_a_log_is_refused(count: int | None, named: str, tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "episodes.jsonl"
    if count is not None:
        log.write_text("".join(json.dumps(line) + "\n" for line in study(count)))
    with pytest.raises(SystemExit):
        fit_agent.main(["--log", str(log), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert named in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_tasks_number_says_its_part() -> None:
    slow, bare = PARTS["slow"].first, PARTS["bare"].first
    numbers = (0, slow - 1, slow, bare - 1, bare, bare + 10**6)
    assert [part_of(number) for number in numbers] == ["family", "family", "slow", "slow", "bare", "bare"]
    assert task(5) == TASKS.task(5) and task(slow + 5) == SLOW.task(slow + 5)
    assert {task(number).lr_scale for number in range(50)} == {1.0}
    assert len({task(slow + number).lr_scale for number in range(50)}) > 40
    assert (
        environment("bare", precision="fp32").task_trainer.training.model
        != environment(precision="fp32").task_trainer.training.model
    )


# The best single fixed policy


def test_candidates_are_the_logs_best_and_mixtures() -> None:
    assert best_fixed.best_of_menu(study(40), 1) == [MENU.policy(GOOD)]
    liked = [logged(number, ACTIONS[-1], 1.0, "drawn") for number in range(40)]
    assert best_fixed.best_of_menu([*study(40), *liked], 1) == [MENU.policy(GOOD)], "no agent chooses the tasks"
    assert len(best_fixed.best_of_menu(study(40), len(ACTIONS))) == len(ACTIONS)
    drawn = best_fixed.mixtures(50, seed=0)
    assert drawn == best_fixed.mixtures(50, seed=0) != best_fixed.mixtures(50, seed=1)
    assert len(set(drawn)) == 50
    assert {method for policy in drawn for method in policy.shares} == {"clean", "mixup", "cutmix", "average", "rmix"}
    means = [np.mean([policy.shares.get("rmix", 0.0) for policy in drawn])]
    assert means[0] == pytest.approx(0.2, abs=0.1)


def test_the_best_is_found_by_halving_and_a_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    log, out = tmp_path / "episodes.jsonl", tmp_path / "out"
    log.write_text("".join(json.dumps(line) + "\n" for line in study(12)))
    trained: list[tuple[str, int]] = []

    def play(policy: MixPolicy, number: int, kind: str, precision: str, data_root: str | None) -> dict[str, Any]:
        trained.append((str(policy), number))
        noise = float(np.random.default_rng([number, len(str(policy))]).normal(0, 0.005))
        return {
            "policy": json.dumps(policy.to_json()), "task": number,
            "task_drawn": best_fixed.KINDS[kind].task(number).to_json(),
            "development": 0.7 + 0.1 * policy.shares.get("cutmix", 0.0) + noise,
        }  # fmt: skip

    monkeypatch.setattr(best_fixed, "play", play)
    run_inline(monkeypatch)
    arguments = ["--log", str(log), "--out", str(out)]
    best_fixed.main(arguments)
    result = json.loads((out / "results.json").read_text())
    counts = [(len(entries), entries[0]["tasks"]) for entries in result["rounds"]]
    assert counts == [(24, 4), (8, 16), (3, 48)]
    assert result["trainings"] == len(trained) == 24 * 4 + 8 * 12 + 3 * 32
    ((_, best),) = PolicySchedule.load(out / "policy.json").segments
    candidates = [MixPolicy.from_json(entry["policy"]) for entry in result["rounds"][0]]
    shares = sorted((policy.shares.get("cutmix", 0.0) for policy in candidates), reverse=True)
    assert best.shares["cutmix"] >= shares[2]
    before = {name: (out / name).read_bytes() for name in ("policy.json", "trainings.jsonl")}
    (out / "trainings.jsonl").write_bytes(b"".join(before["trainings.jsonl"].splitlines(keepends=True)[:100]))
    trained.clear()
    best_fixed.main(arguments)
    assert len(trained) == len(before["trainings.jsonl"].splitlines()) - 100
    assert {name: (out / name).read_bytes() for name in before} == before
    assert json.loads((out / "results.json").read_text())["rounds"] == result["rounds"]
    with pytest.raises(SystemExit):
        best_fixed.main([*arguments, "--tasks", "one"])
    assert "holds trainings of other tasks than --tasks one" in capsys.readouterr().err
    best_fixed.main(["--log", str(log), "--out", str(tmp_path / "one"), "--tasks", "one", "--from-menu", "16"])
    one = json.loads((tmp_path / "one/results.json").read_text())
    policies = [MixPolicy.from_json(entry["policy"]) for entry in one["rounds"][0]]
    assert {MENU.policy(action) for action in ACTIONS} < set(policies) and one["trainings"] <= 300
    tasks = {
        json.loads(text)["task_drawn"]["data_seed"]
        for text in (tmp_path / "one/trainings.jsonl").read_text().splitlines()
    }
    assert len(tasks) == one["rounds"][-1][0]["tasks"], "other images each time"


def test_the_committed_search_follows_from_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[2] / "experiments/results"
    shutil.copytree(folder / "fixed", tmp_path / "fixed")
    trained = run_inline(monkeypatch)
    best_fixed.main(["--log", str(folder / "family/episodes.jsonl"), "--out", str(tmp_path / "fixed")])
    assert trained == []
    written, found = (json.loads((at / "results.json").read_text()) for at in (folder / "fixed", tmp_path / "fixed"))
    assert (
        written["trainings"] == found["trainings"] == len((folder / "fixed/trainings.jsonl").read_text().splitlines())
    )
    assert len(written["rounds"]) == len(found["rounds"]) == len(best_fixed.ROUNDS)
    for one, other in zip(written["rounds"], found["rounds"], strict=True):
        assert [entry["policy"] for entry in one] == [entry["policy"] for entry in other]
        assert [entry["mean"] for entry in one] == pytest.approx([entry["mean"] for entry in other])
    kept, again = (PolicySchedule.load(at / "policy.json") for at in (folder / "fixed", tmp_path / "fixed"))
    assert kept.segments == again.segments
