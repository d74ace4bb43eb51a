"""RLMixEnv: what it shows, pays and mixes, by hand; that it is R-Mix; where its episodes end."""

import copy
import multiprocessing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check
from torch import nn

from rlmix.classifier.data import ImageSet, Splits, load_dataset, resized, split
from rlmix.classifier.files import load_state, save_state
from rlmix.classifier.mixing import LamDistribution, MixDraw, MixPolicy
from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.classifier.mixing.saliency import pooled_saliency
from rlmix.classifier.training.batches import Batch, Views
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.rmix_trainer import RMixTrainer
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import RLMixEnv
from rlmix.envs.rl_mix import Observation, cosine
from tests.envs.tiny import TRAINING, digits, streamed

BATCH, UPDATES = 20, 24
GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"


def plain_network(num_classes: int, in_channels: int) -> nn.Module:
    """Batch statistics, but nothing random: what a pass computes can be computed again."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, padding=1, stride=2),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(6 * 16, num_classes),
    )


@cache
def large_digits() -> Splits:
    """Digits of 16 x 16 pixels, two for each patch that the agent sees."""
    return split(resized(load_dataset("digits"), 16), validation_size=100)


def environment(splits: Splits | None = None, **changes: Any) -> RLMixEnv:
    """100 digits, epochs of 5 updates, the last one of 4."""
    training = TrainConfig(**{"updates": UPDATES, **TRAINING, **changes.pop("training", {})})
    return RLMixEnv(training=training, splits=(splits or digits()).draw(100, data_seed=0), **changes)


def by_hand(**changes: Any) -> RLMixEnv:
    return environment(large_digits(), training={"model": "tests.envs.test_rl_mix:plain_network"}, **changes)


def play(
    env: RLMixEnv, choices: Any, seed: int | None = 0
) -> list[tuple[Observation, float, bool, bool, dict[str, Any]]]:
    """The steps from a reset on, through as many epochs as there are choices for."""
    env.reset(seed=seed)
    steps = []
    for choice in choices:
        steps.append(env.step(choice))
        if steps[-1][2] or steps[-1][3]:
            env.reset()
    return steps


def random_choices(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(10, size=(count, BATCH))


def same(one: Observation, other: Observation) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("saliency", "logits"))


# The interface


@pytest.mark.parametrize("changes", [{}, {"grid": "mixing"}, {"reward": "validation"}])
# What SB3 says of a dictionary of two- and three-dimensional boxes; the published observation is one.
@pytest.mark.filterwarnings(
    "error",
    "ignore:Your observation logits has an unconventional shape",
    "ignore:It seems that your observation",
    "ignore:Treating image space as channels-last",
    "ignore:The minimal resolution for an image",
)
def test_both_checkers_find_nothing(changes: dict[str, Any]) -> None:
    env = gym.make("rlmix:RLMix-v0", render_mode="rgb_array", training={**TRAINING, "updates": 30}, **changes)
    gymnasium_check(env.unwrapped)
    sb3_check(env.unwrapped)


@pytest.mark.parametrize(("grid", "side"), [("published", 8), ("mixing", 4)])
def test_spaces_are_those_of_the_paper(grid: str, side: int) -> None:
    env = environment(grid=grid)
    assert env.action_space == gym.spaces.MultiDiscrete([10] * BATCH)
    assert env.observation_space["saliency"].shape == (BATCH, side, side)
    assert env.observation_space["logits"].shape == (BATCH, 10)
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        assert env.observation_space.contains(observation)
        np.testing.assert_allclose(observation["saliency"].sum(axis=(1, 2)), 1, rtol=1e-5)
        observation, *_ = env.step(random_choices(1)[0])
    np.testing.assert_allclose(THRESHOLDS, np.linspace(0, 0.99, 10))


@pytest.mark.parametrize(
    "action", [[10] * BATCH, [-1] * BATCH, [0] * (BATCH - 1), 3, [0.5] * BATCH, [[0] * BATCH], ["a"] * BATCH, []]
)
def test_an_action_that_is_none_is_refused(action: Any) -> None:
    env = environment()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="20 whole numbers from 0 to 9"):
        env.step(action)
    assert env.trainer.updates_done == 0


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint64])
def test_whole_numbers_of_any_type_are_the_same_action(kind: type[np.integer[Any]]) -> None:
    (expected,) = play(environment(), random_choices(1))
    (step,) = play(environment(), random_choices(1).astype(kind))
    assert same(step[0], expected[0]) and step[1:] == expected[1:]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reward": "best"}, "reward must be one of saliency, validation, got 'best'"),
        ({"grid": "fine"}, "grid must be one of published, mixing, got 'fine'"),
        ({"lam": "x"}, "lam must read"),
        ({"validation_limit": 0}, "validation_limit must be at least 1 image or None, got 0"),
        ({"training": {"batch_size": 101}}, "got 100 training images for batches of 101"),
    ],
)
def test_refuses_what_cannot_be_played(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        environment(**changes)


def test_readers_of_streamed_images_end_with_the_training_and_with_the_environment(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    training = TrainConfig(**{**TRAINING, "updates": 2, "batch_size": 10, "readers": 2})
    env = RLMixEnv(training=training, splits=streamed(tmp_path))
    env.reset(seed=0)
    assert len(set(multiprocessing.active_children()) - before) == 2
    env.step([0] * 10)
    observation, *_, info = env.step([0] * 10)
    assert info["training_over"] and env.observation_space.contains(observation)
    assert set(multiprocessing.active_children()) <= before
    env.reset(seed=1)
    assert len(set(multiprocessing.active_children()) - before) == 2
    env.close()
    assert set(multiprocessing.active_children()) <= before


# What it computes, by hand


def hand_saliency(gradient: torch.Tensor, side: int) -> NDArray[np.float64]:
    """`sqrt(mean over channels of g^2)`, averaged over patches, by loops in double precision; not normalised."""
    g = gradient.double().numpy()
    step = g.shape[2] // side
    maps = np.zeros((len(g), side, side))
    for image in range(len(g)):
        for row in range(side):
            for column in range(side):
                patch = g[image, :, row * step : (row + 1) * step, column * step : (column + 1) * step]
                maps[image, row, column] = np.sqrt((patch**2).mean(axis=0)).mean()
    return maps


def hand_pass(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and gradient of the mean cross-entropy at the images, with batch statistics."""
    leaf = images.clone().requires_grad_()
    logits = model.train()(leaf)[:, :10]
    loss = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    return logits.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("grid", ["published", "mixing"])
