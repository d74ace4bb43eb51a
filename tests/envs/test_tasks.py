"""Tasks: drawn by their seed, inside their ranges, and what the classifier really is trained on."""

import math
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.classifier.data import load_dataset
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs import MixPolicyEnv, Task, TaskDistribution
from rlmix.envs.segments import segment_ends
from tests.envs.tiny import arguments, digits, play, tiny, train_under

WIDE = {"train_size": (50, 5000), "updates": (10, 4000), "label_noise": (0.1, 0.6), "pool": None}


def test_the_same_seed_gives_the_same_tasks() -> None:
    one, other = TaskDistribution(**WIDE), TaskDistribution(**WIDE)
    assert [one.task(number) for number in range(20)] == [other.task(19 - number) for number in range(20)][::-1]
    moved = TaskDistribution(**WIDE, seed=1)
    assert all(one.task(number) != moved.task(number) for number in range(20))
    assert len({one.task(number) for number in range(100)}) == 100


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted),
    updates=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted),
    noise=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)).map(sorted),
    number=st.integers(0, 2**40),
)
def test_tasks_stay_in_their_ranges(sizes: Any, updates: Any, noise: Any, number: int) -> None:
    task = TaskDistribution(sizes, updates, noise, pool=None).task(number)
    assert sizes[0] <= task.train_size <= sizes[1]
    assert updates[0] <= task.updates <= updates[1]
    assert noise[0] - 5e-4 <= task.label_noise <= noise[1] + 5e-4  # written with three digits
    assert 0 <= task.label_noise < 1
    assert 0 <= task.data_seed < 2**31


def test_sizes_are_spread_log_uniformly_and_noise_uniformly() -> None:
    tasks = [TaskDistribution(**WIDE).task(number) for number in range(2000)]
    logs = [math.log(task.train_size) for task in tasks]
    # the mean of 2,000 uniform draws is within 4 standard errors of the middle
    margin = 4 / math.sqrt(12 * len(tasks))
    for values, low, high in (
        (logs, math.log(50), math.log(5000)),
        ([math.log(task.updates) for task in tasks], math.log(10), math.log(4000)),
        ([task.label_noise for task in tasks], 0.1, 0.6),
    ):
        assert abs((np.mean(values) - low) / (high - low) - 0.5) < margin
        assert abs(np.std(values) / (high - low) - 1 / math.sqrt(12)) < margin
    assert abs(np.corrcoef(logs, [task.label_noise for task in tasks])[0, 1]) < 0.1


def test_a_pool_wraps() -> None:
    tasks = TaskDistribution(**{**WIDE, "pool": 3})
    assert len({tasks.task(number) for number in range(30)}) == 3
    for number in range(9):
        assert tasks.task(number) == tasks.task(number + 3) == TaskDistribution(**WIDE).task(number % 3)
    one = TaskDistribution(**{**WIDE, "pool": 1})
    assert one.task(2**31 - 1) == one.task(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": (0, 10)}, "train_size"),
        ({"train_size": (10, 9)}, "train_size"),
        ({"updates": (0, 10)}, "updates"),
        ({"updates": (10, 9)}, "updates"),
        ({"label_noise": (-0.1, 0.5)}, "label_noise"),
        ({"label_noise": (0.5, 1.0)}, "label_noise"),
        ({"label_noise": (0.5, 0.4)}, "label_noise"),
        ({"label_noise": (0.0, float("nan"))}, "label_noise"),
        ({"pool": 0}, "pool"),
        ({"clean": 1.1}, "clean"),
        ({"clean": float("nan")}, "clean"),
        ({"noise": "gaussian"}, "noise"),
    ],
)
def test_a_range_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskDistribution(**changes)


def test_lists_as_in_configuration_files_are_taken() -> None:
    assert TaskDistribution([5, 9], [5, 9], [0, 0.5]) == TaskDistribution((5, 9), (5, 9), (0, 0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "updates", "noise"), [(120, 24, 0.3), (60, 30, 0.0), (100, 21, 0.55)])
def test_the_task_reaches_the_trainer(size: int, updates: int, noise: float) -> None:
    pool = load_dataset("digits").pool
    truth = {image.numpy().tobytes(): int(label) for image, label in zip(pool.images, pool.labels, strict=True)}
    env = tiny(
        tasks={"train_size": (size, size), "updates": (updates, updates), "label_noise": (noise, noise)}, reward="final"
    )
    _, _, infos = play(env, [[2, 0, 0, 0]] * 4, seed=1)
    train = env.trainer.data.train
    wrong = sum(
        truth[image.numpy().tobytes()] != int(label) for image, label in zip(train.images, train.labels, strict=True)
    )
    assert len(train) == size
    assert wrong == round(noise * size)
    assert env.trainer.updates_done == updates
    assert infos[-1]["task"] == infos[0]["task"]
    assert infos[0]["task"] == {
        "train_size": size,
        "updates": updates,
        "label_noise": noise,
        "data_seed": env.tasks.task(1).data_seed,
        "noise": "symmetric",
        "lr_scale": 1.0,
    }
    assert sum(info["images"] for info in infos[1:]) == updates * 20
    for split in ("validation", "development", "test"):
        held_out = getattr(env.trainer.data, split)
        inside = {image.numpy().tobytes() for image in train.images}
        assert not any(image.numpy().tobytes() in inside for image in held_out.images)


