"""The per-batch agent's command: what it leaves, that it can be stopped, its control, its replay, what it refuses."""

import gc
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix.agent.rl_mix.agent import RLMixAgent
from rlmix.agent.rl_mix.networks import new_policy
from rlmix.agent.tags import WRITTEN_BY
from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.classifier.models import build_model
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import RLMixEnv
from rlmix.experiments import train_agent, train_rl_mix
from rlmix.experiments.comparison import trainings
from rlmix.experiments.comparison.config import ComparisonConfig, ComparisonTrainConfig
from rlmix.experiments.comparison.contestants import CONTESTANTS
from rlmix.experiments.runs.options import DataConfig
from rlmix.experiments.training.config import RLMixConfig
from tests import board
from tests.experiments.explained import help_of, require_explained

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

# Epochs of 3 updates, the last one of 2; rollouts of 4 end within them.
BATCH, UPDATES, EPOCHS = 20, 14, 5
DATA = f"--dataset digits --train-size 60 --updates {UPDATES} --batch-size {BATCH} --threads 1".split()
PPO = "--ppo.extractor image --ppo.n-steps 4 --ppo.batch-size 2 --ppo.learning-rate 0.01".split()
OPTIONS = [*DATA, *PPO, "--checkpoint-seconds", "0"]
OUTCOME = ["agent.json", "agent.safetensors", "epochs.jsonl", "model.safetensors"]


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing but `finally` sees it."""


def status_of(arguments: Sequence[str]) -> object:
    """The exit status of a training in this process that stops; its folder is free again."""
    status: object = None
    try:
        train_rl_mix.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    gc.collect()  # the lock goes with the folder's last reference
    return status


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]


def outcome(run: Path) -> dict[str, bytes]:
    """Everything that must not depend on when a training was stopped."""
    summary = summary_of(run)
    del summary["timing"]
    return {**{name: (run / name).read_bytes() for name in OUTCOME}, "summary": json.dumps(summary).encode()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training; not to be changed."""
    folder = tmp_path_factory.mktemp("rl-mix") / "run"
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    try:
        train_rl_mix.main([*OPTIONS, "--out", str(folder)])
    finally:
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads)
    return folder


# What a training leaves


def test_a_training_leaves_its_configuration_and_results(run: Path) -> None:
    written = json.loads((run / "config.json").read_text())
    assert written["kind"] == "rl-mix"
    assert {entry.name for entry in fields(RLMixConfig)} == set(written["config"])
    assert "auto" not in written["config"]["train"].values()
    epochs = lines(run)
    assert [epoch["updates_done"] for epoch in epochs] == [3, 6, 9, 12, 14]
    assert all(sum(epoch["counts"]) == BATCH * epoch["updates"] for epoch in epochs)
    summary = summary_of(run)
    # 0.75 * 14 = 10.5: the last two epochs end after it.
    counts = np.array(epochs[3]["counts"]) + epochs[4]["counts"]
    assert summary["last_quarter"]["thresholds"] == pytest.approx((counts / counts.sum()).tolist())
    assert summary["last_quarter"]["reward"] == pytest.approx((3 * epochs[3]["reward"] + 2 * epochs[4]["reward"]) / 5)
    assert summary["images_trained"] == UPDATES * BATCH


def test_the_network_is_the_one_that_was_measured(run: Path) -> None:
    data = DataConfig("digits", train_size=60).draw(0)
    model = build_model("search", num_classes=10, in_channels=1)
    model.load_state_dict(load_file(run / "model.safetensors"))
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    with torch.no_grad():
        answers = model.eval()((data.development.images / 255 - mean) / std).argmax(dim=1)
    accuracy = (answers == data.development.labels).double().mean().item()
    # Measured in bf16 where the machine has it: an image or two may fall to the other side.
    assert summary_of(run)["development"]["accuracy"] == pytest.approx(accuracy, abs=0.02)


