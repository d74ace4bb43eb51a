"""Trainer: a plain loop where nothing is mixed, no wasted pass where something is, and resumed as if never stopped."""

import contextlib
import copy
import math
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rlmix.classifier.data import ImageSet, Splits, load_dataset, split
from rlmix.classifier.files import load_state, save_state
from rlmix.classifier.mixing import METHODS, LamDistribution, MixPolicy
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.saliency import patch_saliency
from rlmix.classifier.models import MODELS, build_model
from rlmix.classifier.training import resting
from rlmix.classifier.training.batches import RestingBatch
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.rmix_trainer import RMixTrainer
from rlmix.classifier.training.stats import EvalStats, TrainStats, UpdateStats, merge_stats
from rlmix.classifier.training.trainer import Trainer

BATCH = 12
LOGITS_BOUND = 0.05  # between bf16 and fp32, relative to the largest logit
ACCURACY_BOUND = 0.05  # between bf16 and fp32, of means over 3 seeds
CLEAN = MixPolicy({"clean": 1.0})
MIXUP = MixPolicy({"clean": 0.5, "mixup": 0.5})
CUTMIX = MixPolicy({"clean": 0.5, "cutmix": 0.5})
RMIX = MixPolicy({"clean": 0.5, "rmix": 0.5})
RMIX_ALL = MixPolicy({"rmix": 1.0})
MANIFOLD = MixPolicy({"clean": 0.5, "manifold": 0.5}, lam=LamDistribution("beta", 2.0))
LAMIX = MixPolicy({"clean": 0.5, "average": 0.5}, lam=LamDistribution("uniform", None), label_beta=0.5)


class TinyNetwork(nn.Sequential):
    """Milliseconds an update; batch statistics, and two 3 x 3 convolutions whose memory format matters."""

    def __init__(self, classes: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, classes),
        )


class TiedNetwork(nn.Module):
    """Two layers that share one weight."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels * 64, 16), nn.Linear(16, 16)
        self.third, self.head = nn.Linear(16, 16), nn.Linear(16, classes)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x.flatten(1)).relu()).relu()).relu())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TinyNetwork)
    monkeypatch.setitem(MODELS, "tiny_dropout", lambda classes, channels: TinyNetwork(classes, channels, 0.3))
    monkeypatch.setitem(MODELS, "tied", TiedNetwork)


def image_set(count: int, seed: int, channels: int = 2) -> ImageSet:
    """Images that all differ, whose class shows in their first rows."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (count,), generator=generator)
    images[torch.arange(count), :, labels] += 100
    return ImageSet(images, labels)


DATA = Splits(
    train=image_set(50, 0),
    validation=image_set(530, 1),
    development=image_set(7, 2),
    test=image_set(0, 3),
    name="synthetic",
    class_names=tuple("abcde"),
    mean=(0.3, 0.35),
    std=(0.2, 0.25),
    flip=True,
    crop_padding=1,
)
CONFIG = TrainConfig(model="tiny", updates=40, batch_size=BATCH, device="cpu", precision="fp32", lr=0.1)


def trainer_of(seed: int = 0, data: Splits = DATA, **fields: Any) -> Trainer:
    return Trainer(replace(CONFIG, **fields), data, seed=seed)


def rmix_trainer_of(seed: int = 0, data: Splits = DATA, **fields: Any) -> RMixTrainer:
    return RMixTrainer(replace(CONFIG, **fields), data, seed=seed)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(stats: TrainStats) -> TrainStats:
    return replace(stats, seconds=0.0)


@contextmanager
def inputs_seen(trainer: Trainer) -> Iterator[list[Tensor]]:
    """The images of every forward pass."""
    seen: list[Tensor] = []
    hook = trainer.model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    yield seen
    hook.remove()


def indices_of(images: Tensor, data: Splits = DATA) -> list[int]:
    """Which training images these are, looked up by their pixels; none may be cropped or mixed."""
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    pixels = ((images * std + mean) * 255).round().to(torch.uint8)
    known = {image.numpy().tobytes(): index for index, image in enumerate(data.train.images)}
    return [known[image.contiguous().numpy().tobytes()] for image in pixels]


# Plain training is plain training


