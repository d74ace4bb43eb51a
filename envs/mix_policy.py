"""MixPolicyEnv: an episode is one classifier training, a step one segment of it under one mixing policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.mixing.picture import mixed_picture
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.menu import Menu
from rlmix.envs.observation import TrainingState, observation_space, observe
from rlmix.envs.reference import ReferenceCurve, measure_reference
from rlmix.envs.tasks import Task, TaskDistribution

REWARDS = ("relative", "standing", "change", "final")
REFERRED = REWARDS[:2]  # that compare with a reference
SCORE_LIMIT = 10.0  # standard deviations; a diverged training would otherwise outweigh a thousand others
DIGITS_TASK = TaskDistribution(train_size=(300, 300), updates=(60, 60))


class MixPolicyEnv(gym.Env[Any, Any]):
    """Learn how to mix images while a classifier is trained.

    ## Description
    An episode is one training of a classifier, from new weights to the end of its learning-rate schedule, cut into
    segments. At every step the agent chooses a mixing policy; the environment trains one segment under it and measures
    the classifier on validation images. An episode is a pure function of its seed and its actions (on one kind of
    machine and number of threads): an episode that was lost is had again by repeating its actions.

    ## Action Space
    `MultiDiscrete` over the four dimensions of the `Menu`. With the default menu:

    | Index | Meaning | Choices |
    |---|---|---|
    | 0 | source: methods and their shares | clean; mixup, CutMix, average, R-Mix half; both quarter; CutMix all |
    | 1 | R-Mix's threshold τ | drawn for each image, 0.3, 0.6, 0.9 |
    | 2 | label: LaMix's β and label smoothing | β 1; β 0.5; smoothing 0.1; smoothing 0.3 |
    | 3 | distribution of the mixing ratio λ | Beta(1, 1), Beta(0.2, 0.2), always 0.5 |

    A dimension that has no effect on a source (τ without R-Mix) is ignored. `MixPolicyFlat-v0` offers the distinct
    policies as one `Discrete` action.

    ## Observation Space
    `Box` of float32. "Last segment" values are 0 before the first one; a classifier is then taken to be at chance.

    | Index | Meaning | Low | High |
    |---|---|---|---|
    | 0 | log10(training images) / 5 | 0 | 2 |
    | 1 | log10(updates of the whole training) / 5 | 0 | 2 |
    | 2 | log10(1 + passes over the training images) / 4 | 0 | 2 |
    | 3 | log10(classes K) / 3 | 0 | 2 |
    | 4 | progress of the training | 0 | 1 |
    | 5 | learning rate of the next update over the highest one | 0 | 1 |
    | 6 | 1 if the last segment had clean updates, else 7, 8 and 15 are 0 | 0 | 1 |
    | 7 | their loss less the targets' own entropy, over log K | 0 | 4 |
    | 8 | their accuracy on the (augmented, perhaps wrongly labelled) training images | 0 | 1 |
    | 9 | 1 if the last segment had mixed updates, else 10 and 11 are 0 | 0 | 1 |
    | 10 | their loss less the targets' own entropy, over log K | 0 | 4 |
    | 11 | share of mixed images whose largest target is found | 0 | 1 |
    | 12 | validation loss over log K | 0 | 4 |
    | 13 | validation accuracy | 0 | 1 |
    | 14 | its change over the last segment | -1 | 1 |
    | 15 | accuracy of clean updates less validation accuracy | -1 | 1 |
    | 16 | mean confidence on validation images | 0 | 1 |
    | 17 | expected calibration error on validation images | 0 | 1 |
    | 18 | 1 if saliency and gradient were measured (needs a clean update), else 19 and 20 are 0 | 0 | 1 |
    | 19 | entropy of the patch saliency over its highest value | 0 | 1 |
    | 20 | log10(norm of the gradient over norm of the parameters) / 5 | -1 | 1 |
    | 21... | the last action, one-hot in each dimension; all 0 at the start | 0 | 1 |

    Values outside are clipped; what is not a number stands at the high end.

    ## Rewards
    Episodes have a finite length: use a discount of 1.

    - `relative` (default): a score is validation accuracy less that of the reference policy on the same task at the
      same progress, in standard deviations over seeds at that progress, limited to ±10; the reward is its change over
      the segment, so that an episode's sum is its final score. The reference is the mean over `reference_seeds`
      trainings; with 0, one training from the episode's own seed.
    - `standing`: that final score at the end of the episode, 0 before: for an agent that cannot see the reference, and
      so cannot tell how much of a score it has had already.
    - `change`: validation accuracy less that before the segment, starting at chance, in [0, 1].
    - `final`: validation accuracy after the last segment, in [0, 1]; 0 before.

    Validation inside an episode uses the first `validation_limit` images of the split, after the last segment all.

    ## Starting State
    A classifier with new weights. `reset(seed=s)` fixes task, images and training; without a seed the next one is drawn
    from the environment's generator. `info["episode_seed"]` is the seed that gives this episode again. With
    `options={"task": task}`, a `Task` or a dictionary of its fields, the seed fixes the training alone.

    ## Episode End
    Terminated after the last segment, or at once when a loss is not finite (`info["diverged"]`), which counts as
    accuracy at chance. Never truncated.

    ## Arguments
    ```python
    import gymnasium as gym
    env = gym.make("rlmix:MixPolicy-v0", dataset="digits", segments=4, reward="relative")
    ```

    ## Version History
    - v0: first version.

    Args:
        dataset: name for `classifier.data.load_dataset`.
        data_root: folder where the data set lies; none = looked for.
        image_size: side in pixels that its images are resized to; none = left as they are.
        training: the classifier's setting, a `TrainConfig` or a dictionary of its fields; a task sets `updates` and
            scales `lr`.
        tasks: where episodes' tasks come from, a `TaskDistribution` or a dictionary of its fields.
        segments: number of equal segments, or the progress in (0, 1] at which each one ends.
        reward: `relative`, `standing`, `change` or `final`.
        menu: what can be chosen; none = the default.
        reference: the policy that `relative` and `standing` compare with; none = CutMix on half the updates.
        reference_seeds: trainings of the reference on each task; 0 = one, from the episode's own seed.
        reference_cache: folder where references are kept between runs and shared by workers.
        validation_size: validation images; none = the data set's default.
        validation_limit: how many of them are used before the end of training.
        splits: the data, where the caller has it loaded already; `dataset` is then not read.
        render_mode: `rgb_array` for `render()`: the last mixed images with their targets.

    Raises:
        ValueError: an argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012, as in gymnasium

    def __init__(
        self,
        dataset: str = "digits",
        data_root: str | None = None,
        *,
        image_size: int | None = None,
        training: TrainConfig | Mapping[str, Any] | None = None,
        tasks: TaskDistribution | Mapping[str, Any] | None = None,
        segments: int | Sequence[float] = 4,
        reward: str = "relative",
        menu: Menu | None = None,
        reference: MixPolicy | None = None,
        reference_seeds: int = 2,
        reference_cache: str | Path | None = None,
        validation_size: int | None = None,
        validation_limit: int | None = 1000,
        splits: Splits | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.menu = menu or Menu()
        self.tasks = TaskDistribution(**tasks) if isinstance(tasks, Mapping) else tasks or DIGITS_TASK
        self.training = TrainConfig(**training) if isinstance(training, Mapping) else training or TrainConfig()
        self.segments = segment_ends(segments)
        require_updates(self.segments, *self.tasks.updates)
        if reward not in REWARDS:
            raise InputError(f"reward must be one of {', '.join(REWARDS)}, got {reward!r}")
        if reference_seeds < 0:
            raise InputError(f"reference_seeds must be at least 0, got {reference_seeds}")
        if validation_limit is not None and validation_limit < 1:
            raise InputError(f"validation_limit must be at least 1 image or none, got {validation_limit}")
        self.reward = reward
        self.reference = reference or MixPolicy({"clean": 0.5, "cutmix": 0.5})
        self.reference_seeds = reference_seeds
        self.validation_limit = validation_limit
        self.render_mode = render_mode
        self._dataset, self._data_root, self._image_size = dataset, data_root, image_size
        self._validation_size = validation_size
        self._reference_cache = None if reference_cache is None else Path(reference_cache)
        self._references: dict[Task, ReferenceCurve] = {}
        self._splits = splits
        self._trainer: Trainer | None = None
        self._state: TrainingState | None = None
        self.action_space = spaces.MultiDiscrete(list(self.menu.sizes))
        self.observation_space = observation_space(self.menu)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a new training; see the class.

        Args:
            seed: of the episode.
            options: `task`, what is trained instead of the task that the seed stands for.
        """
        super().reset(seed=seed)
        self._episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        given = (options or {}).get("task")
        if given is None:
            task = self.tasks.task(self._episode_seed)
        else:
            task = given if isinstance(given, Task) else Task(**given)
            require_updates(self.segments, task.updates, task.updates)
        trainer = self.prepare(task)
        train_seed = training_seed(self._episode_seed)
        if self.reward in REFERRED:
            self._curve = self._reference_curve(trainer, task, train_seed)
        trainer.reset(train_seed, updates=task.updates)
        self._segment = 0
        self._accuracy = 1 / trainer.num_classes
        self._score = 0.0
        self._state = TrainingState(
            task, trainer.num_classes, trainer.config.batch_size, trainer.progress, trainer.relative_lr
        )
        return observe(self._state, self.menu), {"episode_seed": self._episode_seed, "task": asdict(task)}

    def step(
        self, action: NDArray[np.int64] | Sequence[int]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Train one segment under the policy that `action` stands for; see the class."""
        if self._state is None:
            raise RuntimeError("there is no episode to step: call reset() first, also after the end of an episode")
        trainer, task = self.prepare(self._state.task), self._state.task
        choice = tuple(int(index) for index in action)
        policy = self.menu.policy(choice)
        end = round(self.segments[self._segment] * task.updates)
        stretch = trainer.train(policy, end - trainer.updates_done)
        last = self._segment == len(self.segments) - 1
        evaluation = None
        if not stretch.diverged:
            evaluation = trainer.evaluate("validation", limit=None if last else self.validation_limit)
        diverged = evaluation is None or not math.isfinite(evaluation.loss)
        if evaluation is None or diverged:
            chance = 1 / trainer.num_classes
            evaluation = EvalStats(chance, math.log(trainer.num_classes), chance, 0.0, 0)
        terminated = last or diverged
        reward = self._reward(evaluation.accuracy, terminated)
        self._state = TrainingState(
            task,
            trainer.num_classes,
            trainer.config.batch_size,
            trainer.progress,
            trainer.relative_lr,
            stretch=stretch,
            evaluation=evaluation,
            accuracy_before=self._accuracy,
            action=choice,
        )
        observation = observe(self._state, self.menu)
        self._accuracy = evaluation.accuracy
        self._segment += 1
        info = {
            "episode_seed": self._episode_seed,
            "validation_accuracy": evaluation.accuracy,
            "progress": trainer.progress,
            "images": stretch.images,
            "policy": policy.to_json(),
            "diverged": diverged,
        }
        if terminated:
            info["task"] = asdict(task)
            self._state = None
        return observation, reward, terminated, False, info

    @property
    def trainer(self) -> Trainer:
        """The classifier's training, as the last step left it.

        Raises:
            RuntimeError: there has been no episode.
        """
        if self._trainer is None:
            raise RuntimeError("there is no training yet: call reset() first")
        return self._trainer

    def render(self) -> NDArray[np.uint8] | None:
        """The last mixed images with their targets, `[H, W, 3]`; nothing before there were any."""
        if self.render_mode != "rgb_array" or self._trainer is None or self._trainer.last_mixed is None:
            return None
        images, targets = self._trainer.last_mixed
        data = self._trainer.data
        return mixed_picture(images, targets, class_names=data.class_names, mean=data.mean, std=data.std)

    def train_under(
        self, schedule: PolicySchedule, task: Task, seed: int, *, splits: Sequence[str]
    ) -> dict[str, float]:
        """Train a task under a schedule instead of an agent's choices; ends a running episode.

        Args:
            schedule: which policy at which progress.
            task: what is trained.
            seed: of the training, as an episode's.
            splits: what to measure at the end, each on all its images.

        Returns:
            Accuracy on each split; at chance where the training diverged.
        """
        self._state = None
        trainer = self.prepare(task)
        trainer.reset(training_seed(seed), updates=task.updates)
        for end, policy in schedule.ends(task.updates):
            if trainer.train(policy, end - trainer.updates_done).diverged:
                return dict.fromkeys(splits, 1 / trainer.num_classes)
        return self.measure(splits)

    def prepare(self, task: Task) -> Trainer:
        """The trainer, holding the images of `task`; whoever trains with it ends a running episode."""
        if self._splits is None:
            data = load_dataset(self._dataset, self._data_root, image_size=self._image_size)
            self._splits = split(data, validation_size=self._validation_size)
        if self._trainer is None:
            # The whole data set goes to the device once; tasks are drawn there.
            first = task.draw(self._splits)
            self._trainer = Trainer(task.training(self.training), first)
            self._splits = self._splits.to(self._trainer.device)
            self._task = task
        elif task != self._task:
            lr = task.training(self.training).lr
            self._trainer.reset(0, data=task.draw(self._splits), updates=task.updates, lr=lr)
            self._task = task
        return self._trainer

    def seen_by(self, menu: Menu, segments: Sequence[float], task: Task) -> MixPolicyEnv:
        """This environment as an agent with another menu and other segments knows it, to play `task` alone.

        The reward is that of the end, `final`. The trainer is shared; ends a running episode.
        """
        self._state = None
        self.prepare(task)
        other = MixPolicyEnv.__new__(MixPolicyEnv)  # whatever kind of it this is
        other.__dict__.update(self.__dict__)
        other.menu, other.segments, other.reward = menu, segment_ends(segments), "final"
        other.action_space = spaces.MultiDiscrete(list(menu.sizes))
        other.observation_space = observation_space(menu)
        return other

    def measure(self, splits: Sequence[str]) -> dict[str, float]:
        """Accuracy of the trained classifier on all images of each split; at chance where the training diverged."""
        evaluations = {name: self.trainer.evaluate(name) for name in splits}
        if not all(math.isfinite(evaluation.loss) for evaluation in evaluations.values()):
            return dict.fromkeys(splits, 1 / self.trainer.num_classes)
        return {name: evaluation.accuracy for name, evaluation in evaluations.items()}

    def prepare_reference(self, number: int) -> None:
        """Measure the reference on task `number` of the pool ahead of time; ends a running episode."""
        self._state = None
        if self.reward in REFERRED and self.reference_seeds:
            task = self.tasks.task(number)
            self._reference_curve(self.prepare(task), task, train_seed=0)

    def _reference_curve(self, trainer: Trainer, task: Task, train_seed: int) -> ReferenceCurve:
        own_seed = self.reference_seeds == 0
        if own_seed or task not in self._references:
            curve = measure_reference(
                trainer,
                task,
                self.reference,
                ends=[round(end * task.updates) for end in self.segments],
                seeds=[train_seed] if own_seed else [training_seed(-1 - i) for i in range(self.reference_seeds)],
                validation_limit=self.validation_limit,
                cache=self._reference_cache,
            )
            if own_seed:
                return curve
            self._references[task] = curve
        return self._references[task]

    def _reward(self, accuracy: float, terminated: bool) -> float:
        if self.reward == "change":
            return accuracy - self._accuracy
        if self.reward == "final":
            return accuracy if terminated else 0.0
        # A training that diverged is measured against the reference's end, where it would have been compared.
        segment = len(self.segments) - 1 if terminated else self._segment
        score = (accuracy - self._curve.accuracies[segment]) / self._curve.scales[segment]
        score = min(max(score, -SCORE_LIMIT), SCORE_LIMIT)
        if self.reward == "standing":
            return score if terminated else 0.0
        reward, self._score = score - self._score, score
        return reward


class FlatMixPolicyEnv(MixPolicyEnv):
    """`MixPolicyEnv` with one `Discrete` action: an index into the menu's distinct policies.

    Everything else, the observation included, is as in `MixPolicyEnv`, which takes the same arguments.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.choices = self.menu.actions()
        self.action_space = spaces.Discrete(len(self.choices))

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Train one segment under the menu's distinct policy number `action`."""
        if not 0 <= int(action) < len(self.choices):
            raise ValueError(f"an action must be in [0, {len(self.choices) - 1}], got {action}")
        return super().step(self.choices[int(action)])


def segment_ends(segments: int | Sequence[float]) -> tuple[float, ...]:
    """The progress at which each segment ends.

    Args:
        segments: a number of equal segments, at least 1, or the ends themselves, rising in (0, 1] to 1.

    Raises:
        ValueError: neither.
    """
    if isinstance(segments, int):
        if segments < 1:
            raise InputError(f"segments must be at least 1, got {segments}")
        return tuple((index + 1) / segments for index in range(segments))
    try:
        ends = tuple(float(end) for end in segments)
    except OverflowError:
        ends = ()
    if not ends or ends[-1] != 1 or any(not low < high for low, high in zip((0.0, *ends), ends, strict=False)):
        raise InputError(f"segments must be a number, or ends that rise in (0, 1] to 1, got {segments!s:.200}")
    return ends


def require_updates(segments: Sequence[float], fewest: int, most: int) -> None:
    """Refuse segments that some training of `fewest` to `most` updates would leave without an update.

    Raises:
        ValueError: there is such a training.
    """
    shortest = min(high - low for low, high in zip((0.0, *segments), segments, strict=False))
    for updates in range(fewest, int(min(most, 1 / shortest + 1)) + 1):  # beyond, every segment is above one update
        ends = [0, *(round(end * updates) for end in segments)]
        if any(low == high for low, high in pairwise(ends)):
            raise InputError(
                f"every segment needs an update: got {len(segments)} segments that end at the updates {ends[1:]} of a "
                f"training of {updates}; use fewer or longer segments, or longer trainings"
            )


def training_seed(episode_seed: int) -> int:
    """The seed of an episode's training, apart from what its number means elsewhere; below 0 those of references."""
    return int(np.random.SeedSequence([abs(episode_seed), 1 if episode_seed >= 0 else 2]).generate_state(1)[0] >> 1)
