"""Studies of a budget on recorded trainings: on logs in which it is planted what each method would find."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.files import NAMED, SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.envs.observation import RECORDED_FEATURES
from rlmix.experiments.search.task_family import SEGMENTS
from rlmix.experiments.studies.broad.record import BEFOREHAND, CHOICES
from rlmix.experiments.studies.budget import anytime, remember, rivals, worth
from rlmix.experiments.studies.budget.recorded import POLICIES, RecordedTask, recorded_tasks

ROOT = Path(__file__).parents[2]
MEANING = {
    "sources": [
        {"name": "digits", "counts": [100] * 10, "colour": False},
        {"name": "flowers5", "counts": [400, 200, 200, 200, 200], "colour": True},
    ],
    "segments": SEGMENTS,
    "known": RECORDED_FEATURES[:BEFOREHAND],
    "rows": RECORDED_FEATURES[BEFOREHAND:],
}
DRAWN = {"train_size": 100, "updates": 200, "label_noise": 0.0, "data_seed": 0, "options": {"batch_size": 32}}


def lines(number: int, dataset: str, final: np.ndarray, development: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Lines of a task's trainings, whose validation accuracy rises to `final`, where development accuracy is too."""
    row = [0.5] * len(MEANING["rows"])
    return [
        {
            "task": number,
            "policies": [policy] * len(SEGMENTS),
            **({"task_drawn": {**DRAWN, "dataset": dataset, "classes": [0, 1]}} if policy == 0 else {}),
            "known": [0.5] * BEFOREHAND,
            "rows": [row] * (1 + len(SEGMENTS)),
            "validation": [until * value for until in SEGMENTS],
            "development": value if development is None else float(development[policy]),
            "diverged": False,
        }
        for policy, value in enumerate(final.tolist())
    ]


def planted(best: int, number: int = 0, dataset: str = "digits") -> list[dict[str, Any]]:
    return lines(number, dataset, 0.5 + 0.2 * (np.arange(POLICIES) == best) + 0.001 * np.arange(POLICIES))


def test_a_log_is_read_as_it_was_recorded() -> None:
    logged = [*lines(7, "flowers5", np.linspace(0.4, 0.6, POLICIES)), *planted(0)[:-1]]
    logged[3] |= {"diverged": True, "rows": logged[3]["rows"][:3], "validation": [0.1, 0.2], "development": 0.5}
    (task,) = recorded_tasks(logged, MEANING)  # the other one lacks a policy
    assert (task.number, task.dataset, task.classes) == (7, "flowers5", 2)
    assert task.images == round(400 * 600 / 1200)  # a third of the training images, as of all classes
    assert task.development.tolist() == [*np.linspace(0.4, 0.6, POLICIES)[:3], 0.5, *np.linspace(0.4, 0.6, 16)[4:]]
    assert task.validation[3].tolist() == [0.1, 0.5, 0.5, 0.5, 0.5]  # at chance after the divergence
    assert np.isfinite(task.observations[3, :2]).all() and np.isnan(task.observations[3, 2:]).all()
    assert len(task.episodes()) == POLICIES - 1


@pytest.fixture(scope="module")
def task() -> RecordedTask:
    (read,) = recorded_tasks(planted(11), MEANING)
    return read


def test_each_method_finds_what_it_has_trained(task: RecordedTask) -> None:
    random = np.random.default_rng(0)
    assert rivals.everything(task) == rivals.at_random(task, 16, random) == (11, 16)
    assert rivals.by_validation(task, 2, [3, 11, 4, 5]) == (11, pytest.approx(1.85))  # 3, 2, 2, 1 and 1 candidates
    assert rivals.by_validation(task, 1, [3, 11]) == (3, pytest.approx(1))
    found = [rivals.at_random(task, 4, np.random.default_rng(seed)).policy == 11 for seed in range(400)]
    assert np.mean(found) == pytest.approx(4 / POLICIES, abs=0.07)


