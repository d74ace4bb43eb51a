"""PPO over the environment: it starts where it is told, learns, and goes on where it was stopped."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlmix.agent.config import PPOConfig
from rlmix.agent.ppo import build_agent, restore_search, search_state
from rlmix.agent.vec_env import ProcessVecEnv
from rlmix.agent.workers import EpisodeCursor, Worker, episode_seed, make_worker
from rlmix.classifier.files import load_state, save_state
from rlmix.envs import Menu
from tests.agent.stub import CONFIG, DIVERGES, SEGMENTS, search, stub_workers
from tests.envs.tiny import arguments, tiny


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than everything else here, and are looked at in test_callbacks."""
    monkeypatch.setattr("rlmix.agent.plots.choices_figure", lambda *_, **__: Figure(figsize=(1, 1)))


STEPS = len(SEGMENTS) * CONFIG.episodes_per_update


def probabilities(model: PPO, observations: np.ndarray) -> list[np.ndarray]:
    """`[observations, choices]` for each dimension of the menu."""
    distribution = model.policy.get_distribution(torch.from_numpy(observations)).distribution
    assert isinstance(model.policy.action_dist, MultiCategoricalDistribution)
    return [part.probs.detach().numpy() for part in distribution]


# The start


@pytest.mark.parametrize("start", [(2, 0, 0, 0), (6, 3, 1, 2)])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.4])
def test_an_untrained_agent_leans_to_its_start(start: tuple[int, ...], probability: float) -> None:
    workers = DummyVecEnv([tiny])
    config = PPOConfig(start_probability=probability)
    model = build_agent(config, workers, segments=4, seed=0, start=start)
    observations = np.stack([workers.observation_space.sample() for _ in range(50)])
    for shares, choice, size in zip(probabilities(model, observations), start, Menu().sizes, strict=True):
        expected = np.full(size, (1 - probability) / (size - 1))
        expected[choice] = probability
        # The weights start with a gain of 0.01, so that what is seen moves the probabilities by little.
        np.testing.assert_allclose(shares, np.broadcast_to(expected, shares.shape), atol=0.02)


def test_the_start_is_never_less_likely_than_the_others() -> None:
    menu = Menu(labels=((1.0, 0.0), (1.0, 0.3)))  # two choices: a tenth for the start would be nine for the other
    workers = DummyVecEnv([partial(tiny, menu=menu)])
    model = build_agent(PPOConfig(start_probability=0.1), workers, segments=4, seed=0, start=(2, 0, 0, 0))
    observations = np.stack([workers.observation_space.sample() for _ in range(50)])
    for shares, size in zip(probabilities(model, observations), menu.sizes, strict=True):
        np.testing.assert_allclose(shares, np.full(shares.shape, 1 / size), atol=0.02)


def test_without_a_start_all_choices_are_equally_likely() -> None:
    workers = DummyVecEnv([tiny])
    model = build_agent(PPOConfig(start_probability=0.9), workers, segments=4, seed=0)
    observations = np.stack([workers.observation_space.sample() for _ in range(50)])
    for shares, size in zip(probabilities(model, observations), Menu().sizes, strict=True):
        np.testing.assert_allclose(shares, np.full(shares.shape, 1 / size), atol=0.02)


