"""Every mixing method gives on a GPU what it gives on the CPU."""

from dataclasses import replace

import pytest
import torch

from rlmix.classifier.mixing import METHODS, MixPolicy
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import MixInput, MixSettings

BATCH, CLASSES = 24, 5
# Whole numbers or the largest of near equals decide: rounding may turn a few of them.
DECIDED = ("puzzlemix", "lamix-puzzlemix", "saliencymix")


def batch(channels: int) -> MixInput:
    generator = torch.Generator().manual_seed(channels)
    images = torch.rand(BATCH, channels, 16, 16, generator=generator)
    gradient = torch.randn(images.shape, generator=generator)
    targets = torch.rand(BATCH, CLASSES, generator=generator).softmax(dim=1)
    return MixInput(
        (images - 0.5) / 0.25, targets, gradient, torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    )


def sent(there: MixInput, device: torch.device) -> MixInput:
    parts = (there.images, there.targets, there.gradient, there.mean, there.std)
    images, *rest = (None if part is None else part.to(device) for part in parts)
    assert images is not None
    return MixInput(images.contiguous(memory_format=torch.channels_last), *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_method_mixes_as_on_the_cpu(method: str, channels: int, device: torch.device) -> None:
    if (library := METHODS[method].library) is not None:
        try:
            library()
        except ImportError as error:
            pytest.skip(str(error))
    here = batch(channels)
    for seed, threshold in ((0, None), (1, None), (2, 0.6)):
        draw = MixDraw.sample(BATCH, generator=torch.Generator().manual_seed(seed))
        there = replace(draw, partner=draw.partner.to(device), threshold=draw.threshold.to(device))
        policy = MixPolicy({method: 1.0}, threshold=threshold)
        expected, expected_targets = policy.mix(method, here, draw)
        mixed, targets = policy.mix(method, sent(here, device), there)
        assert mixed.device.type == targets.device.type == device.type
        near = torch.isclose(mixed.cpu(), expected, rtol=1e-5, atol=1e-5).float().mean()
        near_targets = torch.isclose(targets.cpu(), expected_targets, rtol=1e-5, atol=1e-5).float().mean()
        least = 0.9 if method in DECIDED else 1.0
        assert near >= least and near_targets >= least, (seed, float(near), float(near_targets))


def test_saliencymix_may_be_asked_to_be_deterministic(device: torch.device) -> None:
    there = sent(batch(3), device)
    draw = MixDraw.sample(BATCH, generator=torch.Generator().manual_seed(0), device=device)
    policy = MixPolicy({"saliencymix": 1.0})
    expected, _ = policy.mix("saliencymix", there, draw)
    torch.use_deterministic_algorithms(True)
    try:
        mixed, _ = policy.mix("saliencymix", there, draw)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(mixed, expected)


def test_a_draw_is_the_same_wherever_it_is_sent(device: torch.device) -> None:
    here, there = (
        MixDraw.sample(BATCH, generator=torch.Generator().manual_seed(3), device=place)
        for place in (torch.device("cpu"), device)
    )
    assert there.partner.device.type == there.threshold.device.type == device.type
    assert torch.equal(there.partner.cpu(), here.partner) and torch.equal(there.threshold.cpu(), here.threshold)
    assert there.key == here.key and there.uniform("a", 3) == here.uniform("a", 3)
    settings = [MixPolicy({"mixup": 1.0}).settings("mixup", draw) for draw in (here, there)]
    assert settings[0] == settings[1] and isinstance(settings[0], MixSettings)