def test_observation_mask_and_reward_by_hand(grid: str) -> None:
    env = by_hand(grid=grid)
    observation, _ = env.reset(seed=4)
    trainer, seen_grids = env.trainer, set()
    model = copy.deepcopy(trainer.model)
    for number, choice in enumerate(random_choices(5)):
        model.load_state_dict(trainer.model.state_dict())
        batch, draw = trainer.batches.batch(number), trainer.batches.draw(number)
        images, labels = batch.images.contiguous(), trainer.data.train.labels[batch.index]
        targets = nn.functional.one_hot(labels, 10).float()
        mixing = (4, 2)[int(draw.choice * 2)]
        seen_grids.add(mixing)
        side = 8 if grid == "published" else mixing

        # Before the step: the clean batch.
        logits, gradient = hand_pass(model, images, targets)
        clean = hand_saliency(gradient, side)
        shown = clean / clean.sum(axis=(1, 2), keepdims=True)
        if grid == "mixing":
            shown = np.kron(shown, np.ones((1, 4 // side, 4 // side))) / (4 // side) ** 2
        np.testing.assert_allclose(observation["saliency"], shown, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(observation["logits"], logits, rtol=1e-4, atol=1e-5)

        # The mask and the mixed batch, pixel by pixel.
        saliency, lam, partner = hand_saliency(gradient, mixing), draw.lam_quantile, draw.partner.tolist()
        mask = [saliency[i] >= np.quantile(saliency[i], THRESHOLDS[choice[i]]) for i in range(BATCH)]
        mixed, soft, pixels = np.zeros(images.shape), np.zeros((BATCH, 10)), 16 // mixing
        for i, j in enumerate(partner):
            own = np.where(mask[i] == mask[j], lam, mask[i])  # λ ~ Beta(1, 1): the quantile itself
            wide = own.repeat(pixels, 0).repeat(pixels, 1)
            mixed[i] = wide * images[i].numpy() + (1 - wide) * images[j].numpy()
            soft[i] = own.mean() * targets[i].numpy() + (1 - own.mean()) * targets[j].numpy()

        observation, reward, *_ = env.step(choice)
        assert trainer.last_mixed is not None
        np.testing.assert_allclose(trainer.last_mixed[0], mixed, atol=1e-5)
        np.testing.assert_allclose(trainer.last_mixed[1], soft, atol=1e-5)

        # The reward: from the network as it was before the update.
        _, mixed_gradient = hand_pass(model, torch.from_numpy(mixed).float(), torch.from_numpy(soft).float())
        one, other = clean.flatten(), hand_saliency(mixed_gradient, side).flatten()
        assert reward == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), rel=1e-3)
    assert seen_grids == {2, 4}


@pytest.mark.parametrize("name", ["rmix_0.npz", "rmix_1.npz"])
def test_mixes_as_the_published_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"the authors' recorded output {path.name} is not here")
    golden = dict(np.load(path))
    images, labels = torch.from_numpy(golden["images"]), torch.from_numpy(golden["labels"])
    count, channels, side, _ = images.shape
    pixels = ImageSet(torch.zeros(count, channels, side, side, dtype=torch.uint8), labels)
    splits = Splits(
        pixels, pixels, pixels, pixels, "golden", tuple("0123456789"), (0.0,) * channels, (1.0,) * channels, False, 0
    )
    training = {**TRAINING, "batch_size": count, "updates": 1, "model": "tests.envs.test_rl_mix:plain_network"}
    trainer = RMixTrainer(TrainConfig(**training), splits)
    patch = int(golden["patch_size"])
    saliency = torch.from_numpy(golden["saliency"])
    # A gradient whose saliency is the recorded one, and the recorded draws.
    gradient = saliency.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None].expand_as(images)
    nothing = torch.zeros(count, dtype=torch.long)
    views = Views(nothing, nothing, nothing.bool())
    state = trainer.state_dict()
    state["processes"][0]["next_clean"] = Batch(
        images, torch.arange(count), views, gradient, torch.zeros(count, 10)
    ).state()
    trainer.load_state_dict(state)
    draw = MixDraw(torch.from_numpy(golden["partner"]), torch.zeros(count), 0.5, (0.5, 0.5), 0.0)
    monkeypatch.setattr(trainer.batches, "draw", lambda _: draw)
    assert trainer.next_clean().grid == side // patch
    threshold, lam = torch.from_numpy(golden["thresholds"]), LamDistribution("fixed", float(golden["lam"]))
    trainer.train_mixed(threshold, lam=lam)
    assert trainer.last_mixed is not None
    np.testing.assert_allclose(trainer.last_mixed[0], golden["mixed_images"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(trainer.last_mixed[1], golden["mixed_targets"], atol=1e-5, rtol=0)


def test_with_the_trainers_own_draws_it_is_exact_rmix() -> None:
    env = environment()
    trainer = Trainer(replace(env.trainer.config, saliency="exact"), env.trainer.data, seed=6)
    trainer.train(MixPolicy({"rmix": 1.0}), UPDATES, probe=False)
    env.reset(seed=6)
    over = False
    while not over:
        draw = env.trainer.batches.draw(env.trainer.updates_done)
        *_, truncated, info = env.step(np.searchsorted(np.float32(THRESHOLDS), draw.threshold.numpy()))
        over = info["training_over"]
        if truncated and not over:
            env.reset()
    for one, other in zip(trainer.model.state_dict().values(), env.trainer.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_choices_change_nothing_but_the_thresholds() -> None:
    """The same images, crops, partners, ratios and grids are mixed, whatever is chosen."""
    one, other = environment(), environment()
    for env in (one, other):
        env.reset(seed=2)
    for choice in ([0] * BATCH, [3] * BATCH, [4] * BATCH):
        assert torch.equal(one.trainer.next_clean().images, other.trainer.next_clean().images)
        assert one.trainer.next_clean().grid == other.trainer.next_clean().grid
        one.step(choice)
        other.step([9] * BATCH)
        assert not torch.equal(one.trainer.last_mixed[0], other.trainer.last_mixed[0])


def test_cosine_of_vectors_however_small() -> None:
    one, other = torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.tensor([[4.0, 0.0], [3.0, 0.0]])
    for scale in (1.0, 1e-18, 1e-30):
        assert float(cosine(one * scale, other * scale)) == pytest.approx(24 / 25)
    assert float(cosine(one, torch.zeros(2, 2))) == 0
    assert float(cosine(torch.zeros(2, 2), torch.zeros(2, 2))) == 0


@pytest.mark.parametrize(("side", "grid"), [(16, 8), (16, 4), (8, 8)])
def test_pooled_saliency_is_not_normalised(side: int, grid: int) -> None:
    gradient = (
        torch.randn(3, 2, side, side, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-20, 0, 3)[:, None, None, None]
    )
    np.testing.assert_allclose(pooled_saliency(gradient, grid), hand_saliency(gradient, grid), rtol=1e-5)


def test_sides_that_8_does_not_divide_are_shown_too() -> None:
    splits = split(resized(load_dataset("digits"), 28), validation_size=100)
    env = environment(splits, training={"model": "tests.envs.test_rl_mix:plain_network"})
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    gradient = env.trainer.next_clean().gradient
    pixels = gradient.square().mean(dim=1).sqrt().double()
    # The fourth patch of a row covers pixels floor(3 * 28 / 8) to ceil(4 * 28 / 8).
    shown = observation["saliency"] / observation["saliency"][:, :1, :1]
    expected = pixels[:, 10:14, 0:4].mean(dim=(1, 2)) / pixels[:, 0:4, 0:4].mean(dim=(1, 2))
    np.testing.assert_allclose(shown[:, 3, 0], expected, rtol=1e-3)


# Rewards by validation accuracy


def test_reward_by_validation_accuracy_is_its_change_at_epochs_ends() -> None:
    env = environment(reward="validation", validation_limit=60)
    env.reset(seed=0)
    before = 0.1
    for number, choice in enumerate(random_choices(UPDATES), start=1):
        _, reward, _, truncated, _ = env.step(choice)
        if number % 5 and number < UPDATES:
            assert reward == 0 and not truncated
            continue
        accuracy = env.trainer.evaluate("validation", limit=60).accuracy
        assert truncated and reward == pytest.approx(accuracy - before)
        before = accuracy
        if number < UPDATES:
            env.reset()


def test_rewards_do_not_change_the_training() -> None:
    choices = random_choices(10)
    one, other = environment(), environment(reward="validation")
    for left, right in zip(play(one, choices), play(other, choices), strict=True):
        assert same(left[0], right[0]) and left[4] == right[4]


# Episodes


def test_an_episode_is_an_epoch_and_the_classifier_goes_on() -> None:
    env = environment()
    observation, info = env.reset(seed=8)
    assert info == {"classifier_seed": 8, "updates_done": 0}
    done = []
    for number, choice in enumerate(random_choices(UPDATES), start=1):
        observation, _, terminated, truncated, info = env.step(choice)
        assert not terminated and info["updates_done"] == number
        assert info["training_over"] == (number == UPDATES)
        if truncated:
            done.append(number)
            with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
                env.step(choice)
            if number < UPDATES:
                following, info = env.reset()
                assert info == {"classifier_seed": 8, "updates_done": number}
                assert same(following, observation)
    assert done == [5, 10, 15, 20, 24]
    _, info = env.reset()  # the training is over: a new classifier, with a seed of its own
    assert info["updates_done"] == 0 and info["classifier_seed"] != 8
    again = environment()
    again.reset(seed=8)
    assert int(again.np_random.integers(2**31)) == info["classifier_seed"]


def test_a_seed_starts_a_new_classifier() -> None:
    env = environment()
    first, _ = env.reset(seed=1)
    env.step(random_choices(1)[0])
    second, info = env.reset(seed=1)
    assert same(first, second) and info["updates_done"] == 0
    assert not same(first, env.reset(seed=2)[0])


def test_a_reset_within_an_epoch_goes_on_where_the_classifier_stands() -> None:
    env = environment()
    env.reset(seed=1)
    observation, *_ = env.step(random_choices(1)[0])
    following, info = env.reset()
    assert same(observation, following) and info["updates_done"] == 1


def test_an_episode_is_a_function_of_seed_and_actions() -> None:
    choices = random_choices(12)
    one, other = play(environment(), choices, seed=3), play(environment(), choices, seed=3)
    for left, right in zip(one, other, strict=True):
        assert same(left[0], right[0])
        assert left[1:] == right[1:]


def test_step_before_reset_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        environment().step([0] * BATCH)


@pytest.mark.parametrize("reward", ["saliency", "validation"])
def test_a_diverged_classifier_ends_the_episode(reward: str) -> None:
    env = environment(training={"lr": 1e30}, reward=reward)
    env.reset(seed=0)
    for choice in random_choices(UPDATES):
        observation, paid, terminated, truncated, info = env.step(choice)
        assert env.observation_space.contains(observation)
        assert np.isfinite(paid)
        if terminated:
            break
        if truncated:
            env.reset()
    assert terminated and not truncated and info["diverged"] and info["training_over"]
    assert paid == pytest.approx(0.0)
    with pytest.raises(RuntimeError):
        env.step(choice)
    _, info = env.reset()
    assert info["updates_done"] == 0


@pytest.mark.parametrize("stop", [3, 5, 11])
def test_goes_on_from_its_state(tmp_path: Path, stop: int) -> None:
    choices = random_choices(15)
    whole = play(environment(reward="validation"), choices, seed=5)
    env = environment(reward="validation")
    play(env, choices[:stop], seed=5)
    save_state(tmp_path / "state", env.state_dict())
    env.step(choices[stop])
    env = environment(reward="validation")
    observation = env.load_state_dict(load_state(tmp_path / "state"))
    assert same(observation, whole[stop - 1][0])
    for number in range(stop, 15):
        observation, reward, *rest = env.step(choices[number])
        assert same(observation, whole[number][0])
        assert (reward, *rest) == whole[number][1:]
        if rest[1]:
            env.reset()


def test_the_picture_shows_the_last_mixed_images() -> None:
    env = environment(render_mode="rgb_array")
    env.reset(seed=0)
    white = env.render()
    assert white is not None and white.dtype == np.uint8 and (white == 255).all()
    env.step(random_choices(1)[0])
    picture = env.render()
    assert picture is not None and picture.shape == white.shape and (picture < 255).any()
    assert environment().render() is None
