"""MixPolicyVectorEnv: several `MixPolicyEnv` whose classifiers are trained in lockstep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray

from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import resolve_device
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.lockstep import Lockstep
from rlmix.classifier.training.stats import TrainStats
from rlmix.envs.mix_policy import FlatMixPolicyEnv, MixPolicyEnv
from rlmix.envs.task_trainer import Segment, TaskTrainer


class LockstepTaskTrainer(TaskTrainer):
    """A `TaskTrainer` whose next segment may have been trained already, together with others.

    Attributes:
        trained: statistics of that segment; None where it is still to be trained.
    """

    trained: TrainStats | None = None

    def train_segment(self, policy: MixPolicy, end: int, *, check: bool = False) -> Segment:
        """Train under one policy unless that is done, and validate; see `TaskTrainer`."""
        if self.trained is None:
            return super().train_segment(policy, end, check=check)
        stats, self.trained = self.trained, None
        return self.validate(stats, check=check)


class MixPolicyVectorEnv(SyncVectorEnv):
    """N `MixPolicyEnv` in one process, whose classifiers are trained side by side in one graph.

    Spaces, rewards, seeds and infos are those of N single environments, numbers too but for rounding. Every task must
    have the same network, images of one shape and the same classes; lengths, learning rates, images and labels may
    differ. It is meant for many small classifiers on a GPU; on a CPU single environments in processes are faster, which
    is why `gymnasium.make_vec` does not take this class by itself.

    ```python
    from rlmix.envs import MixPolicyVectorEnv
    envs = MixPolicyVectorEnv(64, dataset="digits", segments=4, reward="relative")
    ```

    Args:
        num_envs: number of environments.
        flat: whether actions are those of `FlatMixPolicyEnv`.
        autoreset_mode: when an episode that has ended starts anew, one of Gymnasium's `AutoresetMode`.
        dataset: as for `MixPolicyEnv`, as all that follow; the images are loaded once.
        data_root: folder of the data set.
        image_size: side in pixels that images are resized to.
        training: the classifier's setting.
        validation_size: number of validation images.
        validation_limit: number of validation images used before the end of training.
        splits: images that the caller has loaded already.
        options: further arguments of `MixPolicyEnv`, but for `task_trainer`.

    Raises:
        ValueError: an argument is out of range, or such classifiers cannot be trained in lockstep.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        flat: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        dataset: str = "digits",
        data_root: str | None = None,
        image_size: int | None = None,
        training: TrainConfig | Mapping[str, Any] | None = None,
        validation_size: int | None = None,
        validation_limit: int | None = 1000,
        splits: Splits | None = None,
        **options: Any,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs must be at least 1, got {num_envs}")
        setting = TrainConfig(**training) if isinstance(training, Mapping) else training or TrainConfig()
        if splits is None:
            splits = split(load_dataset(dataset, data_root, image_size=image_size), validation_size=validation_size)
        shared = splits.to(resolve_device(setting.device))
        kind = FlatMixPolicyEnv if flat else MixPolicyEnv

        def build() -> MixPolicyEnv:
            trainer = LockstepTaskTrainer(training=setting, validation_limit=validation_limit, splits=shared)
            env = kind(task_trainer=trainer, **options)
            env.metadata = dict(env.metadata)  # Gymnasium writes into it
            return env

        # One reference for all, with a trainer of its own: measuring it ends whatever its trainer trains.
        references = build().references

        def with_reference() -> MixPolicyEnv:
            env = build()
            env.references = references
            return env

        super().__init__([with_reference] * num_envs, autoreset_mode=autoreset_mode)
        self._lockstep: Lockstep | None = None

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Train a segment of every environment's classifier in lockstep, then make their steps."""
        policies: list[MixPolicy | None] = [None] * self.num_envs
        updates = [0] * self.num_envs
        for index, (env, action) in enumerate(zip(self._members, iterate(self.action_space, actions), strict=True)):
            # Where resetting takes a step of its own, an environment that has ended does not train in it.
            if self.autoreset_mode != AutoresetMode.NEXT_STEP or not self._autoreset_envs[index]:
                policies[index], end = env.plan(action)
                updates[index] = end - env.trainer.updates_done
        trainers = [env.trainer for env in self._members]
        if self._lockstep is None or any(
            one is not other for one, other in zip(self._lockstep.trainers, trainers, strict=True)
        ):
            self._lockstep = Lockstep(trainers)
        for env, stats in zip(self._members, self._lockstep.train(policies, updates), strict=True):
            assert isinstance(env.task_trainer, LockstepTaskTrainer)
            env.task_trainer.trained = stats
        return super().step(actions)

    @property
    def _members(self) -> list[MixPolicyEnv]:
        return cast("list[MixPolicyEnv]", self.envs)
