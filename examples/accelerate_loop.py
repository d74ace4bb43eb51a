"""RL-Mix in a loop with Hugging Face Accelerate, with gradient accumulation and checkpoints.

python examples/accelerate_loop.py
accelerate launch examples/accelerate_loop.py    # on several processes
"""

from __future__ import annotations

from collections.abc import Sequence

import digits
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from rlmix import RLMix

ACCUMULATED = 2  # batches for each step of the optimiser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    options = digits.options(__doc__, "accelerate_loop", arguments)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=ACCUMULATED, log_with="tensorboard", project_dir=options.out
    )
    accelerator.init_trackers("log")
    dataset, held_out = digits.load()
    order = digits.EpochOrder(len(dataset))
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    loader, val_loader = DataLoader(dataset, batch_size=32, sampler=order), DataLoader(held_out, batch_size=256)
    scheduler = CosineAnnealingLR(optimizer, T_max=options.epochs * -(-len(loader) // ACCUMULATED))
    network, optimizer, loader, val_loader, scheduler = accelerator.prepare(
        network, optimizer, loader, val_loader, scheduler
    )
    # After `prepare`: the length of the loader is that of this process's part.
    mix = RLMix(
        options.policy,
        num_classes=10,
        total_updates=options.epochs * len(loader),
        train_size=len(dataset),
        optimizer=optimizer,
        accumulate=ACCUMULATED,
    )
    accelerator.register_for_checkpointing(mix)

    first = 0
    if options.resume:
        first = max(int(folder.name.removeprefix("epoch_")) for folder in options.out.glob("epoch_*"))
        accelerator.load_state(str(options.out / f"epoch_{first}"))
    for epoch in range(first, options.last):
        loader.set_epoch(epoch)
        network.train()
        for images, labels in loader:
            with accelerator.accumulate(network):
                images, targets = mix(images, labels, network)
                loss = mix.loss(network(images), targets)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        network.eval()
        with torch.no_grad():
            parts = [accelerator.gather_for_metrics((network(images), labels)) for images, labels in val_loader]
        logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        mix.observe(logits=logits, labels=labels)
        accuracy = digits.accuracy(logits, labels)
        accelerator.log({"val_accuracy": accuracy, **mix.scalars()}, step=epoch)
        accelerator.print(f"epoch {epoch}: validation accuracy {100 * accuracy:.1f} %, {mix.policy}")
        accelerator.save_state(str(options.out / f"epoch_{epoch + 1}"))
    accelerator.end_training()
    accelerator.print(*mix.choices, sep="\n")


if __name__ == "__main__":
    main()
