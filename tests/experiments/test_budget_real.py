"""Methods that spend a budget, compared by real trainings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.files import SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs import BroadTasks, Source
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import record
from rlmix.experiments.studies.budget import real, rivals
from rlmix.experiments.studies.budget.anytime import BEST_FIXED, ORACLE, UNBRANCHED
from rlmix.experiments.studies.budget.recorded import POLICIES, recorded_tasks
from tests.agent.loops import agent
from tests.experiments.inline import run_inline
from tests.experiments.test_budget_studies import CHECKSUM, MEANING, planted

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]


def test_copies_are_trained_from_seeds_of_their_own() -> None:
    task = BroadTasks((Source("digits", (80,) * 10, False),), seed=13, updates=(20, 20), seconds=3).task(1)
    places = (("digits", "digits"),)
    lines = {
        (kind, number): real.train((7, kind, number), task, SHIPPED, [], places, "fp32")
        for kind, number in (("agent", 1), ("agent", 2), ("again", 3), ("cutmix", 2))
    }
    assert all(line["cost"] == 1 and line["task"] == 7 for line in lines.values())
    trainer = record.shared_trainer(places, "fp32")
    for (kind, number), policy in ((("again", 3), MENU.policy(record.CHOICES[3])), (("cutmix", 2), real.CUTMIX)):
        trainer.run(PolicySchedule.fixed(policy), task, derive_seed(training_seed(7), 1 if kind == "again" else number))
        assert lines[kind, number]["development"] == round(trainer.measure(["development"])["development"], 4)
    measured = [(lines["agent", copy]["development"], lines["agent", copy]["validation"]) for copy in (1, 2)]
    assert measured[0] != measured[1] and max(measured) < (0.99, 1)
    weights = sum(tensor.numel() * 4 for tensor in trainer.trainer.model.state_dict().values())
    assert 2 * weights < lines["agent", 1]["bytes"] < 4 * weights, "network, momentum and random states"


def line(task: int, kind: str, number: int, development: float, validation: float = 0.5, **more: Any) -> dict[str, Any]:
    facts = {"development": development, "validation": validation, "cost": float(max(number, 1)), **more}
    return {"task": task, "kind": kind, "number": number, **facts}


def test_methods_are_compared_with_the_best_fixed_policy_and_their_luck_is_told_apart() -> None:
    pytest.importorskip("optuna")
    tasks = recorded_tasks(
        [*planted(3, 0), *planted(3, 1), *planted(9, 2, "flowers5"), *planted(3, 3)], MEANING, CHECKSUM
    )
    cutmix = next(place for place, action in enumerate(record.CHOICES) if MENU.policy(action) == real.CUTMIX)
    lines = [
        one
        for task in range(4)
        for one in (
            *(line(task, "agent", copy, 0.6 + copy / 100, 0.8 - copy / 100, bytes=2_000_000) for copy in range(1, 4)),
            *(line(task, "population", members, 0.65, again=0.6) for members in (4, 16)),
            *(line(task, "ours", budget, 0.66 + budget / 1000, again=0.62) for budget in (4, 16)),
            *(line(task, "again", policy, 0.4 + policy / 100, validation=0.9) for policy in range(POLICIES)),
            line(task, "cutmix", 2, 0.2, validation=0.95),
            line(task, "cutmix", 3, 0.3, validation=0.94),
        )
    ]
    by_key = {(one["task"], one["kind"], one["number"]): one for one in lines}
    forecaster = replace(Forecaster.load(SHIPPED), noise=(100.0,) * len(SEGMENTS))  # validation decides
    methods = real.accuracies(tasks, by_key, forecaster, [], (4, 16))
    assert methods[real.AGENTS][1]["accuracy"] == pytest.approx([40] * 4), "the log's"
    assert methods[real.AGENTS][4]["accuracy"] == pytest.approx([61] * 4), "the second is best on validation"
    # The agent alone; then also what is best on the other data set: where that is not best, the agent's is.
    assert methods[real.OURS][1]["accuracy"] == pytest.approx([40] * 4)
    assert methods[real.OURS][1]["again"] == pytest.approx([61] * 4)
    assert methods[real.OURS][2]["accuracy"] == pytest.approx([50.9, 50.9, 50.3, 50.9])
    assert methods[real.OURS][2]["again"] == pytest.approx([49, 49, 43, 49])
    few = (1, 2, 4, 8)
    assert {budget: methods[UNBRANCHED][budget] for budget in few} == {
        budget: methods[real.OURS][budget] for budget in few
    }
    assert methods[real.OURS][16]["accuracy"] == pytest.approx([67.6] * 4), "it branches from 16 on"
    assert methods[real.BRANCHED][4]["accuracy"] == pytest.approx([66.4] * 4) and 8 not in methods[real.BRANCHED]
    assert methods[real.BRANCHED][4]["again"] == pytest.approx([62] * 4)
    assert methods[UNBRANCHED][4]["cost"] == pytest.approx([4] * 4)
    assert methods[real.CUTMIXES][2]["accuracy"] == pytest.approx([40 + cutmix] * 4)
    assert methods[real.CUTMIXES][4]["accuracy"] == pytest.approx([20] * 4)
    assert methods[ORACLE][2]["accuracy"] == pytest.approx([70.3, 70.3, 70.9, 70.3])
    assert methods[ORACLE][2]["again"] == pytest.approx([43, 43, 49, 43])
    assert methods[BEST_FIXED][1]["accuracy"] == pytest.approx([70.3, 70.3, 50.3, 70.3])
    result = real.summarise(tasks, by_key, forecaster, [], (4, 16))
    ours = result["comparisons"][real.OURS]["2"]
    assert ours["less_best_fixed"]["tasks"][0] == pytest.approx(3 * (50.9 - 70.3) / 4)
    assert ours["again_less_best_fixed"]["tasks"][0] == pytest.approx(3 * (49 - 43) / 4)
    assert ours["less_best_fixed"]["data_sets"][0] == pytest.approx((50.9 - 70.3) / 2)
    assert result["megabytes"] == 2.0
    share, *_ = result["aims"].values()
    assert share["came"] == pytest.approx(ours["less_best_fixed"]["tasks"][0] / (20.6 / 4)) and not share["reached"]
    shown = real.markdown({**result, "command": "it"})
    assert f"{ours['less_best_fixed']['tasks'][0]:+.2f} ± " in shown


def test_the_command_trains_what_the_log_lacks(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    pytest.importorskip("optuna")
    trained = run_inline(monkeypatch)
    monkeypatch.setattr(rivals, "MAX_TRIALS", 3)
    monkeypatch.setattr(real, "COPIES", 3)
    monkeypatch.setitem(record.GROUPS, "rehearse-usual", ("digits", "squares"))
    monkeypatch.setitem(record.DRAWN, "rehearse-usual", {"updates": (10, 10), "seconds": 1.5})
    monkeypatch.setitem(record.SEEDS, "rehearse-usual", 13)  # a task of each data set
    out = tmp_path / "out"
    data = str(squares)
    recorded = ["--data", data, "--group", "rehearse-usual", "--tasks", "2", "--agents", SHIPPED, "--out", str(out)]
    record.main(recorded)
    trained.clear()
    (mine := tmp_path / "agent").mkdir()
    log = out / "rehearse-usual.jsonl"
    options = ["--data", data, "--log", str(log), "--out", str(out), "--tasks", "2", "--further", "None"]
    assert "some of 4 8 16, got 2" in refused(real.main, [*options, "--budgets", "2"])
    options += ["--budgets", "4", "8"]
    real.main(options)
    assert len(trained) == 2 * (2 + 2 * 2 + POLICIES + 1)
    logged = [json.loads(text) for text in (out / "real.jsonl").read_text().splitlines()]
    found = next(one for one in logged if one["kind"] == "population")
    assert found["cost"] == 4 and len(found["policies"]) == len(SEGMENTS)
    assert [(one["kind"], one["number"]) for one in logged[-4:]] == [("population", 8), ("ours", 8)] * 2, "largest last"
    assert "Population Based Training" in (out / "real.md").read_text()
    assert len(json.loads((out / "real.json").read_text())["aims"]) == 3, "there are none of 16 members to be ahead of"
    trained.clear()
    real.main(options)
    assert trained == []
    logged[-1]["portfolio"] = [0]  # as chosen on other tasks
    (out / "real.jsonl").write_text("".join(json.dumps(one) + "\n" for one in logged))
    real.main(options)
    assert len(trained) == 1
    agent(4).save(mine)
    assert "this agent led, got none" in refused(real.main, [*options, "--agent", str(mine)])


def test_the_documents_show_the_committed_results() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/budget.md").read_text()
    result = json.loads((root / "experiments/results/budget/real.json").read_bytes())
    tables = (root / "experiments/results/budget/real.md").read_text().split("\n\n")
    assert tables[tables.index("## What carries over") + 2] in page
    methods = result["comparisons"]

    def ahead(name: str, budget: int, which: str = "less_best_fixed") -> str:
        return format_interval(*methods[name][str(budget)][which]["tasks"], signed=True)

    for name in (real.BRANCHED, UNBRANCHED, real.POPULATION, real.AGENTS, real.CUTMIXES):
        cells = [ahead(name, budget) if str(budget) in methods[name] else "" for budget in (1, 2, 4, 16)]
        row = [cell.strip() for cell in f"{name}|{'|'.join(cells)}".split("|")]
        shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
        assert row in shown, name
    for name, said in ((real.CUTMIXES, "CutMix on half is {} points above"), (real.AGENTS, "the agent's {} above one")):
        one, four = (methods[name][budget]["less_best_fixed"]["tasks"][0] for budget in ("1", "4"))
        assert said.format(f"{four - one:.1f}") in page, name
    for name, budget, said in (
        (real.AGENTS, 4, "At 4 ours is {} points ahead of the agent four times"),
        (real.CUTMIXES, 4, "{} ahead of CutMix on half four times"),
        (ORACLE, 4, "at 4 by more than 0.2 ({} behind)"),
        (real.POPULATION, 16, "Population Based Training at 16 (with branches by {})"),
        (real.AGENTS, 2, "At 2 the agent twice is {} ahead of ours"),
    ):
        mean, width = methods[name][str(budget)]["ours_less_this"]["tasks"]
        assert said.format(f"{abs(mean):.1f} ± {width:.1f}") in page, name
    values = result["methods"]
    for name, said in (
        (UNBRANCHED, "ours is {} points ahead of ours without at 4, and {} at 16"),
        (real.POPULATION, "whose first policies and changes are drawn, it is {} and {} ahead"),
        (ORACLE, "of the best of all 16 policies {} and {}"),
    ):
        apart = [
            mean_interval((np.array(values[real.BRANCHED][at]["accuracy"]) - values[name][at]["accuracy"]).tolist())
            for at in ("4", "16")
        ]
        assert said.format(*(f"{mean:.1f} ± {width:.1f}" for mean, width in apart)) in " ".join(page.split()), name
    sixteen = methods[UNBRANCHED]["16"]["ours_less_this"]["tasks"]
    assert f"which add {sixteen[0]:.1f} ± {sixteen[1]:.1f} points at 16 trainings" in page.replace("\n", " ")
    again = (
        (real.OURS, 1),
        (real.BRANCHED, 4),
        (real.BRANCHED, 16),
        (real.POPULATION, 4),
        (real.POPULATION, 16),
        (ORACLE, 4),
        ("random search", 16),
    )
    for name, budget in again:
        assert ahead(name, budget, "again_less_best_fixed") in page.replace("\n", " "), name
    assert not any(aim["reached"] for aim in result["aims"].values())