def test_every_episode_gets_the_task_of_its_seed() -> None:
    env = tiny(
        tasks={"train_size": (50, 200), "updates": (8, 40), "label_noise": (0.0, 0.5), "pool": 4}, reward="final"
    )
    seen = Counter()
    for seed in (0, 1, 2, 3, 4, 0, 7):
        _, info = env.reset(seed=seed)
        assert info["task"] == env.tasks.task(seed % 4).to_json()
        assert len(env.trainer.data.train) == info["task"]["train_size"]
        assert env.trainer.config.updates == info["task"]["updates"]
        seen[tuple(info["task"].values())] += 1
    assert len(seen) == 4


def test_a_share_of_the_tasks_is_clean_and_else_as_it_was() -> None:
    noisy = [TaskDistribution(**WIDE).task(number) for number in range(1000)]
    mixed = [TaskDistribution(**WIDE, clean=0.3).task(number) for number in range(1000)]
    clean = [one.label_noise == 0 for one in mixed]
    assert abs(np.mean(clean) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1000)
    assert all(other == (replace(one, label_noise=0.0) if is_clean else one)
               for one, other, is_clean in zip(noisy, mixed, clean, strict=True))  # fmt: skip


def test_an_episode_can_be_given_its_task() -> None:
    env = tiny(tasks={"train_size": (50, 200), "updates": (8, 40), "pool": None}, reward="final")
    _, drawn = env.reset(seed=3)
    given = Task(120, 16, 0.5, 11, "pair")
    for task in (given, asdict(given)):
        actions = [[2, 0, 0, 0]] * 4
        env.reset(seed=3, options={"task": task})
        accuracies = [env.step(action)[-1]["validation_accuracy"] for action in actions]
        assert env.trainer.updates_done == 16 and env.trainer.config.updates == 16
        assert torch.equal(env.trainer.data.train.labels, given.draw(digits()).train.labels)
        schedule = PolicySchedule.fixed(env.menu.policy(actions[0]))
        assert train_under(env, schedule, given, 3, ["validation"])["validation"] == accuracies[-1]
    assert env.reset(seed=3)[1] == drawn
    with pytest.raises(ValueError, match="every segment needs an update"):
        env.reset(seed=3, options={"task": replace(given, updates=3)})


def test_images_are_resized_where_it_is_asked() -> None:
    env = MixPolicyEnv("digits", image_size=14, **arguments(reward="final", training={"model": "search"}))
    env.reset(seed=0)
    assert env.trainer.data.train.image_shape == env.trainer.data.test.image_shape == (1, 14, 14)


def test_segments_are_a_number_of_equal_parts_or_their_ends() -> None:
    assert segment_ends(4) == (0.25, 0.5, 0.75, 1.0)
    assert segment_ends(1) == segment_ends([1.0]) == (1.0,)
    assert segment_ends([0.1, 1.0]) == (0.1, 1.0)
    for wrong in (0, [0.0], [-3.0], [4.0], [0.5], [0.5, 0.5, 1.0], [0.5, 2.0], [], [0.5, 10**400]):
        with pytest.raises(ValueError, match="segments"):
            segment_ends(wrong)


def test_a_task_sets_its_learning_rate() -> None:
    env = tiny(reward="final", tasks={"lr_scale": (0.25, 0.25)})
    _, _, infos = play(env, [(0, 0, 0, 0)] * 4, seed=3)
    assert env.trainer.config.lr == 0.25 * env.task_trainer.training.lr
    slow = tiny(reward="final", training={"lr": 0.25 * env.task_trainer.training.lr})
    _, _, by_hand = play(slow, [(0, 0, 0, 0)] * 4, seed=3)
    assert [info["validation_accuracy"] for info in infos[1:]] == [info["validation_accuracy"] for info in by_hand[1:]]
    task = env.tasks.task(0)
    env.reset(seed=3, options={"task": replace(task, lr_scale=2.0)})
    assert env.trainer.config.lr == 2 * env.task_trainer.training.lr
    env.reset(seed=3, options={"task": task})
    assert env.trainer.config.lr == 0.25 * env.task_trainer.training.lr


def test_learning_rates_are_spread_log_uniformly_and_change_nothing_else() -> None:
    slow = [TaskDistribution(**WIDE, lr_scale=(0.01, 1.0)).task(number) for number in range(2000)]
    logs = [math.log10(task.lr_scale) for task in slow]
    assert -2.01 < min(logs) < -1.95 and -0.05 < max(logs) <= 0
    assert abs(np.mean(logs) + 1) < 4 * 2 / math.sqrt(12 * len(logs))
    assert [replace(task, lr_scale=1.0) for task in slow] == [TaskDistribution(**WIDE).task(n) for n in range(2000)]
