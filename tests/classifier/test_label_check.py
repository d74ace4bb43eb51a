"""Signs of wrong labels: against counts by hand, and against wrong labels that a test has made."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rlmix.classifier.evaluation import check_labels, label_stats
from rlmix.classifier.evaluation.label_check import contradicted_share, differing_share, two_humps
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from tests.envs.tiny import digits, same_weights


def test_confident_learning_by_hand() -> None:
    # Thresholds: mean of the probability of each class over the images labelled so: 0.6 and 0.55.
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9], [0.8, 0.2], [0.58, 0.42]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    # Labelled 0: counted 0 and 1 (contradicted), not 4. Labelled 1: 2, and 3 contradicted.
    assert contradicted_share(probabilities, labels) == pytest.approx((3 * 1 / 2 + 2 * 1 / 2) / 5)


def test_two_humps_are_found() -> None:
    random = np.random.default_rng(1)
    losses = np.concatenate((random.normal(0.2, 0.1, 700), random.normal(2.0, 0.1, 300)))
    share, gap = two_humps(losses)
    assert share == pytest.approx(0.3, abs=0.01) and gap == pytest.approx(18, rel=0.1)
    assert two_humps(np.ones(10)) == (0.0, 0.0)


def test_neighbours_by_hand() -> None:
    angles = torch.tensor([0.0, 0.01, 0.02, 0.03, 3.0, 3.01, 3.02, 3.03, 3.04, 3.05, 3.06, 3.07])
    places = torch.stack((angles.cos(), angles.sin()), dim=1) * torch.linspace(1, 9, 12)[:, None]
    labels = torch.tensor([0] * 4 + [1] * 8)
    # Of 10 neighbours of the four, 3 are of their own class and 7 of the other.
    assert differing_share(places, labels, 2) == pytest.approx(4 / 12)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_signs_tell_wrong_labels(noise: float) -> None:
    config = TrainConfig(model="residual_batch_8", updates=100, batch_size=50, device="cpu", precision="fp32")
    trainer = Trainer(config, digits().draw(600, data_seed=1, label_noise=noise), seed=2)
    trainer.train(MixPolicy({"clean": 1.0}), 100)
    before = {name: tensor.clone() for name, tensor in trainer.network_state().items()}
    signs = check_labels(trainer, limit=300)
    assert same_weights(before, trainer.network_state()) and signs.images == 300
    assert signs == check_labels(trainer, limit=300)
    found = (signs.contradicted, signs.neighbours_differ, 1 - signs.accuracy)
    np.testing.assert_allclose(found, noise, atol=0.1)
    losses = np.array(signs.loss_deciles) / math.log(10)
    assert (np.diff(losses) >= 0).all()
    assert (losses[7] > 0.5) == (noise > 0)


def test_a_diverged_network_is_no_error() -> None:
    stats = label_stats(torch.full((20, 3), torch.nan), torch.full((20, 4), torch.inf), torch.arange(20) % 3)
    assert all(math.isfinite(value) for value in (*stats.loss_deciles, stats.contradicted, stats.hump_share))


class Doubled(nn.Module):
    """A network whose last layer a trial pass does not find."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * self.head(images.flatten(1))


def test_a_network_whose_last_layer_is_named_is_checked() -> None:
    model = f"{__name__}:{Doubled.__name__}"
    trainer = Trainer(
        TrainConfig(model=model, embedding="head", batch_size=50, device="cpu"), digits().draw(100, data_seed=0)
    )
    assert 0 <= check_labels(trainer).accuracy <= 1
