"""Trainings in lockstep have the numbers that they have one by one, and remain trainings of their own."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from rlmix.classifier.mixing import METHODS, MixPolicy
from rlmix.classifier.models import MODELS
from rlmix.classifier.training.lockstep import Lockstep
from rlmix.classifier.training.stats import TrainStats
from rlmix.classifier.training.trainer import Trainer
from tests.gpu.test_trainer import CONFIG, DATA, DrawingNetwork, image_set, no_waiting

POLICIES = [
    MixPolicy({"clean": 0.5, "rmix": 0.5}),
    MixPolicy({"cutmix": 1.0}, label_smoothing=0.1),
    MixPolicy({"clean": 0.5, "average": 0.5}, label_beta=0.5),
    MixPolicy({"rmix": 1.0}, threshold=0.6, label_beta=0.7, label_detach=True),
]


def trainers(device: torch.device, count: int = 4, **fields: Any) -> list[Trainer]:
    """Trainings with their own images, labels, seeds, learning rates and lengths."""
    fields = {"model": "lenet", **fields}
    return [
        Trainer(
            replace(CONFIG, device=str(device), lr=0.01 * (1 + index), updates=20 + index, **fields),
            replace(DATA, train=image_set(70 + 9 * index, index)),
            seed=index,
        )
        for index in range(count)
    ]


def resting_network(num_classes: int, channels: int) -> nn.Module:
    """Leaves a layer out at random, which is no dropout."""
    first, last = nn.Conv2d(channels, 4, 3), nn.Linear(400, num_classes)
    return nn.Sequential(first, StochasticDepth(0.5, "row"), nn.Flatten(), last)


def frozen_network(num_classes: int, channels: int) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(400, num_classes))
    network[0].requires_grad_(False)
    return network


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Length of the difference over that of what is expected."""
    one, other = (torch.cat([part.detach().double().flatten() for part in parts]) for parts in (found, expected))
    return float((one - other).norm() / other.norm())


def assert_near(found: Sequence[Trainer], expected: Sequence[Trainer], bound: float = 1e-3) -> None:
    """Weights, running statistics and momentum agree but for rounding.

    A rounding that turns a maximum or the sign before a ReLU changes a gradient: after several updates momentum has
    30 times the bound of the weights.
    """
    for one, other in zip(found, expected, strict=True):
        assert one.updates_done == other.updates_done and one.relative_lr == other.relative_lr
        states = [list(trainer.model.state_dict().values()) for trainer in (one, other)]
        assert distance(*states) < bound
        moments = [
            [trainer.optimizer.state[parameter]["momentum_buffer"] for parameter in trainer.model.parameters()]
            for trainer in (one, other)
        ]
        assert distance(*moments) < 30 * bound


def assert_alike(found: TrainStats | None, expected: TrainStats) -> None:
    assert found is not None
    assert (found.methods, found.updates, found.images) == (expected.methods, expected.updates, expected.images)
    for kind in ("clean", "mixed"):
        mine, theirs = getattr(found, kind), getattr(expected, kind)
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-3)
            assert mine.accuracy == pytest.approx(theirs.accuracy, abs=0.06)
    for name, tolerance in (("saliency_entropy", 1e-3), ("gradient_norm", 1e-2)):
        one, other = getattr(found, name), getattr(expected, name)
        assert one is other is None or one == pytest.approx(other, rel=tolerance)


@pytest.mark.parametrize("model", ["lenet", "search", "plain_batch_16", "residual_group_8"])
def test_trainings_have_the_numbers_of_one_by_one(model: str, device: torch.device) -> None:
    alone, together = trainers(device, model=model), trainers(device, model=model)
    lockstep = Lockstep(together)
    for _ in range(2):
        expected = [trainer.train(policy, 4) for trainer, policy in zip(alone, POLICIES, strict=True)]
        for found, wanted in zip(lockstep.train(POLICIES, [4] * 4), expected, strict=True):
            assert_alike(found, wanted)
    assert_near(together, alone)
    for one, other in zip(together, alone, strict=True):
        assert one.evaluate("validation").loss == pytest.approx(other.evaluate("validation").loss, rel=1e-3)


