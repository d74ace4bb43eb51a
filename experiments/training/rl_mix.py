"""One classifier trained while RL-Mix's per-batch agent chooses R-Mix's thresholds (arXiv 2212.04875)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter
from tqdm import tqdm

from rlmix.agent.rl_mix.agent import RLMixAgent
from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.agent.rl_mix.loop import Choose, Learn, last_quarter, play
from rlmix.agent.rl_mix.loop import random_thresholds as drawn
from rlmix.agent.tags import Layout, Tag, margin, multiline
from rlmix.classifier.compilation import resolve_machine
from rlmix.classifier.data import Splits
from rlmix.classifier.files import LineLog, write_atomic
from rlmix.classifier.hardware import set_threads
from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.envs import RLMixEnv
from rlmix.experiments.runs.command import spelling
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.runs.signals import StopSignal
from rlmix.experiments.training.config import RLMixConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATIONS = 20  # number of evaluations on validation images over a training, for the curve alone

# TensorBoard colours lines by run, so each threshold is a run of its own. There are fewer colours than thresholds, so
# the thresholds are shown in two halves.
HALF = len(THRESHOLDS) // 2
HALVES = {Tag.SHARE_LOW: slice(HALF), Tag.SHARE_HIGH: slice(HALF, None)}
LAYOUT: Layout = {
    "Thresholds, reward and accuracy over the training": {
        f"share of images, thresholds up to {THRESHOLDS[HALF - 1]:.2f}": multiline(Tag.SHARE_LOW),
        "reward": multiline(Tag.REWARD_MEAN),
        "validation accuracy": multiline(Tag.ACCURACY),
        f"share of images, thresholds from {THRESHOLDS[HALF]:.2f}": multiline(Tag.SHARE_HIGH),
        "training loss, mixed": multiline(Tag.MIXED_LOSS),
        "threshold: mean, between quartiles": margin(
            Tag.THRESHOLD_MEAN, Tag.THRESHOLD_LOWER_QUARTILE, Tag.THRESHOLD_UPPER_QUARTILE
        ),
    }
}

# Options that an agent's file records, in this order; none about folders and machines.
FACTS = ("reward", "ppo", "lam", "dataset", "model", "train_size", "data_seed", "updates", "batch_size", "lr", "seed")


def environment(config: RLMixConfig, data: Splits) -> RLMixEnv:
    """Return the environment that the options describe.

    Raises:
        InputError: an option is out of range.
    """
    return RLMixEnv(
        training=config.train,
        splits=data,
        reward=config.reward,
        grid=config.grid,
        lam=config.lam,
        validation_limit=config.validation_limit,
    )


def resolve(config: RLMixConfig, data: Splits) -> RLMixConfig:
    """Return the configuration with nothing left to `auto`; sets the number of threads.

    Raises:
        InputError: an option is out of range, or network, images and agent do not fit each other.
        DamagedFileError: the frozen agent cannot be used.
    """
    if (config.thresholds == "frozen") != (config.agent is not None):
        raise RunError("--agent RUN (the run folder of an agent) and --thresholds frozen must be given together")
    set_threads(config.threads)
    # Errors in network or agent are reported here, before there is a run folder.
    train = replace(config.train, device="cpu", precision="fp32", compile="off")
    tried = environment(replace(config, train=train), data)
    chooser(config, tried, None, None if config.agent is None else Path(config.agent))
    train = resolve_machine(config.train, data, planned_updates=config.train.updates)
    return replace(config, train=train, threads=torch.get_num_threads())


def chooser(
    config: RLMixConfig, env: RLMixEnv, logger: Logger | None, agent: Path | None
) -> tuple[Choose, Learn | None, RLMixLearner | None]:
    """Return the function that chooses thresholds, the one that learns from the result, and the learner itself.

    The latter two are None unless thresholds are learned.

    Args:
        config: configuration of the training.
        env: environment of the training.
        logger: logger of the learner's metrics.
        agent: folder of the agent for frozen thresholds.

    Raises:
        DamagedFileError: there is no usable agent in the folder.
        InputError: the agent does not fit the environment.
    """
    if config.thresholds == "learned":
        learner = RLMixLearner(config.ppo, env, seed=config.seed, updates=config.train.updates, logger=logger)
        return learner.choose, learner.learn, learner
    if config.thresholds == "random":
        return drawn(config.seed, config.train.batch_size), None, None
    assert agent is not None
    return RLMixAgent.load(agent).for_environment(env).thresholds(config.seed), None, None


def train(config: RLMixConfig, run: RunFolder, data: Splits) -> None:
    """Train to the end, from a checkpoint if there is one, and report.

    Raises:
        RunError: the classifier diverged.
        KeyboardInterrupt: after saving.
    """
    started = saved = time.monotonic()
    checkpoint = run.load_checkpoint()
    log = LineLog(run.path / "epochs.jsonl")
    log.keep(0 if checkpoint is None else checkpoint["epochs"])
    epochs = log.read()
    logger = configure(str(run.events), ["tensorboard"])
    if epochs:
        _replace_events(_writer(logger), run.events, first=epochs[-1]["updates_done"] + 1)
    set_threads(config.threads, stored=True)
    env = environment(config, data)
    choose, learn, learner = chooser(config, env, logger, run.path)
    if checkpoint is None:
        observation, _ = env.reset(seed=config.seed)
        _writer(logger).add_custom_scalars(LAYOUT)
    else:
        with reject_incompatible(run.checkpoints):
            observation = env.load_state_dict(checkpoint["env"])
            if learner is not None:
                learner.load_state_dict(checkpoint["agent"], observation)

    def save_checkpoint() -> None:
        agent = None if learner is None else learner.state_dict()
        state = {"env": env.state_dict(), "agent": agent, "epochs": len(epochs)}
        _writer(logger).flush()  # those of the thresholds' shares too, which a resumed run does not write again
        run.save_checkpoint(env.trainer.updates_done, state)

    print_setting(config, data, env)
    interactive = sys.stderr.isatty()
    with (
        StopSignal() as stop,
        tqdm(
            total=config.train.updates,
            initial=env.trainer.updates_done,
            desc="training",
            unit="update",
            mininterval=0.5 if interactive else 20,
        ) as bar,
    ):
        for epoch in play(env, observation, choose, learn):
            if epoch.diverged:
                raise RunError(
                    f"the loss was not finite at update {epoch.updates_done} of {config.train.updates}; start again "
                    f"with a lower --lr than {config.train.lr:g}"
                )
            epochs.append(epoch.line())
            log.append(epochs[-1])
            ends = epoch.updates_done - epoch.updates, epoch.updates_done
            before, after = (end * EVALUATIONS // config.train.updates for end in ends)
            accuracy = None
            if after > before:
                accuracy = env.trainer.evaluate("validation", limit=config.validation_limit).accuracy
            record(logger, epochs[-1], accuracy)
            bar.update(epoch.updates)
            bar.set_postfix_str(f"reward {epoch.reward:.3f}, loss {epoch.loss:.3f}", refresh=False)
            if stop.asked or time.monotonic() - saved >= config.checkpoint_seconds or env.training_over:
                save_checkpoint()
                saved = time.monotonic()
            if stop.asked:
                raise KeyboardInterrupt
    if learner is not None:
        options = flatten(asdict(config))
        facts = {"learned_by": "ppo", **{name: options[name] for name in FACTS}}
        RLMixAgent.from_learner(learner, config.ppo.extractor, env, facts).save(run.path)
    logger.record(Tag.THRESHOLDS_OVER_TRAINING, LoggedFigure(thresholds_figure(epochs), close=False))
    logger.dump(config.train.updates)
    logger.close()
    finish(config, run, env, epochs, time.monotonic() - started)


def _replace_events(writer: SummaryWriter, folder: Path, *, first: int) -> None:
    """Have what an interrupted run wrote from an update on replaced, also in the runs that `add_scalars` makes."""
    writers = writer.all_writers
    assert writers is not None, "it is open"
    for name in map(str, folder.glob("*/")):
        writers[name] = FileWriter(name)
    for one in writers.values():
        one.add_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))


def print_setting(config: RLMixConfig, data: Splits, env: RLMixEnv) -> None:
    """Print the data and the setting of the training."""
    train = config.train
    print(
        f"{data.name}: {len(data.train):,} training images, {train.updates:,} updates of {train.batch_size} "
        f"({env.epoch_updates} in an epoch), network {train.model!r} in {train.precision} on {train.device}"
        f"{', compiled' if train.compile == 'on' else ''}; the test set is not read\n"
        f"thresholds: {config.thresholds}",
        flush=True,
    )


def record(logger: Logger, epoch: Mapping[str, Any], accuracy: float | None) -> None:
    """Write an epoch to TensorBoard: shares and distribution of the chosen thresholds, reward, loss and accuracy.

    Args:
        logger: logger with TensorBoard's events as an output.
        epoch: line of the log.
        accuracy: accuracy on validation images at its end; None if it was not measured.
    """
    counts = np.array(epoch["counts"])
    chosen = np.repeat(THRESHOLDS, counts)
    for tag, part in HALVES.items():
        names = [f"{threshold:.2f}" for threshold in THRESHOLDS[part]]
        shares = dict(zip(names, counts[part] / counts.sum(), strict=True))
        _writer(logger).add_scalars(tag, shares, epoch["updates_done"])
    lower, upper = np.quantile(chosen, (0.25, 0.75))
    logger.record(Tag.THRESHOLD_MEAN, float(chosen.mean()))
    logger.record(Tag.THRESHOLD_LOWER_QUARTILE, float(lower))
    logger.record(Tag.THRESHOLD_UPPER_QUARTILE, float(upper))
    logger.record(Tag.THRESHOLDS, chosen)
    logger.record(Tag.REWARD_MEAN, epoch["reward"])
    logger.record(Tag.MIXED_LOSS, epoch["loss"])
    if accuracy is not None:
        logger.record(Tag.ACCURACY, accuracy)
    logger.dump(epoch["updates_done"])


def thresholds_figure(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a heat map of how often each threshold was chosen along the training.

    Args:
        epochs: lines of the log, at least one.
    """
    from matplotlib.figure import Figure  # slow to import, and needed only at the end of a training

    from rlmix.agent.plots import heat_map

    counts = np.array([epoch["counts"] for epoch in epochs], dtype=float)
    shares = (counts / counts.sum(axis=1, keepdims=True)).T
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    names = [f"{threshold:.2f}" for threshold in THRESHOLDS]
    edges = [0, *(epoch["updates_done"] for epoch in epochs)]
    mesh = heat_map(panel, shares, names=names, edges=edges, vmax=None)
    panel.set_xlabel("update of the classifier")
    panel.set_ylabel("threshold τ")
    figure.colorbar(mesh, label="share of the images")
    return figure