@pytest.mark.parametrize(("lr_schedule", "smoothing"), [("onecycle", 0.0), ("onecycle", 0.1), ("multistep", 0.0)])
def test_clean_training_is_a_plain_loop(lr_schedule: str, smoothing: float) -> None:
    updates = 8
    trainer = trainer_of(augmentation=False, updates=updates, lr_schedule=lr_schedule, weight_decay=1e-2)
    plain = build_model("tiny", num_classes=5, in_channels=2)
    plain.load_state_dict(trainer.network_state())
    plain.to(memory_format=torch.channels_last)
    with inputs_seen(trainer) as seen:
        stats = trainer.train(replace(CLEAN, label_smoothing=smoothing), updates)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if lr_schedule == "onecycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=updates, pct_start=0.3, div_factor=100, final_div_factor=1e4
        )
    else:
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], gamma=0.1)
    losses, hits = [], []
    for images in seen:
        labels = DATA.train.labels[indices_of(images)]
        logits = plain(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        hits.append((logits.argmax(dim=1) == labels).float().mean().item())

    assert len(seen) == updates
    for name, value in trainer.network_state().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert stats.clean is not None and stats.mixed is None
    assert stats.clean.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert stats.clean.accuracy == pytest.approx(np.mean(hits), abs=1e-6)
    target = np.full(5, smoothing / 5) + np.eye(5)[0] * (1 - smoothing)
    entropy = -sum(p * math.log(p) for p in target if p > 0)
    assert stats.clean.target_entropy == pytest.approx(entropy, abs=1e-5)


def test_the_probe_is_the_gradient_of_the_last_clean_updates() -> None:
    trainer = trainer_of(augmentation=False)
    trainer.train(CLEAN, 3, probe=False)
    plain = build_model("tiny", num_classes=5, in_channels=2).to(memory_format=torch.channels_last)
    plain.load_state_dict(trainer.network_state())
    before = copy.deepcopy(trainer.model)
    with inputs_seen(trainer) as seen:
        stats = trainer.train(CLEAN, 1)
    leaf = seen[0].requires_grad_()
    functional.cross_entropy(plain(leaf), DATA.train.labels[indices_of(seen[0].detach())]).backward()
    gradient_norm = sum(float(p.grad.square().sum()) for p in plain.parameters() if p.grad is not None)
    norm = sum(float(p.detach().square().sum()) for p in before.parameters())
    assert stats.gradient_norm == pytest.approx(math.sqrt(gradient_norm / norm), rel=1e-4)
    pooled = functional.avg_pool2d(leaf.grad.double().square().mean(dim=1, keepdim=True).sqrt(), 2).flatten(1)
    share = pooled / pooled.sum(dim=1, keepdim=True)
    entropy = -(share * share.log()).sum(dim=1).mean() / math.log(16)
    assert stats.saliency_entropy == pytest.approx(float(entropy), abs=1e-5)


def test_probing_does_not_change_the_training() -> None:
    one, other = trainer_of(), trainer_of()
    measured, not_measured = one.train(RMIX, 9), other.train(RMIX, 9, probe=False)
    assert same(weights(one), weights(other))
    assert measured.saliency_entropy is not None and not_measured.saliency_entropy is None
    assert not_measured.gradient_norm is None and measured.clean == not_measured.clean


def test_every_epoch_is_a_permutation_of_all_images() -> None:
    trainer = trainer_of(augmentation=False, updates=60, batch_size=15)  # 3 1/3 batches an epoch, and past a block
    with inputs_seen(trainer) as seen:
        trainer.train(CLEAN, 60)
    order = indices_of(torch.cat(seen))
    epochs = [order[start : start + 50] for start in range(0, len(order), 50)]
    assert len(epochs) == 18
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_augmentation_crops_and_flips_only_as_far_as_the_data_allow() -> None:
    def crops(data: Splits) -> int:
        trainer = trainer_of(data=data)
        with inputs_seen(trainer) as seen:
            trainer.train(CLEAN, 5)
        mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
        pixels = ((torch.cat(seen) * std + mean) * 255).round().to(torch.uint8)
        allowed = set()
        padding = data.crop_padding
        padded = functional.pad(data.train.images, (padding,) * 4)
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crop = padded[:, :, top : top + 8, left : left + 8]
                for version in (crop, crop.flip(3)) if data.flip else (crop,):
                    allowed |= {image.contiguous().numpy().tobytes() for image in version}
        shown = [image.contiguous().numpy().tobytes() for image in pixels]
        assert set(shown) <= allowed
        originals = {image.numpy().tobytes() for image in data.train.images}
        return sum(image not in originals for image in shown)

    assert crops(replace(DATA, flip=False, crop_padding=0)) == 0
    assert crops(replace(DATA, flip=True, crop_padding=0)) > 10
    assert crops(replace(DATA, flip=False, crop_padding=2)) > 40


def test_a_number_gives_the_same_batch_and_draw_in_any_order() -> None:
    numbers = (0, 1, 31, 32, 70)
    ascending, other = (trainer_of(seed=3).batches for _ in range(2))
    batches = {number: (ascending.batch(number), ascending.draw(number)) for number in numbers}
    other.reset(4)
    assert not torch.equal(other.batch(0).index, batches[0][0].index)
    other.reset(3)
    for number in (70, 0, 32, 1, 31):
        (batch, draw), expected = (other.batch(number), other.draw(number)), batches[number]
        for name in ("images", "index"):
            assert torch.equal(getattr(batch, name), getattr(expected[0], name))
        assert torch.equal(draw.partner, expected[1].partner) and torch.equal(draw.threshold, expected[1].threshold)
        assert (draw.lam_quantile, draw.centre, draw.choice) == (
            expected[1].lam_quantile,
            expected[1].centre,
            expected[1].choice,
        )


# Mixing


def test_two_policies_of_one_seed_see_the_same_batches_and_partners() -> None:
    trainers = [trainer_of(augmentation=False) for _ in range(3)]
    seen_by = []
    # Half and half: the clean updates show the images, and a blend by 1 shows the mixed ones' too.
    for trainer, method, lam in zip(trainers, ("mixup", "cutmix", "mixup"), (1.0, 1.0, 0.0), strict=True):
        policy = MixPolicy({"clean": 0.5, method: 0.5}, lam=LamDistribution("fixed", lam))
        with inputs_seen(trainer) as seen:
            trainer.train(policy, 36)
        seen_by.append([indices_of(images) for images in seen])
    assert seen_by[0] == seen_by[1]
    own, partners = seen_by[0], seen_by[2]
    assert own[::2] == partners[::2]
    for batch, mates in zip(own[1::2], partners[1::2], strict=True):
        assert sorted(batch) == sorted(mates) and batch != mates
    # Another seed is another order.
    other = trainer_of(seed=1, augmentation=False)
    with inputs_seen(other) as seen:
        other.train(CLEAN, 1)
    assert indices_of(seen[0]) != own[0]


def test_an_update_has_its_partners_whichever_batch_it_mixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "REST", 1)  # no pass of its own is among those seen

    def partners(method: str) -> list[list[int]]:
        """Of every mixed update, each image's partner by its place in the batch."""
        shown = []
        for lam in (1.0, 0.0):  # the images themselves, then their partners
            trainer = trainer_of(augmentation=False, batch_size=10)  # divides an epoch: no image twice in a batch
            policy = MixPolicy({"clean": 0.5, method: 0.5}, threshold=0.0, lam=LamDistribution("fixed", lam))
            with inputs_seen(trainer) as seen:
                trainer.train(policy, 16)
            shown.append([indices_of(images) for images in seen[1::2]])
        return [[own.index(image) for image in mates] for own, mates in zip(*shown, strict=True)]

    assert partners("rmix") == partners("mixup")


@pytest.mark.parametrize(
    ("policy", "saliency", "passes"),
    [
        (CLEAN, "recycled", 12),
        (MIXUP, "recycled", 12),
        (CUTMIX, "exact", 12),
        (RMIX, "recycled", 12),
        (RMIX, "exact", 18),
        (RMIX_ALL, "recycled", 24),
        (RMIX_ALL, "exact", 24),
        # Two of three mixed updates find no clean batch waiting.
        (MixPolicy({"clean": 0.25, "rmix": 0.75}), "recycled", 12 + 6),
        (MixPolicy({"clean": 0.75, "rmix": 0.25}), "recycled", 12),
    ],
)
def test_no_pass_is_spent_on_saliency_that_a_clean_update_gave(
    policy: MixPolicy, saliency: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "REST", 1)
    trainer = trainer_of(saliency=saliency)
    with inputs_seen(trainer) as seen:
        stats = trainer.train(policy, 12)
    assert len(seen) == passes
    assert stats.updates == 12 and stats.images == 12 * BATCH
    assert stats.methods == {name: round(12 * share) for name, share in policy.shares.items()}


