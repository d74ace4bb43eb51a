"""What a search leaves behind while it runs: TensorBoard, the log of episodes, checkpoints, a progress bar."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from rlmix.agent.ppo import search_state
from rlmix.agent.workers import Position
from rlmix.classifier.files import naming
from rlmix.envs import DIMENSIONS, Menu

# What TensorBoard's custom scalars show side by side, by category and chart; tags are regular expressions. Each choice
# is a run of its own below the search's (`add_scalars`), for TensorBoard colours lines by run.
LAYOUT = {
    "Choices, return and accuracy over the search": {
        "source: share of choices": ["Multiline", ["^policy/source$"]],
        "return of a training": ["Multiline", ["^reward/return_mean$"]],
        "validation accuracy, mean and best": ["Multiline", ["^validation/accuracy_(mean|max)$"]],
        **{
            f"{dimension}: share of choices": ["Multiline", [f"^policy/{dimension}$"]]
            for dimension in DIMENSIONS
            if dimension != "source"
        },
    }
}
MOST_PICTURES = 16  # of each kind over a search, evenly spread: drawing takes longer than learning, and 80 kB each


class SearchLog(BaseCallback):
    """Follows a PPO search over `MixPolicyEnv`.

    Args:
        menu: what is chosen from.
        segments: progress at which each segment ends.
        episodes_file: JSON lines, one for each finished episode, appended at the end of a rollout.
        positions: where each worker stands at the start.
        bar: shows finished episodes.
        rollouts: how many the search will have.
        save: called with the search's state after each rollout that was learned from.
        checkpoint: what `save` was given last, when a search goes on; none = it starts.
    """

    def __init__(
        self,
        *,
        menu: Menu,
        segments: tuple[float, ...],
        episodes_file: Path,
        positions: list[Position],
        bar: tqdm[Any],
        rollouts: int,
        save: Callable[[dict[str, Any]], None],
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._menu, self._segments = menu, segments
        self._file, self._bar, self._save = episodes_file, bar, save
        self._picture_every = math.ceil(rollouts / MOST_PICTURES)
        self._episode = [position.episode for position in positions]
        self._actions = [list(position.actions) for position in positions]
        before = checkpoint or {"running": [[] for _ in positions], "episodes_done": 0, "history": []}
        self._steps: list[list[dict[str, Any]]] = before["running"]
        self._finished: list[dict[str, Any]] = []
        self._rollout: list[tuple[int, NDArray[np.int64]]] = []  # (segment, action)
        self.episodes_done: int = before["episodes_done"]
        self.history: list[list[list[float]]] = before["history"]  # by rollout, dimension and choice: share
        self._returns: list[float] = []
        self._best = 0.0
        self._images, self._started = 0, time.monotonic()
        self.learning_seconds = 0.0  # what PPO's own updates took

    def _on_training_start(self) -> None:
        formats = self.model.logger.output_formats
        self._writer: SummaryWriter = next(
            entry.writer for entry in formats if isinstance(entry, TensorBoardOutputFormat)
        )
        self._writer.add_custom_scalars(LAYOUT)
        self._learned = self.num_timesteps

    def _on_step(self) -> bool:
        for worker, (action, reward, done, info) in enumerate(
            zip(self.locals["actions"], self.locals["rewards"], self.locals["dones"], self.locals["infos"], strict=True)
        ):
            self._rollout.append((len(self._actions[worker]), np.array(action)))
            self._actions[worker].append(tuple(int(index) for index in action))
            self._steps[worker].append(
                {"reward": round(float(np.float32(reward)), 6), "validation_accuracy": info["validation_accuracy"]}
            )
            self._images += info["images"]
            if done:
                self._finish(worker, info)
        return True

    def _finish(self, worker: int, info: dict[str, Any]) -> None:
        steps = self._steps[worker]
        self._finished.append(
            {
                "worker": worker,
                "number": self._episode[worker],
                "seed": info["episode_seed"],
                "task": info["task"],
                "actions": [list(action) for action in self._actions[worker]],
                "rewards": [step["reward"] for step in steps],
                "validation_accuracy": [step["validation_accuracy"] for step in steps],
                "diverged": info["diverged"],
            }
        )
        self._returns.append(sum(step["reward"] for step in steps))
        self._best = max(self._best, info["validation_accuracy"])
        self._episode[worker] += 1
        self._actions[worker], self._steps[worker] = [], []
        recent = self._returns[-20:]
        speed = self._images / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(
            f"return {np.mean(recent):+.2f}, best validation {100 * self._best:.1f} %, {speed:,.0f} images/s",
            refresh=False,
        )
        self._bar.update(1)

    def _on_rollout_end(self) -> None:
        if self._finished:
            with naming(self._file), open(self._file, "a") as file:
                file.writelines(json.dumps(episode) + "\n" for episode in self._finished)
                file.flush()
                os.fsync(file.fileno())
        finals = [episode["validation_accuracy"][-1] for episode in self._finished]
        if finals:
            self.logger.record("reward/return_mean", float(np.mean(self._returns[-len(finals) :])))
            self.logger.record("validation/accuracy_mean", float(np.mean(finals)))
            self.logger.record("validation/accuracy_max", float(np.max(finals)))
        self.logger.record("search/diverged", sum(episode["diverged"] for episode in self._finished))
        self.episodes_done += len(self._finished)
        self.logger.record("search/episodes", self.episodes_done)
        actions = np.array([action for _, action in self._rollout])
        shares = []
        for index, (dimension, size) in enumerate(zip(DIMENSIONS, self._menu.sizes, strict=True)):
            shares.append((np.bincount(actions[:, index], minlength=size) / len(actions)).tolist())
            chosen = dict(zip(self._menu.names(dimension), shares[-1], strict=True))
            self._writer.add_scalars(f"policy/{dimension}", chosen, self.num_timesteps)
        self.history.append(shares)
        if (len(self.history) - 1) % self._picture_every == 0:
            self._draw_progress()
            self._writer.add_figure("policy/over_the_search", self.search_figure(), self.num_timesteps)
            assert self.training_env is not None
            (picture,) = self.training_env.env_method("render", indices=0)
            if picture is not None:
                self._writer.add_image("mixed_images", picture, self.num_timesteps, dataformats="HWC")
        self._rollout, self._finished = [], []

        self._rollout_ended = time.monotonic()

    def _on_rollout_start(self) -> None:
        # A new rollout starts when the last one has been learned from.
        if self.num_timesteps > self._learned:
            self._checkpoint()

    def _on_training_end(self) -> None:
        self._checkpoint()
        if self.history:
            self._writer.add_figure("policy/over_the_search", self.search_figure(), self.num_timesteps)
        self._writer.flush()

    def _checkpoint(self) -> None:
        assert isinstance(self.model, PPO)
        self.learning_seconds += time.monotonic() - self._rollout_ended
        self._learned = self.num_timesteps
        self._save(
            {
                "search": search_state(self.model),
                "episodes_done": self.episodes_done,
                "history": self.history,
                "running": self._steps,
                "positions": [
                    {"episode": episode, "actions": [list(action) for action in actions]}
                    for episode, actions in zip(self._episode, self._actions, strict=True)
                ],
            }
        )

    def _draw_progress(self) -> None:
        counts = [np.zeros((size, len(self._segments))) for size in self._menu.sizes]
        for segment, action in self._rollout:
            for dimension, choice in enumerate(action):
                counts[dimension][choice, segment] += 1
        shares = [count / np.maximum(count.sum(axis=0), 1) for count in counts]
        self._writer.add_figure(
            "policy/over_training_progress",
            choices_figure(
                self._menu,
                shares,
                ticks=[f"{100 * end:.0f} %" for end in self._segments],
                xlabel="segment, until this much of the training",
            ),
            self.num_timesteps,
        )

    def search_figure(self) -> Figure:
        """Share of each choice in each rollout so far, as one picture for each dimension."""
        shares = [np.array([rollout[dimension] for rollout in self.history]).T for dimension in range(len(DIMENSIONS))]
        return choices_figure(self._menu, shares, ticks=None, xlabel="rollout of the search")


def choices_figure(menu: Menu, shares: list[NDArray[np.float64]], *, ticks: list[str] | None, xlabel: str) -> Figure:
    """How often each choice is made along an axis, a panel for each dimension of the menu.

    Args:
        menu: what is chosen from.
        shares: for each dimension `[choices, places along the axis]`, each column summing to 1.
        ticks: name of each place; none = numbered.
        xlabel: what the axis is.
    """
    figure = Figure(figsize=(7, 8))
    figure.subplots_adjust(left=0.28, right=0.87, top=0.96, bottom=0.07, hspace=0.55)  # a solver would take longer
    panels = figure.subplots(len(DIMENSIONS), 1, gridspec_kw={"height_ratios": [size + 1 for size in menu.sizes]})
    for panel, dimension, share in zip(panels, DIMENSIONS, shares, strict=True):
        image = panel.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        panel.set_title(dimension, loc="left", fontsize=13, fontweight="bold")
        panel.set_yticks(range(len(share)), menu.names(dimension), fontsize=12)
        if ticks is None:
            panel.tick_params(axis="x", labelsize=11)
        else:
            panel.set_xticks(range(len(ticks)), ticks, fontsize=11)
            for (choice, place), value in np.ndenumerate(share):
                if value >= 0.005:
                    ink = "black" if value > 0.6 else "white"
                    panel.text(place, choice, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=11)
    panels[-1].set_xlabel(xlabel, fontsize=12)
    figure.colorbar(image, cax=figure.add_axes((0.89, 0.25, 0.025, 0.5)), label="share of choices")
    return figure
