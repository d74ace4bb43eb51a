"""A surrogate of tasks from many data sets: it has what was recorded, and its agents see what any loop shows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.agent.agent import Agent
from rlmix.agent.rule import Leaf, Rule, Split
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs.observation import FEATURES
from rlmix.envs.surrogate import SurrogateEnv
from rlmix.envs.surrogate_model import SurrogateModel
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import fit_rule, logs, train_surrogate
from rlmix.experiments.studies.surrogate import fidelity, scores, train_agents

RESULTS = Path(__file__).parents[2] / "experiments/results"
TINY = "--ensemble.members 2 --ensemble.hidden 16 --ensemble.steps 60".split()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Logs with the trainings of some tasks of several data sets, and of the family."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "usual.json").write_bytes((RESULTS / "broad/usual.json").read_bytes())
    for source, file, tasks in (("broad/usual", "usual", 40), ("family/episodes", "episodes", 30)):
        with open(RESULTS / f"{source}.jsonl") as lines:
            kept = [line for line in lines if json.loads(line)["task"] < tasks]
        (folder / f"{file}.jsonl").write_text("".join(kept))
    return [str(folder / "usual.jsonl"), str(folder / "episodes.jsonl")]


@pytest.fixture(scope="module")
def trained(recorded: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "EPISODES", 4)
        train_surrogate.main([*TINY, "--logs", *recorded, "--out", str(folder)])
    return folder


def test_tasks_are_as_they_were_recorded(recorded: list[str], trained: Path) -> None:
    model = SurrogateModel.load(trained)
    assert (model.menu, model.segments) == (MENU, SEGMENTS)
    lines = [json.loads(line) for line in Path(recorded[0]).read_text().splitlines()]
    drawn = {line["task"]: line["task_drawn"] for line in lines if "task_drawn" in line}
    context = dict(zip(model.view.context, model.tasks.context.unbind(dim=1), strict=True))
    for line in lines:
        if line["kind"] != "plain" or line["diverged"]:
            continue
        row, task = model.tasks.row(line["task"]), drawn[line["task"]]
        assert context["label_noise"][row] == pytest.approx(task["label_noise"])
        assert context["adamw"][row] == (task["options"]["optimizer"] == "adamw")
        assert 10 ** (2 * float(context["log_lr"][row])) == pytest.approx(task["options"]["lr"], rel=1e-3)
        assert 2 ** (8 * float(context["image_side"][row])) == pytest.approx(task["image_size"], rel=0.01)
        assert model.tasks.reference[row].tolist() == pytest.approx(line["validation"], abs=1e-4)
        # Accuracy from a share of the way from chance, and back.
        classes = len(task["classes"])
        way = (line["validation"][-1] - 1 / classes) / (1 - 1 / classes)
        values = model.tasks.start[row][None].clone()
        values[0, model.view.accuracy_column] = way
        assert float(model.accuracy(torch.tensor([row]), values)[0]) == pytest.approx(line["validation"][-1], abs=2e-3)
    family = [task for task in model.described if task["part"] == "family"]
    assert len(family) == 30 and all(task["number"] >= logs.TASKS_OF_A_LOG for task in family)


def test_a_game_shows_what_a_loop_shows(trained: Path) -> None:
    model = SurrogateModel.load(trained)
    env = SurrogateEnv(model=model, split="test", reward="standing")
    observation, info = env.reset(seed=3)
    seen = dict(zip(logs.FEATURES, observation.tolist(), strict=False))
    assert observation.shape == (len(logs.FEATURES) + sum(MENU.sizes),)
    classes = round(10 ** (3 * seen["log_classes"]))
    assert info["validation_accuracy"] == pytest.approx(1 / classes)
    assert seen["validated"] == seen["clean_seen"] == seen["mixed_seen"] == seen["gap"] == 0
    after, _, _, _, info = env.step(MENU.find(MENU.policy(MENU.actions()[0])))  # every update clean
    seen = dict(zip(logs.FEATURES, after.tolist(), strict=False))
    assert seen["validated"] == seen["clean_seen"] == seen["probes_seen"] == 1 and seen["mixed_seen"] == 0
    assert seen["mixed_way"] == seen["mixed_excess_loss"] == 0
    assert seen["gap"] == pytest.approx(seen["clean_way"] - seen["validation_way"], abs=1e-6)
    chance = 1 / round(10 ** (3 * seen["log_classes"]))
    assert info["validation_accuracy"] == pytest.approx(chance + (1 - chance) * seen["validation_way"], abs=1e-4)
    assert all(FEATURES[name].low <= value <= FEATURES[name].high for name, value in seen.items())


def test_agents_of_it_see_what_any_training_shows(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "EPISODES", 2)
    options = "--seeds 1 --reference-seeds 0 --episodes 128 --ppo.episodes-per-update 64".split()
    train_agents.main([*options, "--model", str(trained), "--out", str(tmp_path)])
    agent = Agent.load(tmp_path / "ppo-0")
    assert (agent.features, agent.menu, agent.segments) == (logs.FEATURES, MENU, SEGMENTS)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--logs no_such.jsonl", "no_such.jsonl"),
        ("--likeness 0.5", "--likeness must be at least 1, got 0.5"),
        ("--family-weight 0", "--family-weight must be above 0, got 0"),
        ("--penalty -1", "penalty must be at least 0, got -1"),
        ("--favoured snapmix", "favoured must be among mixup, cutmix, average, rmix, got snapmix"),
    ],
)
def test_refuses_what_cannot_be_done(options: str, named: str, refused: Any) -> None:
    arguments: Sequence[str] = options.split()
    assert named in refused(train_surrogate.main, [*arguments, "--out", "there"])


def test_its_figures_are_those_of_what_it_tells(
    recorded: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A surrogate that knows every outcome has no error and the right order."""
    _, recordings, _ = train_surrogate.read_recordings(recorded)
    model = SurrogateModel.load(trained)
    column = logs.FEATURES.index("validation_way")

    def told(model: SurrogateModel, chosen: Sequence[Any]) -> Any:
        rows = torch.tensor([model.tasks.row(one.task) for one in chosen])
        chance = model.view.chance(model.tasks.known[rows]).numpy()
        way = np.array([one.observations[-1, column] for one in chosen])
        return np.repeat((chance + (1 - chance) * way)[:, None, None], 3, axis=1)

    monkeypatch.setattr(train_surrogate, "surrogate_accuracies", told)
    for figures in train_surrogate.measure(model, recordings)["splits"].values():
        assert figures["error"] == 0 and figures["over_tasks"] == figures["within_tasks"] == 1
        gains = figures["gains"]
        assert gains["correlation"] == 1 and gains["told"] == gains["real"] != 0

    def upside_down(model: SurrogateModel, chosen: Sequence[Any]) -> Any:
        return 1 - told(model, chosen)

    monkeypatch.setattr(train_surrogate, "surrogate_accuracies", upside_down)
    for figures in train_surrogate.measure(model, recordings)["splits"].values():
        gains = figures["gains"]
        assert figures["within_tasks"] == -1 and gains["correlation"] == -1 and gains["told"] == -gains["real"]


