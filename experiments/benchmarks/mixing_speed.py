"""Measure the speed of mixing alone: against torchvision and timm, and Puzzle Mix against dense transport plans.

    python experiments/benchmarks/mixing_speed.py
    python experiments/benchmarks/mixing_speed.py --threads 2 --channels 1 --side 28

In every round each operation runs in turn, in rotated order, and a ratio is the median of the rounds' own ratios. The
libraries' operations draw their ratio, make one-hot targets and mix; ours is measured in the same way ("from labels",
as `mix_batch`) and with draws and targets given ("alone"). timm's overwrites its batch and mixes each image with the
one at the mirrored place; torchvision's takes the neighbour; ours draws a permutation.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import MixPolicy, mix_batch, one_hot
from rlmix.classifier.mixing.cutmix import cutmix, cutmix_box
from rlmix.classifier.mixing.mixup import mixup
from rlmix.classifier.mixing.puzzlemix import (
    PUZZLEMIX,
    block_counts,
    graph_cuts,
    mask_costs,
    solve_mask,
    transported,
)
from rlmix.experiments.benchmarks.timing import prepare_output, ratios, require_seconds, rotated, spread, summary
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine

CLASSES = 100
PUBLISHED = {name: option.default for name, option in PUZZLEMIX.options.items()}
STRENGTHS = {name: PUBLISHED[name] for name in ("beta", "gamma", "eta")}
T_EPS, T_SIZE = PUBLISHED["t_eps"], int(PUBLISHED["t_size"])
Operation = Callable[[], object]


@dataclass(frozen=True)
class MixingBenchmarkConfig:
    """Measure the speed of mixing alone."""

    batch_size: int = 100
    """Number of images in a batch."""
    channels: int = 3
    """Number of channels of the images."""
    side: int = 32
    """Side of the images in pixels."""
    threads: int = 1
    """Number of CPU threads."""
    seconds: float = 0.3
    """Seconds of each operation in a round, at least one call."""
    rounds: int = 9
    """Number of rounds."""
    out: str = "experiments/results/benchmark_mixing.json"
    """File of the report, JSON."""

    def __post_init__(self) -> None:
        require_at_least(self, batch_size=2, channels=1, side=8, threads=1, rounds=1)
        require_seconds(self.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/mixing_speed", arguments) as call:
        config = call.parse(MixingBenchmarkConfig, __doc__)
        torch.set_num_threads(config.threads)
        counts = block_counts(config.side, config.side)
        try:
            graph_cuts()
        except ImportError as error:
            raise RunError(str(error)) from None
        out = Path(config.out)
        prepare_output(out)
        report = {
            "kind": "benchmark_mixing",
            "command": call.line,
            "config": asdict(config),
            "machine": machine(),
            **against_libraries(config),
            "puzzlemix": {str(blocks): puzzlemix_parts(config, blocks) for blocks in counts},
            "load_average_after": os.getloadavg(),
        }
        write_atomic(out, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"{text_report(report)}\nwritten: {out}")


def against_libraries(config: MixingBenchmarkConfig) -> dict[str, Any]:
    """Measure mixup and CutMix, and return seconds and the ratios of ours to each library's.

    Raises:
        RunError: timm is not installed.
    """
    try:
        from timm.data.mixup import Mixup
    except ImportError:
        raise RunError("timm is not installed; pip install 'rl-mix[timm]'") from None
    from torchvision.transforms import v2  # takes a second to import

    images, labels = _batch(config)
    targets, generator = one_hot(labels, CLASSES), torch.Generator().manual_seed(0)
    partner = torch.randperm(len(images), generator=generator)
    box = cutmix_box(config.side, config.side, lam=0.5, centre=(0.5, 0.5))
    timed: dict[str, Operation] = {
        "mixup alone": lambda: mixup(images, targets, partner=partner, lam=0.5),
        "cutmix alone": lambda: cutmix(images, targets, partner=partner, box=box),
    }
    for name in ("mixup", "cutmix"):
        timed[f"{name} from labels"] = _from_labels(name, images, labels, generator)
    torchvision: dict[str, Callable[..., object]] = {
        "mixup": v2.MixUp(num_classes=CLASSES),
        "cutmix": v2.CutMix(num_classes=CLASSES),
    }
    overwritten = images.clone()
    for name in ("mixup", "cutmix"):
        theirs = torchvision[name]
        timed[f"{name} torchvision"] = lambda theirs=theirs: theirs(images, labels)  # type: ignore[misc]
        alphas = {"mixup_alpha": float(name == "mixup"), "cutmix_alpha": float(name == "cutmix")}
        in_place = Mixup(**alphas, label_smoothing=0.0, num_classes=CLASSES)
        timed[f"{name} timm"] = lambda in_place=in_place: in_place(overwritten, labels)  # type: ignore[misc]
    seconds = interleaved(timed, config)
    return {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "of_library": {
            f"{name} {ours} / {library}": summary(ratios(seconds[f"{name} {ours}"], seconds[f"{name} {library}"]))
            for name in ("mixup", "cutmix")
            for ours in ("alone", "from labels")
            for library in ("torchvision", "timm")
        },
    }


def puzzlemix_parts(config: MixingBenchmarkConfig, blocks: int) -> dict[str, Any]:
    """Measure Puzzle Mix's parts for one batch, with transport by gathering and by dense plans.

    Args:
        config: options of the benchmark, for the batch.
        blocks: number of blocks per side.
    """
    images, _ = _batch(config)
    generator = torch.Generator().manual_seed(1)
    partner = torch.randperm(len(images), generator=generator)
    saliency = _salient_spots(len(images), config.side, generator)

    def costs() -> tuple[Tensor, Tensor, Tensor]:
        return mask_costs(images, partner=partner, lam=0.5, saliency=saliency, blocks=blocks, **STRENGTHS)

    batch_costs = costs()
    mask = solve_mask(*batch_costs) / 2
    block = config.side // blocks
    if T_SIZE < block and block % T_SIZE == 0:
        finer = block // T_SIZE
        mask = mask.repeat_interleave(finer, dim=1).repeat_interleave(finer, dim=2)
    pooled = torch.nn.functional.avg_pool2d(saliency[:, None], config.side // mask.shape[-1])[:, 0]
    pooled = pooled / pooled.sum(dim=(1, 2), keepdim=True)

    def both(move: Callable[..., Tensor]) -> Operation:
        # Moves the image, and its partner, which the rest of the mask shows.
        return lambda: (
            move(images, mask=mask, saliency=pooled, t_eps=T_EPS),
            move(images[partner], mask=1 - mask, saliency=pooled[partner], t_eps=T_EPS),
        )

    seconds = interleaved(
        {
            "costs": costs,
            "cut": lambda: solve_mask(*batch_costs),
            "transport": both(transported),
            "transport by dense plans": both(transported_densely),
        },
        config,
    )
    whole = [sum(parts) for parts in zip(*(seconds[name] for name in ("costs", "cut", "transport")), strict=True)]
    dense = [
        sum(parts) for parts in zip(*(seconds[n] for n in ("costs", "cut", "transport by dense plans")), strict=True)
    ]
    return {
        "seconds": {name: summary(values) for name, values in {**seconds, "whole": whole}.items()},
        "transport_of_cut": summary(ratios(seconds["transport"], seconds["cut"])),
        "dense_of_whole": summary(ratios(dense, whole)),
    }


def transported_densely(images: Tensor, *, mask: Tensor, saliency: Tensor, t_eps: float) -> Tensor:
    """Transport images as in Puzzle Mix's algorithm 1, with plans as `n^2 x n^2` matrices.

    Arguments and result are those of `rlmix.classifier.mixing.puzzlemix.transported`, except that places to which no
    block is moved are filled too; the mask does not show them.
    """
    batch, blocks = len(images), mask.shape[-1]
    places, size = blocks**2, images.shape[-1] // blocks
    row, column = torch.arange(places) // blocks, torch.arange(places) % blocks
    distance = ((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2) / max(blocks - 1, 1) ** 2
    cost = t_eps * distance - saliency.reshape(batch, places, 1) * (mask > 0).reshape(batch, 1, places)
    for _ in range(blocks):
        plan = torch.zeros_like(cost).scatter_(2, cost.argmin(dim=2, keepdim=True), 1.0)
        claims = torch.where(plan > 0, cost, torch.inf)
        wins = torch.zeros_like(cost).scatter_(1, claims.argmin(dim=1, keepdim=True), 1.0) * plan
        cost = cost + (1 - wins) * plan
    pieces = torch.nn.functional.unfold(images, size, stride=size)
    return torch.nn.functional.fold(pieces @ wins, images.shape[-2:], size, stride=size)


def interleaved(operations: Mapping[str, Operation], config: MixingBenchmarkConfig) -> dict[str, list[float]]:
    """Return the seconds of one call of each operation, round by round, measured in rotated order."""
    calls = {}
    for name, operation in operations.items():
        for _ in range(2):
            started = time.perf_counter()
            operation()
            call_seconds = time.perf_counter() - started
        calls[name] = max(1, round(config.seconds / call_seconds))
    names = list(operations)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(config.rounds):
        for name in rotated(names, number):
            started = time.perf_counter()
            for _ in range(calls[name]):
                operations[name]()
            seconds[name].append((time.perf_counter() - started) / calls[name])
    return seconds


def text_report(report: Mapping[str, Any]) -> str:
    """Format the report as aligned lines."""
    config, host = report["config"], report["machine"]
    lines = [
        f"{host['processor']}, {config['threads']} threads, torch {host['torch']}, load {host['load_average'][0]:.1f} "
        f"before and {report['load_average_after'][0]:.1f} after",
        f"a batch of {config['batch_size']} images of {config['channels']} x {config['side']} x {config['side']}; "
        f"medians over {config['rounds']} rounds [quartiles] (range)",
        "",
        tabulate(
            [(name, f"{1e3 * row['median']:.3f} ms") for name, row in report["seconds"].items()],
            tablefmt="plain",
            disable_numparse=True,
            colalign=("left", "right"),
        ),
        "",
        tabulate(
            [(name, spread(row)) for name, row in report["of_library"].items()],
            tablefmt="plain",
            disable_numparse=True,
        ),
    ]
    for blocks, parts in report["puzzlemix"].items():
        times = ", ".join(f"{name} {1e3 * row['median']:.1f} ms" for name, row in parts["seconds"].items())
        lines += [
            "",
            f"Puzzle Mix, {blocks} x {blocks} blocks: {times}",
            f"  transport over cut {spread(parts['transport_of_cut'])}",
            f"  with dense plans over ours {spread(parts['dense_of_whole'])}",
        ]
    return "\n".join(lines)


def _batch(config: MixingBenchmarkConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(config.batch_size, config.channels, config.side, config.side, generator=generator)
    return images, torch.randint(CLASSES, (config.batch_size,), generator=generator)


def _salient_spots(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw saliency `[count, side, side]` of images with one object each: a spot somewhere, and a little noise."""
    place = torch.arange(side) / side
    row, column = torch.rand(2, count, 1, generator=generator)
    spots = (-((place - row) ** 2) / 0.05).exp()[:, :, None] * (-((place - column) ** 2) / 0.05).exp()[:, None]
    return spots + 0.2 * torch.rand(count, side, side, generator=generator)


def _from_labels(name: str, images: Tensor, labels: Tensor, generator: torch.Generator) -> Operation:
    policy = MixPolicy({name: 1.0})
    return lambda: mix_batch(images, one_hot(labels, CLASSES), policy, method=name, generator=generator)


if __name__ == "__main__":
    main()
