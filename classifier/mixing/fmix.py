"""FMix: enhancing mixed sample data augmentation (Harris et al. 2020), https://arxiv.org/abs/2002.12047.

A mask is a low-frequency random image cut at the quantile that shows the image on λ of the pixels, the partner on the
rest. The formulas are the paper's (section 4.2); the authors' program fills only two columns of the spectrum.
"""

import math

import torch
from torch import Tensor

from rlmix.classifier.hardware import send
from rlmix.classifier.mixing.blend import blend_pixels, blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings, Option


def low_frequency_image(height: int, width: int, *, decay: float, generator: torch.Generator) -> Tensor:
    """Draw a grey image whose amplitudes fall with the frequency: `Re F^-1(z / f^decay)`, z complex and Gaussian.

    Frequencies below that of one wave across the longer side, 0 among them, count as that one.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        decay: decay power δ, from 0; 3 in the paper.
        generator: a CPU generator.

    Returns:
        `[H, W]` float64 on the CPU, of any scale.
    """
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    frequency = torch.hypot(rows, columns).clamp(min=1 / max(height, width))
    real, imaginary = torch.randn(2, *frequency.shape, generator=generator, dtype=torch.float64)
    return torch.fft.irfft2(torch.complex(real, imaginary) / frequency**decay, s=(height, width))


def binary_mask(image: Tensor, *, lam: float, max_soft: float, round_up: bool) -> Tensor:
    """Return a mask that is 1 on the brightest share `lam` of an image's pixels and 0 elsewhere.

    Args:
        image: `[H, W]`.
        lam: mean of the mask up to rounding, in [0, 1].
        max_soft: share of the pixels to either side of the edge, in [0, 0.5], over which the mask falls linearly from
            1 to 0; at most `lam` and `1 - lam`.
        round_up: whether the number of pixels is rounded up, or down.

    Returns:
        `[H, W]` float32.
    """
    count = image.numel()
    shown = math.ceil(lam * count) if round_up else math.floor(lam * count)
    # The last two bounds are the same ones, for products that were rounded.
    soft = min(int(count * min(max_soft, lam, 1 - lam)), shown, count - shown)
    levels = torch.zeros(count)
    levels[: shown + soft] = 1
    levels[shown - soft : shown + soft] = torch.linspace(1, 0, 2 * soft)
    return torch.zeros(count).scatter(0, image.flatten().argsort(descending=True), levels).view_as(image)


def fmix(images: Tensor, targets: Tensor, *, partner: Tensor, lam: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Show each image where the mask is 1 and its partner where it is 0 (eq. 5); targets follow `lam`.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        lam: weight of the image's own target, in [0, 1]; drawn from Beta(1, 1) in the paper.
        mask: `[H, W]` in [0, 1], of mean `lam` up to a part of a pixel.
    """
    return blend_pixels(images, partner, mask.to(images.dtype)), blend_targets(targets, partner, lam)


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    grey = low_frequency_image(
        *batch.images.shape[-2:], decay=settings.options["decay"], generator=draw.generator("fmix")
    )
    mask = binary_mask(grey, lam=settings.lam, max_soft=settings.options["max_soft"], round_up=draw.choice >= 0.5)
    sent = send(mask, batch.images.device)
    return fmix(batch.images, batch.targets, partner=draw.partner, lam=settings.lam, mask=sent)


FMIX = Method(_mix, options={"decay": Option(3, 0, 10), "max_soft": Option(0, 0, 0.5)})
