"""mixup: beyond empirical risk minimization (Zhang et al. 2018), https://arxiv.org/abs/1710.09412."""

from torch import Tensor

from rlmix.classifier.mixing.blend import blend_pixels, blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings


def mixup(images: Tensor, targets: Tensor, *, partner: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Blend each image, and its target, with its partner: `lam x + (1 - lam) x'` (mixup, eq. 1).

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        lam: weight of the image in [0, 1]; drawn from Beta(alpha, alpha) in the paper.
    """
    return blend_pixels(images, partner, lam), blend_targets(targets, partner, lam)


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    return mixup(batch.images, batch.targets, partner=draw.partner, lam=settings.lam)


MIXUP = Method(_mix)
