"""Streaming: crops as torchvision's, the same bytes for any number of workers, in order; bad files named."""

import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize
from torchvision.transforms import functional as reference

from rlmix.classifier.data import DataError, ImageFiles, StreamDraw, stream_batches, stream_evaluation
from rlmix.classifier.data.streaming import random_crop

ROOT = Path(__file__).parents[2]
NUM_FILES = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """Images of different sizes and kinds."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    paths = []
    for number in range(NUM_FILES):
        bands = (3, 3, 4, 1)[number % 4]
        pixels = random.integers(0, 256, (20 + 7 * number, 90 - 5 * number, bands), dtype=np.uint8).squeeze()
        path = folder / f"{number}.{('jpg', 'png', 'webp', 'jpg')[number % 4]}"
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    return ImageFiles(tuple(paths), torch.arange(NUM_FILES) % 3, 16)


def draws(seed: int = 0, *, batch_size: int = 5) -> Iterator[StreamDraw]:
    for number in count():
        generator = torch.Generator().manual_seed(1_000 * seed + number)
        yield StreamDraw(
            torch.randint(NUM_FILES, (batch_size,), generator=generator),
            torch.rand(batch_size, 4, generator=generator, dtype=torch.float64),
            torch.rand(batch_size, generator=generator) < 0.5,
        )


def rgb(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


# The same bytes


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than some machines have cores
def test_the_same_draws_give_the_same_bytes_for_any_number_of_workers(files: ImageFiles) -> None:
    before = torch.get_rng_state()
    runs = [list(stream_batches(files, islice(draws(), 9), size=24, workers=workers)) for workers in (0, 1, 3, 0)]
    for batches in runs[1:]:
        assert len(batches) == len(runs[0]) == 9
        assert all(torch.equal(batch, first) for batch, first in zip(batches, runs[0], strict=True))
    assert len({batch.numpy().tobytes() for batch in runs[0]}) == 9
    evaluations = [list(stream_evaluation(files, size=24, batch_size=5, workers=workers)) for workers in (0, 1, 3)]
    for batches in evaluations:
        assert [len(batch) for batch in batches] == [5, 5, 2]
        assert torch.equal(torch.cat(batches), torch.cat(evaluations[0]))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_bytes_in_channels_last_memory(files: ImageFiles) -> None:
    for workers in (0, 1):
        batch = next(stream_batches(files, draws(), size=24, workers=workers))
        assert batch.shape == (5, 3, 24, 24) and batch.dtype == torch.uint8 and batch.device.type == "cpu"
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_an_image_depends_on_its_own_draw_alone(files: ImageFiles) -> None:
    draw = next(draws())
    whole = next(stream_batches(files, [draw], size=24, workers=0))
    for place in range(5):
        only = StreamDraw(*(value[place : place + 1] for value in (draw.index, draw.crop, draw.flip)))
        assert torch.equal(next(stream_batches(files, [only], size=24, workers=0))[0], whole[place])


def test_another_size_is_another_stream_of_the_same_crops(files: ImageFiles) -> None:
    sizes = {}
    for size in (128, 224, 288):
        sizes[size] = torch.cat(list(stream_batches(files, islice(draws(), 2), size=size, workers=1)))
        assert sizes[size].shape == (10, 3, size, size)
    small = reference.resize(sizes[288].float(), [8, 8], antialias=True)
    torch.testing.assert_close(
        reference.resize(sizes[128].float(), [8, 8], antialias=True), small, rtol=0, atol=12, msg="other crops"
    )


def test_closing_ends_the_workers_of_an_endless_stream(files: ImageFiles) -> None:
    before = set(multiprocessing.active_children())  # those of another test's training, until it is collected
    stream = stream_batches(files, draws(), size=24, workers=2)
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del stream
    assert set(multiprocessing.active_children()) <= before


def test_draws_are_taken_two_ahead_for_each_worker(files: ImageFiles) -> None:
    taken = []

    def counted() -> Iterator[StreamDraw]:
        for draw in draws():
            taken.append(draw)
            yield draw

    stream = stream_batches(files, counted(), size=24, workers=2)
    for number in (5, 6, 7):
        next(stream)
        assert len(taken) == number
    del stream


SPAWNED = """
import multiprocessing, sys, torch
from rlmix.classifier.data import ImageFiles, StreamDraw, stream_batches
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    paths = tuple(sys.argv[1:])
    files = ImageFiles(paths, torch.zeros(len(paths), dtype=torch.long), 16)
    draw = StreamDraw(torch.arange(5), torch.full((5, 4), 0.25, dtype=torch.float64), torch.arange(5) % 2 == 0)
    for workers in (0, 1):
        print(next(stream_batches(files, [draw], size=24, workers=workers)).sum(dim=(1, 2, 3)).tolist())
