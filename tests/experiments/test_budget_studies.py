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
from rlmix.classifier.errors import InputError
from rlmix.envs.observation import RECORDED_FEATURES, one_hot
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.record import BEFOREHAND, CHOICES
from rlmix.experiments.studies.broad.rehearse import BEST_OF_ALL
from rlmix.experiments.studies.budget import anytime, rivals, worth
from rlmix.experiments.studies.budget.recorded import LED, POLICIES, RecordedTask, recorded_tasks, rehearsed_tasks

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
CHECKSUM = Agent.load(SHIPPED).checksum
CHOSEN = [2, 14, 14, 10, 0]  # by the agent, in each segment
DRAWN = {"train_size": 100, "updates": 200, "label_noise": 0.0, "data_seed": 0, "options": {"batch_size": 32}}


def lines(number: int, dataset: str, final: np.ndarray, development: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Lines of a task's trainings, whose validation accuracy rises to `final`, where development accuracy is too.

    The last one is the training that an agent led.
    """
    row = [0.5] * len(MEANING["rows"])
    return [
        {
            "task": number,
            "kind": "fixed" if policy < POLICIES else "led",
            "policies": [policy] * len(SEGMENTS) if policy < POLICIES else CHOSEN,
            **({"agent": CHECKSUM} if policy == POLICIES else {}),
            **({"task_drawn": {**DRAWN, "dataset": dataset, "classes": [0, 1]}} if policy == 0 else {}),
            "known": [0.5] * BEFOREHAND,
            "rows": [row] * (1 + len(SEGMENTS)),
            "validation": [until * value for until in SEGMENTS],
            "development": value if development is None else float(development[policy]),
            "diverged": False,
        }
        for policy, value in enumerate(final.tolist())
    ]


def planted(best: int, number: int = 0, dataset: str = "digits", led: float = 0.4) -> list[dict[str, Any]]:
    fixed = 0.5 + 0.2 * (np.arange(POLICIES) == best) + 0.001 * np.arange(POLICIES)
    return lines(number, dataset, np.array([*fixed, led]))


def test_a_log_is_read_as_it_was_recorded() -> None:
    finals = np.array([*np.linspace(0.4, 0.6, POLICIES), 0.55])
    logged = [*lines(7, "flowers5", finals), *planted(0)[:-1], *planted(0, 3)[1:]]
    logged[3] |= {"diverged": True, "rows": logged[3]["rows"][:3], "validation": [0.1, 0.2], "development": 0.5}
    (task,) = recorded_tasks(logged, MEANING, CHECKSUM)  # the other two lack the agent's training and a policy
    assert (task.number, task.dataset) == (7, "flowers5")
    assert task.images == round(400 * 600 / 1200)  # a third of the training images, as of all classes
    assert task.development.tolist() == [*finals[:3], 0.5, *finals[4:]]
    assert task.validation[3].tolist() == [0.1, 0.5, 0.5, 0.5, 0.5]  # at chance after the divergence
    assert np.isfinite(task.observations[3, :2]).all() and np.isnan(task.observations[3, 2:]).all()
    assert task.choices == tuple(CHOICES[policy] for policy in CHOSEN)
    before = task.observations[LED, 1:, -sum(MENU.sizes) :]  # the last action, one-hot
    assert before.tolist() == [one_hot(CHOICES[policy], MENU) for policy in CHOSEN]


def test_trainings_of_other_agents_are_left_out_and_one_that_diverged_is_kept_for_want_of_others() -> None:
    logged = planted(3)
    logged[-1] |= {"diverged": True, "rows": logged[-1]["rows"][:3], "validation": [0.1, 0.2]}
    (task,) = recorded_tasks([*logged, {**logged[-1], "agent": "another"}], MEANING, CHECKSUM)
    forecaster = Forecaster.load(SHIPPED)
    assert rivals.ours(rivals.search_of(task, 1, forecaster), task).policy == LED
    assert rivals.ours(rivals.search_of(task, 2, forecaster), task).policy != LED
    with pytest.raises(InputError, match="this agent led, got none"):
        recorded_tasks(logged, MEANING, "another")


@pytest.fixture(scope="module")
def task() -> RecordedTask:
    (read,) = recorded_tasks(planted(11), MEANING, CHECKSUM)
    return read


def test_each_method_finds_what_it_has_trained(task: RecordedTask) -> None:
    random = np.random.default_rng(0)
    assert rivals.everything(task) == rivals.at_random(task, 16, random) == (11, 16)
    assert rivals.falling_counts(2) == [3, 2, 2, 1, 1]
    assert rivals.by_validation(task, 2, [LED, 11, 4, 5]) == (11, pytest.approx(1.85))
    assert rivals.by_validation(task, 1, [LED, 11]) == (LED, pytest.approx(1))
    found = [rivals.at_random(task, 4, np.random.default_rng(seed)).policy == 11 for seed in range(400)]
    assert np.mean(found) == pytest.approx(4 / POLICIES, abs=0.07)


def test_our_search_begins_with_the_agents_training_and_holds_the_portfolio(task: RecordedTask) -> None:
    forecaster = anytime.with_portfolio(Forecaster.load(SHIPPED), [7, 11, 3])
    search = rivals.search_of(task, 3.5, forecaster)
    while due := search.due:
        for step in due:
            search.tell(step.number, task.result(step))
    own = [step for step in search.steps if step.own]
    assert [CHOICES.index(step.action) for step in own] == CHOSEN
    assert [search.results[step.number].accuracy for step in own] == task.validation[LED].tolist()
    held = {step.candidate: CHOICES.index(step.action) for step in search.steps if not step.own}
    assert held == {1: 7, 2: 11, 3: 3} and search.counts == [4, 4, 3, 3, 3]
    assert rivals.ours(rivals.search_of(task, 3, forecaster), task) == (11, pytest.approx(3))
    assert rivals.ours(rivals.search_of(task, 2, forecaster), task) == (7, pytest.approx(2))
    assert rivals.ours(rivals.search_of(task, 1, forecaster), task) == (LED, pytest.approx(1))


def test_a_portfolio_is_chosen_on_other_tasks() -> None:
    logged = [*planted(3, 0), *planted(3, 1), *planted(9, 2, "flowers5")]
    tasks = recorded_tasks(logged, MEANING, CHECKSUM)
    assert rivals.portfolio(tasks, 2) == [3, 9]
    chosen = rivals.left_out(tasks, 1, whole_data_set=False)
    assert chosen[0][0] in (3, 9) and chosen[2][0] == 3
    assert rivals.left_out(tasks, 1, whole_data_set=True) == {0: [9], 1: [9], 2: [3]}


def test_further_tasks_are_read_from_a_rehearsal(tmp_path: Path, refused: Any) -> None:
    names = [str(MENU.policy(action)) for action in CHOICES]
    logged = [
        {"task": task, "contestant": name, "agent_sha256": "abc" if name == "mine" else None, "dataset": "a",
         "validation": place / 100, "development": place / 200}
        for task in range(2) for place, name in enumerate([*names, "mine"])
    ]  # fmt: skip
    (ends,) = rehearsed_tasks(logged[:-1], "abc")  # the second lacks the agent's
    assert ends.dataset == "a" and ends.final.tolist() == [place / 100 for place in range(POLICIES + 1)]
    assert ends.development[LED] == POLICIES / 200
    with pytest.raises(InputError, match="one of this agent, got none"):
        rehearsed_tasks(logged, "another")
    tasks = recorded_tasks([*planted(3, 0), *planted(9, 1, "flowers5")], MEANING, CHECKSUM)
    beside = rivals.left_out(tasks, 1, whole_data_set=True, further=[ends] * 20)
    assert beside == {0: [15], 1: [15]}, "the highest of the further ones"
    log = str(ROOT / anytime.LOG)
    missing = refused(anytime.main, ["--log", log, "--further", str(tmp_path / "no.jsonl"), "--out", str(tmp_path)])
    assert "--further: expected" in missing


def test_a_portfolio_beside_the_agent_is_of_what_the_agent_lacks() -> None:
    """On two tasks in three the agent does as well as policy 3: policy 9 adds more, though 3 is better alone."""
    tasks = recorded_tasks(
        [*planted(3, 0, led=0.71), *planted(3, 1, led=0.71), *planted(9, 2, led=0.3)], MEANING, CHECKSUM
    )
    assert rivals.portfolio(tasks, 1) == [3] and rivals.portfolio(tasks, 1, led=True) == [9]


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
    anytime.main(["--log", str(log), "--repeats", "1", "--further", "None", "--out", str(tmp_path / "out")])
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
    assert left["b"] == pytest.approx((0.5 * 6 + 0.9 * 2) / 8)  # right on average over the points
    assert worth.left_out_factors(names[:2], predicted[:2], came[:2]) == {"a": 1.0}


def test_the_command_measures_what_was_expected(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    logged = [*planted(3, 0), *lines(1, "flowers5", np.linspace(0.2, 0.9, POLICIES + 1))]
    log.write_text("".join(json.dumps(line) + "\n" for line in logged))
    log.with_suffix(".json").write_text(json.dumps(MEANING))
    agent = shutil.copytree(NAMED[SHIPPED], tmp_path / "agent")
    arguments = [
        "--log",
        str(log),
        "--agent",
        str(agent),
        "--store",
        str(agent),
        "--out",
        str(tmp_path),
        "--further",
        "None",
    ]
    worth.main(arguments)
    result = json.loads((tmp_path / "worth.json").read_text())
    assert result["fixed"][0]["gain"][0] == 0 and result["fixed"][0]["cost"] == pytest.approx(1)  # the agent alone
    assert result["fixed"][-1]["cost"] == pytest.approx(8)
    assert len(result["came"]) == len(worth.ENDED) == 5  # after 3 to 7 trainings
    assert np.array(result["by_task"]).shape == np.array(result["told"]).shape == (2, 5)
    gains = [point["gain"][0] for point in result["fixed"] if point["budget"] in (3, 8)]
    assert np.diff(gains)[0] == pytest.approx(np.array(result["by_task"]).sum(axis=1).mean(), abs=1e-2)
    costs = [point["cost"] for point in result["auto"]]
    assert costs == sorted(costs, reverse=True)  # the less a training must add, the more is spent
    stored = Forecaster.load(agent)
    assert stored.realised == pytest.approx(result["factor"], abs=1e-3)
    assert sorted(stored.portfolio) == sorted(CHOICES) and stored.portfolio[0] in (CHOICES[3], CHOICES[15])
    shown = (tmp_path / "worth.md").read_text()
    worth.main(arguments)  # what was stored changes nothing
    assert (tmp_path / "worth.md").read_text() == shown


def test_the_documents_show_the_committed_results() -> None:
    page = (ROOT / "docs/budget.md").read_text()
    results, expected, remembered = (
        (ROOT / f"experiments/results/budget/{name}.md").read_text() for name in ("results", "worth", "remember")
    )
    tables = [part for text in (expected, remembered) for part in text.split("\n\n") if part.startswith("|")]
    first = next(part for part in results.split("\n\n") if part.startswith("|"))
    assert len(tables) == 3 and all(table in page for table in (first, *tables))
    stored = json.loads((ROOT / "experiments/results/budget/worth.json").read_text())["factor"]
    forecaster = Forecaster.load(SHIPPED)
    assert forecaster.realised == pytest.approx(stored, abs=1e-3)
    agent = Agent.load(SHIPPED)
    tasks = [
        *anytime.read_tasks(str(ROOT / anytime.LOG), agent),
        *anytime.read_further(str(ROOT / anytime.FURTHER), agent),
    ]
    chosen = rivals.portfolio(tasks, POLICIES, led=True)
    assert forecaster.portfolio == tuple(CHOICES[policy] for policy in chosen)
    said = [f"{place}. {forecaster.menu.policy(CHOICES[policy])}" for place, policy in enumerate(chosen[:7], 2)]
    assert "\n".join(said) in page


def test_the_documents_say_where_the_agent_stands_among_fixed_policies() -> None:
    results = ROOT / "experiments/results"
    rehearsed, standing = (
        json.loads((results / f"broad/{name}/results.json").read_bytes())["less_plain"]
        for name in ("rehearsal", "standing")
    )
    recorded = json.loads((results / "budget/results.json").read_bytes())

    def rank(agent: float, fixed: list[float]) -> int:
        return 1 + sum(one > agent for one in fixed)

    ranks = [
        rank(rows[SHIPPED]["tasks"][0], [0.0, *(rows[name]["tasks"][0] for name in names)])
        for rows, names in (
            (rehearsed, set(rehearsed) - {SHIPPED, "earlier", "surrogate"}),
            (standing, set(standing) - {SHIPPED, "earlier", BEST_OF_ALL}),
        )
    ]
    ranks.append(rank(float(np.mean(recorded["methods"][anytime.UNBRANCHED]["accuracy"][0])), recorded["policies"]))
    said = "is {} on the 96 tasks, {} on the 32, and {} on [{} others]".format(*ranks, recorded["tasks"])
    assert said in (ROOT / "docs/agent.md").read_text().replace("\n", " ")
