"""Measure what RL-Mix costs in a loop of one's own, against timm's Mixup and torchvision's MixUp and CutMix.

    python experiments/benchmarks/own_loop_cost.py --sides 32 224

All train the same network on the same batches, each on every update (R-Mix on half, with recycled saliency), in turn in
each round. The ratios are of seconds within a round, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from rlmix.agent.own_loop import RLMix
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.models import build_model
from rlmix.experiments.benchmarks.timing import prepare_output, ratios, rotated, spread, summary
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.machine import machine

CLASSES = 10
PAIRS = (  # whose seconds are divided by whose
    ("RL-Mix mixup", "timm mixup"),
    ("RL-Mix mixup", "torchvision mixup"),
    ("RL-Mix cutmix", "timm cutmix"),
    ("RL-Mix cutmix", "torchvision cutmix"),
    ("RL-Mix rmix, half", "plain"),
)
Step = Callable[[Tensor, Tensor, nn.Module], Tensor]  # maps images, labels and network to the loss


@dataclass(frozen=True)
class CostConfig:
    """Measure what RL-Mix costs in a loop of one's own."""

    sides: tuple[int, ...] = (32, 224)
    """Sides of the images in pixels."""
    model: str = "search"
    """Network, as for train_classifier.py."""
    batch_size: int = 64
    """Images per update."""
    updates: int = 20
    """Updates of each contestant in a round."""
    rounds: int = 10
    """Number of rounds."""
    threads: int = 1
    """Number of CPU threads."""
    out: str = "own_loop_cost.json"
    """File of the report."""

    def __post_init__(self) -> None:
        require_at_least(self, batch_size=2, updates=2, rounds=1, threads=1)


def contestants() -> dict[str, Step]:
    """Return the ways to make an update's loss, by name."""
    from timm.data import Mixup
    from torchvision.transforms import v2

    made: dict[str, Any] = {
        "timm mixup": Mixup(mixup_alpha=1.0, num_classes=CLASSES, label_smoothing=0.0),
        "timm cutmix": Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, num_classes=CLASSES, label_smoothing=0.0),
        "torchvision mixup": v2.MixUp(num_classes=CLASSES),
        "torchvision cutmix": v2.CutMix(num_classes=CLASSES),
    }

    def theirs(transform: Any) -> Step:
        def step(images: Tensor, labels: Tensor, network: nn.Module) -> Tensor:
            mixed, targets = transform(images.clone(), labels)  # a loader's own batch: timm changes it
            return nn.functional.cross_entropy(network(mixed), targets)

        return step

    def ours(mix: RLMix) -> Step:
        def step(images: Tensor, labels: Tensor, network: nn.Module) -> Tensor:
            mixed, targets = mix(images.clone(), labels, network)
            return mix.loss(network(mixed), targets)

        return step

    mixers = {
        "RL-Mix mixup": RLMix("mixup", share=1.0, num_classes=CLASSES),
        "RL-Mix cutmix": RLMix("cutmix", share=1.0, num_classes=CLASSES),
        "RL-Mix rmix, half": RLMix("rmix", num_classes=CLASSES),
    }
    return {
        "plain": lambda images, labels, network: nn.functional.cross_entropy(network(images.clone()), labels),
        **{name: theirs(transform) for name, transform in made.items()},
        **{name: ours(mix) for name, mix in mixers.items()},
    }


def measure(config: CostConfig, side: int) -> dict[str, Any]:
    """Return the seconds of an update of each contestant in each round, and the ratios to its base."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(config.batch_size, 3, side, side, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (config.batch_size,), generator=generator)
    torch.manual_seed(0)
    network = build_model(config.model, num_classes=CLASSES, in_channels=3, image_size=(side, side))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    steps = contestants()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(config.rounds + 1):
        for name in rotated(list(steps), number):
            started = time.perf_counter()
            for _ in range(config.updates):
                steps[name](images, labels, network).backward()
                optimizer.step()
                optimizer.zero_grad()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / config.updates)
    return {
        "side": side,
        "seconds_per_update": {name: summary(values) for name, values in seconds.items()},
        "ratios": {f"{name} / {base}": summary(ratios(seconds[name], seconds[base])) for name, base in PAIRS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/own_loop_cost", arguments) as call:
        config = call.parse(CostConfig, __doc__)
        prepare_output(Path(config.out))
        torch.set_num_threads(config.threads)
        found = [measure(config, side) for side in config.sides]
        report = {"command": call.line, "config": asdict(config), "machine": machine(), "sides": found}
        write_atomic(Path(config.out), (json.dumps(report, indent=2) + "\n").encode())
        rows = [[entry["side"], name, spread(values)] for entry in found for name, values in entry["ratios"].items()]
        print(tabulate(rows, ["pixels", "", "median [quartiles] (range)"], tablefmt="plain", disable_numparse=True))


if __name__ == "__main__":
    main()
