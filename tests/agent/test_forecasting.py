"""A forecaster learned from a log: against effects that were put into it, beneath tasks of very different accuracy."""

import numpy as np
import pytest
import torch

from rlmix.agent.forecasting import RidgeConfig, fit_forecaster, fit_within_tasks
from rlmix.agent.regression import Decisions, Episode
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES, one_hot

MENU = Menu(
    sources=(("clean", {"clean": 1.0}), ("cutmix half", {"clean": 0.5, "cutmix": 0.5}), ("rmix all", {"rmix": 1.0})),
    thresholds=(None,),
    labels=((1.0, 0.0),),
    lams=("beta(1)",),
)
ACTIONS = MENU.actions()
SEGMENTS = (0.5, 1.0)
CONFIG = RidgeConfig(members=3, state_penalty=1.0, advantage_penalty=1.0)
TOLD = 2  # the feature by which the best action changes


def observation(told: float, before: tuple[int, ...] | None = None) -> np.ndarray:
    features = np.zeros(len(DEFAULT_FEATURES))
    features[TOLD] = told
    return np.array([*features, *one_hot(before, MENU)], dtype=np.float32)


def effect(told: float, action: int) -> float:
    return (0.0, 6 * told - 3, -2.0)[action]


def logged(tasks: int, noise: float) -> Decisions:
    random = np.random.default_rng(0)
    episodes = []
    for task in range(tasks):
        told, level = float(random.uniform(0, 1)), float(random.uniform(20, 90))  # the level is not to be seen
        for number, action in enumerate(ACTIONS):
            seen = np.stack([observation(told), observation(told, action)])
            score = level + effect(told, number) + float(random.normal(0, noise))
            episodes.append(Episode(task, seen, [action, action], score))
    return Decisions.from_episodes(episodes, MENU)


def test_differences_within_a_task_are_found_beneath_its_level() -> None:
    values = fit_within_tasks(logged(80, 0.5), MENU, DEFAULT_FEATURES, CONFIG, seed=0)
    tried = np.linspace(0.05, 0.95, 12)
    told = values.of_members(torch.from_numpy(np.stack([observation(float(one)) for one in tried]))).mean(dim=0)
    expected = torch.tensor([[effect(float(one), action) for action in range(3)] for one in tried])
    difference = (told - told.mean(dim=1, keepdim=True)) - (expected - expected.mean(dim=1, keepdim=True))
    assert difference.abs().mean() < 0.5


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_a_forecaster_knows_how_far_results_are_from_it(noise: float) -> None:
    forecaster = fit_forecaster(
        logged(100, noise), MENU, SEGMENTS, DEFAULT_FEATURES, CONFIG, seed=0, facts={"made": "here"}
    )
    assert forecaster.noise == pytest.approx([noise] * 2, rel=0.25)
    measured = forecaster.provenance["held_out_tasks"]
    spread = np.sqrt(
        noise**2 + np.mean([np.var([effect(told, a) for a in range(3)], ddof=1) for told in np.linspace(0, 1, 99)])
    )
    assert [one["spread"] for one in measured] == pytest.approx([spread] * 2, rel=0.15)
    assert forecaster.provenance["made"] == "here"


def test_a_failed_training_does_not_outweigh_all_others() -> None:
    """One that fell to chance counts as 15 points below its task's median."""
    found = logged(60, 0.2)
    scores = found.scores.clone()
    scores[:2] = -1000.0
    spoilt = Decisions(found.observations, found.actions, scores, found.weights, found.tasks, found.segments)
    values = fit_within_tasks(spoilt, MENU, DEFAULT_FEATURES, CONFIG, seed=0)
    told = values(torch.from_numpy(observation(0.9)[None]), 0.0)[0][0]
    assert told[1] - told[0] == pytest.approx(effect(0.9, 1), abs=1.0)


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 tasks, got 2"):
        fit_forecaster(logged(2, 1.0), MENU, SEGMENTS, DEFAULT_FEATURES, CONFIG, seed=0, facts={})
    alone = [Episode(task, np.stack([observation(0.5)]), [ACTIONS[0]], 1.0) for task in range(6)]
    with pytest.raises(ValueError, match="several trainings"):
        fit_within_tasks(Decisions.from_episodes(alone, MENU), MENU, DEFAULT_FEATURES, CONFIG, seed=0)
