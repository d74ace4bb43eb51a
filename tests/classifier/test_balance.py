"""Unequal classes: the sampler, the weights of the loss, and measures by class, each against another library."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import WeightedRandomSampler

from rlmix.classifier.data import Dataset, ImageSet, Splits, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation.classes import ClassStats
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.batches import BatchSource
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.draws import stream_seed
from rlmix.classifier.training.trainer import Trainer

COUNTS = (60, 15, 5)
SETTING = TrainConfig(updates=40, batch_size=20, lr=0.05, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def data() -> Splits:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    pool = ImageSet(images, labels)
    dataset = Dataset("unequal", pool, pool, tuple("abc"), (0.3,), (0.2,), False, 0)
    return replace(split(dataset, validation_size=4, development_size=0), train=pool)


def test_sampler_draws_as_torchs_weighted_sampler(data: Splits) -> None:
    batches = BatchSource(replace(SETTING, balance="sampler"), data, seed=3, device=torch.device("cpu"))
    drawn = torch.cat([batches.batch(number).index for number in range(8)])  # 80 images and 20 a batch: two epochs
    weights = [1 / COUNTS[label] for label in data.train.labels.tolist()]
    for epoch in (0, 1):
        generator = torch.Generator().manual_seed(stream_seed(3, "epoch", epoch))
        expected = list(WeightedRandomSampler(weights, 80, generator=generator))
        assert drawn[80 * epoch : 80 * (epoch + 1)].tolist() == expected
    many = torch.cat([batches.labels(batches.batch(number)) for number in range(300)])
    assert np.allclose(torch.bincount(many) / len(many), 1 / 3, atol=0.03)


def test_without_balance_every_image_comes_once_an_epoch(data: Splits) -> None:
    for balance in ("none", "weights"):
        batches = BatchSource(replace(SETTING, balance=balance), data, seed=3, device=torch.device("cpu"))
        drawn = torch.cat([batches.batch(number).index for number in range(4)])
        assert sorted(drawn.tolist()) == list(range(80))
        expected = compute_class_weight("balanced", classes=np.arange(3), y=data.train.labels.numpy())
        assert (batches.class_weights is None) == (balance == "none")
        if batches.class_weights is not None:
            assert batches.class_weights.tolist() == pytest.approx(expected.tolist())


def test_weights_are_torchs(data: Splits) -> None:
    trainer = Trainer(replace(SETTING, balance="weights"), data, seed=1)
    batch = trainer.batches.batch(0)
    targets = 0.7 * torch.nn.functional.one_hot(trainer.batches.labels(batch), 3) + 0.1
    one = torch.ones(())
    with torch.no_grad():
        loss, _, logits = trainer._loss_and_stats(batch.images, targets, one, one)
    expected = torch.nn.functional.cross_entropy(logits, targets, weight=trainer.batches.class_weights)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("balance", ["sampler", "weights"])
def test_balanced_trainings_find_the_rare_class(data: Splits, balance: str) -> None:
    found = {}
    for setting in ("none", balance):
        trainer = Trainer(replace(SETTING, balance=setting), data, seed=0)
        trainer.train(MixPolicy({"clean": 0.5, "mixup": 0.5}), 15)
        found[setting] = int(trainer.evaluate_classes("train")[1][:, 2].sum())
    assert found[balance] > found["none"]


def test_unknown_balance_is_refused() -> None:
    with pytest.raises(InputError, match="balance must be one of none, sampler, weights"):
        TrainConfig(balance="both")  # type: ignore[arg-type]


def test_confusion_is_sklearns(data: Splits) -> None:
    trainer = Trainer(SETTING, data, seed=0)
    trainer.train(MixPolicy({"clean": 1.0}), 5)
    stats, confusion = trainer.evaluate_classes("train")
    with torch.no_grad():
        images = (data.train.images / 255 - 0.3) / 0.2  # type: ignore[union-attr]
        answers = trainer.model(images)[:, :3].argmax(dim=1)
    assert confusion.tolist() == confusion_matrix(data.train.labels, answers, labels=range(3)).tolist()
    assert stats == trainer.evaluate("train") and stats.accuracy == pytest.approx(confusion.trace().item() / 80)
    assert trainer.evaluate_classes("train", limit=30)[1].sum() == 30


@pytest.mark.parametrize("seed", range(5))
def test_class_stats_are_sklearns(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.choice([0, 1, 2, 4], size=50, p=[0.7, 0.1, 0.1, 0.1])  # no image of class 3
    answers = np.where(random.random(50) < 0.6, truth, random.integers(0, 5, 50))
    answers[answers == 2] = 0  # class 2 is never answered
    stats = ClassStats.from_confusion(torch.from_numpy(confusion_matrix(truth, answers, labels=range(5))))
    recall = recall_score(truth, answers, average=None, labels=range(5), zero_division=np.nan)
    assert stats.images == tuple(np.bincount(truth, minlength=5))
    assert [np.nan if share is None else share for share in stats.accuracy] == pytest.approx(recall, nan_ok=True)
    assert stats.balanced_accuracy == pytest.approx(np.nanmean(recall))
    labels = np.union1d(truth, answers)
    assert stats.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro", labels=labels, zero_division=0))
    if 3 not in answers:
        assert stats.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, answers))
