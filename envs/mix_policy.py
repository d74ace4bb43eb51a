"""MixPolicyEnv: an episode is one classifier training, a step one segment of it under one mixing policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlmix.classifier.data import Splits
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.mixing.picture import blank_picture, mixed_picture
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.menu import Menu
from rlmix.envs.observation import (
    DEFAULT_FEATURES,
    TrainingState,
    checks_labels,
    observation_space,
    observe,
    require_features,
)
from rlmix.envs.reference import References
from rlmix.envs.rewards import Outcome, require_reward, score
from rlmix.envs.seeds import training_seed
from rlmix.envs.segments import require_updates, segment_ends
from rlmix.envs.task_trainer import VALIDATION_LIMIT, TaskTrainer
from rlmix.envs.tasks import Task, TaskDistribution, Tasks

DIGITS_TASK = TaskDistribution(train_size=(300, 300), updates=(60, 60))


class MixPolicyEnv(gym.Env[Any, Any]):
    """Learn how to mix images while a classifier is trained.

    ## Description
    An episode is one training of a classifier, from new weights to the end of its learning-rate schedule, cut into
    segments. At every step the agent chooses a mixing policy; the environment trains one segment under it and measures
    the classifier on validation images. An episode is a pure function of its seed and its actions (on one kind of
    machine and number of threads): repeating its actions restores an episode that was lost.

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
    `Box` of float32: the features named by `features`, by default those below. "Last segment" values are 0 before
    the first one; a classifier is then taken to be at chance.

    | Index | Name | Meaning | Low | High |
    |---|---|---|---|---|
    | 0 | `log_train_size` | log10(training images) / 5 | 0 | 2 |
    | 1 | `log_updates` | log10(updates of the whole training) / 5 | 0 | 2 |
    | 2 | `log_passes` | log10(1 + passes over the training images) / 4 | 0 | 2 |
    | 3 | `log_classes` | log10(classes K) / 3 | 0 | 2 |
    | 4 | `progress` | progress of the training | 0 | 1 |
    | 5 | `relative_lr` | learning rate of the next update over the highest one | 0 | 1 |
    | 6 | `clean_seen` | 1 if the last segment had clean updates, else what is measured on them is 0 | 0 | 1 |
    | 7 | `clean_excess_loss` | their loss less the targets' own entropy, over log K | 0 | 4 |
    | 8 | `clean_accuracy` | their accuracy on the (augmented, perhaps wrongly labelled) training images | 0 | 1 |
    | 9 | `mixed_seen` | 1 if the last segment had mixed updates, else what is measured on them is 0 | 0 | 1 |
    | 10 | `mixed_excess_loss` | their loss less the targets' own entropy, over log K | 0 | 4 |
    | 11 | `mixed_accuracy` | share of mixed images whose largest target is found | 0 | 1 |
    | 12 | `validation_loss` | validation loss over log K | 0 | 4 |
    | 13 | `validation_accuracy` | validation accuracy | 0 | 1 |
    | 14 | `validation_change` | its change over the last segment | -1 | 1 |
    | 15 | `accuracy_gap` | accuracy of clean updates less validation accuracy | -1 | 1 |
    | 16 | `confidence` | mean confidence on validation images | 0 | 1 |
    | 17 | `calibration_error` | expected calibration error on validation images | 0 | 1 |
    | 18 | `probes_seen` | 1 if saliency and gradient were measured (on clean updates), else both are 0 | 0 | 1 |
    | 19 | `saliency_entropy` | entropy of the patch saliency over its highest value | 0 | 1 |
    | 20 | `log_gradient_norm` | log10(norm of the gradient over norm of the parameters) / 5 | -1 | 1 |
    | 21... | | the last action, one-hot in each dimension; all 0 at the start | 0 | 1 |

    There are more features to choose from: [observation v2](tasks.md#observation-v2) carries over between data sets
    and networks. Values outside are clipped; values that are not a number become the highest one.

    ## Rewards
    Episodes have a finite length: use a discount of 1.

    | Name | Meaning |
    |---|---|
    | `relative` | change of the score over the segment; an episode's sum is its final score |
    | `standing` | final score at the end of the episode, 0 before |
    | `change` | change of validation accuracy over the segment, from chance at the start |
    | `final` | validation accuracy after the last segment, in [0, 1]; 0 before |

    A score is validation accuracy less that of the reference policy on the same task at the same progress, in standard
    deviations over seeds at that progress, limited to ±10. The reference is the mean over `reference_seeds` trainings;
    with 0, one training from the episode's own seed. `standing` suits an agent that cannot see the reference, and so
    cannot tell how much of a score it has had already.

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
        dataset: name for `rlmix.classifier.data.load_dataset`.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.
        image_size: side in pixels that images are resized to; optional, defaults to their own.
        training: the classifier's setting, a `TrainConfig` or a dictionary of its fields; a task sets `updates` and
            scales `lr`.
        tasks: distribution of the episodes' tasks: a `TaskDistribution` or a dictionary of its fields, or `BroadTasks`.
        segments: number of equal segments, or the progress in (0, 1] at which each one ends.
        reward: name of a reward.
        menu: choices of the agent; optional, defaults to `Menu()`.
        features: names of the features that are observed, in order.
        reference: policy that `relative` and `standing` compare with; optional, defaults to CutMix on half the updates.
        reference_seeds: number of trainings of the reference on each task; 0 for one, from the episode's own seed.
        reference_cache: folder where references are kept between runs and shared by workers.
        validation_size: number of validation images; optional, defaults to the data set's.
        validation_limit: number of validation images used before the end of training; None for all.
        splits: images that the caller has loaded already; the data set and its options are then not read.
        task_trainer: trainer of the tasks; optional, by default built from data set, training and validation, which
            are otherwise not read. Environments that share one must not alternate: starting an episode of one ends
            that of another.
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
        tasks: Tasks | Mapping[str, Any] | None = None,
        segments: int | Sequence[float] = 4,
        reward: str = "relative",
        menu: Menu | None = None,
        features: Sequence[str] = DEFAULT_FEATURES,
        reference: MixPolicy | None = None,
        reference_seeds: int = 2,
        reference_cache: str | Path | None = None,
        validation_size: int | None = None,
        validation_limit: int | None = VALIDATION_LIMIT,
        splits: Splits | None = None,
        task_trainer: TaskTrainer | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.menu, self.features = menu or Menu(), require_features(features)
        self.tasks: Tasks = TaskDistribution(**tasks) if isinstance(tasks, Mapping) else tasks or DIGITS_TASK
        self.segments = segment_ends(segments)
        require_updates(self.segments, *self.tasks.updates)
        self.task_trainer = task_trainer or TaskTrainer(
            dataset,
            data_root,
            image_size=image_size,
            training=training,
            validation_size=validation_size,
            validation_limit=validation_limit,
            splits=splits,
        )
        self.reward = require_reward(reward)
        references = References(
            self.task_trainer,
            reference or MixPolicy({"clean": 0.5, "cutmix": 0.5}),
            segments=self.segments,
            seeds=reference_seeds,
            cache=None if reference_cache is None else Path(reference_cache),
        )
        self.references = references if self.reward.needs_reference else None
        self.render_mode = render_mode
        self.state: TrainingState | None = None
        self._training = 0
        self.action_space = spaces.MultiDiscrete(list(self.menu.sizes))
        self.observation_space = observation_space(self.menu, self.features)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a new training; see the class.

        Args:
            seed: seed of the episode.
            options: `task`, the task to train instead of that of the seed.
        """
        super().reset(seed=seed)
        self._episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        given = (options or {}).get("task")
        if given is None:
            task = self.tasks.task(self._episode_seed)
        else:
            task = given if isinstance(given, Task) else Task(**given)
            require_updates(self.segments, task.updates, task.updates)
        train_seed = training_seed(self._episode_seed)
        self._curve = None if self.references is None else self.references.curve(task, train_seed)
        trainer = self.task_trainer.start(task, train_seed)
        self._training = self.task_trainer.trainings
        self._segment = 0
        self._accuracy = EvalStats.at_chance(trainer.num_classes).accuracy
        self._score = 0.0
        self.state = TrainingState.at_start(trainer, task)
        return observe(self.state, self.menu, self.features), {
            "episode_seed": self._episode_seed,
            "task": task.to_json(),
        }

    def step(
        self, action: NDArray[np.int64] | Sequence[int]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Train one segment under the policy of `action`; see the class."""
        policy, end = self.plan(action)
        assert self.state is not None
        trainer, task = self.trainer, self.state.task
        segment = self.task_trainer.train_segment(policy, end, check=checks_labels(self.features))
        accuracy = segment.evaluation.accuracy
        terminated = segment.diverged or self._segment == len(self.segments) - 1
        reward = self._reward(accuracy, terminated)
        self.state = self.state.after(
            progress=trainer.progress,
            relative_lr=trainer.relative_lr,
            segment=segment.stats,
            evaluation=segment.evaluation,
            action=self.choice(action),
            labels=segment.labels,
        )
        observation = observe(self.state, self.menu, self.features)
        self._accuracy = accuracy
        self._segment += 1
        info = {
            "episode_seed": self._episode_seed,
            "validation_accuracy": accuracy,
            "progress": trainer.progress,
            "images": segment.stats.images,
            "policy": policy.to_json(),
            "diverged": segment.diverged,
        }
        if terminated:
            info["task"] = task.to_json()
            self.state = None
        return observation, reward, terminated, False, info

    def choice(self, action: Any) -> tuple[int, ...]:
        """Return an action as an index into each dimension of the menu."""
        return tuple(int(index) for index in action)

    def plan(self, action: Any) -> tuple[MixPolicy, int]:
        """Return the policy of the segment that a step with this action trains, and the update at which it ends.

        Raises:
            RuntimeError: there is no episode to step.
        """
        if self.state is None or self.task_trainer.trainings != self._training:
            raise RuntimeError("there is no episode to step: call reset() first, also after the end of an episode")
        end = round(self.segments[self._segment] * self.state.task.updates)
        return self.menu.policy(self.choice(action)), end

    def close(self) -> None:
        """End the processes that read streamed images."""
        self.task_trainer.end_readers()

    @property
    def trainer(self) -> Trainer:
        """Trainer of the classifier, after the last step.

        Raises:
            RuntimeError: there has been no episode.
        """
        return self.task_trainer.trainer

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture of the last mixed images with their targets, `[H, W, 3]`; white before the first.

        After a reset it shows those of the training before until the new one has mixed images, so that wrappers that
        reset by themselves leave something to be seen of an episode.
        """
        if self.render_mode != "rgb_array":
            return None
        if self._training == 0 or self.trainer.last_mixed is None:
            return blank_picture()
        images, targets = self.trainer.last_mixed
        data = self.trainer.data
        return mixed_picture(images, targets, class_names=data.class_names, mean=data.mean, std=data.std)

    def _reward(self, accuracy: float, terminated: bool) -> float:
        before, self._score = self._score, 0.0
        if self._curve is not None:
            # A training that diverged is compared with the reference's end, as if it had finished.
            segment = -1 if terminated else self._segment
            self._score = score(accuracy, self._curve.accuracies[segment], self._curve.scales[segment])
        return self.reward.function(Outcome(accuracy, self._accuracy, self._score, before, terminated))


class FlatMixPolicyEnv(MixPolicyEnv):
    """`MixPolicyEnv` with one `Discrete` action: an index into the menu's distinct policies.

    Everything else, the observation included, is as in `MixPolicyEnv`, which takes the same arguments.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.choices = self.menu.actions()
        self.action_space = spaces.Discrete(len(self.choices))

    def choice(self, action: Any) -> tuple[int, ...]:
        """Return the menu's distinct policy number `action` as an index into each dimension."""
        if not 0 <= int(action) < len(self.choices):
            raise ValueError(f"an action must be in [0, {len(self.choices) - 1}], got {action}")
        return self.choices[int(action)]
