"""SaliencyMix: its saliency against OpenCV and by loops, its boxes against CutMix's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmix.classifier.data import load_dataset
from rlmix.classifier.mixing.cutmix import cutmix, cutmix_box
from rlmix.classifier.mixing.saliencymix import fine_grained_saliency, saliencymix


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blurred(count: int, channels: int, height: int, width: int) -> Tensor:
    """Colourful blots on 0 to 255."""
    coarse = torch.randint(256, (count, channels, 5, 4), generator=rng(0)).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)


def saliency_by_loops(pixels: np.ndarray) -> np.ndarray:
    """Centre against surroundings, pixel by pixel, as OpenCV's program does it."""
    channels, height, width = pixels.shape
    luma = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    grey = np.round(sum(weight * plane for weight, plane in zip(luma, pixels.astype(np.float64), strict=True)))
    for _ in range(2):
        padded = np.pad(grey, 1, mode="reflect")
        smooth = np.zeros_like(grey)
        for dy, wy in enumerate((1, 2, 1)):
            for dx, wx in enumerate((1, 2, 1)):
                smooth += wy * wx * padded[dy : dy + height, dx : dx + width]
        grey = np.floor(smooth / 16 + 0.5)
    on, off = np.zeros_like(grey), np.zeros_like(grey)
    for n in (12, 24, 48, 28, 56, 112):
        for y in range(height):
            for x in range(width):
                square = grey[max(y - n + 1, 0) : y + n + 1, max(x - n + 1, 0) : x + n + 1]
                mean = (square.sum() - grey[y, x]) / (square.size - 1)
                on[y, x] += max(int(grey[y, x] - mean), 0)
                off[y, x] += max(int(mean - grey[y, x]), 0)
    return sum(np.floor(255 * part / max(part.max(), 1)) for part in (on, off))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 30), (3, 9, 60)])
def test_saliency_is_its_definition(shape: tuple[int, int, int]) -> None:
    images = blurred(2, *shape)
    saliency = fine_grained_saliency(images / 255)
    assert saliency.shape == (2, *shape[1:])
    for image, found in zip(images, saliency, strict=True):
        expected = saliency_by_loops(image.numpy())
        # A mean that is nearly whole may be cut to either side: six scales, one each, of 255 levels.
        np.testing.assert_allclose(found, expected, atol=12)
        assert np.mean(np.abs(found.numpy() - expected) <= 1) > 0.97


def test_saliency_is_highest_where_opencvs_is() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; opencv-contrib-python-headless has it")
    if not hasattr(cv2, "saliency"):
        pytest.skip("this OpenCV has no saliency module; opencv-contrib-python-headless has it")
    program = cv2.saliency.StaticSaliencyFineGrained_create()
    images = [*blurred(20, 3, 32, 32), *load_dataset("digits").pool.images[:30]]
    for image in images:
        _, theirs = program.computeSaliency(image.flip(0).permute(1, 2, 0).squeeze(-1).numpy())
        ours = fine_grained_saliency(image[None] / 255)[0]
        assert theirs.flatten()[int(ours.argmax())] >= 0.98 * int(theirs.max())


def test_a_dot_is_salient_and_one_colour_is_not() -> None:
    images = torch.full((2, 3, 32, 32), 0.4)
    images[1, :, 20:23, 5:8] = 1.0
    saliency = fine_grained_saliency(images)
    assert saliency[0].max() == 0
    assert divmod(int(saliency[1].argmax()), 32) == (21, 6)


def test_a_pattern_that_repeats_is_as_salient_at_the_far_end_of_a_large_image() -> None:
    pattern = 0.8 + 0.2 * torch.rand(1, 1, 16, 64, generator=rng(0))
    saliency = fine_grained_saliency(pattern.repeat(1, 1, 1, 256))[0]  # its values sum to 60 million
    near, far = saliency[:, 2 * 64 : 3 * 64], saliency[:, 253 * 64 : 254 * 64]
    assert near.max() > near.min()
    assert torch.equal(near, far)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), lam=st.floats(0, 1), count=st.integers(1, 6))
def test_each_image_is_cutmixed_with_a_box_of_its_own(seed: int, lam: float, count: int) -> None:
    images = torch.randn(count, 3, 12, 10, generator=rng(seed))
    targets = torch.eye(count)
    partner = torch.randperm(count, generator=rng(seed + 1))
    saliency = torch.randint(4, (count, 12, 10), generator=rng(seed + 2)).float()  # with ties: the first one counts
    mixed, mixed_targets = saliencymix(images, targets, partner=partner, lam=lam, saliency=saliency)
    for i, j in enumerate(partner.tolist()):
        row, column = divmod(int(np.argmax(saliency[j].numpy())), 10)
        box = cutmix_box(12, 10, lam=lam, centre=((row + 0.5) / 12, (column + 0.5) / 10))
        expected = cutmix(images, targets, partner=partner, box=box)
        assert torch.equal(mixed[i], expected[0][i])
        torch.testing.assert_close(mixed_targets[i], expected[1][i])