def test_a_dimension_of_one_choice_is_always_chosen() -> None:
    menu = Menu(thresholds=(None,), lams=("uniform",))
    model = build_agent(PPOConfig(), DummyVecEnv([partial(tiny, menu=menu)]), segments=4, seed=0, start=(2, 0, 0, 0))
    shares = probabilities(model, np.stack([model.observation_space.sample() for _ in range(5)]))
    assert [part.shape[1] for part in shares] == list(menu.sizes)
    np.testing.assert_allclose(shares[0][:, 2], 0.5, atol=0.02)
    assert (shares[1] == 1).all() and (shares[3] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes_per_update": 3}, "divisible by the number of parallel environments"),
        ({"minibatches": 5}, "the 16 steps of a rollout must be divisible"),
        ({"minibatches": 16}, "at least 2 steps in each"),
        ({"start_probability": 1.0}, "start_probability"),
        ({"start_probability": 0.0}, "start_probability"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_agent(
            replace(CONFIG, **changes), stub_workers([EpisodeCursor()] * 2), segments=4, seed=0, start=(2, 0, 0, 0)
        )


# Learning


@pytest.mark.parametrize(("late", "episodes"), [(False, 150), (True, 250)])
def test_ppo_learns_what_pays(late: bool, episodes: int) -> None:
    workers = stub_workers([EpisodeCursor()], pays=4, late=late)
    observations = np.stack([workers.observation_space.sample() for _ in range(20)])
    model = build_agent(PPOConfig(), workers, segments=4, seed=1, start=(2, 0, 0, 0))
    before = probabilities(model, observations)
    assert before[0][:, 4].max() < 0.15
    model.learn(episodes * 4)
    after = probabilities(model, observations)
    assert after[0][:, 4].mean() > 0.8
    assert after[0][:, 4].min() > 0.5


# Stopping and going on


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def assert_same_state(one: Any, other: Any, where: str = "state") -> None:
    """Nested dictionaries, lists, numbers and tensors, equal to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (entry, other_entry) in enumerate(zip(one, other, strict=True)):
            assert_same_state(entry, other_entry, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("diverges", [None, DIVERGES, 2])
def test_a_resumed_search_is_one_never_stopped(tmp_path: Path, diverges: int | None) -> None:
    make = partial(stub_workers, diverges=diverges)
    straight, log = search(tmp_path / "straight", make, rollouts=3)
    first = tmp_path / "straight" / f"{STEPS}.checkpoint"
    positions = load_state(first)["positions"]
    unfinished = sum(bool(position["actions"]) for position in positions)
    assert unfinished == (0 if diverges is None else unfinished)
    if diverges == 2:
        assert unfinished, "this rollout should end in the middle of an episode"
    torch.manual_seed(77)  # whatever the program that goes on has drawn before
    np.random.seed(77)  # noqa: NPY002
    resumed, resumed_log = search(tmp_path / "resumed", make, rollouts=3, checkpoint=first)
    for number in (2, 3):
        name = f"{number * STEPS}.checkpoint"
        assert_same_state(load_state(tmp_path / "resumed" / name), load_state(tmp_path / "straight" / name))
    assert resumed.num_timesteps == straight.num_timesteps == 3 * STEPS
    assert resumed_log.history == log.history
    assert len(log.history) == 3
    before = load_state(first)["episodes_done"]
    assert lines(tmp_path / "resumed") == lines(tmp_path / "straight")[before:]


def test_a_checkpoint_holds_no_more_than_the_search_had_learned(tmp_path: Path) -> None:
    search(tmp_path, partial(stub_workers, diverges=DIVERGES), rollouts=2)
    assert sorted(path.name for path in tmp_path.glob("*.checkpoint")) == ["16.checkpoint", "32.checkpoint"]
    done = len(lines(tmp_path))
    assert load_state(tmp_path / "32.checkpoint")["episodes_done"] == done
    state = load_state(tmp_path / "16.checkpoint")
    early = lines(tmp_path)[: state["episodes_done"]]
    for worker, position in enumerate(state["positions"]):
        own = [entry for entry in early if entry["worker"] == worker]
        assert [entry["number"] for entry in own] == list(range(position["episode"]))
        assert [entry["seed"] for entry in own] == [episode_seed(3, "search", worker, n) for n in range(len(own))]
        steps = sum(len(entry["actions"]) for entry in own) + len(position["actions"])
        assert steps == STEPS // 2


def test_a_search_over_real_trainings_goes_on_in_another_process_bit_for_bit(tmp_path: Path) -> None:
    config = replace(CONFIG, episodes_per_update=2)

    def here(positions: list[EpisodeCursor]) -> VecEnv:
        return DummyVecEnv([lambda: Worker(tiny(reward="change"), 3, 0, positions[0])])

    def in_a_process(positions: list[EpisodeCursor]) -> VecEnv:
        return ProcessVecEnv(partial(make_worker, arguments(reward="change"), 3), positions, processes=1)

    search(tmp_path / "straight", here, rollouts=2, workers=1, config=config)
    first = tmp_path / "straight" / "8.checkpoint"
    search(tmp_path / "resumed", in_a_process, rollouts=2, workers=1, config=config, checkpoint=first)
    assert_same_state(
        load_state(tmp_path / "resumed" / "16.checkpoint"), load_state(tmp_path / "straight" / "16.checkpoint")
    )
    assert lines(tmp_path / "resumed") == lines(tmp_path / "straight")[2:]


def test_what_is_restored_is_what_was_kept(tmp_path: Path) -> None:
    search(tmp_path, partial(stub_workers, diverges=2), rollouts=1)
    kept = load_state(tmp_path / "16.checkpoint")["search"]
    assert not all(kept["episode_starts"])
    model = build_agent(CONFIG, stub_workers([EpisodeCursor()] * 2), segments=4, seed=9, start=(0, 0, 0, 0))
    seen = np.ones((2, *(model.observation_space.shape or ())), dtype=np.float32)
    restore_search(model, kept, seen)
    save_state(tmp_path / "again", search_state(model))
    assert_same_state(load_state(tmp_path / "again"), kept)
    assert model._last_obs is seen


def test_the_seed_decides_the_search(tmp_path: Path) -> None:
    one, _ = search(tmp_path / "one", stub_workers, rollouts=1)
    again, _ = search(tmp_path / "again", stub_workers, rollouts=1)
    assert_same_state(dict(one.policy.state_dict()), dict(again.policy.state_dict()))
    assert lines(tmp_path / "one") == lines(tmp_path / "again")
