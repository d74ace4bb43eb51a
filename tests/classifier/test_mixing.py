"""Mixing: each method against an independent truth (golden files, torchvision, loops), and what all must keep."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torchvision.transforms import v2

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, LamDistribution, MixDraw, MixPolicy, mix_batch, one_hot, soft_cross_entropy
from rlmix.classifier.mixing.average import average
from rlmix.classifier.mixing.blend import partners_of
from rlmix.classifier.mixing.cutmix import cutmix, cutmix_box
from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.mixup import mixup
from rlmix.classifier.mixing.picture import mixed_picture
from rlmix.classifier.mixing.rmix import GRIDS, rmix, salient_patches
from rlmix.classifier.mixing.saliency import buffers_unchanged, input_gradient, patch_saliency
from rlmix.classifier.mixing.targets import global_label, lamix_target, smooth

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
K = 7


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(batch: int, *, seed: int = 0, channels: int = 3, side: int = 16) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch, channels, side, side, generator=rng(seed))
    return images, one_hot(torch.randint(K, (batch,), generator=rng(seed + 1)), K)


def identity_batch(batch: int, *, side: int = 16) -> tuple[Tensor, Tensor]:
    """Image i is 1 in channel i and 0 elsewhere, and of class i: a pixel says which image it was taken from."""
    return torch.eye(batch)[:, :, None, None].expand(-1, -1, side, side).clone(), torch.eye(batch)


def policy_of(method: str, **fields: Any) -> MixPolicy:
    return MixPolicy({method: 1.0}, **fields)


def mix(
    method: str, images: Tensor, targets: Tensor, policy: MixPolicy, draw: MixDraw, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A method on images whose colours were normalised by a mean of 0.5 and a standard deviation of 0.25."""
    channels = images.shape[1]
    mean, std = (torch.full((channels,), value, device=images.device) for value in (0.5, 0.25))
    return policy.mix(method, MixInput(images, targets, gradient, mean, std), draw)


# R-Mix


