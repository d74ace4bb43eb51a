"""Final training within a budget of several: what is kept, being killed, several workers, what is refused."""

import contextlib
import gc
import json
import math
import re
import shutil
import signal
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.agent import budget as budget_module
from rlmix.agent.agent import ActorCritic, Agent
from rlmix.agent.budget import BudgetSearch, Step
from rlmix.agent.files import RULE, SHIPPED
from rlmix.agent.ray_env import WorkerResources
from rlmix.agent.rule import Rule
from rlmix.agent.tags import Tag
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import DataWarning, InputError
from rlmix.classifier.files import LineLog, save_state
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.stats import TrainStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.experiments import replay_policy
from rlmix.experiments.training import budget_training
from rlmix.experiments.training.budget_training import candidate_seed
from rlmix.experiments.training.config import ReplayConfig
from rlmix.experiments.training.replay import PolicySource, resources_of, split_threads
from tests import board
from tests.agent.drawn_values import drawn_values
from tests.agent.loops import rule

pytestmark = pytest.mark.usefixtures("undrawn")

MENU = Menu(
    sources=(("clean", {"clean": 1.0}), ("cutmix half", {"clean": 0.5, "cutmix": 0.5}), ("rmix all", {"rmix": 1.0})),
    thresholds=(None,),
    labels=((1.0, 0.0), (1.0, 0.3)),
    lams=("beta(1)",),
)
SEGMENTS = (0.2, 0.5, 1.0)
UPDATES = 40
OPTIONS = (
    f"--dataset digits --train-size 100 --updates {UPDATES} --batch-size 50 --validation-size 100 --lr 0.1 "
    "--evaluations 4 --threads 1 --precision fp32 --seed 5"
).split()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an agent, and a forecaster whose members have learned nothing and disagree."""
    folder = tmp_path_factory.mktemp("agent")
    torch.manual_seed(3)
    observed = len(DEFAULT_FEATURES) + sum(MENU.sizes)
    Agent(ActorCritic(observed, [16], sum(MENU.sizes)).eval(), MENU, SEGMENTS, {}).save(folder)
    features = ("progress", "validation_way", "log_parameters", "validation_way_1")  # others than the agent's
    values = drawn_values(MENU, features, members=4, seed=3)
    Forecaster(values, MENU, SEGMENTS, features, (0.3, 0.2, 0.1), {}).save(folder)
    return folder


def train(agent: Path, run: Path, *arguments: object, budget: float | str = 2.6) -> dict[str, Any]:
    gc.collect()  # the lock of a killed one goes with the folder's last reference
    if (run / "config.json").exists():
        replay_policy.main(["--resume", str(run)])
    else:
        options = ["--agent", str(agent), "--budget", str(budget), "--out", str(run)]
        replay_policy.main([*OPTIONS, *options, *map(str, arguments)])
    return outcome(run)


def outcome(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    del summary["seconds_this_time"]
    return {**summary, "weights": (run / "model.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def whole(agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(agent, run)
    return run


def test_what_is_kept_is_the_training_under_its_schedule(whole: Path, tmp_path: Path) -> None:
    summary = outcome(whole)
    steps = summary["budget"]["steps"]
    kept = steps[summary["budget"]["kept"]]
    lengths = [0.2, 0.3, 0.5]
    assert summary["budget"]["spent"] == pytest.approx(sum(lengths[step["segment"]] for step in steps))
    assert 2.1 < summary["budget"]["spent"] <= 2.6
    PolicySchedule.from_json(summary["schedule"]).save(tmp_path / "policy.json")
    seed = str(candidate_seed(5, kept["candidate"]))
    replay_policy.main([*OPTIONS, "--policy", f"{tmp_path}/policy.json", "--out", f"{tmp_path}/alone", "--seed", seed])
    alone = outcome(tmp_path / "alone")
    assert alone["weights"] == summary["weights"]
    for split in ("validation", "development", "test"):
        assert alone[split] == summary[split]
    ends = [step for step in steps if step["segment"] == 2]
    assert kept["kept_accuracy"] == alone["validation"]["accuracy"] and kept in ends
    curve = board.scalars(tmp_path / "alone" / "tensorboard", Tag.ACCURACY)
    assert kept["accuracy"] == pytest.approx(curve[-1].value)
    assert [file.name for file in (whole / "candidates").iterdir()] == [f"{kept['step']:04d}.safetensors"]


def test_a_branch_is_the_training_under_its_schedule_from_where_it_began(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_is = budget_module.BRANCHING
    monkeypatch.setattr(budget_module, "BRANCHING", 8)
    for number in range(8):  # until a branch is kept
        folder = tmp_path / str(number)
        summary = train(agent, folder / "run", "--seed", number, budget=8)
        steps = summary["budget"]["steps"]
        path = [steps[summary["budget"]["kept"]]]
        while path[0]["continues"] is not None:
            path.insert(0, steps[path[0]["continues"]])
        if path[0]["candidate"] != path[-1]["candidate"]:
            break
    assert path[0]["candidate"] < 8 <= path[-1]["candidate"] and summary["budget"]["spent"] == 8
    assert summary["budget"]["outlooks"] == []
    seed = str(candidate_seed(number, path[0]["candidate"]))
    alone = ["--policy", str(folder / "run/policy.json"), "--out", str(folder / "alone"), "--seed", seed]
    replay_policy.main([*OPTIONS, *alone])
    assert outcome(folder / "alone")["weights"] == summary["weights"]
    page = (folder / "run/report.html").read_text()
    branches = [step for step in steps if step["segment"] and step["candidate"] not in range(8)]
    begun = {step["candidate"]: steps[step["continues"]]["candidate"] for step in reversed(branches)}
    for candidate, of in begun.items():
        assert f">{candidate}, a branch of {of}<" in page
    assert len(begun) == 2 * 2 and "8 candidates began, 24 segments" in page and "gave way to branches" in page
    twice = train(agent, folder / "two", "--seed", number, "--workers", 2, budget=8)
    assert twice["budget"] == summary["budget"] and twice["weights"] == summary["weights"]
    train_step = budget_training.StepTrainer.train
    for name, last in (("killed", 14), ("unsaid", 14), ("older", 7)):

        def killed(self: Any, step: Step, *arguments: Any, last: int = last) -> Any:
            if step.number == last:
                raise Killed
            return train_step(self, step, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(budget_training.StepTrainer, "train", killed)
            with pytest.raises(Killed):
                train(agent, folder / name, "--seed", number, budget=8)

    def forget(run: Path, *names: str) -> None:
        lines = [json.loads(text) for text in (run / "candidates.jsonl").read_text().splitlines()]
        without = [{key: value for key, value in line.items() if key not in names} for line in lines]
        assert without != lines
        (run / "candidates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))

    # A run with branches goes on with them, where budgets like it no longer have any; so one from before this was said.
    monkeypatch.setattr(budget_module, "BRANCHING", as_it_is)
    forget(folder / "unsaid", "branching")
    for name in ("killed", "unsaid"):
        resumed = train(agent, folder / name, budget=8)
        assert resumed["budget"] == summary["budget"] and resumed["weights"] == summary["weights"]
    # A run that began before there were branches goes on without.
    forget(folder / "older", "branching", "candidate")
    older = train(agent, folder / "older", budget=8)["budget"]
    assert {step["candidate"] for step in older["steps"]} == set(range(8)) and len(older["outlooks"]) == 1


def test_tensorboard_and_report_show_the_candidates(whole: Path) -> None:
    steps = outcome(whole)["budget"]["steps"]
    curve = board.scalars(whole / "tensorboard", Tag.ACCURACY)
    assert [event.step for event in curve] == [10, 20, 30, 40]
    ended = {step["step"] for step in steps} - {step["continues"] for step in steps}
    folders = {folder.name for folder in (whole / "tensorboard").glob("candidate_*")}
    assert folders == {f"candidate_{steps[number]['candidate']}" for number in ended} and len(folders) == len(ended)
    for number in ended:
        points = board.scalars(whole / "tensorboard", Tag.ACCURACY, f"candidate_{steps[number]['candidate']}")
        assert points[-1].value == pytest.approx(steps[number]["accuracy"])
    page = (whole / "report.html").read_text()
    dropped = sum(step["segment"] < 2 for step in steps if step["step"] in ended)
    assert "What was tried" in page and page.count(">gave way<") == dropped > 0
    assert "branches" not in page


def test_a_step_is_shown_with_the_accuracy_at_its_end_and_decided_by_what_would_be_kept(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Often validated, on few images and with wrong labels: the best network is an earlier one."""
    options = ("--evaluations", 20, "--label-noise", 0.6)
    unsure = shutil.copytree(agent, tmp_path / "agent")
    replace(Forecaster.load(unsure), noise=(50.0, 50.0, 50.0)).save(unsure)  # so that validation decides
    for seed in range(5, 35):  # until the one whose best network is better ends behind the other: up to the processor
        run = tmp_path / f"run{seed}"
        summary = train(unsure, run, *options, "--seed", seed, budget=2)
        told = capsys.readouterr().out
        budget, validation = summary["budget"], summary["validation"]["accuracy"]
        kept, other = sorted(
            (step for step in budget["steps"] if step["segment"] == 2), key=lambda step: step["step"] != budget["kept"]
        )
        curve = [event.value for event in board.scalars(run / "tensorboard", Tag.ACCURACY)]
        assert kept["accuracy"] == pytest.approx(curve[-1]) and kept["kept_accuracy"] == pytest.approx(max(curve))
        assert other["accuracy"] < other["kept_accuracy"] + 1e-9 < kept["kept_accuracy"] + 2e-9
        if kept["accuracy"] < other["accuracy"] and other["kept_accuracy"] < kept["kept_accuracy"]:
            break
    else:
        pytest.fail("in none of 30 trainings it was an earlier network that decided")
    page = (run / "report.html").read_text()
    assert kept["kept_accuracy"] == validation
    shown = f"{100 * kept['accuracy']:.2f}", f"{100 * validation:.2f}"
    assert f"candidate {kept['candidate']:<4} validation {shown[0]} %, best {shown[1]} %" in told
    assert f"<td>{shown[0]}</td><td>{shown[1]}</td>" in page
    expected = f"{100 * budget['expected_validation_accuracy']:.2f}"
    sentence = (
        f"Candidate {kept['candidate']} is kept: validation {shown[1]} %, expected {expected} % with luck and its "
        f"forecast weighed in. {budget['spent']:g} trainings' worth of updates were spent of the 2 allowed."
    )
    assert sentence in told and sentence in unescape(page)


