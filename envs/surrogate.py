"""MixPolicySurrogate-v0: MixPolicyEnv's game with a learned model of recorded trainings in the classifier's place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rlmix.classifier.errors import InputError
from rlmix.envs.effects import combination_numbers
from rlmix.envs.menu import Menu
from rlmix.envs.observation import observation_space, one_hot, require_features
from rlmix.envs.rewards import SCORE_LIMIT, Outcome, require_reward
from rlmix.envs.segments import segment_ends
from rlmix.envs.surrogate_model import SHIPPED, SurrogateModel, Trainings

MAX_SEED = 2**31
TASK_DRAW, MEMBER_DRAW, NEXT_DRAW = 1, 2, 3  # what a number is drawn for, beside the noise of each segment


class SurrogateEpisodes:
    """N episodes of the surrogate, moved on together; an episode is a pure function of its seed and its actions.

    Args:
        count: number of episodes.
        model: the model, or its folder; `"shipped"` for the one that comes with the program.
        split: tasks that are drawn from, `train`, `validation` or `test`.
        reward: name of a reward of `envs.rewards`.
        menu: choices of the agent; only that of the recordings; optional, defaults to it.
        segments: number of equal segments or their ends; only those of the recordings; optional, defaults to them.
        features: names of the features that are observed, in order, among those recorded; optional, defaults to them.
        flat: whether an action is an index into the menu's distinct policies, as in `MixPolicyFlat-v0`.
        caution: standard deviations among the ensemble's accuracies that are taken off the reward of each segment.

    Raises:
        InputError: menu or segments were not recorded, or another argument is out of range.
        DamagedFileError: there is no usable model in the folder.
    """

    def __init__(
        self,
        count: int,
        *,
        model: SurrogateModel | Path | str = SHIPPED,
        split: str = "train",
        reward: str = "relative",
        menu: Menu | None = None,
        segments: int | Sequence[float] | None = None,
        features: Sequence[str] | None = None,
        flat: bool = False,
        caution: float = 0.0,
    ) -> None:
        if count < 1:
            raise InputError(f"num_envs must be at least 1, got {count}")
        self.model = model if isinstance(model, SurrogateModel) else SurrogateModel.load(model)
        if menu is not None and menu != self.model.menu:
            raise InputError("menu must be the one that was recorded, got another; leave it out")
        if segments is not None and segment_ends(segments) != self.model.segments:
            ends = ", ".join(f"{end:g}" for end in self.model.segments)
            raise InputError(f"segments must be those of the recordings, which end at {ends}; got {segments!s:.80}")
        if not (0 <= caution < math.inf):
            raise InputError(f"caution must be at least 0, got {caution}")
        self.menu, self.segments = self.model.menu, self.model.segments
        view = self.model.view
        self.features = require_features(view.recorded if features is None else features)
        unknown = [name for name in self.features if name not in view.recorded]
        if unknown:
            raise InputError(
                f"features must be among {', '.join(view.recorded)}, which were recorded, got {', '.join(unknown)}"
            )
        self.reward, self.caution = require_reward(reward), caution
        self.rows = self.model.tasks.rows(split)
        actions = self.menu.combinations()
        self._flat = combination_numbers(self.menu.actions(), self.menu) if flat else None
        self.action_space: spaces.Space[Any] = (
            spaces.MultiDiscrete(list(self.menu.sizes)) if self._flat is None else spaces.Discrete(len(self._flat))
        )
        self.observation_space = observation_space(self.menu, self.features)
        # One row more, for no action yet.
        self._one_hot = torch.tensor([one_hot(action, self.menu) for action in [*actions, None]])
        always = torch.tensor([kind == "all" for kind in view.predicted.values()])
        self._measured = torch.cat((self.model.measured, always[None]))
        self._none = len(actions)
        self.seeds = torch.zeros(count, dtype=torch.int64)
        self._member = torch.zeros(count, dtype=torch.int64)
        self._action = torch.full((count,), self._none)
        self._score = torch.zeros(count)
        self.trainings = self.model.start(self.rows[:1].expand(count).clone())
        self.accuracy = self.model.accuracy(self.trainings.task, self.trainings.values)
        self._before = self.accuracy

    def begin(self, which: Tensor, seeds: Tensor, tasks: Tensor | None = None) -> None:
        """Begin new episodes.

        Args:
            which: which of the N, `[n]`.
            seeds: seed of each, `[n]`, int64.
            tasks: row of each one's task, `[n]`; optional, by default drawn by the seed.
        """
        count = len(self.rows)
        drawn = self.rows[_draw(seeds, TASK_DRAW) % count] if tasks is None else tasks
        fresh = self.model.start(drawn)
        for name in ("task", "segment", "values", "previous", "so_far", "taken"):
            getattr(self.trainings, name)[which] = getattr(fresh, name)
        self.seeds[which] = seeds
        self._member[which] = _draw(seeds, MEMBER_DRAW) % len(self.model.ensemble)
        self._action[which] = self._none
        self._score[which] = 0.0
        self.accuracy = self.model.accuracy(self.trainings.task, self.trainings.values)
        self._before = self._before.clone()
        self._before[which] = self.accuracy[which]

    def rows_of(self, actions: ArrayLike) -> Tensor:
        """Return the row of the model's effects for each action, `[N]`.

        Raises:
            ValueError: an action is outside the action space.
        """
        given = np.asarray(actions, dtype=np.int64)
        if self._flat is None:
            sizes = self.menu.sizes
            if given.shape != (len(self.seeds), len(sizes)) or not ((given >= 0) & (given < sizes)).all():
                raise ValueError(
                    f"an action must be one index for each of {sizes} choices, from 0, got {given.tolist()!s:.80}"
                )
            return combination_numbers(given, self.menu)
        if given.shape != (len(self.seeds),) or not ((given >= 0) & (given < len(self._flat))).all():
            raise ValueError(f"an action must be in [0, {len(self._flat) - 1}], got {given.tolist()!s:.80}")
        return self._flat[given]

    def step(self, which: Tensor, action: Tensor) -> Tensor:
        """Move episodes on by one segment, none of them at its end; give their rewards, `[n]`.

        Args:
            which: which of the N, `[n]`.
            action: row of the model's effects for each, `[n]`.
        """
        model, everyone = self.model, self.trainings
        playing = Trainings(*(getattr(everyone, name)[which] for name in everyone.__dataclass_fields__))
        segment, task = playing.segment.clone(), playing.task
        noise = standard_normal(self.seeds[which], segment, len(model.view.predicted))
        penalty = torch.zeros(len(which))
        if self.caution:
            penalty = self.caution * model.disagreement(playing, action)
        before = model.accuracy(task, playing.values)
        values = model.sample(playing, action, self._member[which], noise)
        model.advance(playing, action, values)
        model.conclude(playing)
        for name in ("segment", "values", "previous", "so_far", "taken"):
            getattr(everyone, name)[which] = getattr(playing, name)
        self._action[which] = action
        after = model.accuracy(task, playing.values)
        score_before, score = self._score[which], torch.zeros(len(which))
        if self.reward.needs_reference:
            reference, scale = model.tasks.reference[task, segment], model.tasks.scale[task, segment]
            score = ((after - reference) / scale).clamp(-SCORE_LIMIT, SCORE_LIMIT)
            penalty = penalty / scale
        self._score[which] = score
        self._before, self.accuracy = self._before.clone(), model.accuracy(everyone.task, everyone.values)
        self._before[which] = before
        rewards = torch.zeros(len(which))
        over = segment == len(self.segments) - 1
        for terminated in (False, True):
            rows = (over == terminated).nonzero()[:, 0]
            if len(rows):
                # The rewards by name take numbers; they work on tensors of trainings that all end, or all go on.
                ended: list[Any] = [values[rows] for values in (after, before, score, score_before)]
                outcome = Outcome(ended[0], ended[1], ended[2], ended[3], terminated)
                rewards[rows] = torch.as_tensor(self.reward.function(outcome), dtype=torch.float32)
        return rewards - penalty

    @property
    def over(self) -> Tensor:
        """Boolean for each episode, true at its end, `[N]`."""
        return self.trainings.segment == len(self.segments)

    @property
    def progress(self) -> Tensor:
        """Progress of each episode's training, `[N]`."""
        return self.model.tasks.progress[self.trainings.task, self.trainings.segment]

    def observe(self) -> NDArray[np.float32]:
        """Return the observations, `[N, O]`."""
        tasks, row, segment = self.model.tasks, self.trainings.task, self.trainings.segment
        seen = self._measured[self._action]
        shown = self.trainings.values * seen
        view = self.model.view
        by_name = dict(zip(view.predicted, shown.unbind(dim=1), strict=True))
        by_name |= dict(zip(view.known, tasks.known[row].unbind(dim=1), strict=True))
        by_name["progress"], by_name["relative_lr"] = tasks.progress[row, segment], tasks.relative_lr[row, segment]
        kinds = list(view.predicted.values())
        clean, mixed = seen[:, kinds.index("clean")].float(), seen[:, kinds.index("mixed")].float()
        by_name["clean_seen"], by_name["mixed_seen"], by_name["probes_seen"] = clean, mixed, clean
        by_name["validated"] = (segment > 0).float()
        by_name["validation_change"] = torch.where(segment > 0, self.accuracy - self._before, 0.0)
        gap = clean * (by_name[view.accuracy.replace("validation", "clean")] - by_name[view.accuracy])
        by_name["accuracy_gap"] = by_name["gap"] = gap
        features = torch.stack([by_name[name] for name in self.features], dim=1)
        return torch.cat((features, self._one_hot[self._action]), dim=1).numpy()


class SurrogateVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """N games of `MixPolicySurrogate-v0` in one, every step of all of them in one batch of torch.

    Each is what `SurrogateEnv` is with the same seed, to the last bits of a sum. `reset(seed=s)` seeds them s, s + 1,
    ...; options are those of `SurrogateEnv`, where `task` may be an array, and Gymnasium's `reset_mask`.

    Args:
        num_envs: number of games.
        autoreset_mode: when an episode that has ended starts anew, one of Gymnasium's `AutoresetMode`.
        options: arguments of `SurrogateEpisodes`.

    Raises:
        InputError: an argument is out of range, or menu or segments were not recorded.
        DamagedFileError: there is no usable model in the folder.
    """

    def __init__(
        self, num_envs: int = 1, *, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, **options: Any
    ) -> None:
        self.episodes = SurrogateEpisodes(num_envs, **options)
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.episodes.action_space
        self.single_observation_space = self.episodes.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._everyone = torch.arange(num_envs)
        self._base: Tensor | None = None
        self._number = torch.zeros(num_envs, dtype=torch.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start new episodes; see the class."""
        given = dict(options or {})
        mask = given.pop("reset_mask", np.ones(self.num_envs, dtype=bool))
        which = torch.from_numpy(np.flatnonzero(mask))
        if isinstance(seed, int):
            super().reset(seed=seed)
            seed = [seed + index for index in range(self.num_envs)]
        if seed is not None and len(seed) != self.num_envs:
            raise ValueError(f"expected a seed for each of {self.num_envs} environments, got {len(seed)}")
        known: list[int | None] = [None] * self.num_envs if seed is None else list(seed)
        if self._base is None:
            self._base = torch.zeros(self.num_envs, dtype=torch.int64)
            known = [int(self.np_random.integers(MAX_SEED)) if base is None else base for base in known]
        self._number[which] += 1
        for index in which.tolist():
            if (base := known[index]) is not None:
                self._base[index], self._number[index] = base, 0
        task = given.get("task")
        rows = None
        if task is not None:
            numbers = np.broadcast_to(np.asarray(task), (self.num_envs,))[which.numpy()]
            rows = torch.tensor([self.episodes.model.tasks.row(int(number)) for number in numbers])
        self.episodes.begin(which, episode_seeds(self._base[which], self._number[which]), rows)
        return self.episodes.observe(), self._infos()

    def step(
        self, actions: ArrayLike
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Move every episode on by one segment; see the class."""
        if self._base is None:
            raise RuntimeError("there is no episode to step: call reset() first")
        rows, over = self.episodes.rows_of(actions), self.episodes.over
        rewards = torch.zeros(self.num_envs)
        if bool(over.any()):
            if self.autoreset_mode != AutoresetMode.NEXT_STEP:
                raise RuntimeError("an episode is at its end: call reset() for it first")
            self._start_next(over.nonzero()[:, 0])
            which = (~over).nonzero()[:, 0]
        else:
            which = self._everyone
        if len(which):
            rewards[which] = self.episodes.step(which, rows[which])
        ended = self.episodes.over
        observations, infos = self.episodes.observe(), self._infos()
        if self.autoreset_mode == AutoresetMode.SAME_STEP and bool(ended.any()):
            final: Any = np.full(self.num_envs, None, dtype=np.object_)
            there = ended.numpy()
            for index in np.flatnonzero(there).tolist():
                final[index] = observations[index]
            self._start_next(ended.nonzero()[:, 0])
            observations, infos = (
                self.episodes.observe(),
                {
                    **self._infos(),
                    **{"final_obs": final, "_final_obs": there.copy()},
                    **{"final_info": infos, "_final_info": there.copy()},
                },
            )
        truncated = np.zeros(self.num_envs, dtype=bool)
        return observations, rewards.double().numpy(), ended.numpy(), truncated, infos

    def _start_next(self, which: Tensor) -> None:
        assert self._base is not None
        self._number[which] += 1
        self.episodes.begin(which, episode_seeds(self._base[which], self._number[which]))

    def _infos(self) -> dict[str, Any]:
        numbers = {
            "episode_seed": self.episodes.seeds.numpy().copy(),
            "task": self.episodes.model.tasks.numbers[self.episodes.trainings.task].numpy(),
            "validation_accuracy": self.episodes.accuracy.double().numpy(),
            "progress": self.episodes.progress.double().numpy(),
        }
        return numbers | {f"_{name}": np.ones(self.num_envs, dtype=bool) for name in numbers}


class SurrogateEnv(gym.Env[Any, Any]):
    """Learn how to mix images, in a model of recorded trainings; fast, and with a real environment behind it.

    ## Description
    The game of `MixPolicyEnv` on the tasks of a recorded study: the same spaces, rewards and rules, but what a segment
    does is drawn from an ensemble of small networks that has learned from recorded trainings. Each episode follows one
    member of the ensemble, so that what the recordings do not tell differs from one episode to the next.
    docs/surrogate.md says how faithful it is, on tasks that the ensemble has not seen. Many games at a time are
    `SurrogateVectorEnv`.

    ## Action Space, Observation Space
    Those of `MixPolicyEnv` with the menu and the segments of the recordings (`SurrogateModel.menu`, `.segments`).
    `MixPolicySurrogateFlat-v0` offers the menu's distinct policies as one `Discrete` action. Task and learning rate are
    as recorded; validation accuracy, losses and the like are drawn, and clipped to their ranges.

    ## Rewards
    Those of `MixPolicyEnv`, by name. The reference is the model's: CutMix on half of the updates in the one that is
    shipped, as it was recorded on the task, plain training in those of broad tasks.

    ## Starting State
    `reset(seed=s)` fixes the task, by a draw from the split, and everything that is drawn in the episode. Without a
    seed the next episode's seed follows from the last one given. `options={"task": number}` plays that task, which may
    be of another split. `info["episode_seed"]` gives this episode again, `info["task"]` is the number of its task.

    ## Episode End
    Terminated after the last segment. No recorded training diverged, so none does here. Never truncated.

    ## Arguments
    ```python
    import gymnasium as gym
    env = gym.make("rlmix:MixPolicySurrogate-v0", split="train", reward="standing")
    many = gym.make_vec("rlmix:MixPolicySurrogate-v0", num_envs=1024, vectorization_mode="vector_entry_point")
    ```

    ## Version History
    - v0: first version.

    Args:
        options: arguments of `SurrogateEpisodes`.

    Raises:
        InputError: menu or segments were not recorded, or another argument is out of range.
        DamagedFileError: there is no usable model in the folder.
    """

    metadata = {"render_modes": []}  # noqa: RUF012, as in gymnasium

    def __init__(self, **options: Any) -> None:
        self.episodes = SurrogateEpisodes(1, **options)
        self.action_space, self.observation_space = self.episodes.action_space, self.episodes.observation_space
        self._base: int | None = None
        self._number = 0
        self._playing = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a new episode; see the class.

        Args:
            seed: seed of the episode.
            options: `task`, the number of a recorded task to play.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._base, self._number = seed, 0
        elif self._base is None:
            self._base, self._number = int(self.np_random.integers(MAX_SEED)), 0
        else:
            self._number += 1
        task = (options or {}).get("task")
        row = None if task is None else torch.tensor([self.episodes.model.tasks.row(int(task))])
        self.episodes.begin(
            torch.zeros(1, dtype=torch.int64),
            episode_seeds(torch.tensor([self._base]), torch.tensor([self._number])),
            row,
        )
        self._playing = True
        return self.episodes.observe()[0], self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play one segment under the policy that `action` stands for; see the class."""
        if not self._playing:
            raise RuntimeError("there is no episode to step: call reset() first, also after the end of an episode")
        row = self.episodes.rows_of([action])
        reward = float(self.episodes.step(torch.zeros(1, dtype=torch.int64), row)[0])
        terminated = bool(self.episodes.over[0])
        self._playing = not terminated
        policy = self.episodes.menu.policy(self.episodes.menu.combinations()[int(row)])
        info = {**self._info(), "policy": policy.to_json(), "diverged": False}
        return self.episodes.observe()[0], reward, terminated, False, info

    def _info(self) -> dict[str, Any]:
        episodes = self.episodes
        return {
            "episode_seed": int(episodes.seeds[0]),
            "task": int(episodes.model.tasks.numbers[episodes.trainings.task[0]]),
            "validation_accuracy": float(episodes.accuracy[0]),
            "progress": float(episodes.progress[0]),
        }


def episode_seeds(base: Tensor, number: Tensor) -> Tensor:
    """Return the seed of each environment's episode, `[N]`: the seed given for the first, others follow from it.

    Args:
        base: seed that was given, `[N]`.
        number: number of episodes since then, `[N]`.
    """
    return torch.where(number == 0, base, _hash(_hash(base) + NEXT_DRAW + number) & (MAX_SEED - 1))


# Random numbers that are a pure function of a seed and of what they are for, whatever else is drawn in the batch:
# the counters of SplitMix64 (https://doi.org/10.1145/2660193.2660195), whose arithmetic wraps as int64's does.
_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def _hash(values: Tensor) -> Tensor:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def _draw(seeds: Tensor, purpose: int) -> Tensor:
    """Return a whole number from 0 for each seed."""
    return _hash(_hash(seeds) + purpose) & (MAX_SEED - 1)


def standard_normal(seeds: Tensor, segment: Tensor, count: int) -> Tensor:
    """Return `count` standard normal numbers for each seed and segment, `[N, count]`."""
    place = (1 + segment)[:, None] * 4096 + torch.arange(count)
    bits = _hash(_hash(seeds)[:, None] + place * _GOLDEN)
    uniform = (((bits >> 41) & 0x7FFFFF).float() + 0.5) * 2**-23  # exact in float32, and never 0 or 1
    return torch.erfinv(2 * uniform - 1) * math.sqrt(2)