def rmix_by_loops(
    images: np.ndarray,
    targets: np.ndarray,
    partner: np.ndarray,
    lam: float,
    saliency: np.ndarray,
    threshold: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """R-Mix written from its definition, pixel by pixel in double precision."""
    batch, _, height, width = images.shape
    rows, columns = saliency.shape[1:]
    saliency = saliency.astype(np.float64)
    mask = [saliency[i] >= np.quantile(saliency[i], float(threshold[i])) for i in range(batch)]
    mixed, mixed_targets = np.zeros(images.shape), np.zeros(targets.shape)
    for i in range(batch):
        j = int(partner[i])
        agree = own = other = 0
        for y in range(height):
            for x in range(width):
                mine, theirs = (mask[n][y * rows // height, x * columns // width] for n in (i, j))
                if mine == theirs:
                    agree += 1
                    mixed[i, :, y, x] = lam * images[i, :, y, x] + (1 - lam) * images[j, :, y, x]
                elif mine:
                    own += 1
                    mixed[i, :, y, x] = images[i, :, y, x]
                else:
                    other += 1
                    mixed[i, :, y, x] = images[j, :, y, x]
        blend = lam * targets[i] + (1 - lam) * targets[j]
        mixed_targets[i] = (agree * blend + own * targets[i] + other * targets[j]) / (height * width)
    return mixed, mixed_targets


@pytest.mark.parametrize("name", ["rmix_0.npz", "rmix_1.npz"])
def test_rmix_reproduces_the_published_program(name: str) -> None:
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"the authors' recorded output {path.name} is not here")
    golden = dict(np.load(path))
    images = torch.from_numpy(golden["images"])
    assert golden["saliency"].shape[-1] == images.shape[-1] // int(golden["patch_size"])
    mixed, targets = rmix(
        images,
        one_hot(torch.from_numpy(golden["labels"]), int(golden["num_classes"])),
        partner=torch.from_numpy(golden["partner"]),
        lam=float(golden["lam"]),
        saliency=torch.from_numpy(golden["saliency"]),
        threshold=torch.from_numpy(golden["thresholds"]),
    )
    np.testing.assert_allclose(mixed, golden["mixed_images"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(targets, golden["mixed_targets"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "rows", "columns"), [(16, 4, 4), (16, 2, 2), (14, 2, 2), (12, 4, 2), (8, 8, 1)])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_rmix_is_its_definition_pixel_by_pixel(side: int, rows: int, columns: int, lam: float) -> None:
    images, targets = random_batch(5, side=side)
    generator = rng(3)
    partner = torch.randperm(5, generator=generator)
    saliency = torch.rand(5, rows, columns, generator=generator)
    threshold = torch.tensor(THRESHOLDS)[torch.tensor([0, 2, 5, 7, 9])]
    mixed, mixed_targets = rmix(images, targets, partner=partner, lam=lam, saliency=saliency, threshold=threshold)
    expected = rmix_by_loops(*(t.numpy() for t in (images, targets, partner)), lam, saliency.numpy(), threshold.numpy())
    np.testing.assert_allclose(mixed, expected[0], atol=1e-6)
    np.testing.assert_allclose(mixed_targets, expected[1], atol=1e-6)


def test_rmix_thresholds_are_the_published_ones() -> None:
    np.testing.assert_allclose(THRESHOLDS, np.linspace(0, 0.99, 10), atol=1e-15)
    assert sorted(32 // grid for grid in GRIDS) == [8, 16]


@settings(deadline=None, max_examples=200)
@given(
    saliency=hnp.arrays(np.int64, st.sampled_from([(3, 4, 4), (3, 2, 2), (3, 1, 5)]), elements=st.integers(0, 5)),
    levels=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
)
def test_salient_patches_are_those_from_the_quantile_on_ties_included(
    saliency: np.ndarray, levels: list[float]
) -> None:
    # Whole numbers: neighbours are equal or far apart, so that rounding cannot decide, except at a position that is
    # nearly whole; there the quantile *is* a patch, and the two precisions may fall on different sides of it.
    positions = np.array(levels) * (saliency[0].size - 1)
    assume(np.all((np.abs(positions - positions.round()) > 1e-4) | (positions == positions.round())))
    threshold = torch.tensor(levels)
    as_float = torch.from_numpy(saliency).float()
    mask = salient_patches(as_float, threshold)
    for i, level in enumerate(levels):
        assert np.array_equal(mask[i], saliency[i] >= np.quantile(saliency[i], level))
        assert torch.equal(mask[i], as_float[i] >= torch.quantile(as_float[i], threshold[i]))


@settings(deadline=None, max_examples=300)
@given(
    saliency=hnp.arrays(np.float32, (2, 4, 4), elements=st.floats(0, 1, width=32)),
    level=st.floats(0, 1, width=32),
)
def test_every_image_has_a_salient_patch(saliency: np.ndarray, level: float) -> None:
    mask = salient_patches(torch.from_numpy(saliency), torch.full((2,), level))
    largest = torch.from_numpy(saliency == saliency.max(axis=(1, 2), keepdims=True))
    assert mask[largest].all()


def test_threshold_zero_makes_every_patch_salient_so_that_rmix_is_mixup() -> None:
    images, targets = random_batch(6)
    partner = torch.randperm(6, generator=rng(1))
    saliency = torch.rand(6, 4, 4, generator=rng(2))
    ours = rmix(images, targets, partner=partner, lam=0.3, saliency=saliency, threshold=torch.zeros(6))
    theirs = mixup(images, targets, partner=partner, lam=0.3)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 3)])
def test_rmix_refuses_a_grid_that_does_not_divide_the_image(shape: tuple[int, int, int]) -> None:
    images, targets = random_batch(2)
    with pytest.raises(ValueError, match=rf"{shape[1]} x {shape[2]} patches for 16 x 16 pixels"):
        rmix(
            images, targets, partner=torch.tensor([1, 0]), lam=0.5, saliency=torch.ones(shape), threshold=torch.ones(2)
        )


def test_rmix_says_what_it_lacks() -> None:
    images, targets = random_batch(2, side=15)
    draw = MixDraw.sample(2, generator=rng(0))
    with pytest.raises(ValueError, match="needs the input gradient"):
        mix("rmix", images, targets, policy_of("rmix"), draw, None)
    with pytest.raises(ValueError, match="15 x 15 pixels"):
        mix("rmix", images, targets, policy_of("rmix"), draw, images)


def test_rmix_draws_each_grid_that_divides_the_image_and_no_other() -> None:
    # A gradient in one single pixel: the salient patch is as large as the grid's patches.
    for side, expected in ((16, {4, 8}), (14, {7}), (12, {3, 6})):
        images, targets = identity_batch(2, side=side)
        gradient = torch.zeros_like(images)
        gradient[0, 0, 0, 0] = gradient[1, 0, -1, -1] = 1
        seen = set()
        for step in range(8):
            draw = MixDraw(torch.tensor([1, 0]), torch.tensor([0.99, 0.99]), 0.5, (0.5, 0.5), step / 8)
            policy = policy_of("rmix", lam=LamDistribution("fixed", 0.5))
            mixed, _ = mix("rmix", images, targets, policy, draw, gradient)
            seen.add(int((mixed[0, 0, 0] == 1).sum()))
        assert seen == expected


def test_a_policys_threshold_replaces_the_drawn_ones() -> None:
    images, targets = random_batch(4)
    gradient = torch.randn(images.shape, generator=rng(5))
    draw = MixDraw.sample(4, generator=rng(6))
    policy = policy_of("rmix", lam=LamDistribution("fixed", 0.4), threshold=0.55)
    mixed = mix("rmix", images, targets, policy, draw, gradient)
    grid = GRIDS[int(draw.choice * len(GRIDS))]
    saliency = patch_saliency(gradient, grid)
    expected = rmix(images, targets, partner=draw.partner, lam=0.4, saliency=saliency, threshold=torch.full((4,), 0.55))
    torch.testing.assert_close(mixed, expected)


# mixup and CutMix


@pytest.mark.parametrize("shape", [(5, 3, 8, 6), (4, 1, 14, 14), (3, 4, 1, 1), (1, 3, 4, 4), (2, 1, 1, 7)])
@pytest.mark.parametrize(
    "kind", ["channels first", "channels last", "turned", "cut out", "one for all", "with gradient"]
)
def test_partners_are_copied_bit_by_bit_and_lie_as_indexing_lays_them(kind: str, shape: tuple[int, ...]) -> None:
    count, channels, height, width = shape
    images = {
        "channels first": torch.randn(shape),
        "channels last": torch.randn(count, height, width, channels).permute(0, 3, 1, 2),
        "turned": torch.randn(count, channels, width, height).transpose(2, 3),
        "cut out": torch.randn(count, channels, height + 2, width)[:, :, 1:-1],
        "one for all": torch.randn(1, *shape[1:]).expand(shape),
        "with gradient": torch.randn(shape, requires_grad=True),
    }[kind]
    partner = torch.randperm(count)
    found = partners_of(images, partner)
    assert torch.equal(found, images[partner]) and found.stride() == images[partner].stride()


def test_mixup_is_torchvisions() -> None:
    images, targets = random_batch(6)
    theirs = v2.MixUp(alpha=0.4, num_classes=K)
    for seed in range(5):
        torch.manual_seed(seed)
        lam = theirs.make_params([images])["lam"]
        torch.manual_seed(seed)
        expected = theirs(images, targets.argmax(dim=1))
        # torchvision's partner is the image before
        torch.testing.assert_close(mixup(images, targets, partner=torch.arange(6).roll(1), lam=lam), expected)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 28), (7, 9)])