def test_tensorboard_shows_the_thresholds_over_time(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    assert board.written(run / "tensorboard") == WRITTEN_BY["rl_mix"]
    epochs = lines(run)
    for number, threshold in enumerate(THRESHOLDS):
        half = "low" if threshold < 0.5 else "high"
        shown = board.scalars(run / "tensorboard", f"policy/share_{half}", f"policy_share_{half}_{threshold:.2f}")
        assert [event.step for event in shown] == [epoch["updates_done"] for epoch in epochs]
        for event, epoch in zip(shown, epochs, strict=True):
            assert event.value == pytest.approx(epoch["counts"][number] / sum(epoch["counts"]))
    means = [np.dot(THRESHOLDS, epoch["counts"]) / sum(epoch["counts"]) for epoch in epochs]
    assert [event.value for event in events.Scalars("policy/threshold_mean")] == pytest.approx(means, rel=1e-5)
    for name, number in (("lower", BATCH // 4), ("upper", 3 * BATCH // 4)):
        shown = events.Scalars(f"policy/threshold_{name}_quartile")
        for event, epoch in zip(shown, epochs, strict=True):
            chosen = sorted(t for t, count in zip(THRESHOLDS, epoch["counts"], strict=True) for _ in range(count))
            at = number * epoch["updates"]  # a quarter of the images lies before, three quarters after, or reversed
            assert chosen[at - 1] - 1e-6 <= event.value <= chosen[at] + 1e-6
    assert len(events.Histograms("policy/thresholds")) == EPOCHS
    assert "policy/over_the_training" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("train/loss")] == [4, 8, 12]  # the agent's own


def test_thresholds_reward_and_accuracy_stand_side_by_side(run: Path) -> None:
    first, *_ = charts = board.charts(run / "tensorboard")
    shown = [sorted(tags) for tags in charts[first].values()]
    assert shown[:3] == [["policy/share_low"], ["reward/mean"], ["validation/accuracy"]]
    quartiles = [f"policy/threshold_{name}" for name in ("lower_quartile", "mean", "upper_quartile")]
    assert quartiles in shown and ["policy/share_high"] in shown
    accuracies = board.scalars(run / "tensorboard", "validation/accuracy")
    assert [event.step for event in accuracies] == [3, 6, 9, 12, 14]
    # The last of these networks is the one that was measured at the end, on all of the validation images.
    assert accuracies[-1].value == pytest.approx(summary_of(run)["validation"]["accuracy"])


def test_it_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_rl_mix.main([*OPTIONS, "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    accuracy = summary_of(tmp_path / "run")["development"]["accuracy"]
    assert f"development accuracy {100 * accuracy:.2f} %" in out
    assert f"tensorboard --logdir {tmp_path}/run/tensorboard" in out
    assert "the test set is not read" in out and "experiments/compare.py" in out


# Stopping and going on


def test_killed_at_any_write_and_resumed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, synchronise = random.Random(0), os.fsync
    left = 0

    def fsync(file: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        synchronise(file)

    monkeypatch.setattr(os, "fsync", fsync)
    arguments, kills = [*OPTIONS, "--out", str(tmp_path / "run")], 0
    while True:
        # An epoch takes 3 (a line, a checkpoint and its folder), the results at the end 12.
        left = draw.randint(4, 9) if kills < 5 else 20
        try:
            train_rl_mix.main(arguments)
            break
        except Killed:
            kills += 1
        gc.collect()
        if (tmp_path / "run/config.json").exists():
            arguments = ["--resume", str(tmp_path / "run")]
    assert kills >= 3
    assert outcome(tmp_path / "run") == outcome(run)


@pytest.mark.parametrize("update", [4, 14])
def test_interrupted_it_saves_first(
    run: Path, tmp_path: Path, update: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = RLMixEnv.step

    def interrupting(self: RLMixEnv, action: Any) -> Any:
        if self.trainer.updates_done == update - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, action)

    monkeypatch.setattr(RLMixEnv, "step", interrupting)
    seldom = [option if option != "0" else "3600" for option in OPTIONS]
    assert status_of([*seldom, "--out", str(tmp_path / "run")]) == 130
    hint = f"interrupted; resume with: python experiments/train_rl_mix.py --resume {tmp_path}/run\n"
    assert capsys.readouterr().err.endswith(hint)
    assert [int(path.stem) for path in (tmp_path / "run/checkpoints").iterdir()] == [{4: 6, 14: 14}[update]]
    monkeypatch.undo()
    time.sleep(1)  # files of events are read in the order of the seconds in their names
    assert status_of(["--resume", str(tmp_path / "run")]) is None
    assert outcome(tmp_path / "run") == outcome(run)
    for name in board.read(run / "tensorboard").Runs():
        for tag in board.read(run / "tensorboard").Runs()[name]["scalars"]:
            once = [[event.step for event in board.scalars(folder / "tensorboard", tag, name)]
                    for folder in (run, tmp_path / "run")]  # fmt: skip
            assert once[0] == once[1], (name, tag)


# Control, variants and replay


def test_the_control_is_the_comparisons(tmp_path: Path) -> None:
    train_rl_mix.main([*DATA, "--thresholds", "random", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run/agent.json").exists()
    training = Trainer(TrainConfig(), DataConfig("digits", train_size=60).draw(0))
    setting = trainings.Setting(
        DataConfig("digits", train_size=60),
        ComparisonTrainConfig(updates=UPDATES, batch_size=BATCH, device="cpu", precision=training.precision),
        torch.__version__,
    )
    contestant = CONTESTANTS["rl-mix-random"]
    line = trainings.train("rl-mix-random", contestant, 0, setting, ComparisonConfig())
    summary = summary_of(tmp_path / "run")
    assert (line["accuracy"], line["last_quarter"]) == (summary["development"]["accuracy"], summary["last_quarter"])


def test_variants_are_played(tmp_path: Path) -> None:
    variants = "--grid mixing --reward validation --validation-limit 50 --lam beta(0.2)".split()
    train_rl_mix.main([*OPTIONS, *variants, "--out", str(tmp_path / "run")])
    agent = RLMixAgent.load(tmp_path / "run")
    assert (agent.extractor, agent.grid, agent.side) == ("image", "mixing", 4)
    assert agent.provenance["reward"] == "validation"


def test_a_learned_agent_is_replayed_in_another_training(tmp_path: Path) -> None:
    learned, replayed = tmp_path / "learned", tmp_path / "replayed"
    train_rl_mix.main([*OPTIONS, "--out", str(learned)])
    frozen = "--thresholds frozen --batch-size 15 --seed 4 --data-seed 1 --updates 6".split()
    train_rl_mix.main([*DATA, *frozen, "--agent", str(learned), "--out", str(replayed)])
    for name in ("agent.json", "agent.safetensors"):  # the run folder's own copy
        assert (replayed / name).read_bytes() == (learned / name).read_bytes()
    (learned / "agent.json").unlink()
    before = outcome(replayed)
    (replayed / "summary.json").unlink()
    train_rl_mix.main(["--resume", str(replayed)])
    assert outcome(replayed) == before
    assert sum(lines(replayed)[0]["counts"]) == 4 * 15


# What is refused


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--thresholds frozen", "--agent RUN"),
        ("--agent somewhere", "--agent RUN"),
        ("--thresholds frozen --agent missing", "missing: no usable RL-Mix agent"),
        ("--batch-size 61", "got 60 training images for batches of 61"),
        ("--train-size 100000", "train_size"),
        ("--updates 0", "updates must be at least 1"),
        ("--lam x", "lam must read"),
        ("--ppo.extractor x", "extractor must be one of batch, image"),
        ("--ppo.n-steps 5", "divisible by its batch_size"),
        ("--validation-limit 0", "validation_limit"),
        ("--seed -1", "seed must be at least 0"),
        ("--seed 20261130120000", "seed must be below 2**32"),
        ("--threads -1", "threads must be at least 0"),
        ("--model nonsense", "'nonsense'"),
        ("--dataset nonsense", "'nonsense'"),
        ("--device cuda:99", "cuda:99"),
        ("--resume missing", "expected a run folder, got none"),
    ],
)
def test_refused_in_one_line_before_anything_is_made(option: str, named: str, refused: Refused) -> None:
    assert named in refused(train_rl_mix.main, [*OPTIONS, *option.split()])


def test_an_agent_that_does_not_fit_is_refused(tmp_path: Path, refused: Refused) -> None:
    agent = RLMixAgent(new_policy("batch", BATCH, 8, 10), "batch", BATCH, 8, 10, "published", {})
    (tmp_path / "agent").mkdir()
    agent.save(tmp_path / "agent")
    frozen = ["--thresholds", "frozen", "--agent", "agent"]
    assert "batches of 20, got 10" in refused(train_rl_mix.main, [*DATA, "--batch-size", "10", *frozen])
    assert "side 8, got 4" in refused(train_rl_mix.main, [*DATA, "--grid", "mixing", *frozen])


def test_runs_of_the_two_environments_are_not_mixed_up(run: Path, refused: Refused) -> None:
    assert "expected a run of train_agent.py, got one of " in refused(train_agent.main, ["--resume", run])


def test_a_diverged_classifier_ends_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([*OPTIONS, "--lr", "1e30", "--out", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "lower --lr than 1e+30" in line
    assert not (tmp_path / "run/summary.json").exists()


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    require_explained(RLMixConfig, help_of(train_rl_mix.main, capsys, monkeypatch))
