"""Population Based Training in one process."""

import numpy as np
import torch

from rlmix.agent.population import train_population
from rlmix.envs import Menu, MixPolicyEnv
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from tests.envs.tiny import tiny, weights


def train(env: MixPolicyEnv, number: int, seed: int, members: int) -> list[list[int]]:
    task = env.tasks.task(number)
    return train_population(env.task_trainer, task, menu=env.menu, segments=env.segments, seed=seed, members=members)


def test_the_population_keeps_a_training_that_its_actions_give() -> None:
    """With one choice alone members differ by their seed; the best one's network is that of its own training."""
    menu = Menu(sources=(("cutmix", {"cutmix": 1.0}),), thresholds=(None,), labels=((1.0, 0.0),), lams=("beta(1)",))
    env = tiny(reward="final", menu=menu, segments=(0.3, 0.6, 1.0))
    task = env.tasks.task(0)
    assert train(env, 0, 4, 4) == [[0, 0, 0, 0]] * 3
    trainer = env.trainer
    assert not env.task_trainer.diverged
    kept, best = weights(env), trainer.evaluate("validation").accuracy
    random = np.random.default_rng([4, 1])
    for _ in range(4):  # one choice each, in four dimensions, is drawn before the seeds are
        for _ in range(4):
            random.integers(1)
    found = []
    for _ in range(4):
        trainer.reset(int(random.integers(2**31)), updates=task.updates)
        trainer.train(menu.policy((0, 0, 0, 0)), task.updates)
        found.append((trainer.evaluate("validation").accuracy, weights(env)))
    assert any(all(torch.equal(kept[name], tensor) for name, tensor in own.items()) for _, own in found)
    assert best <= max(accuracy for accuracy, _ in found)


def test_the_population_ends_among_its_best_and_is_the_same_again() -> None:
    def again() -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        env = tiny(reward="final", menu=MENU, segments=SEGMENTS, tasks={"updates": (60, 60)})
        return train(env, 1, 7, 8), weights(env)

    (one, first), (other, second) = again(), again()
    assert one == other and len(one) == len(SEGMENTS)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_a_population_that_diverges_keeps_nothing() -> None:
    env = tiny(reward="final", menu=MENU, segments=SEGMENTS, training={"lr": 1e12})
    train(env, 0, 0, 4)
    assert env.task_trainer.diverged
    assert env.task_trainer.measure(["development"]) == {"development": 0.1}