def test_cutmix_is_torchvisions_box_and_label(height: int, width: int) -> None:
    images = torch.randn(6, 3, height, width, generator=rng(0))
    targets = one_hot(torch.arange(6), K)
    theirs = v2.CutMix(alpha=1.0, num_classes=K)
    for seed in range(40):
        torch.manual_seed(seed)
        expected = theirs(images, torch.arange(6))
        torch.manual_seed(seed)
        left, top, right, bottom = theirs.make_params([images])["box"]
        torch.manual_seed(seed)
        lam = float(theirs._dist.sample(()))
        column, row = int(torch.randint(width, (1,))), int(torch.randint(height, (1,)))
        box = cutmix_box(height, width, lam=lam, centre=((row + 0.5) / height, (column + 0.5) / width))
        assert box == (top, bottom, left, right)
        torch.testing.assert_close(cutmix(images, targets, partner=torch.arange(6).roll(1), box=box), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("method", "alphas"), [("mixup", (0.4, 0.0)), ("cutmix", (0.0, 1.0))])
def test_mixup_and_cutmix_are_timms(method: str, alphas: tuple[float, float], smoothing: float) -> None:
    timm = pytest.importorskip("timm.data.mixup")
    theirs = timm.Mixup(*alphas, label_smoothing=smoothing, num_classes=K)
    images, targets = random_batch(6)
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002, where timm draws from
        expected = theirs(images.clone(), targets.argmax(dim=1))  # it mixes in place
        np.random.seed(seed)  # noqa: NPY002
        lam, _ = theirs._params_per_batch()
        partner = torch.arange(6).flip(0)
        if method == "mixup":
            ours = mixup(images, smooth(targets, smoothing), partner=partner, lam=lam)
        else:
            (top, bottom, left, right), _ = timm.cutmix_bbox_and_lam(images.shape, lam)
            box = tuple(map(int, (top, bottom, left, right)))
            ours = cutmix(images, smooth(targets, smoothing), partner=partner, box=box)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, expected)