@pytest.mark.parametrize("model", ["lenet", "search", "plain_batch_16", "residual_group_8"])
def test_the_first_update_is_the_same(model: str, device: torch.device) -> None:
    alone, together = trainers(device, model=model), trainers(device, model=model)
    for trainer, policy in zip(alone, POLICIES, strict=True):
        trainer.train(policy, 1)
    Lockstep(together).train(POLICIES, [1] * 4)
    assert_near(together, alone, 1e-6)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.stage])
def test_every_method_that_mixes_images_is_known(method: str, device: torch.device) -> None:
    policies = [MixPolicy({"clean": 0.5, method: 0.5} if method != "clean" else {"clean": 1.0}), POLICIES[0]]
    alone, together = trainers(device, 2), trainers(device, 2)
    try:
        alone[0].check(policies[0])
    except ValueError as error:
        pytest.skip(str(error))
    expected = [trainer.train(policy, 4) for trainer, policy in zip(alone, policies, strict=True)]
    for found, wanted in zip(Lockstep(together).train(policies, [4, 4]), expected, strict=True):
        assert_alike(found, wanted)
    assert_near(together, alone)


def test_bf16_stays_near_float32(device: torch.device) -> None:
    exact, low = (trainers(device, 2, model="search", precision=precision) for precision in ("fp32", "bf16"))
    for each in (exact, low):
        found = Lockstep(each).train(POLICIES[1:3], [2, 2])
        assert all(stats is not None and not stats.diverged for stats in found)
    parts = [[trainer.model.state_dict()["stem.weight"] for trainer in each] for each in (low, exact)]
    assert 0 < distance(*parts) < 0.05


