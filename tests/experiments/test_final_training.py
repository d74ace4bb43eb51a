"""One training to be kept, by schedule, agent or fixed policy: what it leaves, what it refuses, and being stopped."""

import csv
import gc
import importlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.transforms.functional import to_pil_image

from rlmix.agent.agent import ActorCritic, Agent
from rlmix.agent.decisions import probabilities_of
from rlmix.agent.files import NAMED, RULE, SHIPPED
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.agent.rule import Rule
from rlmix.agent.tags import WRITTEN_BY
from rlmix.classifier.data import load_dataset
from rlmix.classifier.mixing import METHODS, LamDistribution, MixPolicy, PolicySchedule
from rlmix.classifier.models import build_model
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import DIMENSIONS, Menu, Task, TaskTrainer
from rlmix.envs.observation import OBSERVATION_V2
from rlmix.envs.seeds import training_seed
from rlmix.experiments import evaluate, replay_policy, train_classifier
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import DataConfig
from rlmix.experiments.training.config import ClassifierConfig, FinalConfig, ReplayConfig
from rlmix.experiments.training.resolve import load_data
from tests import board
from tests.agent.loops import rule
from tests.experiments.explained import help_of, require_explained

pytestmark = pytest.mark.usefixtures("undrawn")

UPDATES, EVALUATIONS, TEST_IMAGES = 60, 3, 359
LR, LR_RISE = 0.1, 100  # highest learning rate, and that over the first one
OPTIONS = (
    f"--dataset digits --train-size 100 --updates {UPDATES} --batch-size 50 --validation-size 100 --lr {LR} "
    f"--evaluations {EVALUATIONS} --threads 1 --precision fp32"
).split()
# Methods of every kind, ends that meet no evaluation, and at the first one a recycled batch that the next update uses.
SCHEDULE = PolicySchedule(
    (
        (0.25, MixPolicy({"clean": 0.5, "rmix": 0.5}, label_beta=0.5)),
        (0.55, MixPolicy({"clean": 0.2, "rmix": 0.3, "average": 0.5}, lam=LamDistribution.parse("uniform"))),
        (1.0, MixPolicy({"clean": 0.6, "rmix": 0.2, "cutmix": 0.2}, threshold=0.6, label_smoothing=0.1)),
    ),
    {"learned_by": "hand"},
)


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing but `finally` sees it."""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    SCHEDULE.save(tmp_path / "policy.json")
    return tmp_path / "policy.json"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an agent that has learned nothing but does not always choose the same."""
    folder = tmp_path_factory.mktemp("agent")
    torch.manual_seed(3)
    network = new_policy(Menu(), [16])
    with torch.no_grad():
        network.action_net.weight.mul_(300)  # type: ignore[operator]
    to_agent(network, Menu(), (0.25, 0.5, 0.75, 1.0), {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def transfer_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such an agent that sees observation v2."""
    folder = tmp_path_factory.mktemp("transfer")
    torch.manual_seed(4)
    network = ActorCritic(len(OBSERVATION_V2) + sum(Menu().sizes), [16], sum(Menu().sizes))
    with torch.no_grad():
        network.action_net.weight.mul_(300)
    Agent(network.eval(), Menu(), (0.25, 0.5, 0.75, 1.0), {}, OBSERVATION_V2).save(folder)
    return folder


def outcome(run: Path) -> tuple[bytes, dict[str, Any]]:
    """Everything that must not depend on when a training was stopped."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["seconds_this_time"]
    return (run / "model.safetensors").read_bytes(), summary


def replay(run: Path, *arguments: object) -> tuple[bytes, dict[str, Any]]:
    """A training that is not disturbed."""
    replay_policy.main([*OPTIONS, "--out", str(run), *map(str, arguments)])
    return outcome(run)


def scalars(run: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """What TensorBoard shows as curves, all but the speed, by run and tag: updates and values."""
    events = board.read(run / "tensorboard")
    return {
        (name, tag): [(event.step, event.value) for event in events.Scalars(name, tag)]
        for name, tags in events.Runs().items()
        for tag in tags["scalars"]
        if tag != "train/images_per_second"
    }


def status_of(main: Callable[[list[str]], None], *arguments: object) -> object:
    """The exit status of a command in this process that stops; its run folder is free again."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    gc.collect()  # the lock goes with the folder's last reference
    return status


def resume(run: Path, *options: str) -> tuple[bytes, dict[str, Any]]:
    gc.collect()
    replay_policy.main(["--resume", str(run), *options])
    return outcome(run)


def accuracy_of(model: nn.Module, part: str) -> float:
    """Accuracy by the plainest code there is."""
    data = load_data(FinalConfig(DataConfig("digits", validation_size=100)))
    images = getattr(data, part)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    model.eval()
    with torch.no_grad():
        logits = model((images.images.float() / 255 - mean) / std)
    return (logits.argmax(dim=1) == images.labels).float().mean().item()


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None, float]]:
    """Every evaluation of the test: split, limit and accuracy."""
    evaluate, noted = Trainer.evaluate_classes, []

    def note(self: Trainer, split: str, *, limit: int | None = None) -> Any:
        result = evaluate(self, split, limit=limit)
        noted.append((split, limit, result[0].accuracy))
        return result

    monkeypatch.setattr(Trainer, "evaluate_classes", note)
    return noted


# What a training leaves


def test_network_is_the_one_that_was_tested(policy: Path, tmp_path: Path, evaluations: Any, capsys: Any) -> None:
    run = tmp_path / "run"
    _, summary = replay(run, "--policy", policy)
    model = build_model("search", num_classes=10, in_channels=1)
    model.load_state_dict(load_file(run / "model.safetensors"))
    assert accuracy_of(model, "test") == pytest.approx(summary["test"]["accuracy"], abs=1e-6)
    assert accuracy_of(model, "validation") == pytest.approx(summary["validation"]["accuracy"], abs=1e-6)
    assert accuracy_of(model, "development") == pytest.approx(summary["development"]["accuracy"], abs=1e-6)
    assert summary["test"]["images"] == TEST_IMAGES
    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"trained": "search on digits"}

    measured = [accuracy for split, limit, accuracy in evaluations if (split, limit) == ("validation", None)]
    assert len(measured) == EVALUATIONS
    best = max(range(EVALUATIONS), key=lambda number: (measured[number], number))
    assert summary["kept"] == {"progress": (best + 1) / EVALUATIONS, "selected_by": "best on validation"}
    assert summary["validation"]["accuracy"] == measured[best]

    out = capsys.readouterr().out
    assert f"test accuracy {100 * summary['test']['accuracy']:.2f} % on 359 images" in out
    assert f"{run}/model.safetensors" in out and f"tensorboard --logdir {run}/tensorboard" in out


def test_best_network_is_kept_though_later_ones_are_worse(policy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    evaluate, weights, made_up = Trainer.evaluate, [], iter([0.6, 0.9, 0.2])

    def evaluate_falling(self: Trainer, split: str, *, limit: int | None = None) -> Any:
        result = evaluate(self, split, limit=limit)
        if split == "validation" and limit is None:
            weights.append({key: value.clone() for key, value in self.network_state().items()})
            return type(result)(**{**vars(result), "accuracy": next(made_up)})
        return result

    monkeypatch.setattr(Trainer, "evaluate", evaluate_falling)
    _, summary = replay(tmp_path / "run", "--policy", policy)
    assert summary["kept"]["progress"] == pytest.approx(2 / 3)
    kept = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(kept[key], weights[1][key]) for key in kept)
    assert not all(torch.equal(kept[key], weights[2][key]) for key in kept)


def test_test_set_is_read_once_at_the_end(policy: Path, agent: Path, tmp_path: Path, evaluations: Any) -> None:
    for who in (("--policy", policy), ("--agent", agent)):
        evaluations.clear()
        replay(tmp_path / who[0], *who)
        splits = [split for split, _, _ in evaluations]
        assert splits.count("test") == 1 and set(splits[: splits.index("test")]) == {"validation"}


def test_summary_tells_what_was_trained_under(policy: Path, tmp_path: Path) -> None:
    _, summary = replay(tmp_path / "run", "--policy", policy)
    assert PolicySchedule.from_json(summary["schedule"]).segments == SCHEDULE.segments
    assert summary["trained_under"] == str(policy)
    assert summary["images_trained"] == UPDATES * 50
    assert PolicySchedule.load(tmp_path / "run/policy.json").provenance == SCHEDULE.provenance


def test_results_by_class(policy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    _, summary = replay(run, "--policy", policy, "--updates", 12)
    with (run / "confusion.csv").open(newline="") as file:
        (_, *names), *rows = csv.reader(file)
    confusion = torch.tensor([[int(cell) for cell in row[1:]] for row in rows])
    assert names == [row[0] for row in rows] == list("0123456789")
    labels = load_dataset("digits").test.labels
    assert confusion.sum(dim=1).tolist() == labels.bincount().tolist()
    assert confusion.trace() / len(labels) == pytest.approx(summary["test"]["accuracy"])
    shares = confusion.diagonal() / confusion.sum(dim=1)
    assert summary["by_class"]["test"]["balanced_accuracy"] == pytest.approx(shares.mean().item())
    told = [entry["accuracy"] for entry in summary["by_class"]["test"]["classes"]]
    assert told == pytest.approx(shares.tolist())
    assert set(summary["by_class"]) == {"test", "development"}
    page = (run / "report.html").read_text()
    assert "Confusion matrix of the test images" in page and "balanced accuracy" in page
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("test/confusion")] == [13]


def test_tensorboard_shows_the_training(policy: Path, tmp_path: Path) -> None:
    _, summary = replay(tmp_path / "run", "--policy", policy)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/clean_loss", "train/mixed_loss", "train/learning_rate", "validation/accuracy"} <= set(
        tags["scalars"]
    )
    accuracies = events.Scalars("validation/accuracy")
    assert [event.step for event in accuracies] == [20, 40, 60]
    assert max(event.value for event in accuracies) == pytest.approx(summary["validation"]["accuracy"])
    assert board.written(tmp_path / "run/tensorboard") == WRITTEN_BY["training"]
    # Segments end at 15, 33 and 60; TensorBoard is told at their ends and at every 20 updates from where it last was.
    at = [0, 15, 15, 20, 33, 33, 40, 60]
    assert [event.step for event in events.Scalars("policy/label_beta")] == at
    assert [event.value for event in events.Scalars("policy/label_beta")] == [0.5, 0.5, *[1.0] * 6]
    expected = {
        "clean": [0.5] * 2 + [0.2] * 3 + [0.6] * 3,
        "rmix": [0.5] * 2 + [0.3] * 3 + [0.2] * 3,
        "average": [0.5] * 3 + [0.0] * 3,
        "cutmix": [0.2] * 3,
    }
    for method, shares in expected.items():
        shown = board.scalars(tmp_path / "run/tensorboard", "policy/share", f"policy_{method}")
        assert [event.step for event in shown] == at[-len(shares) :]
        assert [event.value for event in shown] == pytest.approx(shares)


def test_policy_accuracy_and_loss_stand_side_by_side(policy: Path, tmp_path: Path) -> None:
    replay(tmp_path / "run", "--policy", policy)
    first, *_ = charts = board.charts(tmp_path / "run/tensorboard")
    assert [sorted(tags) for tags in charts[first].values()] == [
        ["policy/share"],
        ["validation/accuracy"],
        ["train/clean_loss", "train/mixed_loss"],
        ["policy/label_beta", "policy/label_smoothing"],
        ["train/clean_accuracy", "train/mixed_accuracy"],
        ["train/learning_rate"],
    ]
    train_classifier.main([*OPTIONS, "--method", "cutmix", "--train-on-validation", "--out", str(tmp_path / "all")])
    assert ["validation/accuracy"] not in map(sorted, board.charts(tmp_path / "all/tensorboard")[first].values())


def test_training_on_validation_selects_nothing(policy: Path, tmp_path: Path, capsys: Any, evaluations: Any) -> None:
    _, summary = replay(tmp_path / "both", "--policy", policy, "--train-on-validation")
    assert "200 training images" in capsys.readouterr().out
    assert summary["kept"] == {"progress": 1.0, "selected_by": "the last one"} and summary["validation"] is None
    assert ("validation", None) not in [(split, limit) for split, limit, _ in evaluations]
    config = FinalConfig(DataConfig("digits", train_size=100, validation_size=100))
    alone, both = load_data(config), load_data(replace(config, train_on_validation=True))
    for values in ("images", "labels"):
        parts = [getattr(alone.train, values), getattr(alone.validation, values)]
        assert torch.equal(getattr(both.train, values), torch.cat(parts))
    assert torch.equal(both.test.images, alone.test.images)


def test_the_shipped_agent_is_asked_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    loaded, load = [], Agent.load

    def count(folder: Path | str) -> Agent:
        loaded.append(folder)
        return load(folder)

    monkeypatch.setattr(Agent, "load", count)
    shipped = replay(tmp_path / "shipped", "--agent", "shipped")
    note = "note: far from all trainings that the choices were learned from, they are less certain"
    assert f"{note}: {UPDATES} updates (200 to 1,996)" in capsys.readouterr().out
    assert shipped[1]["trained_under"] == "the shipped agent" and loaded == ["shipped"]
    assert Agent.load(tmp_path / "shipped").menu == Agent.load(NAMED[SHIPPED]).menu, "the run keeps what it asked"
    named = replay(tmp_path / "named", "--agent", NAMED[SHIPPED])
    assert named[0] == shipped[0] and named[1]["test"] == shipped[1]["test"]


def test_a_rule_leads_a_training_and_can_be_changed_by_hand(tmp_path: Path, capsys: Any) -> None:
    _, summary = replay(tmp_path / "shipped", "--agent", "rule")
    assert summary["trained_under"] == "the shipped rule"
    assert (
        "updates of 50 on 100 images, led by the shipped rule. Test" in (tmp_path / "shipped/report.html").read_text()
    )
    assert re.search(
        r"from  15%  clean 50 % \+ mixup 50 %, λ beta\(1\) \(log_passes 0.373 < 0.3785", capsys.readouterr().out
    )
    saw = PolicySchedule.from_json(summary["schedule"]).provenance["reasons"]
    assert saw[0] is None and saw[1].startswith("log_passes 0.373 < 0.3785") and saw[2:] == [None] * 3
    page = unescape((tmp_path / "shipped/report.html").read_text())
    assert "the rule saw" in page and page.count(saw[1]) == 1
    said = str(Rule.load("rule"))
    assert "if mixed_excess_loss < 0.6981" in said
    edited = json.loads((NAMED[RULE] / "rule.json").read_bytes())
    edited["tree"]["threshold"] = 0.0  # always the upper branch
    edited["tree"]["above"]["threshold"] = 1.0  # there always the lower one
    edited["tree"]["above"]["below"]["threshold"] = 0.0  # and there the upper one
    (tmp_path / "mine.json").write_text(json.dumps(edited))
    _, other = replay(tmp_path / "mine", "--agent", tmp_path / "mine.json")
    assert other["trained_under"] == f"the rule of {tmp_path / 'mine.json'}"
    chosen = PolicySchedule.from_json(other["schedule"])
    assert [dict(policy.shares) for _, policy in chosen.segments] == [
        {"clean": 0.5, "mixup": 0.5},
        *[{"mixup": 1.0}] * 3,
        {"clean": 1.0},
    ]
    (tmp_path / "mine.json").unlink()
    assert Rule.load(tmp_path / "mine") == Rule.from_json(edited), "the run keeps what it asked"


def test_agents_choices_can_be_replayed_as_a_schedule(agent: Path, tmp_path: Path) -> None:
    asked = replay(tmp_path / "asked", "--agent", agent)
    schedule = PolicySchedule.from_json(asked[1]["schedule"])
    assert [until for until, _ in schedule.segments] == [0.25, 0.5, 0.75, 1.0]
    assert len({policy for _, policy in schedule.segments}) > 1
    probabilities = probabilities_of(schedule)
    assert probabilities is not None
    for (_, policy), given in zip(schedule.segments, probabilities, strict=True):
        assert [list(given[dimension]) for dimension in DIMENSIONS] == [Menu().names(name) for name in DIMENSIONS]
        assert all(sum(shares.values()) == pytest.approx(1, abs=1e-5) for shares in given.values())
        likely = [max(range(len(shares)), key=list(shares.values()).__getitem__) for shares in given.values()]
        assert Menu().policy(likely) == policy
    assert "Probability, %, that the agent gave to each choice" in (tmp_path / "asked/report.html").read_text()
    schedule.save(tmp_path / "chosen.json")
    replayed = replay(tmp_path / "replayed", "--policy", tmp_path / "chosen.json")
    assert replayed[0] == asked[0]
    assert replayed[1]["test"] == asked[1]["test"]


@pytest.mark.parametrize("method", METHODS)
def test_fixed_policy_is_a_schedule_of_one(method: str, tmp_path: Path) -> None:
    short = ["--updates", "18"]
    train_classifier.main(
        [*OPTIONS, *short, "--out", str(tmp_path / "fixed"), "--method", method, "--clean-share", "0.4",
         "--lam", "beta(0.5)", "--label-beta", "0.7", "--label-smoothing", "0.05"]
    )  # fmt: skip
    shares = {"clean": 1.0} if method == "clean" else {"clean": 0.4, method: 0.6}
    policy = MixPolicy(shares, lam=LamDistribution.parse("beta(0.5)"), label_beta=0.7, label_smoothing=0.05)
    PolicySchedule.fixed(policy).save(tmp_path / "fixed.json")
    replayed = replay(tmp_path / "replayed", *short, "--policy", tmp_path / "fixed.json")
    fixed = outcome(tmp_path / "fixed")
    assert fixed[0] == replayed[0]
    assert {**fixed[1], "trained_under": None} == {**replayed[1], "trained_under": None}
    assert fixed[1]["trained_under"] == str(policy)


def test_a_methods_own_options_reach_the_training(tmp_path: Path) -> None:
    weights = []
    for number, options in enumerate(([], ["--method-options", "decay=1.5", "max_soft=0.25"])):
        out = tmp_path / str(number)
        train_classifier.main([*OPTIONS, "--out", str(out), "--method", "fmix", "--clean-share", "0", *options])
        weights.append(outcome(out)[0])
    policy = MixPolicy({"fmix": 1.0}, options={"fmix": {"decay": 1.5, "max_soft": 0.25}})
    assert outcome(tmp_path / "1")[1]["trained_under"] == str(policy)
    PolicySchedule.fixed(policy).save(tmp_path / "policy.json")
    assert replay(tmp_path / "replayed", "--policy", tmp_path / "policy.json")[0] == weights[1] != weights[0]


def test_options_reach_the_training(policy: Path, tmp_path: Path) -> None:
    arguments = ("--policy", policy, "--updates", 32)  # enough for recycled batches to have rested
    plain, _ = replay(tmp_path / "plain", *arguments)
    options = [
        "--seed 1", "--data-seed 1", "--label-noise 0.2", "--lr 0.05", "--lr-schedule multistep", "--weight-decay 0",
        "--no-augmentation", "--saliency exact", "--balance sampler",
    ]  # fmt: skip
    weights = [replay(tmp_path / option, *arguments, *option.split())[0] for option in options]
    assert len({plain, *weights}) == 1 + len(options)


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_shortest_trainings(updates: int, policy: Path, tmp_path: Path) -> None:
    _, summary = replay(tmp_path / "run", "--policy", policy, "--updates", updates, "--evaluations", 10)
    assert summary["images_trained"] == 50 * updates
    assert summary["schedule"]["segments"][-1]["until"] == 1


# Stopping and going on


def test_an_agent_sees_what_it_sees_in_the_environment(
    transfer_agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, seen = Agent.choose, []

    def choose_and_note(self: Agent, observation: Any, allowed: Any = None) -> Any:
        seen.append(observation)
        return choose(self, observation, allowed)

    monkeypatch.setattr(Agent, "choose", choose_and_note)
    asked = replay(tmp_path / "asked", "--agent", transfer_agent, "--seed", training_seed(7), "--compile", "off")
    in_training = seen[:]
    seen.clear()
    agent, config = Agent.load(transfer_agent), FinalConfig(DataConfig("digits", validation_size=100))
    train = TrainConfig(updates=UPDATES, batch_size=50, lr=LR, precision="fp32", device="cpu")
    task_trainer = TaskTrainer("digits", training=train, validation_size=100)
    task = Task(100, UPDATES, 0.0, config.data_seed)
    actions = agent.play(agent.environment(task_trainer, task), task, 7)
    assert [agent.menu.policy(action) for action in actions] == [
        policy for _, policy in PolicySchedule.from_json(asked[1]["schedule"]).segments
    ]
    # Saliency and gradient are those of the last few clean updates, wherever chunks end.
    assert np.array(seen) == pytest.approx(np.array(in_training), abs=2e-3)
    assert seen[2][OBSERVATION_V2.index("labels_seen_1")] == 1


@pytest.mark.parametrize("who", ["policy", "agent", "transfer agent", "rule"])
def test_killed_between_any_two_updates_and_resumed(
    who: str, policy: Path, agent: Path, transfer_agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = policy
    if who == "rule":
        chosen = tmp_path / "rule"
        chosen.mkdir()
        rule("progress", 0.3).save(chosen)  # 0.2 at the look, more later
    elif who != "policy":
        chosen = shutil.copytree(agent if who == "agent" else transfer_agent, tmp_path / "agent")
    arguments = ("--policy" if who == "policy" else "--agent", chosen, "--checkpoint-seconds", 0)
    choose, save, seen = Agent.choose, RunFolder.save_checkpoint, []

    def choose_and_note(self: Agent, observation: Any, allowed: Any = None) -> Any:
        seen.append(observation.tolist())
        return choose(self, observation, allowed)

    monkeypatch.setattr(Agent, "choose", choose_and_note)
    undisturbed = replay(tmp_path / "undisturbed", *arguments)
    all_seen = seen[:]
    for moment in range(1, 20):
        seen.clear()
        run, saves = tmp_path / str(moment), 0

        def save_and_die(self: RunFolder, number: int, state: Any, moment: int = moment) -> None:
            nonlocal saves
            save(self, number, state)
            saves += 1
            if saves == moment:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save_checkpoint", save_and_die)
            try:
                replay(run, *arguments)
                break
            except Killed:
                pass
        assert resume(run) == undisturbed
        assert seen == all_seen
    assert moment >= 6  # two segment ends between three evaluations, and the end


def test_curves_of_a_resumed_training_are_those_of_one_never_stopped(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saves = RunFolder.save_checkpoint, 0

    def save_or_die(self: RunFolder, number: int, state: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:
            save(self, number, state)
        elif saves == 5:  # three stretches and the end of a segment after the checkpoint
            raise Killed

    arguments = ("--policy", policy, "--checkpoint-seconds", 0)
    replay(tmp_path / "undisturbed", *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_or_die)
        with pytest.raises(Killed):
            replay(tmp_path / "run", *arguments)
    time.sleep(1)  # TensorBoard reads files in the order of their names, which tell the second
    resume(tmp_path / "run")
    assert scalars(tmp_path / "run") == scalars(tmp_path / "undisturbed")


def test_goes_on_from_a_checkpoint_of_before_probabilities_were_kept(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, summary = replay(tmp_path / "undisturbed", "--agent", agent)
    save = RunFolder.save_checkpoint

    def save_as_before_and_die(self: RunFolder, number: int, state: Any) -> None:
        save(self, number, {name: value for name, value in state.items() if name != "probabilities"})
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_as_before_and_die)
        with pytest.raises(Killed):
            replay(tmp_path / "run", "--agent", agent, "--checkpoint-seconds", 0)
    resumed = resume(tmp_path / "run")
    assert resumed[0] == weights and resumed[1]["schedule"]["segments"] == summary["schedule"]["segments"]
    assert probabilities_of(PolicySchedule.from_json(resumed[1]["schedule"])) is None


def test_resumed_without_the_original(policy: Path, agent: Path, tmp_path: Path, monkeypatch: Any) -> None:
    own_agent = Path(shutil.copytree(agent, tmp_path / "own agent"))
    for name, who in (("policy", policy), ("agent", own_agent)):
        undisturbed = replay(tmp_path / f"{name} undisturbed", f"--{name}", who)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train", lambda *_, **__: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                replay(tmp_path / name, f"--{name}", who)
        if who.is_dir():
            shutil.rmtree(who)
        else:
            who.unlink()
        assert resume(tmp_path / name) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(
    number: int, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = replay(tmp_path / "undisturbed", "--policy", policy)
    train, run, calls = Trainer.train, tmp_path / "run", 0

    def train_and_signal(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), number)
        return train(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", train_and_signal)
        assert status_of(replay_policy.main, *OPTIONS, "--out", run, "--policy", policy) == 130
    assert capsys.readouterr().err.endswith(
        f"\ninterrupted; resume with: python experiments/replay_policy.py --resume {run}\n"
    )
    (checkpoint,) = (run / "checkpoints").iterdir()  # a minute has not gone by: it was saved because it was asked
    assert checkpoint.stem == f"{33:010d}" and calls == 3
    assert resume(run) == undisturbed


OWN = """
from dataclasses import replace
from torch import nn
from rlmix.classifier.data import load_dataset

def load():
    return replace(load_dataset("digits"), name="mine")

def build(num_classes, in_channels):
    hidden = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU())
    return nn.Sequential(hidden, nn.Linear(16, num_classes))
"""


@pytest.mark.slow
def test_own_network_and_data_killed_and_terminated_as_by_a_user(
    start: Any, wait_until: Any, members: Any, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, modules = tmp_path / "run", tmp_path / "modules"
    modules.mkdir()
    (modules / "own_for_replay.py").write_text(OWN)
    options = "--dataset own_for_replay:load --model own_for_replay:build --updates 1000 --checkpoint-seconds 0".split()

    def newest() -> str:
        return max((path.stem for path in run.glob("checkpoints/*.safetensors")), default="")

    process = start(
        "replay_policy.py", *OPTIONS, *options, "--policy", "policy.json", "--out", "run", cwd=tmp_path, modules=modules
    )
    wait_until("some checkpoints", lambda: newest() >= f"{100:010d}", running=process)
    process.kill()
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[:2] == [
        "run folder: run",
        "mine: 100 training images (100 for validation, 287 for development), 1,000 updates of 50, "
        "network 'own_for_replay:build' in fp32 on cpu",
    ]
    policy.unlink()

    before = newest()
    process = start("replay_policy.py", "--resume", "run", "--trust", cwd=tmp_path, modules=modules)
    wait_until("more checkpoints", lambda: newest() > before, running=process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.endswith("\ninterrupted; resume with: python experiments/replay_policy.py --resume run --trust\n")
    assert not members(process)
    assert not (run / "summary.json").exists()

    monkeypatch.syspath_prepend(modules)
    SCHEDULE.save(tmp_path / "again.json")
    undisturbed = replay(tmp_path / "undisturbed", "--policy", tmp_path / "again.json", *options)
    weights, summary = resume(run, "--trust")
    assert weights == undisturbed[0]
    assert {**summary, "trained_under": None} == {**undisturbed[1], "trained_under": None}
    model = importlib.import_module("own_for_replay").build(10, 1)  # as its author wrote it: no head, no wrapper
    model.load_state_dict(load_file(run / "model.safetensors"))
    assert accuracy_of(model, "test") == pytest.approx(summary["test"]["accuracy"], abs=1e-6)


def test_images_that_have_changed_since_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another class list would be scored against the wrong outputs without a word: ultralytics/ultralytics#26192."""
    folder, run = tmp_path / "images", tmp_path / "run"
    for name in ("cat", "dog", "eel"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1000 * ord(name[0]) + number))
            to_pil_image(pixels).save(folder / name / f"{number}.png")

    def resume() -> None:
        train_classifier.main(["--resume", str(run)])

    def measure() -> None:
        evaluate.main(["--run", str(run), "--measures", "accuracy", "--device", "cpu"])

    def refused(command: Callable[[], None]) -> str:
        capsys.readouterr()
        gc.collect()  # the lock goes with the folder's last reference
        with pytest.raises(SystemExit):
            command()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    options = f"--dataset {folder} --updates 4 --batch-size 8 --threads 1 --precision fp32 --evaluations 1"
    train_classifier.main([*options.split(), "--out", str(run)])
    for old, new, told in (
        ("dog", "zebra", "with the new classes [zebra] and without [dog]; restore it"),
        ("dog/0.png", "../0.png", "images, not "),
        ("dog/0.png", "cat/20.png", "with other labels; "),
    ):
        (folder / old).rename(folder / new)
        assert told in refused(resume) and told in refused(measure)
        (folder / new).rename(folder / old)
    resume()
    measure()
    folder = folder.rename(tmp_path / "moved")
    assert "expected a folder" in refused(resume)
    train_classifier.main(["--resume", str(run), "--dataset", str(folder)])
    resume()
    measure()
    (run / "data.json").write_text('{"class_names": 3}')
    assert "data.json: does not fit this run" in refused(measure)
    (run / "data.json").unlink()  # of an older version
    measure()
    folder = folder.rename(tmp_path / "again")
    elsewhere = ["--resume", str(run), "--dataset", str(folder)]
    assert "leave out --dataset" in refused(lambda: train_classifier.main(elsewhere))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_costs_one_stretch(damage: str, policy: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    undisturbed = replay(run, "--policy", policy, "--checkpoint-seconds", 0)
    for name in ("model.safetensors", "summary.json"):
        (run / name).unlink()
    before, newest = sorted((run / "checkpoints").iterdir())
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes({"cut": raw[:-100], "flipped": raw, "empty": b""}[damage])
    capsys.readouterr()
    assert resume(run) == undisturbed
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "going back" in line]
    assert str(newest) in line
    assert before.exists() and newest.exists()


def test_resumed_after_its_end_trains_nothing(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = replay(tmp_path / "run", "--policy", policy)

    def train(*_: object, **__: object) -> None:
        raise AssertionError("a finished training trains nothing")

    monkeypatch.setattr(Trainer, "train", train)
    assert resume(tmp_path / "run") == undisturbed


# What is refused


def valid() -> dict[str, Any]:
    return SCHEDULE.to_json()


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = valid()
    change(value)
    return json.dumps(value).encode()


def shares(value: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = value["segments"][0]["policy"]["shares"]
    return found


WHOLE = json.dumps(valid()).encode()
BAD_POLICIES = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "empty"),
    "cut in half": (WHOLE[: len(WHOLE) // 2], "not a JSON file"),
    "not JSON": (b"clean: 1", "not a JSON file"),
    "not text": (b"\xff\xfe\x00", "not a JSON file"),
    "deep": (b"[" * 100_000, "not a JSON file"),
    "a list": (b"[]", "format"),
    "something else": (b'{"a": 1}', "format"),
    "unknown version": (changed(lambda value: value.update(version=99)), "version"),
    "missing field": (changed(lambda value: value.pop("segments")), "segments"),
    "missing field inside": (changed(lambda value: value["segments"][1]["policy"].pop("label_beta")), "label_beta"),
    "unknown field": (changed(lambda value: value.update(more=1)), "more"),
    "share below 0": (changed(lambda value: shares(value).update(clean=-0.5, rmix=1.5)), "shares"),
    "sum off 1": (changed(lambda value: shares(value).update(clean=0.6)), "shares"),
    "unknown method": (changed(lambda value: shares(value).update(nonsense=0.0)), "nonsense"),
    "not a number": (WHOLE.replace(b'"label_beta": 0.5', b'"label_beta": NaN'), "finite"),
    "no segments": (changed(lambda value: value.update(segments=[])), "segments"),
    "ends before the end": (changed(lambda value: value["segments"].pop()), "until"),
}


@pytest.mark.parametrize("name", BAD_POLICIES)
def test_refuses_a_policy_that_cannot_be_used(name: str, refused: Any, tmp_path: Path) -> None:
    content, named = BAD_POLICIES[name]
    if content is not None:
        (tmp_path / "bad.json").write_bytes(content)
    error = refused(replay_policy.main, [*OPTIONS, "--policy", "bad.json", "--out", "run"])
    assert error.startswith("error: bad.json: ") and named in error


def test_refuses_neither_and_both(refused: Any, policy: Path, agent: Path) -> None:
    for arguments in ([], ["--policy", policy, "--agent", agent]):
        error = refused(replay_policy.main, [*OPTIONS, *arguments, "--out", "run"])
        assert "--policy" in error and "--agent" in error


@pytest.mark.parametrize("damage", ["missing", "no weights", "cut weights", "not JSON", "other version"])
def test_refuses_an_agent_that_cannot_be_used(damage: str, refused: Any, agent: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(agent, tmp_path / "agent"))
    weights, description = folder / "agent.safetensors", folder / "agent.json"
    match damage:
        case "missing":
            shutil.rmtree(folder)
        case "no weights":
            weights.unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "not JSON":
            description.write_text("agent")
        case "other version":
            description.write_text(description.read_text().replace('"version": 1', '"version": 9'))
    assert "agent: no usable agent there" in refused(replay_policy.main, [*OPTIONS, "--agent", "agent"])
    assert "no such folder; did you mean shipped?" in refused(replay_policy.main, [*OPTIONS, "--agent", "shiped"])


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--method nonsense", "--method must be one of clean, mixup"),
        ("--clean-share 2", "--clean-share"),
        ("--clean-share nan", "--clean-share"),
        ("--lam foo", "lam"),
        ("--lam fixed(2)", "lam"),
        ("--threshold 1", "threshold"),
        ("--method-options decay=1", r"options\[cutmix\]: unknown option 'decay'; cutmix has none"),
        ("--method fmix --method-options decay", "--method-options must be NAME=VALUE with a number, got 'decay'"),
        ("--method fmix --method-options decay=few", "--method-options must be NAME=VALUE with a number"),
        ("--method fmix --method-options decay=11", r"options\[fmix\]\[decay\] must be a number in \[0, 10\], got 11"),
        ("--label-beta 2", "label_beta"),
        ("--label-smoothing -1", "label_smoothing"),
        ("--updates 0", "updates"),
        ("--evaluations 0", "evaluations"),
        ("--batch-size 1", "batch_size"),
        ("--threads -1", "threads"),
        ("--threads 1000000", "threads"),
        ("--epochs 1e30", "epochs"),
        ("--crop-padding 9", "crop_padding must be at most the images' side .8."),
        ("--image-size 1000000", "images of 1,000,000 x 1,000,000 pixels would take"),
        ("--seed -1", "seed"),
        ("--data-seed -1", "data_seed"),
        ("--train-size 1", "train_size"),
        ("--label-noise 1", "label_noise"),
        ("--label-noise 0.2 --train-on-validation", "leave one of them out"),
        ("--validation-size 0", "validation_size"),
        ("--lr -1", "lr"),
        ("--dataset nonsense", "'nonsense'"),
        ("--dataset nopackage:fn", "nopackage"),
        ("--model nonsense", "'nonsense'"),
        ("--model nopackage:fn", "nopackage"),
        ("--embedding nothing", "nothing"),
        ("--device nonsense", "device"),
        ("--out file/run", "file/run"),
        ("--resume missing", "missing"),
    ],
)
def test_refused_in_one_line_before_anything_is_made(option: str, named: str, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = [*OPTIONS, *([] if option.startswith("--out") else ["--out", "run"]), *option.split()]
    assert re.search(named, refused(train_classifier.main, arguments))


@pytest.mark.parametrize("source", ["clean", "cutmix"])
def test_an_agent_that_mixes_nothing_is_said_to(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    menu = Menu(sources=(("clean", {"clean": 1.0}), ("cutmix", {"cutmix": 1.0})))
    network = new_policy(menu, [16])
    with torch.no_grad():
        network.action_net.weight.zero_()
        network.action_net.bias.zero_()
        network.action_net.bias[["clean", "cutmix"].index(source)] = 5.0
    (tmp_path / "agent").mkdir()
    to_agent(network, menu, (0.5, 1.0), {}).save(tmp_path / "agent")
    replay_policy.main([*OPTIONS, "--agent", str(tmp_path / "agent"), "--out", str(tmp_path / "run")])
    for text in (capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()):
        assert ("The agent mixed nothing" in text) == (source == "clean")


def test_options_beside_resume_are_said_to_have_no_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    train_classifier.main([*OPTIONS, "--out", run])
    gc.collect()
    capsys.readouterr()
    train_classifier.main(["--resume", run, "--updates", "500", "--lr=0.1", "--trust"])
    assert "warning: --updates, --lr without effect: --resume takes" in capsys.readouterr().err
    gc.collect()
    train_classifier.main(["--resume", run])
    assert "without effect" not in capsys.readouterr().err


def test_refuses_the_run_of_another_command(refused: Any, tmp_path: Path) -> None:
    train_classifier.main([*OPTIONS, "--out", str(tmp_path / "run")])
    gc.collect()
    assert "expected a run of replay_policy.py, got one of " in refused(replay_policy.main, ["--resume", "run"])
    assert "--resume run" in refused(train_classifier.main, [*OPTIONS, "--out", "run"])


# Divergence


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every gradient of one update NaN for as long as the learning rate is that of OPTIONS, or at any."""

    def run(update: int, *, always: bool = False, pause: float = 0) -> None:
        end_update = Trainer._end_update

        def end_spoiled(self: Trainer) -> None:
            full = self.optimizer.param_groups[0]["initial_lr"] > 0.75 * LR / LR_RISE
            if self.updates_done == update and (always or full):
                time.sleep(pause)
                for parameter in self.model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.fill_(float("nan"))
            end_update(self)

        monkeypatch.setattr(Trainer, "_end_update", end_spoiled)

    return run


@pytest.fixture
def halve(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Halves the learning rate before an update, in a training that never diverged."""

    def run(update: int) -> None:
        train = Trainer.train

        def train_with_half(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
            if self.updates_done == update:
                self.scale_lr(0.5)
            return train(self, *arguments, **keywords)

        monkeypatch.setattr(Trainer, "train", train_with_half)

    return run


# Stretches end at 15, 20, 33, 40, 60; the second update of each pair is the last of its stretch.
@pytest.mark.parametrize(
    ("update", "seen_at", "back_to", "what"),
    [
        (3, 15, 0, "the loss"),
        (14, 15, 0, "a weight"),
        (34, 40, 20, "the loss"),  # after methods that were first used in what is given up
        (45, 60, 40, "the loss"),
        (59, 60, 40, "a weight"),
    ],
)
def test_a_divergence_goes_back_and_on_with_half_the_learning_rate(
    update: int,
    seen_at: int,
    back_to: int,
    what: str,
    policy: Path,
    tmp_path: Path,
    spoil: Callable[..., None],
    halve: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(update, pause=1)  # TensorBoard reads files in the order of their names, which tell the second
    weights, summary = replay(tmp_path / "run", "--policy", policy)
    reason = f"{what} was not finite before update {seen_at} of {UPDATES}"
    told = f"{reason}: rolled back to update {back_to} and resumed with half the learning rate, at most 0.05"
    out, err = capsys.readouterr()
    assert err.count(f"warning: {told}\n") == 1 and f"\n{told}\n" in out
    assert told in (tmp_path / "run/report.html").read_text()
    assert summary.pop("went_back") == {"from_update": seen_at, "to_update": back_to, "reason": reason, "lr": 0.05}

    monkeypatch.undo()
    halve(back_to)
    expected = replay(tmp_path / "half", "--policy", policy)
    assert expected[1].pop("went_back") is None
    assert (weights, summary) == expected
    # The policy that begins where it went back to is told once more; what was given up is not shown.
    shown = [
        {key: list(dict.fromkeys(points)) for key, points in scalars(tmp_path / name).items()}
        for name in ("run", "half")
    ]
    assert shown[0] == shown[1]
    if back_to == 0:
        monkeypatch.undo()
        assert weights == replay(tmp_path / "plain", "--policy", policy, "--lr", LR / 2)[0]


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_validation_loss_that_is_not_finite_is_a_divergence(
    limit: int | None, policy: Path, tmp_path: Path, halve: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, at = Trainer.evaluate, {None: 40, 1000: 33}[limit]

    def evaluate_badly(self: Trainer, split: str, *, limit: int | None = None) -> Any:
        result = evaluate(self, split, limit=limit)
        full = self.optimizer.param_groups[0]["initial_lr"] > 0.75 * LR / LR_RISE
        bad = full and (self.updates_done, limit) == (at, expected_limit)
        return replace(result, accuracy=1.0, loss=float("inf")) if bad else result

    expected_limit = limit
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate_badly)
        weights, summary = replay(tmp_path / "run", "--policy", policy)
    reason = f"the validation loss was not finite before update {at} of {UPDATES}"
    assert summary["went_back"] == {"from_update": at, "to_update": 20, "reason": reason, "lr": LR / 2}
    assert summary["validation"]["accuracy"] < 1
    halve(20)
    assert weights == replay(tmp_path / "half", "--policy", policy)[0]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["policy", "agent"])
def test_killed_around_a_divergence_and_resumed(
    who: str, policy: Path, agent: Path, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The agent is asked at 15, 30 and 45 too, where evaluations are; of the policy's checkpoints two lie between the
    # last good state and the divergence.
    chosen, evaluations, spoilt, back_to = {"policy": (policy, 2, 55, 30), "agent": (agent, 4, 47, 45)}[who]
    spoil(spoilt)
    arguments = (f"--{who}", chosen, "--checkpoint-seconds", 0, "--evaluations", evaluations)
    choose, save, seen = Agent.choose, RunFolder.save_checkpoint, []

    def choose_and_note(self: Agent, observation: Any, allowed: Any = None) -> Any:
        seen.append(observation.tolist())
        return choose(self, observation, allowed)

    monkeypatch.setattr(Agent, "choose", choose_and_note)
    undisturbed = replay(tmp_path / "undisturbed", *arguments)
    assert undisturbed[1]["went_back"]["to_update"] == back_to
    all_seen = seen[:]
    if who == "agent":
        assert len(all_seen) == 5 and all_seen[3] == all_seen[4], "asked again about the state it went back to"
    for moment in range(1, 20):
        seen.clear()
        run, saves = tmp_path / str(moment), 0

        def save_and_die(self: RunFolder, number: int, state: Any, moment: int = moment) -> None:
            nonlocal saves
            save(self, number, state)
            assert f"{number:010d}" == max(path.stem for path in self.checkpoints.iterdir()), (
                "the newest is the highest"
            )
            saves += 1
            if saves == moment:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save_checkpoint", save_and_die)
            try:
                replay(run, *arguments)
                break
            except Killed:
                pass
        assert resume(run) == undisturbed
        assert seen == all_seen
    assert moment >= 5  # two around the divergence among them


def test_a_second_divergence_stops_with_the_reason_and_loses_nothing(
    policy: Path, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, undisturbed = tmp_path / "run", replay(tmp_path / "undisturbed", "--policy", policy)
    spoil(50, always=True)
    for arguments in ([*OPTIONS, "--policy", policy, "--out", run, "--checkpoint-seconds", 0], ["--resume", run]):
        assert status_of(replay_policy.main, *arguments) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert line == (
            "error: the training diverged twice: the loss was not finite before update 60 of 60, then, from update 40 "
            "on with half the learning rate, the loss was not finite before update 60 of 60; "
            "start again with an --lr lower than 0.05"
        )
    assert not (run / "model.safetensors").exists() and len(list((run / "checkpoints").iterdir())) == 2
    monkeypatch.undo()  # as if it had been the machine
    assert resume(run) == undisturbed


def test_a_learning_rate_that_is_far_too_high_is_told_with_the_way_out(
    policy: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = [*OPTIONS, "--policy", policy, "--lr", "1e30", "--out", tmp_path / "run"]
    assert status_of(replay_policy.main, *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.endswith("start again with an --lr lower than 5e+29")
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("main", "kind"), [(replay_policy.main, ReplayConfig), (train_classifier.main, ClassifierConfig)]
)
def test_help_explains_every_option(main: Any, kind: type[FinalConfig], capsys: Any, monkeypatch: Any) -> None:
    require_explained(kind, help_of(main, capsys, monkeypatch))


def test_digits_has_the_size_that_is_counted_on() -> None:
    assert len(load_dataset("digits").test) == TEST_IMAGES