@settings(deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    lam=st.floats(0, 1),
    centre=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_cutmix_box_lies_in_the_image_and_is_no_larger_than_asked(
    height: int, width: int, lam: float, centre: tuple[float, float]
) -> None:
    top, bottom, left, right = cutmix_box(height, width, lam=lam, centre=centre)
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - lam) * height * width + 1e-6
    box_height, box_width = (int(side * math.sqrt(1 - lam)) // 2 for side in (height, width))
    row, column = int(centre[0] * height), int(centre[1] * width)
    clipped = row < box_height or row + box_height > height or column < box_width or column + box_width > width
    if not clipped:
        assert (bottom - top, right - left) == (2 * box_height, 2 * box_width)


def test_cutmix_box_runs_from_the_whole_image_to_nothing() -> None:
    assert cutmix_box(32, 16, lam=0.0, centre=(0.5, 0.5)) == (0, 32, 0, 16)
    top, bottom, left, right = cutmix_box(32, 16, lam=1.0, centre=(0.3, 0.9))
    assert (bottom - top) * (right - left) == 0
    assert cutmix_box(32, 32, lam=0.75, centre=(0.0, 0.999)) == (0, 8, 23, 32)


def test_cutmix_counts_the_clipped_area_not_the_drawn_one() -> None:
    images, targets = identity_batch(2)
    partner = torch.tensor([1, 0])
    box = cutmix_box(16, 16, lam=0.75, centre=(0.0, 0.0))  # 8 x 8 around a corner: a quarter of it is left
    mixed, mixed_targets = cutmix(images, targets, partner=partner, box=box)
    assert int((mixed[0, 1] == 1).sum()) == 16
    torch.testing.assert_close(mixed_targets[0], torch.tensor([1 - 16 / 256, 16 / 256]))


@pytest.mark.parametrize("box", [(-1, 4, 0, 4), (0, 17, 0, 4), (5, 4, 0, 4), (0, 4, 0, 17), (0, 4, 3, 2)])
def test_cutmix_refuses_a_box_that_leaves_the_image(box: tuple[int, int, int, int]) -> None:
    images, targets = random_batch(2)
    with pytest.raises(ValueError, match=r"inside an image of 16 x 16 pixels, got \("):
        cutmix(images, targets, partner=torch.tensor([1, 0]), box=box)


# LaMix and soft labels


def test_lamix_averages_pixels_whatever_lam_and_labels_by_lam() -> None:
    images, targets = random_batch(4)
    partner = torch.tensor([2, 0, 3, 1])
    for lam in (0.0, 0.2, 1.0):
        mixed, local = average(images, targets, partner=partner, lam=lam)
        torch.testing.assert_close(mixed, (images + images[partner]) / 2)
        torch.testing.assert_close(local, lam * targets + (1 - lam) * targets[partner])


def test_lamix_target_by_hand() -> None:
    logits, local, beta = [1.0, -2.0, 0.5], [0.3, 0.7, 0.0], 0.4
    squashed = [1 / (1 + math.exp(-value)) for value in logits]
    total = sum(math.exp(value) for value in squashed)
    expected = [beta * y + (1 - beta) * math.exp(value) / total for y, value in zip(local, squashed, strict=True)]
    for weight in (beta, torch.tensor(beta)):
        target = lamix_target(torch.tensor([local]), torch.tensor([logits]), weight)
        torch.testing.assert_close(target, torch.tensor([expected]))


def test_the_target_trains_the_second_head_unless_beta_is_one() -> None:
    local, logits = one_hot(torch.tensor([0, 1]), 3), torch.randn(2, 3, generator=rng(0))
    for beta in (0.0, 0.5, 1.0):
        head = torch.randn(2, 3, generator=rng(1)).requires_grad_()
        soft_cross_entropy(logits, lamix_target(local, head, beta)).mean().backward()
        assert bool(head.grad.abs().sum() > 0) == (beta < 1)


@pytest.mark.parametrize(("classes", "percent"), [(10, 23.2), (100, 2.7)])
def test_the_global_labels_bound_is_reached_and_not_passed(classes: int, percent: float) -> None:
    bound = math.e / (math.e + classes - 1)
    assert round(100 * bound, 1) == percent
    extreme = torch.full((1, classes), -100.0, dtype=torch.float64)
    extreme[0, 3] = 100
    assert float(global_label(extreme).max()) == pytest.approx(bound, abs=1e-12)
    logits = 20 * torch.randn(500, classes, generator=rng(0))
    assert float(global_label(logits).max()) <= bound + 1e-6
    torch.testing.assert_close(global_label(logits).sum(dim=1), torch.ones(500))


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.9, 1.0])
def test_smoothing_is_torchs_label_smoothing(amount: float) -> None:
    logits = torch.randn(9, K, generator=rng(0))
    labels = torch.randint(K, (9,), generator=rng(1))
    loss = soft_cross_entropy(logits, smooth(one_hot(labels, K), amount))
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(label_smoothing=amount, reduction="none")(logits, labels))


def test_soft_cross_entropy_is_torchs_with_probabilities() -> None:
    logits, targets = 5 * torch.randn(9, K, generator=rng(0)), torch.randn(9, K, generator=rng(1)).softmax(dim=1)
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)


# Saliency