def test_recycled_rmix_mixes_the_clean_batches_that_have_rested() -> None:
    trainer = trainer_of(augmentation=False)
    # At τ = 0 every patch is salient: R-Mix is mixup, and λ = 1 shows the images themselves.
    policy = replace(RMIX, threshold=0.0, lam=LamDistribution("fixed", 1.0))
    with inputs_seen(trainer) as seen:
        trainer.train(policy, 40)
    # Updates 1, 3, ... 15 find no batch that has rested for 16 updates and take a pass of their own; 17 mixes batch 0.
    first, then = seen[:24], seen[24:]
    assert len(then) == 24
    clean = [*first[::3], *then[::2]]
    for mixed, own in zip(first[2::3], first[1::3], strict=True):
        torch.testing.assert_close(mixed, own)
    for mixed, rested in zip(then[1::2], clean, strict=False):
        torch.testing.assert_close(mixed, rested)
    assert not torch.equal(clean[0], clean[1])


def test_batches_rest_come_in_order_and_become_stale() -> None:
    batches: resting.RestingBatches[str] = resting.RestingBatches()
    batches.keep(0, "a")
    batches.keep(3, "b")
    assert [batches.give(update) for update in (15, 16, 17, 18, 19, 20)] == [None, "a", None, None, "b", None]
    for update in range(0, 200, 2):
        batches.keep(update, str(update))
        batches.forget_stale(update)
    assert [update for update, _ in batches.entries] == list(range(134, 200, 2))
    assert batches.give(500) is None and not batches.entries


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_resting_saliency_serves_as_the_gradient_does(scale: float) -> None:
    gradient = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * scale
    kept = resting.resting_saliency(gradient)
    assert kept.shape == (6, 1, 16, 16) and kept.dtype == torch.float16
    torch.testing.assert_close(patch_saliency(kept, 4), patch_saliency(gradient, 4), rtol=1e-3, atol=1e-5)


def test_recycled_rmix_sees_the_clean_batch_through_other_crops_and_flips_and_so_does_its_saliency() -> None:
    data = replace(DATA, flip=True, crop_padding=2, mean=(0.5,), std=(0.25,))  # black, and so the border, is not 0
    batches = trainer_of(data=data).batches
    first = batches.batch(0)
    # A map that says of every pixel which one it is.
    anew = batches.seen_anew(RestingBatch(first.index, first.views, first.images[:, :1].half(), None), 0)
    assert anew.gradient is not None
    assert torch.equal(anew.index, first.index)
    assert (anew.views.flip != first.views.flip).any()
    assert (anew.views.top != first.views.top).any()
    shown = anew.gradient != 0  # what the first view did not show has no saliency
    torch.testing.assert_close(anew.gradient[shown], anew.images[:, :1][shown], rtol=1e-3, atol=1e-3)
    height, width = data.train.images.shape[2:]
    for image in range(BATCH):
        rows = height - abs(int(anew.views.top[image] - first.views.top[image]))
        columns = width - abs(int(anew.views.left[image] - first.views.left[image]))
        assert int(shown[image, 0].sum()) == rows * columns


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_recycled_saliency_is_that_of_the_clean_loss(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "REST", 1)
    policy = MixPolicy(
        {"clean": 0.5, "rmix": 0.5}, threshold=0.55, lam=LamDistribution("fixed", 0.4), label_smoothing=smoothing
    )
    trainer = trainer_of(augmentation=False)
    plain = build_model("tiny", num_classes=5, in_channels=2).to(memory_format=torch.channels_last)
    plain.load_state_dict(trainer.network_state())
    with inputs_seen(trainer) as seen:
        trainer.train(policy, 2)
    leaf = seen[0].requires_grad_()
    labels = DATA.train.labels[indices_of(seen[0].detach())]
    functional.cross_entropy(plain(leaf), labels, label_smoothing=smoothing).backward()
    assert_mixed_by_saliency(trainer, seen[0].detach(), leaf.grad, smoothing, labels)