def test_our_search_holds_policies_and_begins_each_once(task: RecordedTask) -> None:
    agent, forecaster = Agent.load(SHIPPED), Forecaster.load(SHIPPED)
    search = rivals.held_search(task, 16, agent, forecaster)
    assert sorted(step.action for step in search.due) == sorted(CHOICES)
    search = rivals.held_search(task, 4, agent, forecaster)
    while due := search.due:
        for step in due:
            search.tell(step.number, task.result(step))
    for step in search.steps:
        assert {one.action for one in search.path(step)} == {step.action}
        assert CHOICES.index(step.action) == CHOICES.index(search.path(step)[0].action)
    assert search.steps[0].action == task.own_choice(agent)
    again = rivals.ours(rivals.held_search(task, 4, agent, forecaster), task)
    assert again.cost == pytest.approx(search.cost) and search.cost <= 4
    assert search.winner is not None and again.policy == CHOICES.index(search.winner.action)


def test_a_portfolio_is_chosen_on_other_tasks() -> None:
    logged = [*planted(3, 0), *planted(3, 1), *planted(9, 2, "flowers5")]
    tasks = recorded_tasks(logged, MEANING)
    assert rivals.portfolio(tasks, 2) == [3, 9]
    chosen = rivals.left_out(tasks, 1, whole_data_set=False)
    assert chosen[0][0] in (3, 9) and chosen[2][0] == 3
    assert rivals.left_out(tasks, 1, whole_data_set=True) == {0: [9], 1: [9], 2: [3]}


@pytest.mark.parametrize("parts", [rivals.tpe_with_hyperband, rivals.random_with_asha])
def test_optuna_spends_no_more_than_it_may(task: RecordedTask, parts: Any) -> None:
    pytest.importorskip("optuna")
    budgets = (1, 2, 4, 16)
    kept = rivals.by_optuna(task, budgets, 3, 2, parts)
    assert all(one.cost <= budget + 1e-9 for budget, one in kept.items())
    finals = [task.final[kept[budget].policy] for budget in budgets]
    assert finals == sorted(finals) and kept[1].cost == pytest.approx(1)
    assert kept == rivals.by_optuna(task, budgets, 3, 2, parts)