def test_patch_saliency_by_hand() -> None:
    gradient = torch.zeros(1, 2, 4, 4)
    gradient[0, :, 0, 0] = torch.tensor([3.0, -4.0])  # sqrt((9 + 16) / 2)
    gradient[0, 0, 3, 2] = -2.0  # sqrt(4 / 2)
    gradient[0, 1, 1, 1] = 6.0  # sqrt(36 / 2)
    parts = torch.tensor([[math.sqrt(12.5) + math.sqrt(18.0), 0.0], [0.0, math.sqrt(2.0)]])
    torch.testing.assert_close(patch_saliency(gradient, 2)[0], parts / parts.sum())


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_patch_saliency_does_not_depend_on_the_gradients_scale(scale: float, grid: int) -> None:
    pattern = torch.randint(-3, 4, (5, 3, 8, 8), generator=rng(0))
    saliency = patch_saliency(pattern * torch.tensor(scale), grid)
    pixels = pattern.double().square().mean(dim=1).sqrt()
    pooled = nn.functional.avg_pool2d(pixels[:, None], 8 // grid)[:, 0]
    # A subnormal number has but a few digits.
    tolerance = 1e-2 if scale < 1e-38 else 1e-5
    expected = (pooled / pooled.sum(dim=(1, 2), keepdim=True)).float()
    torch.testing.assert_close(saliency, expected, rtol=tolerance, atol=tolerance / 10)


def test_patch_saliency_is_uniform_where_there_is_no_usable_gradient() -> None:
    gradient = torch.randn(4, 3, 8, 8, generator=rng(0))
    gradient[0], gradient[1, 0, 0, 0], gradient[2, 0, 0, 0] = 0, math.nan, math.inf
    saliency = patch_saliency(gradient, 4)
    torch.testing.assert_close(saliency[:3], torch.full((3, 4, 4), 1 / 16))
    torch.testing.assert_close(saliency[3], patch_saliency(gradient[3:], 4)[0])
    assert not torch.allclose(saliency[3], saliency[0])


def test_patch_saliency_reads_any_memory_layout_and_precision() -> None:
    gradient = torch.randn(3, 4, 8, 8, generator=rng(0)).bfloat16()
    expected = patch_saliency(gradient.float(), 2)
    for other in (
        gradient,
        gradient.double(),
        gradient.contiguous(memory_format=torch.channels_last),
        gradient.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        saliency = patch_saliency(other, 2)
        assert saliency.dtype == torch.float32
        torch.testing.assert_close(saliency, expected)


def test_patch_saliency_refuses_a_grid_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="3 patches per side for 8 x 8 pixels"):
        patch_saliency(torch.ones(1, 1, 8, 8), 3)


def tiny_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, K))


def test_input_gradient_is_autograds_and_leaves_the_model_alone() -> None:
    images, targets = random_batch(5, side=8)
    model = tiny_network()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())

    leaf = images.clone().requires_grad_()
    nn.functional.cross_entropy(copy.deepcopy(model)(leaf), targets).backward()
    with torch.no_grad():  # as within somebody's evaluation
        gradient = input_gradient(lambda x: nn.functional.cross_entropy(model(x), targets), images, model)

    torch.testing.assert_close(gradient, leaf.grad)
    assert not images.requires_grad and not gradient.requires_grad
    after = model.state_dict()
    assert int(after["1.num_batches_tracked"]) == 0
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())


def test_buffers_come_back_even_from_an_error() -> None:
    model = tiny_network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="on purpose"), buffers_unchanged(model):
        model(torch.randn(4, 3, 8, 8))
        assert int(model[1].num_batches_tracked) == 1
        raise RuntimeError("on purpose")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# What every method keeps


methods = pytest.mark.parametrize(("name", "method"), list(METHODS.items()), ids=list(METHODS))
# Of these a label's weight is not the share of pixels: LaMix draws it apart, Manifold Mixup mixes elsewhere, Puzzle
# Mix's transport leaves places empty, and FMix rounds its mask to whole pixels.
OTHER_LABELS = ("clean", "average", "manifold", "puzzlemix", "lamix_rmix", "lamix_puzzlemix", "fmix")
PIXEL_METHODS = [name for name in METHODS if name not in OTHER_LABELS]
MOVING = ("puzzlemix", "lamix_puzzlemix", "resizemix")  # pixels come from elsewhere in the image