def test_a_tree_asks_what_parts_the_episodes() -> None:
    """The first continuation gains where the second feature is below 0.3, the second where it is not."""
    random = np.random.default_rng(0)
    seen = random.uniform(size=(400, 3)).astype(np.float32)
    low = seen[:, 1] < 0.3
    points = np.stack([np.where(low, 2.0, -1.0), np.where(low, 0.0, 1.0), np.full(400, 0.5)], axis=1)
    points += random.normal(scale=0.1, size=points.shape)
    rest = [((number, 0, 0, 0),) for number in range(3)]
    tree = fit_rule.grow(seen, points, ("a", "b", "c"), rest, 3, 20)
    assert isinstance(tree, Split) and tree.feature == "b" and tree.threshold == pytest.approx(0.3, abs=0.03)
    assert (tree.below, tree.above) == (Leaf(rest[0]), Leaf(rest[1]))
    same = np.repeat(points[:, :1], 3, axis=1)
    assert isinstance(fit_rule.grow(seen, same, ("a", "b", "c"), rest, 3, 20), Leaf)
    assert isinstance(fit_rule.grow(seen, points, ("a", "b", "c"), rest, 3, 201), Leaf), "no part is that large"


def test_a_schedule_is_what_no_change_makes_better(trained: Path) -> None:
    model = SurrogateModel.load(trained)
    games = fit_rule.Games(model, "validation", 2)
    best = fit_rule.best_schedule(games, [0] * 5)
    value = games.play(best)[0].mean()
    for segment in range(5):
        for choice in range(len(games.actions)):
            other = games.play([*best[:segment], choice, *best[segment + 1 :]])[0].mean()
            assert other <= value + fit_rule.CHANGED
    assert value >= games.play([0] * 5)[0].mean()