"""


def test_workers_can_be_spawned(files: ImageFiles, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *files.paths], env=environment, capture_output=True, text=True, check=True
    )
    here, spawned = done.stdout.splitlines()
    assert here == spawned


# Crops


def feed(monkeypatch: pytest.MonkeyPatch, draw: Tensor) -> None:
    """Let torchvision's `RandomResizedCrop` draw these four numbers in [0, 1], and fail if it wants more."""
    numbers = iter(draw.tolist())

    def uniform(_: Tensor, low: float, high: float) -> Tensor:
        return torch.tensor([float(low) + next(numbers) * (float(high) - float(low))], dtype=torch.float64)

    def randint(low: int, high: int, **_: object) -> Tensor:
        return torch.tensor([low + int(next(numbers) * (high - low))])

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    monkeypatch.setattr(torch, "randint", randint)


def test_crops_are_torchvisions(files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    compared = 0
    for number in range(200):
        path = files.paths[number % NUM_FILES]
        draw = torch.from_numpy(random.random(4))
        flip = bool(number % 2)
        image = rgb(path)
        with monkeypatch.context() as patch:
            feed(patch, draw)
            try:
                expected = RandomResizedCrop(24)(image)
            except StopIteration:  # the crop was too large, and torchvision drew again
                continue
        if flip:
            expected = reference.hflip(expected)
        one = StreamDraw(torch.tensor([number % NUM_FILES]), draw[None], torch.tensor([flip]))
        got = next(stream_batches(files, [one], size=24, workers=0))[0]
        assert torch.equal(got, reference.pil_to_tensor(expected))
        compared += 1
    assert compared > 100


unit = st.floats(0, 1)


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    draw=st.tuples(unit, unit, unit, unit),
    low=st.floats(0.01, 1),
)
@settings(deadline=None)
def test_crops_lie_inside_the_image(height: int, width: int, draw: tuple[float, ...], low: float) -> None:
    top, left, crop_height, crop_width = random_crop(height, width, draw, scale=(low, 1.0))
    assert 0 <= top <= top + crop_height <= height and 0 <= left <= left + crop_width <= width
    assert crop_height >= 1 and crop_width >= 1
    assert random_crop(height, width, draw, scale=(low, 1.0)) == (top, left, crop_height, crop_width)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (400, 400)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    # Also the share of crops that were too large at first, a quarter of all here, and were drawn again.
    random = np.random.default_rng(0)
    ours = np.array([random_crop(height, width, draw) for draw in random.random((4_000, 4))])
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4_000)])
    for column in range(4):
        # Kolmogorov-Smirnov: the two distributions differ by less than what 1 of 10,000 equal pairs exceeds.
        places = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        gap = np.abs(
            np.searchsorted(np.sort(ours[:, column]), places, side="right")
            - np.searchsorted(np.sort(theirs[:, column]), places, side="right")
        )
        assert gap.max() / 4_000 < 2.23 * math.sqrt(2 / 4_000)


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (100, 100)])
def test_where_no_crop_fits_the_middle_is_taken_as_by_torchvision(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Crops of twice the area never fit.
    ours = random_crop(height, width, (0.5, 0.5, 0.5, 0.5), scale=(2.0, 2.0))
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [2.0, 2.0], [3 / 4, 4 / 3])
    assert ours == tuple(theirs)