def finish(
    config: RLMixConfig, run: RunFolder, env: RLMixEnv, epochs: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    """Evaluate the classifier, write its weights and the summary, and print the result."""
    trainer = env.trainer
    end = last_quarter(epochs, config.train.updates)
    summary: dict[str, Any] = {
        "thresholds": config.thresholds,
        "validation": asdict(trainer.evaluate("validation")),
        "development": asdict(trainer.evaluate("development")) if len(trainer.data.development) else None,
        "last_quarter": end,
        "images_trained": config.train.updates * config.train.batch_size,
        "timing": {"seconds_this_time": round(seconds, 1)},
    }
    weights = {key: tensor.contiguous().cpu() for key, tensor in trainer.network_state().items()}
    metadata = {"trained": f"{config.train.model} on {trainer.data.name}"}
    write_atomic(run.path / "model.safetensors", save(weights, metadata=metadata))
    run.write_json("summary.json", summary)
    measured = "development" if summary["development"] else "validation"
    accuracy, images = summary[measured]["accuracy"], summary[measured]["images"]
    print(
        f"\n{measured} accuracy {100 * accuracy:.2f} % on {images:,} images\n"
        f"last quarter: mean reward {end['reward']:.4f}, mean threshold "
        f"{np.average(THRESHOLDS, weights=end['thresholds']):.3f} (0.495 if drawn evenly)\n"
        f"One training does not show whether the agent helps: `{spelling('compare')} --contestants rl-mix "
        "rl-mix-random --baseline rl-mix-random` trains both over several seeds.\n"
        f"written: {run.path}/model.safetensors, summary.json, epochs.jsonl"
        f"{', agent.safetensors' if config.thresholds == 'learned' else ''}\n"
        f"watch: tensorboard --logdir {run.events}"
    )


def _writer(logger: Logger) -> Any:
    return next(entry.writer for entry in logger.output_formats if isinstance(entry, TensorBoardOutputFormat))
