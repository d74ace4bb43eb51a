"""FMix: the paper's formulas in NumPy, and what its masks and spectra must be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.classifier.mixing import LamDistribution, MixDraw, MixPolicy
from rlmix.classifier.mixing.fmix import binary_mask, fmix, low_frequency_image
from rlmix.classifier.mixing.method import MixInput


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_by_definition(noise: np.ndarray, height: int, width: int, decay: float) -> np.ndarray:
    """The real part of the inverse Fourier transform of `z / f^decay`, as a sum of waves."""
    result = np.zeros((height, width))
    y, x = np.mgrid[:height, :width]
    for row in range(height):
        for column in range(width // 2 + 1):
            vertical, horizontal = min(row, height - row) / height, column / width
            frequency = max(math.hypot(vertical, horizontal), 1 / max(height, width))
            value = complex(noise[0, row, column], noise[1, row, column]) / frequency**decay
            # Columns beyond half of the width mirror those before: these count twice.
            twice = 2 if 0 < column and 2 * column != width else 1
            wave = np.exp(2j * np.pi * (row * y / height + column * x / width))
            result += twice * (value * wave).real / (height * width)
    return result


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (9, 6), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("decay", [0.0, 1.5, 3.0])
def test_an_image_is_its_definition(height: int, width: int, decay: float) -> None:
    noise = torch.randn(2, height, width // 2 + 1, generator=rng(3), dtype=torch.float64).numpy()
    image = low_frequency_image(height, width, decay=decay, generator=rng(3))
    np.testing.assert_allclose(image, image_by_definition(noise, height, width, decay), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 2.0, 3.0])
def test_amplitudes_fall_with_the_power_of_the_frequency(decay: float) -> None:
    generator = rng(0)
    images = [low_frequency_image(32, 32, decay=decay, generator=generator).numpy() for _ in range(200)]
    amplitude = np.mean([np.abs(np.fft.fft2(image)) for image in images], axis=0)
    rows, columns = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")
    frequency = np.hypot(rows, columns)
    # Where a wave is its own mirror image, only half of z is left.
    own_mirror = np.isin(np.arange(32), (0, 16))[None, :] | (frequency == 0)
    slope, _ = np.polyfit(np.log(frequency[~own_mirror]), np.log(amplitude[~own_mirror]), 1)
    assert slope == pytest.approx(-decay, abs=0.05)


def mask_by_definition(image: np.ndarray, lam: float, max_soft: float, round_up: bool) -> np.ndarray:
    """Pixels from the brightest to the darkest get 1, then what falls from 1 to 0, then 0."""
    count = image.size
    shown = math.ceil(lam * count) if round_up else math.floor(lam * count)
    if max_soft > lam or max_soft > 1 - lam:
        max_soft = min(lam, 1 - lam)
    soft = int(count * max_soft)
    mask = np.zeros(count)
    for place, pixel in enumerate(np.argsort(-image.ravel())):
        if place < shown - soft:
            mask[pixel] = 1
        elif place < shown + soft:
            mask[pixel] = 1 - (place - (shown - soft)) / (2 * soft - 1)
    return mask.reshape(image.shape)


@settings(deadline=None, max_examples=300)
@given(
    lam=st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.1, 0.9, 1e-12, 1 - 1e-12]), st.floats(0, 1)),
    max_soft=st.sampled_from([0.0, 0.1, 0.5]),
    round_up=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_mask_is_its_definition_and_of_the_right_mean(lam: float, max_soft: float, round_up: bool, seed: int) -> None:
    image = low_frequency_image(7, 10, decay=3, generator=rng(seed))
    mask = binary_mask(image, lam=lam, max_soft=max_soft, round_up=round_up)
    np.testing.assert_allclose(mask, mask_by_definition(image.numpy(), lam, max_soft, round_up), atol=1e-6)
    assert abs(float(mask.mean()) - lam) <= 1 / image.numel() + 1e-6
    assert ((mask >= 0) & (mask <= 1)).all()
    assert max_soft > 0 or ((mask == 0) | (mask == 1)).all()


@pytest.mark.parametrize("count", [3, 10, 49, 100])
def test_every_ratio_of_whole_pixels_has_a_mask(count: int) -> None:
    image = torch.randn(1, count, generator=rng(0))
    for shown in range(count + 1):
        for lam in (shown / count, 1 - shown / count):  # some fall beside the whole number of pixels
            for round_up in (False, True):
                mask = binary_mask(image, lam=lam, max_soft=0.5, round_up=round_up)
                assert abs(float(mask.sum()) - lam * count) <= 1 + 1e-4


def test_images_are_shown_by_the_mask_and_targets_by_lam() -> None:
    images, targets = torch.randn(3, 2, 4, 5, generator=rng(0)), torch.eye(3)
    partner, mask = torch.tensor([1, 2, 0]), torch.rand(4, 5, generator=rng(1))
    mixed, mixed_targets = fmix(images, targets, partner=partner, lam=0.3, mask=mask)
    for i, j in enumerate(partner.tolist()):
        expected = mask.numpy() * images[i].numpy() + (1 - mask.numpy()) * images[j].numpy()
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixed_targets[i], 0.3 * targets[i] + 0.7 * targets[j], rtol=1e-6)


def shown(options: dict[str, float], lam: float = 0.4, choice: float = 0.0, key: int = 0) -> torch.Tensor:
    """The mask of a policy: how much of a white image is left where its partner is black."""
    images = torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 1, 16, 16).clone()
    policy = MixPolicy({"fmix": 1.0}, lam=LamDistribution("fixed", lam), options={"fmix": options})
    draw = MixDraw(torch.tensor([1, 0]), torch.zeros(2), 0.5, (0.5, 0.5), choice, (key,))
    return policy.mix("fmix", MixInput(images, torch.eye(2)), draw)[0][0, 0]


def test_a_policys_options_are_those_of_the_mask() -> None:
    published = shown({})
    assert set(published.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(published, shown({"decay": 3, "max_soft": 0}))

    def edges(decay: float) -> float:
        masks = torch.stack([shown({"decay": decay}, lam=0.5, key=key) for key in range(30)])
        return float((masks.diff(dim=1) != 0).float().mean())

    # White noise changes at every other pixel; the larger the decay, the larger the pieces.
    assert edges(0) == pytest.approx(0.5, abs=0.05)
    assert edges(0) > 2 * edges(1.5) > 2 * edges(3) > 2 * edges(6) > 0
    soft = shown({"max_soft": 0.2})
    assert len(soft.unique()) > 50
    assert float(soft.mean()) == pytest.approx(0.4, abs=1 / 256)


def test_each_draw_has_a_mask_of_its_own_and_rounds_by_chance() -> None:
    assert torch.equal(shown({}), shown({}))
    assert not torch.equal(shown({}), shown({}, key=1))
    assert [int(shown({}, lam=0.4, choice=choice).sum()) for choice in (0.1, 0.4, 0.6, 0.9)] == [102, 102, 103, 103]
