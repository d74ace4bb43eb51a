"""Record of a running search: TensorBoard, the log of episodes, checkpoints, a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from rlmix.agent.ppo import search_state
from rlmix.agent.tags import Layout, Tag, choice_tag, margin, multiline
from rlmix.agent.workers import EpisodeCursor
from rlmix.classifier.files import LineLog
from rlmix.envs import DIMENSIONS, Menu

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PICTURES = 16  # of each kind over a search, evenly spread: drawing takes longer than learning, and 80 kB each


def layout(menu: Menu) -> Layout:
    """Return TensorBoard's custom scalars of a search: charts side by side, by category.

    Each choice is a run of its own below the search's, because TensorBoard colours lines by run. A dimension of one
    choice has no chart.
    """
    return {
        # A category of its own: within one, TensorBoard shows charts with a band after those with lines.
        "Learning curve": {
            "return of a training: mean of a rollout, with its 95 % interval": margin(
                Tag.RETURN_MEAN, Tag.RETURN_LOWER, Tag.RETURN_UPPER
            ),
        },
        "Accuracy and choices over the search": {
            "validation accuracy, mean and best": multiline(Tag.ACCURACY_MEAN, Tag.ACCURACY_MAX),
            **{f"{dimension}: share of choices": multiline(choice_tag(dimension)) for dimension in menu.varied},
        },
    }


class SearchLog(BaseCallback):
    """Callback that records a PPO search over `MixPolicyEnv`.

    Args:
        menu: the menu of choices.
        segments: progress at which each segment ends.
        episodes: log to which each finished episode is appended at the end of a rollout.
        positions: position of each worker at the start.
        bar: progress bar of finished episodes.
        rollouts: number of rollouts of the whole search.
        save: called with the search's state after each rollout that was learned from.
        checkpoint: the last state given to `save`, to resume from; optional, defaults to a new search.
    """

    def __init__(
        self,
        *,
        menu: Menu,
        segments: tuple[float, ...],
        episodes: LineLog,
        positions: list[EpisodeCursor],
        bar: tqdm[Any],
        rollouts: int,
        save: Callable[[dict[str, Any]], None],
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._menu, self._segments = menu, segments
        self._episodes, self._bar, self._save = episodes, bar, save
        self._picture_every = math.ceil(rollouts / MAX_PICTURES)
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
        self.learning_seconds = 0.0  # spent in PPO's own updates

    def _on_training_start(self) -> None:
        formats = self.model.logger.output_formats
        self._writer: SummaryWriter = next(
            entry.writer for entry in formats if isinstance(entry, TensorBoardOutputFormat)
        )
        # What an interrupted run wrote after its checkpoint is replaced.
        first = self.num_timesteps + 1
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        self._writer.add_custom_scalars(layout(self._menu))
        self._choices: dict[tuple[str, str], SummaryWriter] = {
            (dimension, name): SummaryWriter(f"{self._writer.log_dir}/policy_{dimension}_{name}", purge_step=first)
            for dimension in self._menu.varied
            for name in self._menu.names(dimension)
        }
        self._learned: int = self.num_timesteps

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
            self._episodes.append(*self._finished)
        finals = [episode["validation_accuracy"][-1] for episode in self._finished]
        if finals:
            returns = self._returns[-len(finals) :]
            mean = float(np.mean(returns))
            # Of the normal distribution: of a rollout's few returns, a guide to the eye.
            half_width = 1.96 * float(np.std(returns, ddof=1)) / math.sqrt(len(returns)) if len(returns) > 1 else 0.0
            self.logger.record(Tag.RETURN_MEAN, mean)
            self.logger.record(Tag.RETURN_LOWER, mean - half_width)
            self.logger.record(Tag.RETURN_UPPER, mean + half_width)
            self.logger.record(Tag.ACCURACY_MEAN, float(np.mean(finals)))
            self.logger.record(Tag.ACCURACY_MAX, float(np.max(finals)))
        self.logger.record(Tag.DIVERGED, sum(episode["diverged"] for episode in self._finished))
        self.episodes_done += len(self._finished)
        self.logger.record(Tag.EPISODES, self.episodes_done)
        actions = np.array([action for _, action in self._rollout])
        shares = []
        for index, (dimension, size) in enumerate(zip(DIMENSIONS, self._menu.sizes, strict=True)):
            shares.append((np.bincount(actions[:, index], minlength=size) / len(actions)).tolist())
            for name, share in zip(self._menu.names(dimension), shares[-1], strict=True):
                if (writer := self._choices.get((dimension, name))) is not None:
                    writer.add_scalar(choice_tag(dimension), share, self.num_timesteps)
        self.history.append(shares)
        if (len(self.history) - 1) % self._picture_every == 0:
            self._draw_progress()
            self._writer.add_figure(Tag.CHOICES_OVER_SEARCH, self.search_figure(), self.num_timesteps)
            assert self.training_env is not None
            (picture,) = self.training_env.env_method("render", indices=0)
            if picture is not None:
                self._writer.add_image(Tag.MIXED_IMAGES, picture, self.num_timesteps, dataformats="HWC")
                (policy,) = self.training_env.env_method("rendered_policy", indices=0)
                self._writer.add_text(Tag.MIXED_IMAGES_POLICY, policy, self.num_timesteps)
        self._rollout, self._finished = [], []

        self._rollout_ended = time.monotonic()

    def _on_rollout_start(self) -> None:
        # A new rollout starts when the last one has been learned from.
        if self.num_timesteps > self._learned:
            self._checkpoint()

    def _on_training_end(self) -> None:
        self._checkpoint()
        if self.history and (len(self.history) - 1) % self._picture_every:  # else it has been drawn
            self._writer.add_figure(Tag.CHOICES_OVER_SEARCH, self.search_figure(), self.num_timesteps)
        self._writer.flush()
        for writer in self._choices.values():
            writer.close()

    def _checkpoint(self) -> None:
        assert isinstance(self.model, PPO)
        self.learning_seconds += time.monotonic() - self._rollout_ended
        self._learned = self.num_timesteps
        self.logger.dump(self.num_timesteps)  # what PPO tells of this update; later, a kill would lose it
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
        from rlmix.agent.plots import choices_figure  # Matplotlib takes most of a second

        self._writer.add_figure(
            Tag.CHOICES_OVER_PROGRESS,
            choices_figure(
                self._menu,
                shares,
                ticks=[f"{100 * end:.0f} %" for end in self._segments],
                xlabel="segment, until this much of the training",
            ),
            self.num_timesteps,
        )

    def search_figure(self) -> Figure:
        """Return the share of each choice in each rollout so far, a panel for each dimension."""
        from rlmix.agent.plots import choices_figure  # Matplotlib takes most of a second

        shares = [np.array([rollout[dimension] for rollout in self.history]).T for dimension in range(len(DIMENSIONS))]
        return choices_figure(self._menu, shares, ticks=None, xlabel="rollout of the search")
