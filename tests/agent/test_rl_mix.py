"""The per-batch agent: its networks, that it learns as Stable-Baselines3 does, is resumed, kept and replayed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from torch.nn.functional import conv2d, linear, relu

from rlmix.agent.config import RLMixAgentConfig
from rlmix.agent.rl_mix.agent import RLMixAgent
from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.agent.rl_mix.loop import Epoch, play, random_thresholds
from rlmix.agent.rl_mix.networks import BatchExtractor, ThresholdDistribution, new_policy
from rlmix.classifier.files import DamagedFileError, load_state, save_state
from rlmix.classifier.training.config import TrainConfig
from rlmix.envs import RLMixEnv
from rlmix.envs.rl_mix import Observation
from tests.envs.tiny import TRAINING, digits

BATCH, CLASSES, UPDATES = 20, 10, 24
CONFIG = RLMixAgentConfig(n_steps=8, batch_size=4, epochs=2, learning_rate=1e-2)


def environment(**changes: Any) -> RLMixEnv:
    """100 digits, epochs of 5 updates: a rollout of 8 ends in the middle of one."""
    training = TrainConfig(**{"updates": UPDATES, **TRAINING, **changes.pop("training", {})})
    return RLMixEnv(training=training, splits=digits().draw(100, data_seed=0), **changes)


def learner(env: RLMixEnv, config: RLMixAgentConfig = CONFIG, seed: int = 3) -> RLMixLearner:
    return RLMixLearner(config, env, seed=seed, updates=UPDATES)


def observations(count: int, batch: int = BATCH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(count, batch, 8, 8, generator=generator)
    return {
        "saliency": maps / maps.sum(dim=(2, 3), keepdim=True),
        "logits": 3 * torch.randn(count, batch, CLASSES, generator=generator),
    }


def weights(learner: RLMixLearner) -> list[torch.Tensor]:
    return list(learner.model.policy.state_dict().values())


# Networks


def test_published_extractor_is_its_description() -> None:
    space = spaces.Dict(
        {
            "saliency": spaces.Box(0, 1, (BATCH, 8, 8), np.float32),
            "logits": spaces.Box(-100, 100, (BATCH, CLASSES), np.float32),
        }
    )
    extractor = BatchExtractor(space)
    parameters = dict(extractor.named_parameters())
    assert parameters["saliency.0.weight"].shape == (150, BATCH, 3, 3)
    assert parameters["saliency.2.weight"].shape == (100, 150, 2, 2)
    assert parameters["logits.0.weight"].shape == (256, CLASSES)
    assert parameters["joined.0.weight"].shape == (256, 100 * 5 * 5 + BATCH * 256)
    seen = observations(3)
    maps = relu(conv2d(seen["saliency"], parameters["saliency.0.weight"], parameters["saliency.0.bias"]))
    maps = relu(conv2d(maps, parameters["saliency.2.weight"], parameters["saliency.2.bias"]))
    rows = [
        linear(seen["logits"][:, i], parameters["logits.0.weight"], parameters["logits.0.bias"]) for i in range(BATCH)
    ]
    joined = torch.cat([maps.reshape(3, -1), *rows], dim=1)
    expected = relu(linear(joined, parameters["joined.0.weight"], parameters["joined.0.bias"]))
    torch.testing.assert_close(extractor(seen), expected)


def test_too_few_patches_for_the_published_extractor_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 patches per side, got 2; use the extractor image"):
        new_policy("batch", BATCH, 2, CLASSES)
    new_policy("image", BATCH, 2, CLASSES)


def test_published_setting() -> None:
    env = environment()
    model = RLMixLearner(RLMixAgentConfig(), env, seed=0, updates=100).model
    usual = PPO("MultiInputPolicy", env)
    assert (model.n_steps, model.batch_size) == (1000, 250)
    for name in ("n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "target_kl"):
        assert getattr(model, name) == getattr(usual, name), name
    assert model.clip_range(1) == usual.clip_range(1)
    assert model.policy.net_arch == usual.policy.net_arch
    assert model.lr_schedule(0.25) == pytest.approx(3e-4 * 0.25**0.9)


def test_distribution_is_that_of_stable_baselines() -> None:
    logits = torch.randn(4, BATCH * 10, generator=torch.Generator().manual_seed(1))
    theirs = MultiCategoricalDistribution([10] * BATCH).proba_distribution(logits)
    ours = ThresholdDistribution([10] * BATCH).proba_distribution(logits)
    actions = torch.randint(10, (4, BATCH), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode())
    drawn = torch.stack([ours.sample() for _ in range(2000)])
    assert drawn.shape == (2000, 4, BATCH)
    counts = torch.bincount(drawn[:, 1, 7], minlength=10).numpy()
    expected = logits.view(4, BATCH, 10)[1, 7].softmax(0).numpy().astype(float)
    assert stats.chisquare(counts, 2000 * expected / expected.sum()).pvalue > 1e-3


def test_image_policy_treats_images_alike() -> None:
    policy = new_policy("image", BATCH, 8, CLASSES)
    torch.nn.init.normal_(policy.mlp_extractor.thresholds.weight)
    seen, order = observations(2), torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    logits = policy.get_distribution(seen).distribution.logits
    assert logits.shape == (2, BATCH, 10)
    moved = {name: values[:, order] for name, values in seen.items()}
    torch.testing.assert_close(policy.get_distribution(moved).distribution.logits, logits[:, order])
    torch.testing.assert_close(policy.predict_values(moved), policy.predict_values(seen))
    few = {name: values[:, :3] for name, values in seen.items()}
    torch.testing.assert_close(policy.get_distribution(few).distribution.logits, logits[:, :3])
    changed = {name: values.clone() for name, values in seen.items()}
    changed["saliency"][:, 0] = 1 / 64
    assert not torch.allclose(policy.get_distribution(changed).distribution.logits[:, 0], logits[:, 0])


@pytest.mark.parametrize("extractor", ["batch", "image"])
def test_every_parameter_learns(extractor: str) -> None:
    env = environment()
    agent = learner(env, replace(CONFIG, extractor=extractor))
    before = {name: tensor.clone() for name, tensor in agent.model.policy.named_parameters()}
    observation, _ = env.reset(seed=1)
    for _ in play(env, observation, agent.choose, agent.learn):
        pass
    unchanged = [name for name, tensor in agent.model.policy.named_parameters() if torch.equal(tensor, before[name])]
    assert unchanged == []
    assert len(before) == len(agent.model.policy.optimizer.param_groups[0]["params"])


# Learning


@pytest.mark.parametrize("extractor", ["batch", "image"])
def test_learns_as_stable_baselines_does(extractor: str) -> None:
    env = environment()
    ours = learner(env, replace(CONFIG, extractor=extractor))
    observation, _ = env.reset(seed=3)
    for _ in play(env, observation, ours.choose, ours.learn):
        pass
    env = environment()
    theirs = learner(env, replace(CONFIG, extractor=extractor)).model
    theirs.learn(UPDATES)
    assert theirs._n_updates == ours.model._n_updates == 3 * CONFIG.epochs
    for one, other in zip(theirs.policy.state_dict().values(), weights(ours), strict=True):
        assert torch.equal(one, other)


def test_play_goes_epoch_by_epoch_to_the_end_of_the_training() -> None:
    env = environment()
    observation, _ = env.reset(seed=0)
    told: list[tuple[float, Observation, bool, bool]] = []
    epochs = list(play(env, observation, lambda *_: np.full(BATCH, 4), lambda *what: told.append(what)))
    assert [epoch.updates for epoch in epochs] == [5, 5, 5, 5, 4]
    assert [epoch.updates_done for epoch in epochs] == [5, 10, 15, 20, 24]
    assert [truncated for *_, truncated in told] == [number % 5 == 0 or number == 24 for number in range(1, 25)]
    assert not any(terminated for _, _, terminated, _ in told)
    for number, epoch in enumerate(epochs):
        assert epoch.counts.tolist() == [0] * 4 + [BATCH * epoch.updates] + [0] * 5
        rewards = [reward for reward, *_ in told[5 * number : 5 * number + epoch.updates]]
        assert epoch.reward == pytest.approx(np.mean(rewards))
        assert epoch.observation["logits"].shape == (BATCH, CLASSES)
    assert list(play(env, observation, random_thresholds(0, BATCH))) == []


def test_play_ends_when_the_classifier_diverges() -> None:
    env = environment(training={"lr": 1e30})
    observation, _ = env.reset(seed=0)
    epochs = list(play(env, observation, random_thresholds(0, BATCH)))
    assert epochs[-1].diverged and epochs[-1].updates_done < UPDATES
    assert all(env.observation_space.contains(epoch.observation) for epoch in epochs)


def test_random_thresholds_are_uniform_and_a_function_of_seed_and_update() -> None:
    choose = random_thresholds(7, BATCH)
    nothing: Observation = {}
    drawn = np.array([choose(nothing, update) for update in range(500)])
    assert stats.chisquare(np.bincount(drawn.flatten(), minlength=10)).pvalue > 1e-3
    assert np.array_equal(random_thresholds(7, BATCH)(nothing, 123), drawn[123])
    assert not np.array_equal(random_thresholds(8, BATCH)(nothing, 123), drawn[123])


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_stopped_between_epochs_and_resumed_learns_the_same(tmp_path: Path, stop: int) -> None:
    def run(env: RLMixEnv, agent: RLMixLearner, observation: Observation) -> Iterator[Epoch]:
        return play(env, observation, agent.choose, agent.learn)

    env = environment()
    whole = learner(env)
    observation, _ = env.reset(seed=3)
    expected = [(epoch.counts.tolist(), epoch.reward, epoch.loss) for epoch in run(env, whole, observation)]

    env = environment()
    first = learner(env)
    observation, _ = env.reset(seed=3)
    epochs = run(env, first, observation)
    for _ in range(stop):
        next(epochs)
    save_state(tmp_path / "state", {"env": env.state_dict(), "agent": first.state_dict()})
    for _ in epochs:  # what goes on after it was saved must not change what was saved
        pass

    env = environment()
    second = learner(env, seed=99)
    state = load_state(tmp_path / "state")
    observation = env.load_state_dict(state["env"])
    second.load_state_dict(state["agent"], observation)
    rest = [(epoch.counts.tolist(), epoch.reward, epoch.loss) for epoch in run(env, second, observation)]
    assert rest == expected[stop:]
    for one, other in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"extractor": "none"}, "extractor must be one of batch, image, got 'none'"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 10, "batch_size": 4}, "divisible by its batch_size, got 10 and 4"),
        ({"n_steps": 10**12, "batch_size": 10**12}, "n_steps 1,000,000,000,000 would take"),
        ({"batch_size": 1}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_refuses_settings_out_of_range(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        learner(environment(), replace(CONFIG, **changes))


# Frozen


@pytest.fixture(params=["batch", "image"])
def agent(request: pytest.FixtureRequest) -> RLMixAgent:
    """An agent with weights large enough to choose differently at different observations."""
    policy = new_policy(request.param, BATCH, 8, CLASSES)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if name.startswith(("action_net", "mlp_extractor")):
            torch.nn.init.normal_(parameter, std=0.5)
    return RLMixAgent(policy, request.param, BATCH, 8, CLASSES, "published", {"learned_by": "ppo"})


def test_a_loaded_agent_chooses_as_the_saved_one(agent: RLMixAgent, tmp_path: Path) -> None:
    agent.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.json", "agent.safetensors"]
    env = environment()
    torch.manual_seed(1)
    loaded = RLMixAgent.load(tmp_path).for_environment(env)
    assert (loaded.extractor, loaded.provenance) == (agent.extractor, {"learned_by": "ppo"})
    observation, _ = env.reset(seed=0)
    choices = [agent.thresholds(5)(observation, update) for update in range(5)]
    assert [loaded.thresholds(5)(observation, update).tolist() for update in range(5)] == [c.tolist() for c in choices]
    assert len({tuple(choice) for choice in choices}) == 5
    assert all(env.action_space.contains(choice) for choice in choices)


def test_frozen_choices_are_drawn_from_the_policy(agent: RLMixAgent) -> None:
    observation, _ = environment().reset(seed=0)
    drawn = np.array([agent.thresholds(1)(observation, update)[4] for update in range(2000)])
    seen = {name: torch.from_numpy(values)[None] for name, values in observation.items()}
    expected = agent.policy.get_distribution(seen).distribution.probs[0, 4].detach().numpy().astype(float)
    likely = expected * 2000 >= 5  # what a chi-squared test wants
    counts = np.bincount(drawn, minlength=10)
    if likely.all():
        assert stats.chisquare(counts, 2000 * expected / expected.sum()).pvalue > 1e-3
    np.testing.assert_allclose(counts / 2000, expected, atol=0.05)


def test_frozen_agent_trains_another_classifier_and_learns_nothing(agent: RLMixAgent) -> None:
    env = environment(training={"lr": 0.02})
    before = [tensor.clone() for tensor in agent.policy.state_dict().values()]
    fitted = agent.for_environment(env)
    observation, _ = env.reset(seed=9)
    epochs = list(play(env, observation, fitted.thresholds(9)))
    assert epochs[-1].updates_done == UPDATES
    for one, other in zip(before, fitted.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_replay_at_another_batch_size(agent: RLMixAgent) -> None:
    env = environment(training={"batch_size": 7})
    if agent.extractor == "batch":
        with pytest.raises(ValueError, match="batches of 20, got 7"):
            agent.for_environment(env)
        return
    observation, _ = env.reset(seed=0)
    assert list(play(env, observation, agent.for_environment(env).thresholds(0)))[-1].updates_done == UPDATES


def test_replay_where_it_does_not_fit_is_refused(agent: RLMixAgent) -> None:
    with pytest.raises(ValueError, match="side 8, got 4"):
        agent.for_environment(environment(grid="mixing"))
    with pytest.raises(ValueError, match="classes 12, got 10"):
        replace(agent, num_classes=12).for_environment(environment())
    with pytest.raises(ValueError, match="grid mixing, got published"):
        replace(agent, grid="mixing").for_environment(environment())


@pytest.mark.parametrize(
    "change",
    [
        {"format": "rl-mix agent"},
        {"version": 2},
        {"extractor": "other"},
        {"extractor": []},
        {"images": 21},
        {"images": 10**9},
        {"side": 1},
        {"side": 7},
        {"num_classes": True},
        {"num_classes": "10"},
        {"grid": "other"},
        {"provenance": 3},
        {"extra": 1},
    ],
)
def test_a_description_that_does_not_fit_is_refused(agent: RLMixAgent, tmp_path: Path, change: dict[str, Any]) -> None:
    agent.save(tmp_path)
    value = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps({**value, **change}))
    if agent.extractor == "image" and "images" in change and change["images"] == 21:
        RLMixAgent.load(tmp_path)  # any number of images fits
        return
    with pytest.raises(DamagedFileError, match=r"agent\.json and agent\.safetensors"):
        RLMixAgent.load(tmp_path)


@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors"])
def test_damaged_and_missing_files_are_refused(agent: RLMixAgent, tmp_path: Path, name: str) -> None:
    agent.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"[" * 100_000):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            RLMixAgent.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DamagedFileError):
        RLMixAgent.load(tmp_path)
