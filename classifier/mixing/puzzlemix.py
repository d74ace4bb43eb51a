"""Puzzle Mix: exploiting saliency and local statistics for optimal mixup (Kim et al. 2020), arXiv 2009.06962.

A mask over square blocks says how much of each block the image shows (z = 1), how much its partner (z = 0), so that
salient blocks are kept and neighbouring blocks fit together (section 4.1); optionally blocks are then moved, so that
salient ones reach a place that their image may show (section 4.2).

The mask is found by the authors' own algorithm, alpha-beta swap, in the library gco: one copy of the costs to the host
and one of the masks back for each batch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings, Option
from rlmix.classifier.mixing.saliency import pixel_saliency, summing_to_one

BLOCKS = (2, 4, 8, 16)  # blocks per side, one drawn per batch, as published
LABELS = 3  # levels of the mask: 0, 1/2, 1
NEIGHBOURHOOD = 4  # pixels, at most, whose mean colour is compared across a border
PRECISION = 1000  # costs become whole numbers after times 1000 n^2, as published


def block_counts(height: int, width: int) -> tuple[int, ...]:
    """Return the blocks per side for images of this size: the divisors of the side nearest to `BLOCKS`.

    32 pixels give 2, 4, 8 and 16, 28 pixels 2, 4, 7 and 14.

    Raises:
        ValueError: the image is not square, or no number of blocks from 2 to 16 divides its side.
    """
    divisors = [count for count in range(2, max(BLOCKS) + 1) if width % count == 0]
    if height != width or not divisors:
        raise InputError(
            f"Puzzle Mix needs square images whose side a number of blocks from 2 to {max(BLOCKS)} divides, "
            f"got {height} x {width} pixels; resize them to a multiple of 4 (commands: --image-size N)"
        )
    return tuple(sorted({min(divisors, key=lambda count: abs(count - wanted)) for wanted in BLOCKS}))


def mask_costs(
    colours: Tensor,
    *,
    partner: Tensor,
    lam: float,
    saliency: Tensor,
    blocks: int,
    beta: float,
    gamma: float,
    eta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the costs of a mask (eq. 4 to 6): whole numbers, for each block and for each pair of neighbours.

    Arguments are those of `puzzlemix`.

    Returns:
        Cost of each level of each block, `[B, n, n, 3]` for z = 0, 1/2 and 1; and the weight of `(z - z')^2` for
        neighbours below, `[B, n - 1, n]`, and to the right, `[B, n, n - 1]`; int32 all.
    """
    block = colours.shape[-1] // blocks
    # The largest part of a block up to the neighbourhood: 4 pixels of 8 or 16 as published, 2 of 14, 1 of 7.
    cell = max(size for size in range(1, min(NEIGHBOURHOOD, block) + 1) if block % size == 0)
    # Far from any colour, costs would leave the range of whole numbers.
    colours = functional.avg_pool2d(colours.clamp(-1, 2), cell)
    own, other = _block_saliency(saliency, blocks), _block_saliency(saliency, blocks)[partner]
    unary_partner, unary_own = own.clone(), other.clone()  # what is lost where the partner, or the image, is shown
    weights = []
    strength = beta / (16 * blocks)
    for axis in (1, 2):
        fit = strength * gamma * _border_differences(colours, partner, block // cell, axis)  # [B, 2, 2, ...]
        first, second = [slice(None)] * 3, [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        for unary, shown in ((unary_partner, 0), (unary_own, 1)):
            unary[tuple(first)] += fit[:, shown].sum(dim=1) / 2
            unary[tuple(second)] += fit[:, :, shown].sum(dim=1) / 2
        weights.append(strength + (fit[:, 1, 0] + fit[:, 0, 1] - fit[:, 1, 1] - fit[:, 0, 0]) / 2)
    levels = torch.linspace(0, 1, LABELS, device=colours.device)
    prior = torch.tensor([(1 - lam) ** 2, 2 * lam * (1 - lam), lam**2], dtype=torch.float64)
    prior = (-(prior + 1e-8).log() * eta / blocks**2).to(device=colours.device, dtype=unary_own.dtype)
    cost = levels * unary_own[..., None] + (1 - levels) * unary_partner[..., None] + prior
    scale = PRECISION * blocks**2
    down, right = weights
    return (scale * cost).int(), (scale * down).int(), (scale * right).int()


def mask_energy(levels: Tensor, cost: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return the total costs of masks, `[B]`, in quarters of the unit of `mask_costs`.

    Args:
        levels: `[B, n, n]` long, twice the mask: 0, 1 or 2.
        cost: `[B, n, n, 3]`, from `mask_costs` as the two that follow.
        down: `[B, n - 1, n]`.
        right: `[B, n, n - 1]`.
    """
    unary = cost.long().gather(-1, levels[..., None]).sum(dim=(1, 2, 3))
    below = down * (levels[:, 1:] - levels[:, :-1]) ** 2
    beside = right * (levels[:, :, 1:] - levels[:, :, :-1]) ** 2
    return (LABELS - 1) ** 2 * unary + below.sum(dim=(1, 2)) + beside.sum(dim=(1, 2))


def graph_cuts() -> ModuleType:
    """Import and return the library that finds masks.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import gco
    except ImportError as error:
        raise ImportError(
            "Puzzle Mix finds its masks with the library gco, which is not installed; "
            "pip install 'rl-mix[puzzle]', or pip install gco-wrapper"
        ) from error
    return gco


def solve_mask(cost: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return masks of low cost by alpha-beta swap, `[B, n, n]` long levels 0, 1 or 2, on the device of the costs.

    Arguments are those of `mask_energy`.

    Raises:
        ImportError: the library gco is not installed.
    """
    gco = graph_cuts()
    batch, blocks = cost.shape[:2]
    # One graph of all images, which no edge joins; in quarters, so that all costs are whole.
    host = torch.cat([((LABELS - 1) ** 2 * cost).flatten(), down.flatten(), right.flatten()]).cpu().numpy()
    unary, weights = host[: cost.numel()].reshape(-1, LABELS), host[cost.numel() :]
    first, second = _neighbours(batch, blocks)
    graph = gco.GCO()
    graph.create_general_graph(len(unary), LABELS, False)
    # From the image to the partner, as the authors order the levels: a swap's result depends on the order.
    graph.set_data_cost(np.ascontiguousarray(unary[:, ::-1]))
    graph.set_all_neighbors(first, second, weights)
    levels = np.arange(LABELS, dtype=np.int32)
    graph.set_smooth_cost((levels[:, None] - levels) ** 2)
    graph.swap(-1)
    found = graph.get_labels()
    graph.destroy_graph()
    return (LABELS - 1) - torch.from_numpy(found.astype(np.int64)).view(batch, blocks, blocks).to(cost.device)


@lru_cache(maxsize=16)
def _neighbours(batch: int, blocks: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return pairs of neighbouring blocks by number: a block, and the one below it or to its right."""
    number = np.arange(batch * blocks**2, dtype=np.int32).reshape(batch, blocks, blocks)
    first = np.concatenate([number[:, :-1].ravel(), number[:, :, :-1].ravel()])
    return first, np.concatenate([number[:, 1:].ravel(), number[:, :, 1:].ravel()])


def transported(images: Tensor, *, mask: Tensor, saliency: Tensor, t_eps: float) -> Tensor:
    """Move blocks so that salient ones reach places where the mask shows their image (algorithm 1).

    In each of `n` rounds every block names its cheapest place, the cheapest claimant of each place wins it, and the
    place's cost rises by 1 for the others. The last round's winners move; a place that nobody claimed is 0.

    Args:
        images: `[B, C, H, W]`.
        mask: `[B, n, n]`, weight of these images in each block, in [0, 1].
        saliency: `[B, n, n]`, each map summing to 1.
        t_eps: cost of a move across the whole grid.
    """
    batch, channels, height, _ = images.shape
    blocks = mask.shape[-1]
    places, size = blocks**2, height // blocks
    worth, wanted = saliency.reshape(batch, places, 1), (mask > 0).reshape(batch, 1, places).to(saliency.dtype)
    cost = torch.addcmul(_distances(blocks, images.device).to(saliency.dtype).mul(t_eps), worth, wanted, value=-1)
    price, choice = cost.min(dim=-1)  # at a tie, the first place
    number = torch.arange(places, device=images.device).expand(batch, -1)
    for _ in range(blocks):
        lowest = torch.full_like(price, torch.inf).scatter_reduce(1, choice, price, "amin")
        claims = price == lowest.gather(1, choice)
        winner = torch.full_like(choice, places).scatter_reduce(1, choice, number.where(claims, places), "amin")
        # Few blocks lose. All others' costs stay, and with them the places that they name.
        lost = (winner.gather(1, choice) != number).nonzero(as_tuple=True)
        if not len(lost[0]):
            break
        cost[(*lost, choice[lost])] += 1
        price[lost], choice[lost] = cost[lost].min(dim=-1)
    pieces = functional.unfold(images, size, stride=size).view(batch, channels * size**2, places)
    source = winner.clamp(max=places - 1)[:, None].expand_as(pieces)
    moved = pieces.gather(2, source) * (winner < places)[:, None]
    result = functional.fold(moved, images.shape[-2:], size, stride=size)
    return result.contiguous(memory_format=_memory_format(images))


def puzzlemix(
    images: Tensor,
    targets: Tensor,
    *,
    partner: Tensor,
    lam: float,
    saliency: Tensor,
    colours: Tensor,
    blocks: int,
    beta: float,
    gamma: float,
    eta: float,
    t_eps: float | None = None,
    t_size: int = -1,
) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner by an optimised mask over blocks (Puzzle Mix, eq. 3); targets follow its mean.

    Args:
        images: `[B, C, H, W]`, square.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        lam: prior share of the image, in [0, 1]; drawn from Beta(1, 1) in the paper.
        saliency: `[B, H, W]`, from 0; only its relation to the rest of the image matters.
        colours: `[B, C, H, W]`, the images' colours in [0, 1].
        blocks: blocks per side, n; divides H. `block_counts` gives the published choice.
        beta: strength of the smoothness of the mask; 1.2 in the paper.
        gamma: strength of the colours' part in it; 0.5 in the paper.
        eta: strength of the prior; 0.2 in the paper.
        t_eps: cost of a move across the whole image, 0.8 in the paper; None moves nothing.
        t_size: side in pixels of a moved piece, 4 in the paper; blocks that it does not divide, or -1, move whole.

    Raises:
        ValueError: the blocks do not divide the image.
        ImportError: the library gco is not installed.
    """
    height, width = images.shape[-2:]
    if height != width or height % blocks:
        raise InputError(
            f"the blocks must divide a square image, got {blocks} blocks per side for {height} x {width} pixels; "
            "block_counts gives numbers that do"
        )
    if saliency.shape != (len(images), height, width):
        raise InputError(
            f"expected the saliency of each pixel, {(len(images), height, width)}, got {tuple(saliency.shape)}"
        )
    costs = mask_costs(
        colours,
        partner=partner,
        lam=lam,
        saliency=saliency,
        blocks=blocks,
        beta=beta,
        gamma=gamma,
        eta=eta,
    )
    mask = solve_mask(*costs).to(images.dtype) / (LABELS - 1)
    share = mask.mean(dim=(1, 2))
    own, other = images, images[partner]
    if t_eps is not None:
        block = height // blocks
        if 0 < t_size < block and block % t_size == 0:
            finer = block // t_size
            mask = mask.repeat_interleave(finer, dim=1).repeat_interleave(finer, dim=2)
        worth = _block_saliency(saliency, mask.shape[-1])
        own = transported(own, mask=mask, saliency=worth, t_eps=t_eps)
        other = transported(other, mask=1 - mask, saliency=worth[partner], t_eps=t_eps)
    size = height // mask.shape[-1]
    weight = mask.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)[:, None]
    return other.lerp(own, weight), blend_targets(targets, partner, share[:, None].to(targets.dtype))


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    gradient, colours = batch.input_gradient("Puzzle Mix"), batch.colours("Puzzle Mix")
    counts = block_counts(*batch.images.shape[-2:])
    options = settings.options
    return puzzlemix(
        batch.images,
        batch.targets,
        partner=draw.partner,
        lam=settings.lam,
        saliency=pixel_saliency(gradient),
        colours=colours,
        blocks=counts[int(draw.choice * len(counts))],
        beta=options["beta"],
        gamma=options["gamma"],
        eta=options["eta"],
        t_eps=options.get("t_eps"),
        t_size=int(options.get("t_size", -1)),
    )


_MASK = {"beta": Option(1.2, 0, 10), "gamma": Option(0.5, 0, 10), "eta": Option(0.2, 0, 10)}
_MOVES = {"t_eps": Option(0.8, 0, 10), "t_size": Option(4, -1, 64, whole=True)}

PUZZLEMIX_NO_TRANSPORT = Method(
    _mix,
    options=_MASK,
    needs_gradient=True,
    gradient_in_eval=True,
    needs_colours=True,
    library=graph_cuts,
    fits=block_counts,
)
PUZZLEMIX = replace(PUZZLEMIX_NO_TRANSPORT, options={**_MASK, **_MOVES})


def _block_saliency(saliency: Tensor, blocks: int) -> Tensor:
    """Return the saliency of each block, `[B, n, n]`, summing to 1; uniform for an image without any."""
    return summing_to_one(functional.avg_pool2d(saliency[:, None], saliency.shape[-1] // blocks)[:, 0])


def _border_differences(colours: Tensor, partner: Tensor, cells: int, axis: int) -> Tensor:
    """Return the mean absolute colour difference along each border between neighbours, `[B, 2, 2, ...]`.

    Indexed by what the first and what the second block shows, 0 the partner and 1 the image. `axis` 1 pairs each block
    with the one below, 2 with the one to the right; `cells` are the colours along a block's side.
    """
    if axis == 2:
        colours = colours.transpose(2, 3)
    before, after = colours[:, :, cells - 1 : -1 : cells], colours[:, :, cells::cells]
    shown = [
        [(first - second).abs().mean(dim=1) for second in (after[partner], after)]
        for first in (before[partner], before)
    ]
    differences = torch.stack([torch.stack(row, dim=1) for row in shown], dim=1)  # [B, 2, 2, n - 1, H / cell]
    along = differences.unflatten(-1, (-1, cells)).mean(dim=-1)
    return along.transpose(-1, -2) if axis == 2 else along


def _distances(blocks: int, device: torch.device) -> Tensor:
    """Return the squared distance of each two places, `[n^2, n^2]`, in units of the side."""
    number = torch.arange(blocks**2, device=device)
    row, column = number // blocks, number % blocks
    squared = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    return squared.float() / max(blocks - 1, 1) ** 2


def _memory_format(images: Tensor) -> torch.memory_format:
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
