"""RL-Mix in a plain PyTorch loop, on scikit-learn's digits: the four lines that are marked.

python examples/plain_loop.py --epochs 8
python examples/plain_loop.py --epochs 8 --resume    # after an interruption, to the same weights
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard.writer import SummaryWriter

from rlmix import RLMix

TRAINING = 1000  # images; the others are for validation


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--stop-after", type=int, help="stop after this epoch, as if interrupted")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    images = (torch.tensor(digits.images, dtype=torch.float32)[:, None] - 4.9) / 6.0
    labels = torch.tensor(digits.target)
    dataset = TensorDataset(images[:TRAINING], labels[:TRAINING])
    validation = images[TRAINING:], labels[TRAINING:]
    order = torch.Generator()
    loader = DataLoader(dataset, batch_size=64, shuffle=True, generator=order)

    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    updates = options.epochs * len(loader)
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = OneCycleLR(optimizer, 0.1, total_steps=updates)
    mix = RLMix(num_classes=10, total_updates=updates, train_size=len(dataset), optimizer=optimizer)

    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "mix": mix}
    checkpoint, first = options.out / "checkpoint.pt", 0
    if options.resume:
        state = torch.load(checkpoint)
        first = state["epoch"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    with SummaryWriter(str(options.out), purge_step=first) as writer:
        for epoch in range(first, options.stop_after or options.epochs):
            order.manual_seed(epoch)
            train(network, loader, optimizer, schedule, mix, validation)
            accuracy = (predict(network, validation[0]).argmax(1) == validation[1]).float().mean().item()
            writer.add_scalar("validation/accuracy", accuracy, epoch)
            for name, value in mix.scalars().items():
                writer.add_scalar(name, value, epoch)
            print(f"epoch {epoch}: validation accuracy {100 * accuracy:.1f} %, {mix.policy}")
            torch.save({"epoch": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, checkpoint)
    mix.save(options.out / "policy.json")  # RLMix("policy.json", ...) replays it
    print(*mix.choices, sep="\n")


if __name__ == "__main__":
    main()