def test_where_one_alone_ends_its_accuracy_is_said_plainly(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train(agent, tmp_path / "run", budget=1.3)
    told, page = capsys.readouterr().out, unescape((tmp_path / "run" / "report.html").read_text())
    assert sum(step["segment"] == 2 for step in summary["budget"]["steps"]) == 1
    sentence = f"is kept: validation {100 * summary['validation']['accuracy']:.2f} %. 1.2 trainings' worth of updates"
    assert sentence in told and sentence in page
    assert "luck" not in told + page


def test_the_terminal_names_each_candidate_and_says_who_begins(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = train(agent, tmp_path / "run")["budget"]["steps"]
    told, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    rows = re.findall(r"^ +(\d+) %  candidate (\S+) +validation", told, re.MULTILINE)
    assert sorted(rows) == sorted((f"{100 * SEGMENTS[step['segment']]:.0f}", str(step["candidate"])) for step in steps)
    assert len(set(rows)) == len(rows) and {name for _, name in rows} == {"0", "1", "2"}
    own = [step for step in steps if step["own"]]
    assert [step["candidate"] for step in own] == [0, 0, 0] and told.count(", the agent chose\n") == 3
    assert unescape(page).count("(the agent's choice)") == 3
    assert "40 updates of 50, network 'search' in fp32 on cpu" in told
    assert ": 3, 3, 2 candidates in the 3 segments" in told
    ((spread, chance, gain, further),) = re.findall(
        r"2 trainings ended, (\S+) points apart in validation \(standard deviation; (\S+) by chance alone\): the best "
        r"is expected to gain (\S+) points over one alone, one more would add (\S+)",
        told,
    )
    assert f"<td>{spread}</td><td>{chance}</td><td>{gain}</td><td>{further}</td>" in page


def test_chance_is_that_of_all_validation_images(agent: Path, tmp_path: Path) -> None:
    """Of 1,050 validation images 1,000 are read before the end of a training, as an agent sees them."""
    options = ("--validation-size", 1050, "--development-size", 0, "--batch-size", 20)
    budget = train(agent, tmp_path / "run", *options)["budget"]
    before = [step["accuracy"] for step in budget["steps"] if step["segment"] < 2]
    assert np.allclose(1000 * np.array(before), np.round(1000 * np.array(before)), atol=1e-3)
    ends = [step for step in budget["steps"] if step["segment"] == 2]
    last, kept = (np.array([step[name] for step in ends]) for name in ("accuracy", "kept_accuracy"))
    assert np.allclose(1050 * last, np.round(1050 * last), atol=1e-3)
    (outlook,) = budget["outlooks"]
    shares = (1050 * kept + 1) / 1052
    assert outlook["chance"] == pytest.approx(100 * np.sqrt(np.mean(shares * (1 - shares)) / 1050), abs=6e-4)


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing but `finally` sees it."""


@pytest.mark.parametrize("place", ["before a step", "before its line", "at the end"])
@pytest.mark.parametrize("call", [0, 3])
def test_a_killed_search_resumes_to_the_same(
    agent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, call: int
) -> None:
    calls = 0

    def killing(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 1:
                raise Killed
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        if place == "before a step":
            patch.setattr(budget_training.StepTrainer, "train", killing(budget_training.StepTrainer.train))
        elif place == "before its line":
            patch.setattr(LineLog, "append", killing(LineLog.append))
        else:
            calls = call
            patch.setattr(budget_training, "finish", killing(budget_training.finish))
        with pytest.raises(Killed):
            train(agent, tmp_path / "run")
    assert train(agent, tmp_path / "run") == outcome(whole)


def test_one_killed_in_the_midst_of_a_step_goes_on_from_there(
    agent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, starts = 0, []

    def save_and_die(path: Path, state: dict[str, Any]) -> None:
        nonlocal saves
        save_state(path, state)
        saves += state["running"]
        if saves == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(budget_training, "save_state", save_and_die)
        with pytest.raises(Killed):
            train(agent, tmp_path / "run", "--checkpoint-seconds", 0)
    train_chunk = Trainer.train

    def noted(self: Trainer, *arguments: Any, **options: Any) -> TrainStats:
        starts.append(self.updates_done)
        return train_chunk(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "train", noted)
    assert train(agent, tmp_path / "run") == outcome(whole)
    assert starts[0] not in (0, 8, 20), "the beginning of a segment"


@pytest.mark.parametrize("chunk", [3, 4])  # the last one of a step, and one in its midst
def test_ctrl_c_saves_where_the_step_is(
    agent: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chunk: int,
) -> None:
    train_chunk, starts = Trainer.train, []

    def noted(self: Trainer, *arguments: Any, **options: Any) -> TrainStats:
        starts.append(self.updates_done)
        if len(starts) == chunk:
            signal.raise_signal(signal.SIGINT)
        return train_chunk(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "train", noted)
    with pytest.raises(SystemExit) as stopped:
        train(agent, tmp_path / "run", "--checkpoint-seconds", 1000)
    assert stopped.value.code == 130 and f"replay_policy.py --resume {tmp_path / 'run'}" in capsys.readouterr().err
    began = len(starts)
    del stopped  # it holds the folder's lock
    assert train(agent, tmp_path / "run") == outcome(whole)
    assert starts[: began + 1] == [0, 0, 0, 8, 10][: began + 1], "nothing is trained again"


def test_a_diverged_step_that_was_killed_before_its_line_diverges_again(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = LineLog.append

    def killed(*_: Any) -> None:
        raise Killed

    for place in ("run", "killed"):
        with monkeypatch.context() as patch, pytest.raises(Killed if place == "killed" else SystemExit):
            patch.setattr(LineLog, "append", killed if place == "killed" else append)
            train(agent, tmp_path / place, "--lr", 1e30)
    assert not list((tmp_path / "killed" / budget_training.CANDIDATES).iterdir()), "nothing could continue it"
    with pytest.raises(SystemExit):
        train(agent, tmp_path / "killed")

    def steps(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / budget_training.LOG).read_text().splitlines()]
        return [{**line, "seconds": None} for line in lines]

    assert steps(tmp_path / "killed") == steps(tmp_path / "run")


def test_a_resumed_run_may_have_other_workers(
    agent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(LineLog, "append", killed)
        train(agent, tmp_path / "run", "--workers", 2)
    gc.collect()
    monkeypatch.setattr(budget_training, "training_processes", None)
    replay_policy.main(["--resume", str(tmp_path / "run"), "--workers", "1"])
    assert outcome(tmp_path / "run") == outcome(whole)
    assert "without effect" not in capsys.readouterr().err


def test_resumed_after_its_end_it_trains_nothing(
    agent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")

    def never(*_: Any) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(budget_training.StepTrainer, "train", never)
    assert train(agent, run) == outcome(whole)


@pytest.mark.slow
def test_rays_actors_give_the_same(agent: Path, whole: Path, tmp_path: Path) -> None:
    assert train(agent, tmp_path / "run", "--workers", 2, "--backend", "ray") == outcome(whole)


def test_workers_on_ray_share_gpus(
    agent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray is told of the share of each worker, also of one that a resumed run is given anew."""
    ray = pytest.importorskip("ray")
    asked = []

    def remote(**resources: float) -> Any:
        asked.append(resources)
        raise Killed

    def on_gpus(config: ReplayConfig) -> WorkerResources:
        return resources_of(replace(config, train=replace(config.train, device="cuda:0")))

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(budget_training, "resources_of", on_gpus)
    monkeypatch.setattr(budget_training, "ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(budget_training, "check_capacity", lambda *_, **__: None)
    with pytest.raises(Killed):
        train(agent, tmp_path / "run", "--backend", "ray", "--gpus-per-worker", "0.5")
    with pytest.raises(Killed):
        train(agent, tmp_path / "run")
    with pytest.raises(Killed):
        replay_policy.main(["--resume", str(tmp_path / "run"), "--gpus-per-worker", "0.25"])
    assert asked == [{"num_cpus": 1, "num_gpus": share} for share in (0.5, 0.5, 0.25)]
    replay_policy.main(["--resume", str(tmp_path / "run"), "--backend", "local"])  # where nothing is shared
    assert outcome(tmp_path / "run") == outcome(whole)
    assert "without effect" not in capsys.readouterr().err


def test_two_processes_give_the_same(agent: Path, whole: Path, tmp_path: Path) -> None:
    assert train(agent, tmp_path / "run", "--workers", 2) == outcome(whole)


def test_processes_do_not_repeat_what_is_odd_about_the_data(
    agent: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for number in range(80):
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (13, 13), dtype=np.uint8)).save(folder / f"{number}.png")
    options = ("--dataset", tmp_path / "images", "--train-size", 30, "--validation-size", 10, "--batch-size", 10)
    with pytest.warns(DataWarning, match="sides are 13 pixels long; all are made 12 x 12"):
        train(agent, tmp_path / "run", *options, "--workers", 2, budget=2)
    assert "sides are" not in capfd.readouterr().err


def test_it_stops_where_more_is_not_worth_its_cost(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Until the fourth is worth it and a later one is not: which ones are, is up to the processor.
    for seed in range(5, 25):
        every = train(agent, tmp_path / f"all{seed}", "--seed", seed, "--worth", 0, budget="auto")
        outlooks = every["budget"]["outlooks"]
        assert [outlook["ended"] for outlook in outlooks] == list(range(3, 9))
        worth = math.floor(100 * outlooks[0]["further"]) / 100
        stops = [outlook["ended"] for outlook in outlooks[:-1] if outlook["further"] < worth]
        if stops:
            break
    else:
        pytest.fail("in none of 20 budgets a later training was worth less than the fourth")
    capsys.readouterr()
    options = ("--seed", seed, "--worth", worth)
    whole = train(agent, tmp_path / "run", *options, budget="auto")
    told, spent = capsys.readouterr().out, whole["budget"]
    assert spent["spent"] == stops[0] > 3 and (spent["trainings"], spent["worth"]) == (8, worth)
    assert spent["outlooks"] == outlooks[: stops[0] - 2]
    assert f"3, then one after the other while it is expected to add {worth} points" in told
    assert told.count(f"not worth {worth}") == 1
    assert "Was it worth it?" in (tmp_path / "run" / "report.html").read_text()

    with monkeypatch.context() as patch:
        calls = iter([*[False] * 10, True])  # of the fourth candidate

        def killed(*arguments: Any, append: Any = LineLog.append) -> None:
            if next(calls):
                raise Killed
            append(*arguments)

        patch.setattr(LineLog, "append", killed)
        with pytest.raises(Killed):
            train(agent, tmp_path / "killed", *options, budget="auto")
    assert train(agent, tmp_path / "killed") == whole
    assert train(agent, tmp_path / "two", *options, "--workers", 2, budget="auto") == whole


def test_candidates_that_diverge_are_said_to_have(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(agent, tmp_path / "run", "--lr", 1e30)
    out, error = capsys.readouterr()
    began = len((tmp_path / "run" / budget_training.LOG).read_text().splitlines())
    assert stopped.value.code == 2 and out.count("diverged") == began > 1
    assert error == "error: every candidate diverged; start again with an --lr lower than 1e+30\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--budget 0.5", "budget must be from 1 to 64 trainings, or auto, got 0.5"),
        ("--budget 65", "budget must be from 1 to 64"),
        ("--workers 2", "--budget above 1"),
        ("--budget auto --worth -1", "worth must be from 0 to 100 points, got -1"),
        ("--budget auto --num-workers 2", "--workers"),
        ("--budget 2 --train-on-validation", "--train-on-validation"),
        ("--train-on-validation", "--train-on-validation"),
        ("--budget 2 --worth 0.5", "--worth is for --budget auto"),
        ("--budget 2 --updates 2", "every segment needs an update"),
        ("--budget 2 --backend ray --gpus-per-worker 0", "gpus_per_worker must be above 0 and at most 1, got 0"),
        ("--budget 2 --backend ray --gpus-per-worker 2", "gpus_per_worker must be above 0 and at most 1, got 2"),
        ("--budget 2 --gpus-per-worker 0.5", "add --backend ray"),
    ],
)
def test_refused_in_one_line(refused: Any, agent: Path, tmp_path: Path, options: str, told: str) -> None:
    arguments = [*OPTIONS, "--agent", str(agent), "--out", str(tmp_path / "run"), *options.split()]
    assert told in refused(replay_policy.main, arguments)


def test_an_error_of_a_training_is_not_blamed_on_the_log(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(budget_training.StepTrainer, "train", out_of_memory)
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
        train(agent, tmp_path / "run")


def test_a_log_of_another_kind_is_refused_in_one_line(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    log = run / budget_training.LOG
    log.write_text(log.read_text().replace('"accuracy"', '"acc"'))
    gc.collect()
    with pytest.raises(SystemExit):
        replay_policy.main(["--resume", str(run)])
    assert f"error: {log}: does not fit this run (KeyError" in capsys.readouterr().err


def test_a_worker_that_is_lost_on_ray_is_told_of_in_one_line(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")

    class Pool:
        def __init__(self, _: Any) -> None:
            pass

        def map_unordered(self, *_: Any) -> Any:
            raise ray.exceptions.RayError("the machine was lost")

    monkeypatch.setattr("ray.util.ActorPool", Pool)
    with pytest.raises(SystemExit):
        train(agent, tmp_path / "run", "--backend", "ray")
    run = tmp_path / "run"
    told = f"error: a worker was lost: the machine was lost; resume with --resume {run} --workers N\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("mistake", [True, False])
def test_a_workers_own_error_on_ray_is_told_as_it_would_be_here(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: bool
) -> None:
    ray = pytest.importorskip("ray")
    cause = InputError("the images are gone; bring them") if mistake else TypeError("a bug of ours")

    class Pool:
        def __init__(self, _: Any) -> None:
            pass

        def map_unordered(self, *_: Any) -> Any:
            raise ray.exceptions.RayTaskError("train", "a traceback of Ray's", cause)

    monkeypatch.setattr("ray.util.ActorPool", Pool)
    with pytest.raises(SystemExit if mistake else ray.exceptions.RayTaskError):
        train(agent, tmp_path / "run", "--backend", "ray")
    assert capsys.readouterr().err == ("error: the images are gone; bring them\n" if mistake else "")


@pytest.fixture(scope="module")
def led_by_a_rule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("by_rule") / "run"
    train(Path(RULE), run, budget=2)
    return run


def test_a_rule_leads_the_first_candidate_as_it_leads_a_training(led_by_a_rule: Path, tmp_path: Path) -> None:
    replay_policy.main([*OPTIONS, "--agent", RULE, "--out", str(tmp_path / "alone")])
    alone, summary = outcome(tmp_path / "alone"), outcome(led_by_a_rule)
    assert Rule.load(led_by_a_rule) == Rule.load(RULE)
    menu = Forecaster.load(led_by_a_rule).menu
    assert menu == Forecaster.load(SHIPPED).menu, "a rule has the shipped one"
    own = [step for step in summary["budget"]["steps"] if step["own"]]
    chosen = [menu.policy(step["action"]) for step in own]
    assert chosen == [policy for _, policy in PolicySchedule.from_json(alone["schedule"]).segments]
    assert len(set(chosen)) > 1
    assert own[-1]["kept_accuracy"] == alone["validation"]["accuracy"]
    kept = summary["budget"]["steps"][summary["budget"]["kept"]]
    assert (summary["weights"] == alone["weights"]) == kept["own"]
    page = unescape((led_by_a_rule / "report.html").read_text())
    saw = alone["schedule"]["provenance"]["reasons"][1]
    assert page.count("(the rule's choice)") == 4 and page.count(f"(the rule's choice: {saw})") == 1
    assert "The first candidate is led by the rule" in page


@pytest.mark.parametrize(("leader", "told"), [(RULE, "reasons"), (SHIPPED, "probabilities")])
def test_where_the_leaders_own_is_kept_all_is_as_without_a_budget(
    leader: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(search: BudgetSearch) -> Step | None:
        return next((step for step in search.ends if step.own), None)

    monkeypatch.setattr(BudgetSearch, "winner", property(own))
    summary = train(Path(leader), tmp_path / "budget", budget=2)
    replay_policy.main([*OPTIONS, "--agent", leader, "--out", str(tmp_path / "alone")])
    alone = outcome(tmp_path / "alone")
    assert alone["schedule"] == summary["schedule"] and alone["weights"] == summary["weights"]
    assert set(summary["schedule"]["provenance"]) == {told}


def test_a_rules_budget_in_two_processes_gives_the_same(led_by_a_rule: Path, tmp_path: Path) -> None:
    assert train(Path(RULE), tmp_path / "run", "--workers", 2, budget=2) == outcome(led_by_a_rule)


def test_a_rule_that_the_shipped_forecaster_does_not_fit_has_no_budget(refused: Any, tmp_path: Path) -> None:
    rule("progress", 0.3).save(tmp_path)
    options = [*OPTIONS, "--budget", "2", "--out", str(tmp_path / "run"), "--agent", str(tmp_path / "rule.json")]
    told = refused(replay_policy.main, options)
    assert "rule and forecaster have other menus or segments; with --budget a rule has those of --agent rule" in told


def test_workers_share_the_cores(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlmix.experiments.training.replay.usable_cores", lambda: 6)
    options: Any = {"agent": str(agent), "budget": 4.0}
    assert split_threads(ReplayConfig(**options)).threads == 0, "torch's own choice"
    assert split_threads(ReplayConfig(**options, workers=3), 4).threads == 2
    assert split_threads(ReplayConfig(**options, workers=6), 6).threads == 1
    more = split_threads(ReplayConfig(**options, workers=8), 3)
    assert (more.workers, more.threads) == (3, 2), "more than candidates have nothing to do"
    source = PolicySource.load(ReplayConfig(**options), None)
    counts = {budget: source.candidates(ReplayConfig(agent=str(agent), budget=budget)) for budget in (4.0, 2.6, "auto")}
    assert counts == {4.0: 4, 2.6: 3, "auto": 3}
    assert split_threads(ReplayConfig(agent=str(agent), num_workers=2)).threads == 3


def test_a_schedule_or_an_agent_without_forecaster_has_no_budget(refused: Any, agent: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    Agent.load(agent).save(alone)
    options = [*OPTIONS, "--budget", "2", "--out", str(tmp_path / "run")]
    told = refused(replay_policy.main, [*options, "--agent", str(alone)])
    assert "--budget needs an agent with a forecaster, as --agent shipped is" in told
    assert "no usable forecaster there" in told
    assert "--agent shipped" in refused(replay_policy.main, [*options, "--policy", "policy.json"])
