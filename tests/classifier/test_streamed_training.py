"""Training on images that stay in their files: as in memory where the pixels are the same, and resumed bit for bit."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.classifier.data import ImageFiles, Splits, evaluation_chunks, load_dataset, load_image_folder, split
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.batches import RestingBatch
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

SIDE = 16
MIXED = MixPolicy({"clean": 0.5, "rmix": 0.25, "cutmix": 0.25})
CONFIG = TrainConfig(updates=12, batch_size=6, device="cpu", precision="fp32", lr=0.1, readers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of flat colours, told apart by their shade, a little noise on each."""
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 190)):
        (path / name).mkdir()
        for number in range(30):
            pixels = (shade + generator.integers(-20, 20, (24, 20, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def streamed(folder: Path) -> Splits:
    return split(load_image_folder(folder, image_size=SIDE, streamed=True))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_it_learns_and_evaluates_like_images_in_memory(folder: Path, streamed: Splits) -> None:
    trainer = Trainer(replace(CONFIG, updates=60), streamed)
    stats = trainer.train(MIXED, 60)
    assert stats.saliency_entropy is not None and not stats.diverged
    result = trainer.evaluate("test")
    assert result.accuracy > 0.9 and result.images == len(streamed.test)
    assert trainer.evaluate("validation", limit=3).images == 3

    # The same network on the very pixels that the evaluation reads: the middle of images of one colour.
    pixels, _ = next(
        evaluation_chunks(streamed.test, count=len(streamed.test), batch_size=500, device=trainer.device, workers=0)
    )
    trainer.model.eval()
    mean, std = (torch.tensor(value)[:, None, None] for value in (streamed.mean, streamed.std))
    logits, _ = trainer._logits(trainer.model, (pixels / 255 - mean) / std)
    assert (logits.argmax(1) == streamed.test.labels).float().mean().item() == pytest.approx(result.accuracy)


def test_batches_do_not_depend_on_the_number_of_readers(streamed: Splits) -> None:
    trained = []
    for readers in (0, 2):
        trainer = Trainer(replace(CONFIG, readers=readers, updates=5), streamed)
        trainer.train(MIXED, 5)
        trained.append(weights(trainer))
    assert equal(*trained)


def test_readers_end_with_the_training(streamed: Splits) -> None:
    before = set(multiprocessing.active_children())
    trainer = Trainer(replace(CONFIG, readers=2), streamed)
    trainer.train(MIXED, 11, probe=False)
    assert len(set(multiprocessing.active_children()) - before) == 2
    trainer.train(MIXED, 1, probe=False)
    assert set(multiprocessing.active_children()) <= before
    trainer.reset(1)
    trainer.train(MIXED, 1, probe=False)
    assert len(set(multiprocessing.active_children()) - before) == 2
    trainer.batches.end_readers()


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_resumed_is_never_stopped(streamed: Splits, stop: int) -> None:
    config = replace(CONFIG, image_sizes=((0.5, 8), (1.0, SIDE)))
    whole = Trainer(config, streamed)
    whole.train(MIXED, stop, probe=False)
    state = whole.state_dict()
    whole.train(MIXED, 12 - stop, probe=False)
    other = Trainer(config, streamed, seed=9)
    other.load_state_dict(state)
    other.train(MIXED, 12 - stop, probe=False)
    assert equal(weights(whole), weights(other))


def test_crops_have_the_side_that_progress_asks_for(streamed: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []
    config = replace(CONFIG, image_sizes=((0.25, 8), (0.5, 12), (1.0, SIDE)))
    trainer = Trainer(config, streamed)
    loss = trainer._training_loss

    def seen(images: torch.Tensor, *rest: Any) -> Any:
        sides.append(images.shape[-1])
        return loss(images, *rest)

    monkeypatch.setattr(trainer, "_training_loss", seen)
    trainer.train(MixPolicy({"clean": 1.0}), 12, probe=False)
    assert sides == [8] * 3 + [12] * 3 + [16] * 6


def test_sides_that_are_trained_on_need_a_grid_and_no_other(streamed: Splits) -> None:
    odd = replace(streamed, train=replace(streamed.train, size=SIDE - 1))
    mixed = MixPolicy({"rmix": 1.0})
    Trainer(replace(CONFIG, image_sizes=((0.5, 8), (1.0, 12))), odd).check(mixed)
    for sizes in ((), ((0.5, 8), (1.0, 13))):
        with pytest.raises(ValueError, match="R-Mix needs image sides"):
            Trainer(replace(CONFIG, image_sizes=sizes), odd).check(mixed)


def test_images_in_memory_keep_their_size_and_are_checked_at_it() -> None:
    splits = split(load_dataset("digits"))  # of 8 x 8 pixels
    trainer = Trainer(replace(CONFIG, image_sizes=((0.5, 13), (1.0, 13))), splits)
    trainer.check(MixPolicy({"rmix": 1.0}))
    assert trainer.train(MixPolicy({"rmix": 1.0}), 2, probe=False).updates == 2


def test_a_number_gives_the_same_streamed_batch_in_any_order(streamed: Splits) -> None:
    batches = Trainer(CONFIG, streamed).batches
    ascending = [batches.batch(number).images for number in range(3)]
    for number in (2, 0, 1):
        assert torch.equal(batches.batch(number).images, ascending[number])
    assert batches.batch(1, side=8).images.shape[-1] == 8
    assert torch.equal(batches.batch(2).images, ascending[2])


def test_a_recycled_batch_is_the_clean_one_partly_mirrored(streamed: Splits) -> None:
    trainer = Trainer(CONFIG, streamed)
    first = trainer.batches.batch(0)
    first.gradient = torch.randn(first.images.shape, generator=torch.Generator().manual_seed(0))
    rested = RestingBatch.of(first)
    batch = trainer.batches.seen_anew(rested, 1)
    assert batch.gradient is not None
    mirrored = (batch.views.flip != first.views.flip).tolist()
    assert any(mirrored) and not all(mirrored)
    for i, turned in enumerate(mirrored):
        for now, before in ((batch.images, first.images), (batch.gradient, rested.saliency.float())):
            assert torch.equal(now[i], before[i].flip(-1) if turned else before[i])


def test_training_on_validation_images_too(folder: Path, streamed: Splits) -> None:
    both = streamed.trained_on_validation()
    assert isinstance(both.train, ImageFiles)
    assert sorted(both.train.paths) == sorted((*streamed.train.paths, *streamed.validation.paths))
    memory = split(load_image_folder(folder, image_size=SIDE, streamed=False))
    assert torch.equal(memory.trained_on_validation().train.labels, both.train.labels)
    assert len(memory.trained_on_validation().train.images) == len(both.train)


def test_streamed_images_are_always_cropped(streamed: Splits) -> None:
    with pytest.raises(ValueError, match="always cropped at random"):
        Trainer(replace(CONFIG, augmentation=False), streamed)
