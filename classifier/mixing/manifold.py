"""Manifold Mixup: better representations by interpolating hidden states (Verma et al. 2019), arXiv 1806.05236."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rlmix.classifier.mixing.blend import blend_pixels, blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings
from rlmix.classifier.mixing.mixup import mixup

STAGES = 3  # the input, after stage 1, after stage 2; one drawn per batch, as published


def drawn_stage(choice: float) -> int:
    """Return the stage that is mixed: 0 the images themselves, i the output of the network's stage i.

    Args:
        choice: uniform in [0, 1).
    """
    return int(choice * STAGES)


@contextmanager
def mixed_stage(stage: nn.Module, *, partner: Tensor, lam: float) -> Iterator[None]:
    """Mix the output of a stage while the block runs: `lam h + (1 - lam) h'` (section 2); targets follow as in mixup.

    Args:
        stage: a module of the network whose output is `[B, ...]`; `rlmix.classifier.models.stages.hidden_stages`
            finds them.
        partner: `[B]`, index of each image's partner.
        lam: weight of the image in [0, 1]; drawn from Beta(2, 2) in the paper.
    """
    handle = stage.register_forward_hook(lambda _module, _inputs, hidden: blend_pixels(hidden, partner, lam))
    try:
        yield
    finally:
        handle.remove()


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    if drawn_stage(draw.choice) == 0:
        return mixup(batch.images, batch.targets, partner=draw.partner, lam=settings.lam)
    return batch.images, blend_targets(batch.targets, draw.partner, settings.lam)


MANIFOLD = Method(_mix, stage=drawn_stage)
