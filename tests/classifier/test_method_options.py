"""Trainings under policies with options: what a method draws for itself and what it is set to reach the network."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rlmix.classifier.data import load_dataset, split
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.models import MODELS
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

DATA = split(load_dataset("digits")).draw(60, data_seed=0)
OPTIONS = [
    ("fmix", {"decay": 1.5}),
    ("fmix", {"max_soft": 0.5}),
    ("resizemix", {"max_scale": 0.4}),
    ("puzzlemix", {"t_eps": 0.01}),
]


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(
        MODELS, "tiny", lambda classes, channels: nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes))
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer_of(seed: int = 0) -> Trainer:
    config = TrainConfig(model="tiny", updates=40, batch_size=12, device="cpu", precision="fp32")
    return Trainer(config, DATA, seed=seed)


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([value.flatten() for value in trainer.network_state().values()])


def trained(policy: MixPolicy, *updates: int, seed: int = 0) -> Tensor:
    trainer = trainer_of(seed)
    for part in updates:
        trainer.train(policy, part)
    return weights(trainer)


@pytest.mark.parametrize(("method", "options"), OPTIONS)
def test_a_training_follows_from_the_seed_and_the_options(method: str, options: dict[str, float]) -> None:
    policy = MixPolicy({"clean": 0.5, method: 0.5}, options={method: options})
    whole = trained(policy, 36)
    assert whole.isfinite().all()
    assert torch.equal(whole, trained(policy, 5, 1, 30))
    assert not torch.equal(whole, trained(policy, 36, seed=1))
    assert not torch.equal(whole, trained(MixPolicy({"clean": 0.5, method: 0.5}), 36))


@pytest.mark.parametrize("method", ["fmix", "resizemix"])
def test_a_resumed_training_draws_on(method: str) -> None:
    policy = MixPolicy({method: 1.0})
    first = trainer_of()
    first.train(policy, 7)
    state = first.state_dict()
    first.train(policy, 29)
    second = trainer_of()
    second.load_state_dict(state)
    second.train(policy, 29)
    assert torch.equal(weights(first), weights(second))


def test_each_update_of_each_training_has_draws_of_its_own() -> None:
    numbers = [
        trainer.batches.draw(update).uniform("mine", 1)[0]
        for trainer in map(trainer_of, (0, 1))
        for update in range(70)
    ]
    assert len(set(numbers)) == 140
    again = trainer_of(1)
    assert [again.batches.draw(update).uniform("mine", 1)[0] for update in (69, 0, 40)] == [
        numbers[i] for i in (139, 70, 110)
    ]