def assert_mixed_by_saliency(
    trainer: Trainer, images: Tensor, gradient: Tensor, smoothing: float, labels: Tensor
) -> None:
    """The last mixed batch is R-Mix of these images by this gradient at λ 0.4 and τ 0.55, by some partner and grid."""
    mixed, targets = trainer.last_mixed or (None, None)
    assert mixed is not None and targets is not None
    truth = functional.one_hot(labels, 5) * (1 - smoothing) + smoothing / 5
    masks = []
    for grid in (2, 4):
        saliency = functional.avg_pool2d(gradient.square().mean(dim=1, keepdim=True).sqrt(), 8 // grid)[:, 0]
        quantile = np.quantile(saliency.flatten(1).numpy(), 0.55, axis=1)[:, None, None]
        masks.append(torch.from_numpy(saliency.numpy() >= quantile).repeat_interleave(8 // grid, 1))
        masks[-1] = masks[-1].repeat_interleave(8 // grid, 2)[:, None].float()
    for row in range(len(images)):
        found = False
        for mask in masks:
            own, theirs = mask[row], mask
            weight = torch.where(own == theirs, 0.4, own.expand_as(theirs))
            candidates = weight * images[row] + (1 - weight) * images
            share = weight.mean(dim=(1, 2, 3))[:, None]
            candidate_targets = share * truth[row] + (1 - share) * truth
            fits = ((candidates - mixed[row]).abs().amax(dim=(1, 2, 3)) < 1e-4) & (
                (candidate_targets - targets[row]).abs().amax(dim=1) < 1e-4
            )
            found |= bool(fits.any())
        assert found


@pytest.mark.parametrize("since", [None, 5, 65])
def test_exact_saliency_is_that_of_plain_cross_entropy_at_the_current_weights(since: int | None) -> None:
    policy = MixPolicy(
        {"rmix": 1.0}, threshold=0.55, lam=LamDistribution("fixed", 0.4), label_smoothing=0.2, label_beta=0.5
    )
    trainer = trainer_of(augmentation=False, lr=0.5, updates=80)
    if since is not None:
        # Clean batches are left that have not rested, or that are stale.
        trainer.train(RMIX, 5)
        trainer.train(CLEAN, since)
    plain = build_model("tiny", num_classes=5, in_channels=2).to(memory_format=torch.channels_last)
    plain.load_state_dict(trainer.network_state())
    with inputs_seen(trainer) as seen:
        trainer.train(policy, 1)
    assert len(seen) == 2
    leaf = seen[0].requires_grad_()
    labels = DATA.train.labels[indices_of(seen[0].detach())]
    functional.cross_entropy(plain(leaf), labels).backward()
    assert_mixed_by_saliency(trainer, seen[0].detach(), leaf.grad, 0.2, labels)


def test_the_exact_pass_leaves_running_statistics_alone() -> None:
    # Without a learning rate the weights stand still; at τ = 0 and λ = 1 the mixed batch is the clean one. What is left
    # of an update is what it does to the running statistics, and the saliency pass must do nothing to them.
    images_themselves = replace(RMIX_ALL, threshold=0.0, lam=LamDistribution("fixed", 1.0))
    mixed, clean = trainer_of(lr=0.0), trainer_of(lr=0.0)
    with inputs_seen(mixed) as seen:
        mixed.train(images_themselves, 4)
    clean.train(CLEAN, 4)
    assert len(seen) == 8
    assert int(mixed.model[1].num_batches_tracked) == 4
    assert same(dict(mixed.model.named_buffers()), dict(clean.model.named_buffers()))


def test_the_global_label_trains_the_second_head_and_beta_one_does_not() -> None:
    for beta, moves in ((0.5, True), (0.9, True), (1.0, False)):
        for policy in (CLEAN, LAMIX, RMIX):
            trainer = trainer_of(weight_decay=0.0)
            before = weights(trainer)
            trainer.train(replace(policy, label_beta=beta), 3)
            after = weights(trainer)
            for name in ("8.global_label.weight", "8.global_label.bias"):
                assert torch.equal(before[name], after[name]) != moves
            assert not torch.equal(before["8.local.weight"], after["8.local.weight"])


def test_lamix_is_trained_on_the_target_of_its_paper() -> None:
    trainer = trainer_of(augmentation=False)
    model = copy.deepcopy(trainer.model)
    with inputs_seen(trainer) as seen:
        stats = trainer.train(replace(LAMIX, shares={"average": 1.0}), 1)
    assert trainer.last_mixed is not None and stats.mixed is not None and stats.clean is None
    assert torch.equal(trainer.last_mixed[0], seen[0])
    local, global_logits = model(seen[0]).detach().chunk(2, dim=1)
    target = 0.5 * trainer.last_mixed[1] + 0.5 * torch.softmax(torch.sigmoid(global_logits), dim=1)
    assert stats.mixed.loss == pytest.approx(float(functional.cross_entropy(local, target)), abs=1e-5)
    assert stats.mixed.target_entropy == pytest.approx(float(-(target * target.log()).sum(dim=1).mean()), abs=1e-5)
    hits = (local.argmax(dim=1) == target.argmax(dim=1)).float().mean()
    assert stats.mixed.accuracy == pytest.approx(float(hits))


@pytest.mark.parametrize("policy", [LAMIX, RMIX, MANIFOLD])
def test_a_detached_global_label_is_the_same_target_but_trains_nothing(policy: MixPolicy) -> None:
    trained = []
    for detach in (False, True):
        trainer = trainer_of(model="search", weight_decay=0.0)
        before = weights(trainer)
        stats = trainer.train(replace(policy, label_beta=0.5, label_detach=detach), 2)
        after = weights(trainer)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert any("global_label" in name for name in moved) != detach
        trained.append((stats.clean, moved))
    assert trained[0][0] == trained[1][0]  # the first update is that of the same loss
    assert {name for name in trained[0][1] if "global_label" not in name} == trained[1][1]


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_manifold_mixup_mixes_the_hidden_states_of_the_drawn_stage(lam: float) -> None:
    policy = replace(MANIFOLD, shares={"manifold": 1.0}, lam=LamDistribution("fixed", lam))
    drawn = set()
    for seed in range(8):
        trainer = trainer_of(seed, model="search", augmentation=False)
        model = copy.deepcopy(trainer.model)
        draw = trainer.batches.draw(0)
        stage = int(3 * draw.choice)
        drawn.add(stage)
        with inputs_seen(trainer) as seen:
            stats = trainer.train(policy, 1)
        assert len(seen) == 1 and stats.mixed is not None
        batch = trainer.data.train.images[_first_batch(trainer)]
        mean, std = (torch.tensor(values)[:, None, None] for values in (DATA.mean, DATA.std))
        hidden = (batch / 255 - mean) / std
        targets = functional.one_hot(DATA.train.labels[_first_batch(trainer)], 5).float()
        # The network piece by piece; hidden states are mixed before, between or after its first two stages.
        for number, piece in enumerate((nn.Identity(), nn.Sequential(model.stem, model.stages[0]), model.stages[1])):
            hidden = piece(hidden)
            if number == stage:
                hidden = lam * hidden + (1 - lam) * hidden[draw.partner]
        logits = model.head(model.norm(model.stages[2](hidden)).relu().mean(dim=(2, 3))).detach()[:, :5]
        targets = lam * targets + (1 - lam) * targets[draw.partner]
        loss = functional.cross_entropy(logits, targets)
        assert stats.mixed.loss == pytest.approx(float(loss), abs=1e-5)
        torch.testing.assert_close(trainer.last_mixed[1], targets)  # type: ignore[index]
    assert drawn == {0, 1, 2}


def _first_batch(trainer: Trainer) -> Tensor:
    """Positions of the images of a training's first batch."""
    return trainer.batches.batch(0).index


def test_what_cannot_be_trained_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of()
    with pytest.raises(ValueError, match=r"Manifold Mixup knows the stages of .* not of TinyNetwork"):
        trainer.train(MANIFOLD, 1)
    monkeypatch.setitem(sys.modules, "gco", None)
    for method in ("puzzlemix", "puzzlemix_no_transport", "lamix_puzzlemix"):
        with pytest.raises(ValueError, match=r"pip install 'rl-mix\[puzzle\]'"):
            trainer.train(MixPolicy({"clean": 0.5, method: 0.5}), 1)
    assert trainer.updates_done == 0
    trainer.train(RMIX, 1)


@pytest.mark.parametrize(("method", "in_training_mode"), [("rmix", True), ("puzzlemix", False)])
def test_the_exact_pass_is_taken_in_the_published_mode(
    method: str, in_training_mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    registered = METHODS[method]

    def mix(batch: MixInput, *rest: Any) -> tuple[Tensor, Tensor]:
        gradients.append(batch.gradient)
        return registered.mix(batch, *rest)

    monkeypatch.setitem(METHODS, method, replace(registered, mix=mix))
    trainer = trainer_of(augmentation=False, lr=0.5)
    trainer.train(CLEAN, 5)  # until running statistics are not those of a batch
    plain = build_model("tiny", num_classes=5, in_channels=2).to(memory_format=torch.channels_last)
    plain.load_state_dict(trainer.network_state())
    with inputs_seen(trainer) as seen:
        trainer.train(MixPolicy({method: 1.0}), 1)
    assert trainer.model.training
    leaf = seen[0].requires_grad_()
    plain.train(in_training_mode)
    functional.cross_entropy(plain(leaf), DATA.train.labels[indices_of(seen[0].detach())]).backward()
    torch.testing.assert_close(gradients, [leaf.grad], rtol=1e-4, atol=1e-6)


def test_crops_are_taken_from_the_border_that_the_setting_names() -> None:
    data = replace(DATA, flip=False)  # whose own border is one pixel
    for padding, cropped in ((0, False), (None, True), (2, True)):
        trainer = trainer_of(data=data, crop_padding=padding)
        views = [trainer.batches.batch(number).views for number in range(32)]
        shifts = max(int(view.top.max()) for view in views), max(int(view.left.max()) for view in views)
        assert shifts == (2 * (data.crop_padding if padding is None else padding),) * 2
        with inputs_seen(trainer) as seen:
            trainer.train(CLEAN, 1)
        known = [index in _first_batch(trainer) for index in _known_images(seen[0], data)]
        assert len(known) < BATCH if cropped else known == [True] * BATCH


def _known_images(images: Tensor, data: Splits) -> list[int]:
    """As `indices_of`, without those that are not there."""
    found = []
    for image in images:
        with contextlib.suppress(KeyError):
            found += indices_of(image[None], data)
    return found


# Stopping and going on


RESUMED = [
    ("recycled R-Mix, batches that rest", "tiny", "onecycle", RMIX, RMIX),
    ("a new policy takes the batches that rest", "tiny", "onecycle", RMIX, RMIX_ALL),
    ("a new policy leaves the batches that rest", "tiny", "multistep", RMIX, LAMIX),
    ("clean", "search", "multistep", CLEAN, CLEAN),
    ("dropout", "tiny_dropout", "onecycle", RMIX, CUTMIX),
    ("hidden states", "search", "piecewise", MANIFOLD, MixPolicy({"clean": 0.5, "puzzlemix": 0.5})),
    ("tied weights", "tied", "onecycle", MIXUP, RMIX),
]


@pytest.mark.parametrize(
    ("model", "lr_schedule", "first", "then"), [case[1:] for case in RESUMED], ids=[c[0] for c in RESUMED]
)
def test_resumed_from_a_file_is_never_stopped_bit_for_bit(
    tmp_path: Path, model: str, lr_schedule: str, first: MixPolicy, then: MixPolicy
) -> None:
    whole = trainer_of(model=model, lr_schedule=lr_schedule)
    start = without_time(whole.train(first, 7))
    middle = whole.evaluate("validation")
    rest = without_time(whole.train(then, 30))

    stopped = trainer_of(model=model, lr_schedule=lr_schedule)
    assert without_time(stopped.train(first, 7)) == start
    save_state(tmp_path / "state", stopped.state_dict())
    resumed = trainer_of(seed=99, model=model, lr_schedule=lr_schedule)
    resumed.train(CUTMIX, 3)  # whatever it did before is forgotten
    resumed.load_state_dict(load_state(tmp_path / "state"))
    assert (resumed.updates_done, resumed.progress, resumed.seed) == (7, 7 / 40, 0)
    assert resumed.evaluate("validation") == middle
    assert without_time(resumed.train(then, 30)) == rest
    assert same(weights(resumed), weights(whole))
    assert resumed.relative_lr == whole.relative_lr
    assert resumed.evaluate("validation") == whole.evaluate("validation")


def test_one_segment_or_several_under_one_policy_are_the_same_training() -> None:
    whole, parts = trainer_of(model="tiny_dropout"), trainer_of(model="tiny_dropout")
    whole.train(RMIX, 20)
    for updates in (1, 6, 1, 12):
        parts.train(RMIX, updates)
    assert same(weights(whole), weights(parts))


def test_a_state_in_memory_stays_what_it_was_and_can_be_loaded_again_and_again() -> None:
    trainer = trainer_of()
    trainer.train(RMIX, 7)
    state, before = trainer.state_dict(), weights(trainer)
    trainer.train(CUTMIX, 9)
    expected = weights(trainer)
    for _ in range(2):
        trainer.load_state_dict(state)
        assert same(weights(trainer), before)
        trainer.train(CUTMIX, 9)
        assert same(weights(trainer), expected)


def test_a_state_of_another_network_or_length_is_refused() -> None:
    state = trainer_of().state_dict()
    with pytest.raises(ValueError, match="a state of 41 updates, got one of 40"):
        trainer_of(updates=41).load_state_dict(state)
    with pytest.raises(ValueError, match="state of tied, got one of another network"):
        trainer_of(model="tied").load_state_dict(state)


@pytest.mark.parametrize("model", ["tiny_dropout", "search"])
@pytest.mark.parametrize("lr_schedule", ["onecycle", "multistep"])
def test_reset_is_a_new_trainer_bit_for_bit(model: str, lr_schedule: str) -> None:
    used, fresh = (
        trainer_of(seed=3, model=model, lr_schedule=lr_schedule),
        trainer_of(seed=5, model=model, lr_schedule=lr_schedule),
    )
    used.train(RMIX, 7)
    used.reset(5)
    assert same(weights(used), weights(fresh))
    assert (used.updates_done, used.relative_lr) == (0, fresh.relative_lr)
    assert without_time(used.train(RMIX, 9)) == without_time(fresh.train(RMIX, 9))
    assert same(weights(used), weights(fresh))


def test_reset_takes_other_images_and_another_length() -> None:
    other = replace(DATA, train=image_set(33, 8), crop_padding=2, mean=(0.1, 0.2))
    used = trainer_of(seed=3)
    used.train(RMIX, 7)
    used.reset(5, data=other, updates=21)
    fresh = Trainer(replace(CONFIG, updates=21), other, seed=5)
    assert without_time(used.train(RMIX, 21)) == without_time(fresh.train(RMIX, 21))
    assert same(weights(used), weights(fresh))
    assert used.evaluate("validation") == fresh.evaluate("validation")


def test_a_seed_decides_everything_and_the_global_random_state_nothing() -> None:
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        np_state = np.random.get_state()[1].copy()  # noqa: NPY002, that it is left alone
        before = torch.get_rng_state()
        trainer = trainer_of(seed, model="tiny_dropout")
        trainer.train(RMIX, 5)
        trainer.evaluate("validation")
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
        results.append(weights(trainer))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


# Limits and accidents


def test_segments_stay_within_the_training() -> None:
    trainer = trainer_of(updates=10)
    for updates in (0, -1, 11):
        with pytest.raises(ValueError, match=rf"updates must be in \[1, 10\], what is left of 10, got {updates}"):
            trainer.train(CLEAN, updates)
    trainer.train(CLEAN, 8)
    with pytest.raises(ValueError, match=r"updates must be in \[1, 2\]"):
        trainer.train(CLEAN, 3)
    trainer.train(CLEAN, 2)
    assert trainer.progress == 1
    with pytest.raises(ValueError, match="what is left of 10, got 1"):
        trainer.train(CLEAN, 1)


@pytest.mark.parametrize("policy", [CLEAN, RMIX, RMIX_ALL, LAMIX, CUTMIX])
def test_a_diverging_training_says_so_and_goes_on(policy: MixPolicy) -> None:
    trainer = trainer_of(lr=1e30, weight_decay=1.0, lr_schedule="multistep")
    assert trainer.train(policy, 10).diverged
    stats = trainer.train(policy, 5)
    assert stats.diverged and stats.saliency_entropy is None and stats.gradient_norm is None
    assert trainer.evaluate("validation").images == 530
    trainer.reset(0)
    trainer.config = replace(trainer.config, lr=0.1)
    trainer.reset(0)
    assert not trainer.train(policy, 5).diverged


def test_a_gradient_that_is_not_finite_is_seen_at_the_last_update_too() -> None:
    updates = 5
    for number, bad in ((0, math.nan), (-1, math.inf)):
        trainer = trainer_of()
        calls = 0

        def spoil(gradient: Tensor, bad: float = bad) -> Tensor:
            nonlocal calls
            calls += 1
            return torch.full_like(gradient, bad) if calls == updates else gradient

        list(trainer.model.parameters())[number].register_hook(spoil)
        stats = trainer.train(CLEAN, updates, probe=False)
        assert stats.clean is not None and math.isfinite(stats.clean.loss), "no loss shows it yet"
        assert stats.diverged


@pytest.mark.parametrize("schedule", ["onecycle", "multistep", "piecewise"])
def test_a_halved_learning_rate_is_that_of_a_training_with_half_of_it(schedule: str) -> None:
    def trained(lr: float, halved_at: int | None = None, through_a_file: bool = False) -> Trainer:
        trainer = trainer_of(lr=lr, lr_schedule=schedule, lr_milestones=(0.3, 0.6))
        for update in range(trainer.config.updates):
            if update == halved_at:
                trainer.scale_lr(0.5)
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.train(CUTMIX, 1)
            if through_a_file and update == 20:
                state = trainer.state_dict()
                trainer = trainer_of(lr=lr, lr_schedule=schedule, lr_milestones=(0.3, 0.6))
                trainer.load_state_dict(state)
        return trainer

    rates: list[float] = []
    whole, half = trained(0.2), trained(0.1)
    full_rates, half_rates = rates[:40], rates[40:]
    assert half_rates == [rate / 2 for rate in full_rates] and len(set(full_rates)) > 2
    assert not same(weights(whole), weights(half))
    for through_a_file in (False, True):
        assert same(weights(trained(0.2, 0, through_a_file)), weights(half))
        rates.clear()
        trained(0.2, 13, through_a_file)
        assert rates == full_rates[:13] + half_rates[13:]
    trainer = trained(0.2, 13)
    trainer.reset(0)
    assert trainer.optimizer.param_groups[0]["lr"] == full_rates[0], "a new training knows nothing of it"


def test_a_healthy_training_learns_and_has_not_diverged() -> None:
    digits = split(load_dataset("digits"))
    config = TrainConfig(updates=60, batch_size=50, device="cpu", precision="fp32")
    trainer = Trainer(config, digits, seed=0)
    stats = trainer.train(RMIX, 60)
    assert not stats.diverged
    assert trainer.evaluate("validation", limit=200).accuracy > 0.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"updates": 0}, "updates must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"lr": -0.1}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"momentum": math.inf}, "momentum must be"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"lr_schedule": "line"}, "lr_schedule must be one of onecycle, multistep, piecewise, cosine, got 'line'"),
        ({"saliency": "none"}, "saliency must be one of recycled, exact"),
        ({"device": "tpu"}, "device must be"),
        ({"precision": "fp8"}, "precision must be"),
        ({"model": "resnet1000"}, "unknown model"),
        ({"embedding": "3"}, "--embedding must name"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(**fields)


@pytest.mark.parametrize("updates", [1, 2, 3, 7])
@pytest.mark.parametrize("lr_schedule", ["onecycle", "multistep"])
def test_short_trainings_run_to_their_end(updates: int, lr_schedule: str) -> None:
    trainer = trainer_of(updates=updates, lr_schedule=lr_schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(CLEAN, updates)
    assert math.isfinite(trainer.relative_lr)


class CountHostReads(TorchFunctionMode):
    """Counts what would make the processor wait for a GPU: reading a tensor's values on the host."""

    READS = (
        *("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"),
        *("equal", "allclose", "is_nonzero", "masked_select", "unique", "bincount", "__contains__"),
    )

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.READS:
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", [CLEAN, RMIX, RMIX_ALL, LAMIX, CUTMIX, MIXUP])
def test_nothing_is_read_from_the_device_until_a_segment_ends(policy: MixPolicy) -> None:
    trainer = trainer_of(augmentation=True)
    trainer.train(policy, 1)  # the draws of the first updates are made, on the host
    with CountHostReads() as counted:
        trainer.train(policy, 20)
    assert counted.reads == {"tolist": 1}


# Updates with given thresholds


def train_by_thresholds(trainer: RMixTrainer, updates: int, lam: LamDistribution) -> None:
    """Updates with the thresholds that the Trainer would have drawn."""
    for _ in range(updates):
        trainer.next_clean()
        trainer.train_mixed(trainer.batches.draw(trainer.updates_done).threshold, lam=lam)


@pytest.mark.parametrize("model", ["tiny", "tiny_dropout"])
def test_updates_with_the_thresholds_of_its_own_draws_are_exact_rmix(model: str) -> None:
    lam = LamDistribution("beta", 0.2)
    whole = trainer_of(model=model, saliency="exact")
    whole.train(replace(RMIX_ALL, lam=lam), 40, probe=False)
    stepped = rmix_trainer_of(model=model)
    with inputs_seen(stepped) as seen:
        train_by_thresholds(stepped, 40, lam)
    assert len(seen) == 80
    assert same(weights(stepped), weights(whole))


def test_looking_at_the_next_batch_twice_is_looking_once_and_changes_no_weight() -> None:
    trainer = rmix_trainer_of()
    before = weights(trainer)
    with inputs_seen(trainer) as seen:
        first, second = trainer.next_clean(), trainer.next_clean()
    assert len(seen) == 1
    assert first.gradient is second.gradient and first.logits is second.logits
    assert same(weights(trainer), before)
    assert first.grid in (4, 2) and first.logits.shape == (BATCH, 5)


def test_a_batch_looked_at_before_other_training_is_not_mixed_by_its_old_saliency() -> None:
    trainer = rmix_trainer_of()
    old = trainer.next_clean()
    trainer.train(CLEAN, 1)
    with inputs_seen(trainer) as seen:
        assert trainer.next_clean() is not old
    assert len(seen) == 1


def test_a_refused_segment_keeps_the_batch_looked_at_and_an_interrupted_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = rmix_trainer_of()
    old = trainer.next_clean()
    with pytest.raises(ValueError, match="updates must be in"):
        trainer.train(CLEAN, 10**6)
    assert trainer.next_clean().gradient is old.gradient

    next_batch = trainer._next_batch

    def interrupted(method: str) -> Any:
        if trainer.updates_done:
            raise KeyboardInterrupt
        return next_batch(method)

    monkeypatch.setattr(trainer, "_next_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(CLEAN, 2)
    assert trainer.next_clean().gradient is not old.gradient


def test_nothing_is_read_from_the_device_in_updates_with_given_thresholds() -> None:
    trainer = rmix_trainer_of()
    train_by_thresholds(trainer, 1, LamDistribution())
    with CountHostReads() as counted:
        train_by_thresholds(trainer, 20, LamDistribution())
    assert counted.reads == {}


def test_updates_with_given_thresholds_go_on_from_a_file(tmp_path: Path) -> None:
    whole, stopped = rmix_trainer_of(model="tiny_dropout"), rmix_trainer_of(model="tiny_dropout")
    train_by_thresholds(whole, 20, LamDistribution())
    train_by_thresholds(stopped, 9, LamDistribution())
    stopped.next_clean()
    save_state(tmp_path / "state", stopped.state_dict())
    train_by_thresholds(stopped, 3, LamDistribution())
    resumed = rmix_trainer_of(seed=9, model="tiny_dropout")
    resumed.load_state_dict(load_state(tmp_path / "state"))
    with inputs_seen(resumed) as seen:
        train_by_thresholds(resumed, 11, LamDistribution())
    assert len(seen) == 21, "the batch that was looked at is not looked at again"
    assert same(weights(resumed), weights(whole))


def test_updates_that_cannot_be_made_with_given_thresholds_are_refused() -> None:
    trainer = rmix_trainer_of(updates=1)
    with pytest.raises(ValueError, match=r"threshold must be \[12\], got \(11,\)"):
        trainer.train_mixed(torch.zeros(11), lam=LamDistribution())
    trainer.train_mixed(torch.zeros(12), lam=LamDistribution())
    with pytest.raises(ValueError, match="the training of 1 updates is over"):
        trainer.train_mixed(torch.zeros(12), lam=LamDistribution())


# Evaluation


def by_hand(model: nn.Module, images: Tensor, labels: Tensor, data: Splits = DATA) -> EvalStats:
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    with torch.no_grad():
        logits = model.eval()((images / 255 - mean) / std)
    probabilities = logits.double().softmax(dim=1).numpy()
    truth = labels.numpy()
    confidence, answer = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15) | ((low == 14) & (confidence == 1))
        if inside.any():
            gap = abs((answer[inside] == truth[inside]).mean() - confidence[inside].mean())
            error += inside.mean() * gap
    loss = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    return EvalStats((answer == truth).mean(), loss, confidence.mean(), error, len(truth))


@pytest.fixture(scope="module")
def trained() -> Trainer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TinyNetwork)
        trainer = trainer_of()
        trainer.train(CLEAN, 30)
    return trainer


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *(("validation", limit) for limit in (None, 1, 499, 500, 501, 10_000)),
        *(("train", None), ("development", None), ("development", 3)),
    ],
)
def test_evaluation_is_a_plain_loop_over_the_split(trained: Trainer, name: str, limit: int | None) -> None:
    plain = build_model("tiny", num_classes=5, in_channels=2)
    plain.load_state_dict(trained.network_state())
    part = getattr(DATA, name)
    expected = by_hand(plain, part.images[:limit], part.labels[:limit])
    stats = trained.evaluate(name, limit=limit)
    assert stats.images == expected.images
    assert stats.accuracy == pytest.approx(expected.accuracy, abs=1e-6)
    assert stats.loss == pytest.approx(expected.loss, abs=1e-5)
    assert stats.confidence == pytest.approx(expected.confidence, abs=1e-5)
    assert stats.calibration_error == pytest.approx(expected.calibration_error, abs=1e-5)


def test_evaluation_passes_the_images_that_it_measures_and_no_others(trained: Trainer) -> None:
    seen: list[int] = []
    hook = trained.model.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    trained.evaluate("validation", limit=7)
    hook.remove()
    assert seen == [7]


def test_evaluation_changes_nothing(trained: Trainer) -> None:
    before = weights(trained)
    assert trained.evaluate("validation") == trained.evaluate("validation")
    assert same(weights(trained), before)


def test_a_sure_and_wrong_network_is_badly_calibrated() -> None:
    trainer = trainer_of()
    with torch.no_grad():
        for parameter in trainer.model[8].parameters():
            parameter.zero_()
        trainer.model[8].local.bias[0] = 50.0
    stats = trainer.evaluate("validation")
    share = float((DATA.validation.labels == 0).float().mean())
    assert stats.accuracy == pytest.approx(share) and stats.confidence == pytest.approx(1)
    assert stats.calibration_error == pytest.approx(1 - share, abs=1e-6)


def test_a_split_that_is_not_known_or_empty_is_refused(trained: Trainer) -> None:
    with pytest.raises(ValueError, match="split must be train, validation, development or test, got 'valid'"):
        trained.evaluate("valid")
    with pytest.raises(ValueError, match="expected images in the test split, got none"):
        trained.evaluate("test")
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit must be"):
            trained.evaluate("validation", limit=limit)


# Stats of several segments


def test_merged_stats_are_those_of_one_segment() -> None:
    policy = MixPolicy({"clean": 0.5, "cutmix": 0.3, "mixup": 0.2})
    whole, parts = trainer_of(), trainer_of()
    expected = whole.train(policy, 20)
    merged = merge_stats([parts.train(policy, updates, ahead=ahead) for updates, ahead in ((1, 19), (15, 4), (4, 0))])
    assert (merged.updates, merged.images, merged.methods) == (expected.updates, expected.images, expected.methods)
    for one, other in ((merged.clean, expected.clean), (merged.mixed, expected.mixed)):
        assert one is not None and other is not None
        for name in ("loss", "target_entropy", "accuracy"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
    assert (merged.probes, expected.probes) == (4, 4)
    assert merged.saliency_entropy == pytest.approx(expected.saliency_entropy, abs=1e-6)
    assert merged.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)


@pytest.mark.parametrize("shares", [
    {"clean": 0.7, "rmix": 0.3},
    {"clean": 0.5, "cutmix": 0.25, "rmix": 0.25},
    {"clean": 0.05, "rmix": 0.95},
    {"cutmix": 0.5, "rmix": 0.5},
])  # fmt: skip
def test_parts_of_a_segment_train_as_the_whole(shares: dict[str, float]) -> None:
    policy, lengths = MixPolicy(shares), (7, 20, 1, 33, 19)
    whole, parts = trainer_of(updates=80), trainer_of(updates=80)
    expected = whole.train(policy, 80)
    stats = [parts.train(policy, one, ahead=sum(lengths[place + 1 :])) for place, one in enumerate(lengths)]
    assert same(weights(whole), weights(parts))
    assert sum(part.probes for part in stats) == expected.probes == min(4, expected.methods.get("clean", 0))


def test_what_waits_too_long_is_forgotten_though_nothing_is_clean() -> None:
    trainer = trainer_of(updates=200)
    trainer.train(RMIX, 40)
    assert trainer.state_dict()["processes"][0]["resting"]
    trainer.train(MixPolicy({"mixup": 1.0}), 100)
    assert not trainer.state_dict()["processes"][0]["resting"]


def test_merged_stats_weigh_segments_by_their_updates_of_a_kind() -> None:
    def segment(clean: float | None, mixed: float | None, methods: dict[str, int], diverged: bool) -> TrainStats:
        kinds = [None if loss is None else UpdateStats(loss, 2 * loss, 3 * loss) for loss in (clean, mixed)]
        updates = sum(methods.values())
        return TrainStats(updates, 10 * updates, 1.5, methods, *kinds, None, None, diverged)

    merged = merge_stats(
        [
            segment(1.0, None, {"clean": 1}, False),
            segment(5.0, 4.0, {"clean": 3, "rmix": 2}, True),
            segment(None, 10.0, {"rmix": 3, "mixup": 1}, False),
        ]
    )
    assert merged.clean == UpdateStats(4.0, 8.0, 12.0)
    assert merged.mixed == UpdateStats(8.0, 16.0, 24.0)
    assert merged.methods == {"clean": 4, "mixup": 1, "rmix": 5}
    assert (merged.updates, merged.images, merged.seconds, merged.diverged) == (10, 100, 4.5, True)


# Precision and compilation


def test_low_precision_trains_much_the_same() -> None:
    full, low = trainer_of(), trainer_of(precision="bf16")
    one, other = full.train(RMIX, 10), low.train(RMIX, 10)
    assert one.clean is not None and other.clean is not None
    assert one.clean.loss == pytest.approx(other.clean.loss, rel=0.05)
    assert one.clean != other.clean
    assert all(value.dtype != torch.bfloat16 for value in weights(low).values())


@pytest.mark.parametrize("model", ["search", "preact_resnet18"])
def test_logits_in_low_precision_are_those_in_full_within_a_bound(model: str) -> None:
    digits = split(load_dataset("digits"))
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = []
    for precision in ("fp32", "bf16"):
        trainer = Trainer(TrainConfig(model=model, updates=10, device="cpu", precision=precision), digits)
        trainer.model.eval()
        with torch.no_grad():
            logits.append(torch.cat(trainer._logits(trainer.model, images)))
    full, low = logits
    assert 0 < (low - full).abs().max() <= LOGITS_BOUND * full.abs().max()


def test_accuracy_in_low_precision_is_that_in_full_within_a_bound() -> None:
    digits = split(load_dataset("digits"))
    means = []
    for precision in ("fp32", "bf16"):
        config = TrainConfig(updates=60, batch_size=50, device="cpu", precision=precision)
        trainer, accuracies = Trainer(config, digits), []
        for seed in range(3):
            trainer.reset(seed)
            trainer.train(RMIX, 60)
            accuracies.append(trainer.evaluate("validation").accuracy)
        means.append(sum(accuracies) / len(accuracies))
    assert means[0] > 0.8 and abs(means[0] - means[1]) <= ACCURACY_BOUND


def test_without_a_compiler_training_is_eager_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.warns(UserWarning, match=r"g\+\+.*training eagerly"):
        compiled = trainer_of(compile="on")
    eager = trainer_of()
    assert without_time(compiled.train(RMIX, 4)) == without_time(eager.train(RMIX, 4))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_training_is_eager_training_and_reset_compiles_nothing_again() -> None:
    compiled, eager = trainer_of(compile="on"), trainer_of()
    for policy in (RMIX, RMIX_ALL, LAMIX):
        one, other = compiled.train(policy, 4), eager.train(policy, 4)
        for kind in ("clean", "mixed"):
            if getattr(other, kind) is not None:
                assert getattr(one, kind).loss == pytest.approx(getattr(other, kind).loss, rel=1e-4)
    for name, value in weights(compiled).items():
        torch.testing.assert_close(value, weights(eager)[name], rtol=1e-3, atol=1e-4)
    one_score, other_score = compiled.evaluate("validation"), eager.evaluate("validation")
    assert one_score.loss == pytest.approx(other_score.loss, rel=1e-3)

    compiled.reset(1)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = compiled.train(RMIX, 6)
        compiled.evaluate("development")
    fresh = trainer_of(seed=1).train(RMIX, 6)
    assert again.clean is not None and fresh.clean is not None
    assert again.clean.loss == pytest.approx(fresh.clean.loss, rel=1e-4)
