"""Data sets at the edge of what can be trained on: a clear error before anything starts, or a training that works."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.data import Dataset, ImageSet
from rlmix.classifier.mixing import METHODS
from rlmix.envs import Menu
from rlmix.experiments import compare, replay_policy, train_agent, train_classifier, train_rl_mix

HERE = "tests.experiments.test_odd_data"
RUN = "--compile off --precision fp32 --device cpu --out run".split()
FINAL = "--updates 6 --evaluations 1 --threads 1 --batch-size 20".split()
RESIZE = "got {} pixels; resize them to a multiple of 4 (commands: --image-size N)"
R_MIX = f"R-Mix needs image sides that one of (4, 2) divides, {RESIZE}"
PUZZLE_MIX = f"Puzzle Mix needs square images whose side a number of blocks from 2 to 16 divides, {RESIZE}"


def made(height: int, width: int, images: int = 120, classes: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    pixels = torch.randint(0, 256, (images, 1, height, width), generator=generator, dtype=torch.uint8)
    test = ImageSet(pixels[:30], labels[:30])
    return Dataset("odd", ImageSet(pixels, labels), test, tuple("abc"[:classes]), (0.5,), (0.3,), True, 0)


dot, five, wide = (partial(made, *sides) for sides in ((1, 1), (5, 5), (8, 16)))
few, two_classes = partial(made, 8, 8, images=12), partial(made, 8, 8, images=40, classes=2)


def not_finite() -> Any:
    """Images of floats, one of them not a number: a data set holds uint8, and so refuses all such."""
    images = torch.zeros(4, 1, 8, 8)
    images[0, 0, 0, 0] = torch.nan
    return ImageSet(images, torch.tensor([0, 1, 0, 1]))


def one_class() -> Dataset:
    return made(8, 8, classes=1)


def without_a_sample() -> Dataset:
    whole = made(8, 8)
    there = whole.pool.labels != 1
    return Dataset("odd", ImageSet(whole.pool.images[there], whole.pool.labels[there]), whole.test, *rest(whole))


def label_out_of_range() -> Dataset:
    whole = made(8, 8)
    return Dataset("odd", ImageSet(whole.pool.images, whole.pool.labels + 1), whole.test, *rest(whole))


def rest(dataset: Dataset) -> tuple[Any, ...]:
    return dataset.class_names, dataset.mean, dataset.std, dataset.flip, dataset.crop_padding


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "sides"), [("dot", "1 x 1"), ("five", "5 x 5"), ("wide", "8 x 16")])
def test_images_without_a_grid_are_refused_by_the_methods_that_need_one(
    method: str, name: str, sides: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    arguments = ["--dataset", f"{HERE}:{name}", "--method", method, *FINAL, *RUN]
    needs = {"rmix": R_MIX, "lamix_rmix": R_MIX}.get(method, PUZZLE_MIX if "puzzlemix" in method else None)
    fits = needs is None or (needs == R_MIX and name == "wide") or (needs == PUZZLE_MIX and name == "five")
    if not fits and needs is not None:
        assert needs.format(sides) in refused(train_classifier.main, arguments)
    else:
        train_classifier.main(arguments)
        assert json.loads((tmp_path / "run/summary.json").read_text())["images_trained"] == 6 * 20


def test_other_commands_refuse_them_before_they_start(refused: Callable[..., str], tmp_path: Path) -> None:
    search = "--updates 8 8 --train-size 60 60 --validation-size 20".split()
    assert R_MIX.format("5 x 5") in refused(train_agent.main, ["--dataset", f"{HERE}:five", *search, *RUN])
    rl_mix = "--updates 8 --train-size 60 --validation-size 20 --batch-size 20".split()
    assert R_MIX.format("5 x 5") in refused(train_rl_mix.main, ["--dataset", f"{HERE}:five", *rl_mix, *RUN])
    contest = "--contestants plain puzzlemix --train-size 60 --updates 8 --seeds 2 --processes 1 --out run".split()
    assert PUZZLE_MIX.format("8 x 16") in refused(compare.main, ["--dataset", f"{HERE}:wide", *contest])
    to_agent(new_policy(Menu(), [8]), Menu(), (0.5, 1.0), {}).save(tmp_path)
    live = ["--agent", tmp_path, "--dataset", f"{HERE}:five", *FINAL, *RUN]
    assert R_MIX.format("5 x 5") in refused(replay_policy.main, live)


def test_the_size_that_the_refusal_asks_for_is_trained_on(tmp_path: Path) -> None:
    sized = ["--dataset", f"{HERE}:five", "--image-size", "4", "--agent", "shipped", *FINAL, *RUN]
    replay_policy.main(sized)
    assert json.loads((tmp_path / "run/summary.json").read_text())["images_trained"] == 6 * 20


@pytest.mark.parametrize("sides", [(33, 33, 33), (45, 33, 61)])
def test_the_shipped_agent_trains_on_a_folder_of_images_with_odd_sides(sides: tuple[int, ...], tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            side = sides[number % len(sides)]
            pixels = np.random.default_rng([*name.encode(), number]).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    with pytest.warns(UserWarning, match=r"all are made (32|44) x"):
        replay_policy.main(["--agent", "shipped", "--dataset", str(tmp_path / "images"), *FINAL, *RUN])
    assert json.loads((tmp_path / "run/summary.json").read_text())["images_trained"] == 6 * 20


@pytest.mark.parametrize("method", ["rmix", "puzzlemix"])
@pytest.mark.parametrize(("name", "size"), [("few", "100"), ("two_classes", "64")])
def test_a_batch_may_be_larger_than_the_data(method: str, name: str, size: str, tmp_path: Path) -> None:
    train_classifier.main(["--dataset", f"{HERE}:{name}", "--method", method, *FINAL, "--batch-size", size, *RUN])
    assert json.loads((tmp_path / "run/summary.json").read_text())["images_trained"] == 6 * int(size)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("not_finite", "uint8"),
        ("one_class", "2 or more class names, got 1"),
        ("without_a_sample", "got none of b"),
        ("label_out_of_range", "labels from 0 to 2, got 1 to 3"),
    ],
)
def test_data_that_is_wrong_is_refused(name: str, told: str, refused: Callable[..., str]) -> None:
    assert told in refused(train_classifier.main, ["--dataset", f"{HERE}:{name}", *FINAL, *RUN])
