"""ResizeMix: the whole partner made smaller, pixel by pixel, and where and how large it is pasted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.classifier.mixing import MixDraw, MixPolicy
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.resizemix import resizemix


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smaller(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """An image `[C, H, W]` by the mean over the pixels that each new pixel covers at least in part."""
    channels, height, width = image.shape
    result = np.empty((channels, rows, columns))
    for row in range(rows):
        for column in range(columns):
            y = slice(row * height // rows, math.ceil((row + 1) * height / rows))
            x = slice(column * width // columns, math.ceil((column + 1) * width / columns))
            result[:, row, column] = image[:, y, x].mean(axis=(1, 2))
    return result


unit = st.floats(0, 1, exclude_max=True)


@settings(deadline=None, max_examples=100)
@given(scale=st.floats(0.01, 1), row=unit, column=unit, seed=st.integers(0, 2**32))
def test_the_partner_is_pasted_whole_and_counts_by_area(scale: float, row: float, column: float, seed: int) -> None:
    images, targets = torch.randn(3, 2, 9, 12, generator=rng(seed)), torch.eye(3)
    before = images.clone()
    partner = torch.tensor([1, 2, 0])
    mixed, mixed_targets = resizemix(images, targets, partner=partner, scale=scale, place=(row, column))
    assert torch.equal(images, before)
    rows, columns = max(1, math.floor(9 * scale)), max(1, math.floor(12 * scale))
    top, left = math.floor(row * (9 - rows + 1)), math.floor(column * (12 - columns + 1))
    pasted = rows * columns / (9 * 12)
    for i, j in enumerate(partner.tolist()):
        expected = before[i].double().numpy()
        expected[:, top : top + rows, left : left + columns] = smaller(before[j].double().numpy(), rows, columns)
        np.testing.assert_allclose(mixed[i], expected, atol=1e-5)
        np.testing.assert_allclose(mixed_targets[i], (1 - pasted) * targets[i] + pasted * targets[j], atol=1e-6)


def test_a_whole_partner_replaces_the_image() -> None:
    images = torch.randn(2, 3, 8, 8, generator=rng(0))
    mixed, targets = resizemix(images, torch.eye(2), partner=torch.tensor([1, 0]), scale=1.0, place=(0.9, 0.1))
    assert torch.equal(mixed, images.flip(0)) and torch.equal(targets, torch.eye(2).flip(0))


def drawn(options: dict[str, float], count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Pasted sides, and the rows where they begin, of many draws on 100 x 100 pixels."""
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 100, 100)
    policy = MixPolicy({"resizemix": 1.0}, options={"resizemix": options})
    sides, tops = [], []
    for number in range(count):
        draw = MixDraw(torch.tensor([1, 0]), torch.zeros(2), 0.5, (0.5, 0.5), 0.5, (0, number))
        mixed, targets = policy.mix("resizemix", MixInput(images, torch.eye(2)), draw)
        sides.append(math.sqrt(mixed[0].sum()))
        tops.append(int((mixed[0, 0].sum(dim=1) > 0).nonzero()[0]))
        assert targets[0, 1] == pytest.approx(sides[-1] ** 2 / 10_000, rel=1e-4)
    return np.array(sides), np.array(tops)


def test_scales_and_places_are_drawn_evenly_from_their_ranges() -> None:
    sides, tops = drawn({})
    assert sides.min() >= 10 and sides.max() <= 80
    assert np.histogram(sides, bins=7, range=(10, 80))[0].min() > 30
    share = tops / (100 - sides)
    assert share.min() < 0.02 and share.max() > 0.98
    assert np.histogram(share, bins=5, range=(0, 1))[0].min() > 50
    assert abs(np.corrcoef(sides, share)[0, 1]) < 0.12


def test_a_policys_options_are_the_range_of_scales() -> None:
    sides, _ = drawn({"min_scale": 0.4, "max_scale": 0.5}, 100)
    assert sides.min() >= 40 and sides.max() <= 50 and len(set(sides)) > 5
    assert set(drawn({"min_scale": 0.3, "max_scale": 0.3}, 10)[0]) == {30}