@methods
@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    lam=st.sampled_from(["beta(1)", "beta(0.2)", "uniform", "fixed(0)", "fixed(1)"]),
    threshold=st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
    kind=st.sampled_from(["random", "constant", "saturated", "no gradient"]),
)
def test_targets_are_distributions_and_pixels_finite_and_the_inputs_untouched(
    name: str, method: Any, batch: int, seed: int, lam: str, threshold: float | None, kind: str
) -> None:
    images, targets = random_batch(batch, seed=seed % 1000)
    gradient = torch.randn(images.shape, generator=rng(seed))
    if kind == "constant":
        images.fill_(0.5)
    elif kind == "saturated":
        images, gradient = images.sign() * 1e30, gradient * 1e-44
    elif kind == "no gradient":
        gradient.zero_()
    draw = MixDraw.sample(batch, generator=rng(seed))
    given_before = [tensor.clone() for tensor in (images, targets, gradient, draw.partner, draw.threshold)]
    policy = policy_of(name, lam=LamDistribution.parse(lam), threshold=threshold)
    mixed, mixed_targets = mix(name, images, targets, policy, draw, gradient)

    assert mixed.shape == images.shape and mixed.dtype == images.dtype and mixed.isfinite().all()
    assert mixed_targets.shape == targets.shape and mixed_targets.dtype == targets.dtype
    assert (mixed_targets >= 0).all()
    torch.testing.assert_close(mixed_targets.sum(dim=1), torch.ones(batch))
    given_after = (images, targets, gradient, draw.partner, draw.threshold)
    assert all(torch.equal(after, before) for after, before in zip(given_after, given_before, strict=True))
    low, high = torch.minimum(images, images[draw.partner]), torch.maximum(images, images[draw.partner])
    if name in MOVING:
        low, high = (part.amin((1, 2, 3), keepdim=True).clamp(max=0) for part in (low, -high))
        high = -high
    slack = 1e-6 * images.abs().max()
    assert ((mixed >= low - slack) & (mixed <= high + slack)).all()


@pytest.mark.parametrize("name", PIXEL_METHODS)
@settings(deadline=None, max_examples=25)
@given(batch=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_a_label_gets_the_share_of_its_image_in_the_pixels(name: str, batch: int, seed: int) -> None:
    images, targets = identity_batch(batch)
    gradient = torch.randn(images.shape, generator=rng(seed))
    draw = MixDraw.sample(batch, generator=rng(seed))
    mixed, mixed_targets = mix(name, images, targets, policy_of(name), draw, gradient)
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), mixed_targets)


@methods
def test_the_order_of_a_batch_does_not_matter(name: str, method: Any) -> None:
    images, targets = random_batch(9)
    gradient = torch.randn(images.shape, generator=rng(5))
    for seed in range(4):
        draw = MixDraw.sample(9, generator=rng(seed))
        order = torch.randperm(9, generator=rng(100 + seed))
        reordered = MixDraw(
            order.argsort()[draw.partner[order]],
            draw.threshold[order],
            draw.lam_quantile,
            draw.centre,
            draw.choice,
            draw.key,
        )
        mixed, mixed_targets = mix(name, images, targets, policy_of(name), draw, gradient)
        other = mix(name, images[order], targets[order], policy_of(name), reordered, gradient[order])
        torch.testing.assert_close(other, (mixed[order], mixed_targets[order]), rtol=1e-6, atol=1e-6)


@methods
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_is_kept(name: str, method: Any, layout: torch.memory_format) -> None:
    images, targets = random_batch(4)
    images = images.contiguous(memory_format=layout)
    gradient = torch.randn(images.shape, generator=rng(5)).contiguous(memory_format=layout)
    draw = MixDraw.sample(4, generator=rng(0))
    mixed, _ = mix(name, images, targets, policy_of(name), draw, gradient)
    assert mixed.is_contiguous(memory_format=layout)


@methods
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_images_precision_is_kept(name: str, method: Any, dtype: torch.dtype) -> None:
    images, targets = random_batch(4)
    gradient = torch.randn(images.shape, generator=rng(5))
    draw = MixDraw.sample(4, generator=rng(0))
    mixed, mixed_targets = mix(name, images.to(dtype), targets, policy_of(name), draw, gradient.to(dtype))
    expected, expected_targets = mix(name, images, targets, policy_of(name), draw, gradient.to(dtype).float())
    assert mixed.dtype == dtype and mixed_targets.dtype == targets.dtype
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-2
    torch.testing.assert_close(mixed.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mixed_targets, expected_targets, rtol=tolerance, atol=tolerance)