def test_the_command_compares_them(
    tmp_path: Path, refused: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(rivals, "MAX_TRIALS", 5)
    logged = [*planted(3, 0), *planted(3, 1), *planted(9, 2, "flowers5"), *planted(3, 3, "flowers5")]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in logged))
    log.with_suffix(".json").write_text(json.dumps(MEANING))
    anytime.main(["--log", str(log), "--repeats", "1", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    portfolio = result["comparisons"]["greedy portfolio"]
    # Task 2 lacks 3 points of the best fixed policy of the others; the portfolio's second policy finds them all.
    assert portfolio["1"]["less_best_fixed"]["tasks"] == [0.0, 0.0]
    best_fixed = np.array(result["methods"]["best fixed policy"]["accuracy"][0])
    oracle = np.array(result["methods"]["oracle: all 16, validation decides"]["accuracy"][0])
    assert oracle == pytest.approx([70.3, 70.3, 70.9, 70.3])
    assert best_fixed == pytest.approx([70.3, 70.3, 50.3, 70.3])
    gap = result["comparisons"]["oracle: all 16, validation decides"]["1"]["less_best_fixed"]
    assert gap["tasks"][0] == pytest.approx(20.6 / 4) and gap["data_sets"][0] == pytest.approx(20.6 / 4)
    assert "Population Based Training cannot take part" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "written:" in capsys.readouterr().out
    log.write_text("".join(json.dumps(line) + "\n" for line in planted(3, 0, "mnist")))
    MEANING_OF_MNIST = {**MEANING, "sources": [{"name": "mnist", "counts": [100] * 10, "colour": False}]}
    log.with_suffix(".json").write_text(json.dumps(MEANING_OF_MNIST))
    assert "no forecaster learns from, got mnist" in refused(anytime.main, ["--log", str(log)])


def test_a_factor_is_fitted_without_the_data_set() -> None:
    names = np.array(["a", "a", "b", "c"])
    predicted = np.array([[1.0, 2.0], [2.0, 1.0], [4.0, 2.0], [1.0, 1.0]])
    shares = {"a": 0.5, "b": 0.2, "c": 0.9}
    came = predicted * np.array([shares[name] for name in names])[:, None]
    assert worth.factor(predicted[:2], came[:2]) == pytest.approx(0.5)
    assert worth.factor(predicted, -came) == 0
    left = worth.left_out_factors(names, predicted, came)
    assert left["b"] == pytest.approx((0.5 * 10 + 0.9 * 2) / 12)  # each counts by its squares
    assert worth.left_out_factors(names[:2], predicted[:2], came[:2]) == {"a": 1.0}


def test_the_command_measures_what_was_expected(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    logged = [*planted(3, 0), *lines(1, "flowers5", np.linspace(0.2, 0.9, POLICIES))]
    log.write_text("".join(json.dumps(line) + "\n" for line in logged))
    log.with_suffix(".json").write_text(json.dumps(MEANING))
    agent = shutil.copytree(NAMED[SHIPPED], tmp_path / "agent")
    arguments = ["--log", str(log), "--agent", str(agent), "--store", str(agent), "--out", str(tmp_path)]
    worth.main(arguments)
    result = json.loads((tmp_path / "worth.json").read_text())
    assert result["fixed"][0]["gain"][0] == 0 and result["fixed"][0]["cost"] == pytest.approx(1)  # the agent alone
    told = result["spread_told"]
    assert told["start"] in (-1, 0, 1) and [told[str(segment)] for segment in range(1, 6)] == [1] * 5
    costs = [point["cost"] for point in result["auto"]]
    assert costs == sorted(costs, reverse=True)  # the less a training must add, the more is spent
    assert Forecaster.load(agent).realised == pytest.approx(result["factor"], abs=1e-3)
    shown = (tmp_path / "worth.md").read_text()
    worth.main(arguments)  # what was stored changes nothing
    assert (tmp_path / "worth.md").read_text() == shown


def test_what_is_remembered_is_how_much_better_a_policy_came_than_was_forecast(task: RecordedTask) -> None:
    forecaster = Forecaster.load(SHIPPED)
    better, trained = remember.surprise(task, forecaster, [11, 2])
    told = forecaster(task.observations[:1, 0])[:, 0].mean(axis=0)
    apart = 100 * (task.final[11] - task.final[2]) - (told[11] - told[2])
    assert np.flatnonzero(trained).tolist() == [2, 11] and better[11] - better[2] == pytest.approx(apart)
    assert better.sum() == pytest.approx(0)
    added = remember.added([(better, trained)] * 3, 2.0)
    assert added == pytest.approx(better * 3 / 5)
    recalling = remember.Remembering(**vars(forecaster), added=added)
    seen = task.observations[:1, 0]
    assert recalling(seen) == pytest.approx(forecaster(seen) + added)


def test_the_documents_show_the_committed_results() -> None:
    page = (ROOT / "docs/budget.md").read_text()
    results, expected, remembered = (
        (ROOT / f"experiments/results/budget/{name}.md").read_text() for name in ("results", "worth", "remember")
    )
    tables = [part for text in (expected, remembered) for part in text.split("\n\n") if part.startswith("|")]
    first = next(part for part in results.split("\n\n") if part.startswith("|"))
    assert len(tables) == 3 and all(table in page for table in (first, *tables))
    stored = json.loads((ROOT / "experiments/results/budget/worth.json").read_text())["factor"]
    assert Forecaster.load(SHIPPED).realised == pytest.approx(stored, abs=1e-3)
