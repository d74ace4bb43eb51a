"""LaMix, the label-driven mixup: inputs half and half, only the label is drawn (ICLR 2021 submission, eq. 2 and 4)."""

from torch import Tensor

from rlmix.classifier.mixing.blend import blend_pixels, blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings


def average(images: Tensor, targets: Tensor, *, partner: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Average each image with its partner, whatever `lam` is; the local soft label follows `lam`.

    `x~ = 0.5 x + 0.5 x'` (eq. 4), `y_lam = lam y + (1 - lam) y'` (eq. 2). The global soft label is added where the
    network's second head is known: `rlmix.classifier.mixing.targets.lamix_target`.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        lam: weight of the image's own label in [0, 1]; drawn from U(0, 1) in the paper.
    """
    return blend_pixels(images, partner, 0.5), blend_targets(targets, partner, lam)


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    return average(batch.images, batch.targets, partner=draw.partner, lam=settings.lam)


AVERAGE = Method(_mix)