# Puzzle Mix's costs go to the host, where its masks are found: its parts on the device have a test of their own.
@pytest.mark.parametrize(("name", "method"), [entry for entry in METHODS.items() if "puzzlemix" not in entry[0]])
def test_on_a_gpu_everything_stays_there(name: str, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = MixDraw.sample(4, generator=rng(0))
    uniform = MixDraw.uniform

    def on_the_host(*arguments: Any) -> list[float]:
        with unset_fake_temporarily():
            return uniform(*arguments)

    monkeypatch.setattr(MixDraw, "uniform", on_the_host)
    # These tensors cannot be pinned.
    monkeypatch.setattr("rlmix.classifier.mixing.fmix.send", lambda tensor, device: tensor.to(device))
    with FakeTensorMode() as mode:  # tensors without content that know their device and refuse to mix two
        images, gradient = torch.empty(4, 3, 16, 16, device="cuda"), torch.empty(4, 3, 16, 16, device="cuda")
        targets = torch.empty(4, K, device="cuda")
        partner, threshold = (mode.from_tensor(tensor).to("cuda") for tensor in (draw.partner, draw.threshold))
        moved = replace(draw, partner=partner, threshold=threshold)
        for policy in (policy_of(name), policy_of(name, threshold=0.5)):
            mixed, mixed_targets = mix(name, images, smooth(targets, 0.1), policy, moved, gradient)
            mixed_targets = lamix_target(mixed_targets, targets, torch.empty((), device="cuda"))
            assert mixed.device.type == mixed_targets.device.type == "cuda"
            assert mixed.shape == images.shape and mixed_targets.shape == targets.shape


# The draws and the one call


def test_a_draw_follows_from_its_generator_alone() -> None:
    torch.manual_seed(1)
    global_state = torch.get_rng_state()
    first, again, other = (MixDraw.sample(50, generator=rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(first.partner, again.partner) and torch.equal(first.threshold, again.threshold)
    assert (first.lam_quantile, first.centre, first.choice) == (
        again.lam_quantile,
        again.centre,
        again.choice,
    )
    assert not torch.equal(first.partner, other.partner) and first.lam_quantile != other.lam_quantile


def test_draws_cover_their_ranges_evenly() -> None:
    generator = rng(0)
    draws = [MixDraw.sample(10, generator=generator) for _ in range(400)]
    for draw in draws:
        assert sorted(draw.partner.tolist()) == list(range(10))
    thresholds = torch.cat([draw.threshold for draw in draws])
    assert set(thresholds.tolist()) == set(torch.tensor(THRESHOLDS).tolist())
    assert torch.histc(thresholds, 10, 0, 1).min() > 300
    uniform = torch.tensor([(d.lam_quantile, *d.centre, d.choice) for d in draws])
    assert ((uniform >= 0) & (uniform < 1)).all()
    torch.testing.assert_close(uniform.mean(dim=0), torch.full((4,), 0.5), atol=0.07, rtol=0)
    assert uniform.T.corrcoef().fill_diagonal_(0).abs().max() < 0.2


def test_a_methods_own_draws_follow_from_the_key_and_the_name_alone() -> None:
    torch.manual_seed(1)
    global_state = torch.get_rng_state()
    first, again = (MixDraw.sample(50, generator=rng(3)) for _ in range(2))
    numbers = first.uniform("mine", 1000)
    assert numbers == again.uniform("mine", 1000) == first.uniform("mine", 1000)
    assert torch.equal(
        torch.rand(7, generator=first.generator("mine")), torch.rand(7, generator=again.generator("mine"))
    )
    assert torch.equal(torch.get_rng_state(), global_state)
    others = [
        replace(first, key=(3, 0)).uniform("mine", 1000),
        replace(first, key=(0, 3)).uniform("mine", 1000),
        replace(first, key=(3,)).uniform("mine", 1000),
        first.uniform("yours", 1000),
        first.uniform("min", 1000),
    ]
    for place, drawn in enumerate((numbers, *others)):
        assert 0 <= min(drawn) < 0.01 < 0.99 < max(drawn) < 1
        assert abs(np.mean(drawn) - 0.5) < 0.05
        for other in others[place:]:
            assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.12 or drawn is other


def test_a_block_of_draws_serves_each_process_its_part() -> None:
    keys = [(5, number) for number in range(20)]

    def block(part: slice) -> list[MixDraw]:
        return MixDraw.sample_block(12, keys, generator=rng(8), part=part, send=lambda tensor: tensor)

    whole, parts = block(slice(None)), [block(slice(0, 6)), block(slice(6, 12))]
    assert [draw.key for draw in whole] == keys
    for number, draw in enumerate(whole):
        mine = [part[number] for part in parts]
        assert torch.equal(draw.threshold, torch.cat([part.threshold for part in mine]))
        assert sorted(draw.partner.tolist()) == list(range(12))
        for part in mine:
            assert sorted(part.partner.tolist()) == list(range(6))
            assert (part.lam_quantile, part.centre, part.choice) == (draw.lam_quantile, draw.centre, draw.choice)
            assert part.uniform("mine", 3) == draw.uniform("mine", 3)
    assert len({draw.uniform("mine", 1)[0] for draw in whole}) == len(keys)


@methods
def test_mix_batch_is_the_method_on_smoothed_targets_and_its_own_draw(name: str, method: Any) -> None:
    images, targets = random_batch(6)
    policy = MixPolicy({name: 1.0}, label_smoothing=0.2, lam=LamDistribution("uniform", None))
    asked = []

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        asked.append((x, y))
        return x.sign() * y.sum()

    colours = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25)}
    if method.stage is not None:
        with pytest.raises(ValueError, match="mixes hidden states"):
            mix_batch(images, targets, policy, method=name, generator=rng(7), gradient=gradient, **colours)
        return
    mixed = mix_batch(images, targets, policy, method=name, generator=rng(7), gradient=gradient, **colours)
    smoothed = 0.8 * targets + 0.2 / K
    draw = MixDraw.sample(6, generator=rng(7))
    torch.testing.assert_close(mixed, mix(name, images, smoothed, policy, draw, images.sign() * smoothed.sum()))
    assert len(asked) == method.needs_gradient
    if asked:
        torch.testing.assert_close(asked[0], (images, smoothed))


@pytest.mark.parametrize(
    ("images", "targets", "method", "message"),
    [
        (torch.ones(2, 3, 4, 4), torch.tensor([0, 1]), "mixup", "pass num_classes"),
        (torch.ones(2, 3, 4, 4), torch.tensor([0.0, 1.0]), "mixup", r"labels \[B\].*got \(2, 3, 4, 4\) and \(2,\)"),
        (torch.ones(2, 3, 4, 4).byte(), torch.ones(2, 3), "mixup", r"got torch.uint8; .*images.float\(\) / 255"),
        (torch.ones(2, 4, 4), torch.ones(2, 3), "mixup", r"expected images \[B, C, H, W\].*\(2, 4, 4\)"),
        (torch.ones(2, 3, 4, 4), torch.ones(3, 3), "mixup", "same B"),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 3), "mixdown", "clean, mixup.*got 'mixdown'"),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 3), "rmix", "R-Mix needs the input gradient"),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 3), "puzzlemix", "Puzzle Mix needs the input gradient"),
        (
            torch.ones(2, 3, 4, 4),
            torch.ones(2, 3),
            "saliencymix",
            "SaliencyMix needs the mean and std.*`std`",
        ),
    ],
)
def test_mix_batch_says_what_does_not_fit(images: Tensor, targets: Tensor, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_batch(images, targets, policy_of("mixup"), method=method, generator=rng(0))


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (np.ones((2, 3, 4, 4)), torch.ones(2, 3), r"images as a tensor, got ndarray; .*as_tensor\(images\)"),
        (torch.ones(2, 3, 4, 4), [0, 1], r"targets as a tensor, got list; .*as_tensor\(targets\)"),
    ],
)
def test_mix_batch_asks_for_tensors(images: Any, targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mix_batch(images, targets, policy_of("mixup"), method="mixup", generator=rng(0), num_classes=3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_may_be_numbers_or_one_hot_of_any_type(dtype: torch.dtype) -> None:
    images, targets = random_batch(9)
    policy = MixPolicy({"cutmix": 1.0}, label_smoothing=0.2)
    expected = mix_batch(images, targets, policy, method="cutmix", generator=rng(7))
    labels = targets.argmax(dim=1).to(dtype)
    mixed = mix_batch(images, labels, policy, method="cutmix", generator=rng(7), num_classes=K)
    assert all(torch.equal(one, other) for one, other in zip(mixed, expected, strict=True))
    mixed = mix_batch(images, targets.to(dtype), policy, method="cutmix", generator=rng(7))
    assert all(torch.equal(one, other) for one, other in zip(mixed, expected, strict=True))


# The loss


def test_a_masked_class_costs_nothing_where_its_target_is_0_and_else_everything() -> None:
    logits = torch.randn(4, K, generator=rng(0))
    targets = torch.rand(4, K, generator=rng(1)).square()
    targets[:, 2] = 0
    targets /= targets.sum(dim=1, keepdim=True)
    masked = logits.clone()
    masked[:, 2] = -torch.inf
    masked.requires_grad_()
    others = [column for column in range(K) if column != 2]
    reduced = logits[:, others].clone().requires_grad_()
    loss, expected = soft_cross_entropy(masked, targets), soft_cross_entropy(reduced, targets[:, others])
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    assert masked.grad is not None and reduced.grad is not None
    torch.testing.assert_close(masked.grad[:, others], reduced.grad)
    assert (masked.grad[:, 2] == 0).all()
    assert soft_cross_entropy(masked.detach(), targets.flip(1)).isposinf().all()


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_a_picture_shows_images_of_any_number_of_channels(channels: int, shown: list[int]) -> None:
    values = torch.arange(channels) / 10
    images = values[None, :, None, None].expand(2, -1, 8, 8)
    drawn = mixed_picture(images, torch.eye(2), class_names=("a", "b"), mean=[0.0] * channels, std=[1.0] * channels)
    assert (drawn[20, 20] / 255).round(1).tolist() == [index / 10 for index in shown]