@pytest.mark.parametrize("method", ["clean", "mixup", "cutmix", "rmix", "average"])
def test_nothing_waits_for_the_gpu_within_a_segment(
    method: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = MixPolicy({"clean": 0.5, method: 0.5} if method != "clean" else {"clean": 1.0}, label_beta=0.5)
    lockstep = Lockstep(trainers(device, 3))
    lockstep.train([policy] * 3, [2] * 3)
    with no_waiting(device, monkeypatch):
        found = lockstep.train([policy] * 3, [6, 4, 6])
    assert [stats.updates for stats in found if stats is not None] == [6, 4, 6]


def test_segments_of_different_lengths_and_trainings_that_wait(device: torch.device) -> None:
    alone, together = trainers(device), trainers(device)
    lengths = [3, 0, 5, 1]
    policies = [POLICIES[0], None, POLICIES[2], POLICIES[1]]
    before = together[1].model.state_dict()["head.local.weight"].clone()
    found = Lockstep(together).train(policies, lengths)
    assert found[1] is None and torch.equal(together[1].model.state_dict()["head.local.weight"], before)
    for trainer, policy, length, stats in zip(alone, policies, lengths, found, strict=True):
        if policy is not None:
            assert_alike(stats, trainer.train(policy, length))
    moved = [index for index, length in enumerate(lengths) if length]
    assert_near([together[index] for index in moved], [alone[index] for index in moved])


def test_a_training_leaves_and_comes_back(device: torch.device) -> None:
    """Reset, saved, resumed elsewhere and trained by itself in between: memory is shared, nothing else."""
    alone, together = trainers(device, 2), trainers(device, 2)
    lockstep = Lockstep(together)
    for trainer in alone:
        trainer.train(POLICIES[0], 5)
    lockstep.train([POLICIES[0]] * 2, [5, 5])
    state = together[0].state_dict()
    (resumed,) = trainers(device, 1)
    resumed.load_state_dict(state)
    together[0].train(POLICIES[2], 3)  # by itself, from the momentum of the lockstep
    alone[0].train(POLICIES[2], 3)
    assert_near(together, alone)
    lockstep.train([POLICIES[1], None], [2, 0])
    alone[0].train(POLICIES[1], 2)
    assert_near(together, alone)
    resumed.train(POLICIES[2], 3)
    resumed.train(POLICIES[1], 2)
    assert_near([resumed], [alone[0]])
    for trainer in (together[1], alone[1]):
        trainer.reset(7, updates=9, lr=0.03)
    lockstep.train([None, POLICIES[0]], [0, 4])
    alone[1].train(POLICIES[0], 4)
    assert_near(together, alone)


def test_balanced_losses_weigh_as_they_do_alone(device: torch.device) -> None:
    alone, together = trainers(device, 2, balance="weights"), trainers(device, 2, balance="weights")
    for trainer in alone:
        trainer.train(POLICIES[1], 4)
    Lockstep(together).train([POLICIES[1]] * 2, [4, 4])
    assert_near(together, alone)


def test_a_training_that_diverges_takes_no_other_along(device: torch.device) -> None:
    alone, together = trainers(device), trainers(device)
    with torch.no_grad():
        next(together[2].model.parameters()).fill_(math.nan)
    found = Lockstep(together).train([POLICIES[0]] * 4, [4] * 4)
    assert [stats.diverged for stats in found if stats is not None] == [False, False, True, False]
    for trainer in alone:
        trainer.train(POLICIES[0], 4)
    kept = [0, 1, 3]
    assert_near([together[index] for index in kept], [alone[index] for index in kept])


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_the_step_is_that_of_the_optimiser(nesterov: bool, schedule: Any, device: torch.device) -> None:
    fields: dict[str, Any] = {"nesterov": nesterov, "lr_schedule": schedule, "weight_decay": 0.05, "momentum": 0.8}
    alone, together = trainers(device, 2, **fields), trainers(device, 2, **fields)
    for trainer in alone:
        trainer.train(POLICIES[1], 6)
    Lockstep(together).train([POLICIES[1]] * 2, [6, 6])
    assert_near(together, alone)


def weights_of(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_what_cannot_be_trained_in_lockstep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "drawing", DrawingNetwork)
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="got none"):
        Lockstep([])
    with pytest.raises(ValueError, match="differ in updates and lr alone"):
        Lockstep([*trainers(cpu, 1), *trainers(cpu, 1, momentum=0.5)])
    with pytest.raises(ValueError, match="optimiser sgd, got adamw"):
        Lockstep(trainers(cpu, 2, optimizer="adamw"))
    with pytest.raises(ValueError, match="without dropout"):
        Lockstep(trainers(cpu, 2, model="drawing"))
    monkeypatch.setitem(MODELS, "resting", resting_network)
    with pytest.raises(ValueError, match="without dropout and whatever else draws, got resting"):
        Lockstep(trainers(cpu, 2, model="resting"))
    monkeypatch.setitem(MODELS, "frozen", frozen_network)
    with pytest.raises(ValueError, match=r"trained whole, got one whose 0\.weight is not"):
        Lockstep(trainers(cpu, 2, model="frozen"))
    other = Trainer(replace(CONFIG, device="cpu", model="search"), DATA.only([0, 1, 2]))
    with pytest.raises(ValueError, match=r"images and classes alike, got \(3, 12, 12, 5\) and \(3, 12, 12, 3\)"):
        Lockstep([*trainers(cpu, 1, model="search"), other])
    pair = trainers(cpu, 2)
    lockstep, before = Lockstep(pair), weights_of(pair[0])
    with pytest.raises(ValueError, match="manifold mixes hidden states"):
        lockstep.train([POLICIES[0], MixPolicy({"manifold": 1.0})], [2, 2])
    with pytest.raises(ValueError, match=r"updates must be in \[1, 21\]"):
        lockstep.train([POLICIES[0]] * 2, [2, 22])
    assert torch.equal(weights_of(pair[0]), before)
