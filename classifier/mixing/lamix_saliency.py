"""LaMix over saliency mixing: the mixer runs at one half, only the label is drawn (ICLR 2021 submission, eq. 5)."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings
from rlmix.classifier.mixing.puzzlemix import PUZZLEMIX
from rlmix.classifier.mixing.rmix import RMIX


def lamix_saliency(
    targets: Tensor, *, partner: Tensor, lam: float, mixer: Callable[[float], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Mix images by saliency at λ = 0.5, whatever `lam` is; the local soft label follows `lam` (eq. 2 and 5).

    Args:
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner; the mixer's too.
        lam: weight of the image's own label in [0, 1]; drawn from U(0, 1) in the paper.
        mixer: maps λ to mixed images `[B, C, H, W]` and targets, of which the images are taken.
    """
    mixed, _ = mixer(0.5)
    return mixed, blend_targets(targets, partner, lam)


def _over(method: Method) -> Method:
    def mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
        return lamix_saliency(
            batch.targets,
            partner=draw.partner,
            lam=settings.lam,
            mixer=lambda lam: method.mix(batch, replace(settings, lam=lam), draw),
        )

    return replace(method, mix=mix)


LAMIX_RMIX = _over(RMIX)
LAMIX_PUZZLEMIX = _over(PUZZLEMIX)