def test_rules_and_schedules_are_found(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_rule, "LOOKS", (2,))
    fit_rule.main(["--model", str(trained), "--episodes", "1", "--depth", "2", "--out", str(tmp_path)])
    found = Rule.load(tmp_path / "rule.json")
    assert len(found.first) == 2 and str(found).splitlines()[0].split(";")[0] in (tmp_path / "results.md").read_text()
    schedule, switch, fixed = (
        PolicySchedule.load(tmp_path / f"{name}.json") for name in ("schedule", "switch", "fixed")
    )
    assert [policy for _, policy in switch.segments] == [fit_rule.CUTMIX, fit_rule.CLEAN]
    assert switch.segments[0][0] in SEGMENTS[:-1] and len(fixed.segments) == 1
    model, points = SurrogateModel.load(trained), json.loads((tmp_path / "results.json").read_bytes())["points"]
    for split in ("train", "test"):
        games, actions = fit_rule.Games(model, split, 1), MENU.actions()
        for name, one in (("schedule", schedule), ("CutMix half, then clean", switch), ("best fixed policy", fixed)):
            policies = [next(policy for until, policy in one.segments if end <= until) for end in SEGMENTS]
            plan = [actions.index(MENU.find(policy)) for policy in policies]
            assert points[name][split] == pytest.approx(games.play(plan)[0].mean())
        # The rule by hand: what is seen at its look, then one episode after the other by its leaf.
        first = [actions.index(action) for action in found.first]
        _, seen = games.play([*first, 0, 0, 0], 2)
        columns = [logs.FEATURES.index(name) for name in found.features]
        plans = [[*first, *(actions.index(action) for action in found.choose(row[columns]))] for row in seen]
        each = [games.play(plan)[0][number] for number, plan in enumerate(plans)]
        assert points["rule"][split] == pytest.approx(np.mean(each))
    assert points["schedule"]["train"] >= points["best fixed policy"]["train"] - 1e-6


def test_the_documents_show_what_was_played() -> None:
    """Three rounds of Dyna, by tasks of the log, and what the agents that are kept see."""
    lines = [json.loads(line) for line in (RESULTS / "broad/played.jsonl").read_text().splitlines()]
    base = {line["task"]: line["development"] for line in lines if line["kind"] == "plain"}
    gains: dict[int, list[float]] = {}
    for line in lines:
        if line["kind"] == "played":
            gains.setdefault(line["task"], []).append(100 * (line["development"] - base[line["task"]]))
    wrong = {line["task"]: line["wrong"] > 0 for line in lines}
    page = (RESULTS.parents[1] / "docs/surrogate.md").read_text()
    assert f"`experiments/results/broad/played.jsonl`, {len(lines)} trainings" in page
    for number, (first, end) in enumerate(((0, 64), (64, 120), (120, 180))):
        tasks = [task for task in gains if first <= task < end]
        parts = [tasks, [task for task in tasks if not wrong[task]], [task for task in tasks if wrong[task]]]
        shown = [
            format_interval(*mean_interval([float(np.mean(gains[t])) for t in part]), signed=True) for part in parts
        ]
        row = next(line for line in page.splitlines() if line.startswith(f"| {number} | {len(tasks)} |"))
        assert [cell.strip() for cell in row.split("|")][4:7] == shown
    played = sum(line["kind"] == "played" for line in lines)
    assert f"{played} of them played, {len(lines) - played} plain" in page
    told = json.loads((RESULTS / "broad/agent/fidelity.json").read_bytes())["splits"]["test"]
    assert f"within an unseen task is {told['within_tasks']:.2f}" in page
    assert f"correlate by {told['gains']['correlation']:.2f} with those" in page
    for folder in ("surrogate/ppo-0", "agent/ppo-0", "agent/ppo-1", "agent/ppo-2"):
        assert Agent.load(RESULTS / "broad" / folder).features == logs.FEATURES
