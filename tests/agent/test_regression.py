"""An agent started from logged trainings: against a value that was put into the log, with noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlmix.agent.ppo import new_policy, to_agent
from rlmix.agent.regression import Decisions, Episode, RegressionConfig, fit_values, follow_values
from rlmix.agent.values import ActionValues
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES, observation_space, one_hot

MENU = Menu(
    sources=(("clean", {"clean": 1.0}), ("cutmix half", {"clean": 0.5, "cutmix": 0.5}), ("rmix all", {"rmix": 1.0})),
    thresholds=(None,),
    labels=((1.0, 0.0), (1.0, 0.3)),
    lams=("beta(1)",),
)
ACTIONS = MENU.actions()
CONFIG = RegressionConfig(members=2, steps=400)
SEEN = 2  # the feature by which the best action changes


def observation(told: float, before: tuple[int, ...] | None = None) -> np.ndarray:
    features = np.zeros(len(DEFAULT_FEATURES))
    features[SEEN] = told
    return np.array([*features, *one_hot(before, MENU)], dtype=np.float32)


def worth(told: float, action: tuple[int, ...]) -> float:
    """Mixing is good where much is told and bad where little is; smoothing is always worth half a point."""
    return (4 * told - 4) * action[0] / 2 + (0.5 if action[2] else 0.0)


def planted(count: int) -> list[Episode]:
    random = np.random.default_rng(0)
    found = []
    for task in range(count):
        told = float(random.uniform(0, 2))
        for _ in range(4):
            first, last = (ACTIONS[random.integers(len(ACTIONS))] for _ in range(2))
            place = int(random.integers(0, 3))
            actions = [first] * place + [last] * (3 - place)
            seen = [observation(told, before) for before in (None, *actions[:-1])]
            found.append(Episode(task, np.stack(seen), actions, worth(told, last) + float(random.normal(0, 0.3))))
    return found


def test_a_training_says_something_of_its_last_action_from_its_last_change_on() -> None:
    a, b = ACTIONS[1], ACTIONS[4]
    seen = np.arange(4 * 3, dtype=np.float32).reshape(4, 3)
    fixed, switched = Episode(7, seen, [a] * 4, 1.0), Episode(7, seen, [a, a, b, b], 2.0)
    diverged = Episode(8, seen[:2], [b] * 2, -10.0)
    found = Decisions.from_episodes([fixed, switched, diverged], MENU)
    assert found.actions.tolist() == [1] * 4 + [4] * 2 + [4] * 2
    assert found.segments.tolist() == [0, 1, 2, 3, 2, 3, 0, 1]
    assert found.scores.tolist() == [1.0] * 4 + [2.0] * 2 + [-10.0] * 2
    assert found.weights.tolist() == [0.25] * 4 + [0.5] * 2 + [0.5] * 2
    assert torch.equal(found.observations[4:6], torch.from_numpy(seen[2:]))
    assert found.among([8]).actions.tolist() == [4, 4] and set(found.among([7]).tasks) == {7}
    with pytest.raises(ValueError, match="distinct"):
        Decisions.from_episodes([Episode(0, seen, [(9, 0, 0, 0)] * 4, 0.0)], MENU)


def test_values_and_the_agent_that_follows_them_find_what_was_put_in() -> None:
    values = fit_values(Decisions.from_episodes(planted(150), MENU), MENU, CONFIG, seed=0)
    tried = torch.linspace(0.1, 1.9, 30)
    seen = torch.from_numpy(np.stack([observation(float(told)) for told in tried]))
    expected = torch.tensor([[worth(float(told), action) for action in ACTIONS] for told in tried])
    means, cautious = values(seen, 1.0)
    assert (means - expected).abs().mean() < 0.35
    assert (cautious < means).all()
    torch.manual_seed(0)
    policy = new_policy(MENU, [32, 32])
    everywhere = torch.from_numpy(np.concatenate([episode.observations for episode in planted(150)]))
    loss = follow_values(policy, values, everywhere, MENU, replace(CONFIG, steps=1500), seed=0)
    assert -0.1 < loss <= 0
    agent = to_agent(policy, MENU, (0.3, 0.6, 1.0), {})
    assert agent.choose(observation(1.8))[::2] == (2, 1) and agent.choose(observation(0.2))[::2] == (0, 1)
    with torch.no_grad():
        told_worth = policy.predict_values(seen)[:, 0]
    # The critic is worth what the actor does, which lies between the best action and the mean of all.
    assert (told_worth <= means.max(dim=1).values + 0.3).all()
    assert (told_worth >= means.mean(dim=1) + 0.2).all()


def test_caution_prefers_what_the_networks_agree_on() -> None:
    """One action is worth 1 by every network; another 3 by one and 0 by the other."""

    class Told(torch.nn.Module):
        def __init__(self, worths: list[float]) -> None:
            super().__init__()
            self.worths = torch.tensor(worths)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.worths.repeat(len(inputs) // len(self.worths))[:, None]

    rest = [-5.0] * (len(ACTIONS) - 2)
    seen = torch.from_numpy(np.stack([observation(0.1 * told) for told in range(20)]))
    nothing, one = torch.zeros(seen.shape[1]), torch.ones(seen.shape[1])
    networks = [Told([1.0, 3.0, *rest]), Told([1.0, 0.0, *rest])]
    values = ActionValues(torch.zeros(len(ACTIONS), 1), nothing, one, networks)
    mean, cautious = values(seen, 2.0)
    assert torch.equal(mean[0, :2], torch.tensor([1.0, 1.5]))
    assert torch.equal(cautious[0, :2], torch.tensor([1.0, 1.5 - 2 * 1.5]))
    for caution, best in ((0.0, ACTIONS[1]), (1.0, ACTIONS[0])):
        torch.manual_seed(0)
        policy = new_policy(MENU, [32, 32])
        config = replace(CONFIG, caution=caution, temperature=0.1)
        follow_values(policy, values, seen, MENU, config, seed=0)
        assert to_agent(policy, MENU, (0.3, 0.6, 1.0), {}).choose(observation(0.5)) == best


def test_the_same_seed_gives_the_same_values_and_leaves_other_draws_alone() -> None:
    decisions = Decisions.from_episodes(planted(20), MENU)
    config = RegressionConfig(members=1, steps=20)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, cautious = fit_values(decisions, MENU, config, seed=3)(decisions.observations, 1.0)
    assert torch.equal(torch.rand(1), before)
    assert torch.equal(fit_values(decisions, MENU, config, seed=3)(decisions.observations, 1.0)[0], one)
    assert not torch.equal(fit_values(decisions, MENU, config, seed=4)(decisions.observations, 1.0)[0], one)
    assert torch.equal(cautious, one), "one network agrees with itself"


def test_an_observation_ends_with_the_last_action_one_hot() -> None:
    assert observation_space(MENU).shape == (len(observation(0.0)),)
    assert one_hot((2, 0, 1, 0), MENU) == [0, 0, 1, 1, 0, 1, 1]
    assert one_hot(None, MENU) == [0] * 7
