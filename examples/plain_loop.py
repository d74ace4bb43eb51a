"""RL-Mix in a plain PyTorch loop: `mix`, `mix.loss`, `mix.due` and `mix.observe`.

python examples/plain_loop.py
python examples/plain_loop.py --resume    # after an interruption, to the same weights
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import digits
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from rlmix import RLMix


def train(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    mix: RLMix,
    validation: tuple[Tensor, Tensor],
) -> None:
    """Train on batches of images `[B, C, H, W]` and labels `[B]`."""
    for images, labels in batches:
        if mix.due:  # the next batch asks the agent
            mix.observe(logits=predict(network, validation[0]), labels=validation[1])
        network.train()
        images, targets = mix(images, labels, network)
        loss = mix.loss(network(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images, without training on them."""
    network.eval()
    with torch.no_grad():
        return network(images)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    options = digits.options(__doc__, "plain_loop", arguments)
    dataset, held_out = digits.load()
    validation = held_out.tensors[0], held_out.tensors[1]
    order = digits.EpochOrder(len(dataset))
    loader = DataLoader(dataset, batch_size=64, sampler=order)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    updates = options.epochs * len(loader)
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = OneCycleLR(optimizer, 0.1, total_steps=updates)
    mix = RLMix(options.policy, num_classes=10, total_updates=updates, train_size=len(dataset), optimizer=optimizer)

    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule, "mix": mix}
    checkpoint, first = options.out / "checkpoint.pt", 0
    if options.resume:
        state = torch.load(checkpoint, weights_only=True)
        first = state["epoch"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    log = options.out / "log.jsonl"
    lines = log.read_text().splitlines()[:first] if options.resume else []
    for epoch in range(first, options.last):
        order.set_epoch(epoch)
        train(network, loader, optimizer, schedule, mix, validation)
        accuracy = digits.accuracy(predict(network, validation[0]), validation[1])
        print(f"epoch {epoch}: validation accuracy {100 * accuracy:.1f} %, {mix.policy}")
        lines.append(json.dumps({"epoch": epoch, "validation_accuracy": accuracy, **mix.scalars()}))
        log.write_text("\n".join(lines) + "\n")
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"epoch": epoch + 1, **states}, checkpoint)
    mix.save(options.out / "policy.json")  # RLMix("policy.json", ...) replays it
    print(*mix.choices, sep="\n")


if __name__ == "__main__":
    main()