def test_scale_of_one_area_and_narrow_scale(files: ImageFiles) -> None:
    whole = [random_crop(100, 100, (u, 0.5, u, u), scale=(1.0, 1.0)) for u in (0.0, 0.3, 1.0)]
    assert whole == [(0, 0, 100, 100)] * 3
    assert random_crop(100, 100, (0.0, 0.5, 0.0, 0.0), scale=(0.25, 1.0)) == (0, 0, 50, 50)
    assert random_crop(100, 100, (0.0, 0.5, 1.0, 1.0), scale=(0.25, 1.0)) == (50, 50, 50, 50)
    batch = next(stream_batches(files, draws(), size=8, workers=0, scale=(0.9, 1.0)))
    assert not torch.equal(batch, next(stream_batches(files, draws(), size=8, workers=0)))


# Evaluation


@pytest.mark.parametrize("size", [7, 16, 24, 224])
def test_evaluation_is_torchvisions_resize_and_centre_crop(files: ImageFiles, size: int) -> None:
    got = torch.cat(list(stream_evaluation(files, size=size, batch_size=5, workers=0)))
    for path, image in zip(files.paths, got, strict=True):
        expected = CenterCrop(size)(Resize(round(size * 256 / 224))(rgb(path)))
        assert torch.equal(image, reference.pil_to_tensor(expected))


# Errors


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_file_that_became_unreadable_is_named_in_its_turn(
    files: ImageFiles, tmp_path: Path, workers: int, damage: str
) -> None:
    before = set(multiprocessing.active_children())
    bad = tmp_path / "bad.png"
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(bad)
    match damage:
        case "cut":
            bad.write_bytes(bad.read_bytes()[:60])
        case "gone":
            bad.unlink()
        case "text":
            bad.write_text("no image")
    paths = (*files.paths[:7], str(bad))
    some = ImageFiles(paths, torch.zeros(8, dtype=torch.long), 16)
    plain = StreamDraw(torch.arange(2), torch.rand(2, 4, dtype=torch.float64), torch.tensor([True, False]))
    with_bad = StreamDraw(torch.tensor([1, 7]), plain.crop, plain.flip)
    stream = stream_batches(some, [plain, plain, with_bad, plain], size=24, workers=workers)
    assert torch.equal(next(stream), next(stream))
    with pytest.raises(DataError, match="expected a whole image") as refused:
        next(stream)
    assert str(bad) in str(refused.value) and "Traceback" not in str(refused.value)
    evaluation = stream_evaluation(some, size=24, batch_size=4, workers=workers)
    next(evaluation)
    with pytest.raises(DataError, match=r"bad\.png"):
        next(evaluation)
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"workers": -1}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}]
)
def test_stream_refuses_at_once(files: ImageFiles, options: dict[str, object]) -> None:
    with pytest.raises(DataError, match="expected"):
        stream_batches(files, draws(), **{"size": 24, "workers": 0, **options})


def test_evaluation_refuses_a_batch_of_nothing(files: ImageFiles) -> None:
    with pytest.raises(DataError, match="batch_size of 1 or more, got 0"):
        stream_evaluation(files, size=24, batch_size=0, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (StreamDraw(torch.tensor([NUM_FILES]), torch.rand(1, 4), torch.tensor([True])), f"to {NUM_FILES - 1}"),
        (StreamDraw(torch.tensor([-1]), torch.rand(1, 4), torch.tensor([True])), "got -1"),
        (StreamDraw(torch.tensor([0]), torch.full((1, 4), 1.5), torch.tensor([True])), "1.5"),
        (StreamDraw(torch.tensor([0]), torch.full((1, 4), math.nan), torch.tensor([True])), "nan"),
        (StreamDraw(torch.tensor([0]), torch.rand(4), torch.tensor([True])), r"got \[1\], \[4\] and \[1\]"),
        (StreamDraw(torch.tensor([0, 1]), torch.rand(2, 4), torch.tensor([True])), r"\[2, 4\] and \[1\]"),
        (StreamDraw(torch.zeros(0, dtype=torch.long), torch.rand(0, 4), torch.zeros(0).bool()), "B above 0"),
    ],
)
def test_draw_that_does_not_fit(files: ImageFiles, workers: int, draw: StreamDraw, message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(stream_batches(files, [draw], size=24, workers=workers))


def test_pinned_where_there_is_cuda(files: ImageFiles) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: memory cannot be pinned")
    batch = next(stream_batches(files, draws(), size=24, workers=1, pin=True))
    assert batch.is_pinned() and batch.is_contiguous(memory_format=torch.channels_last)
