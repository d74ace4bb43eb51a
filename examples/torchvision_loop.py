"""RL-Mix where torchvision's `v2.MixUp` and `v2.CutMix` stand: after the loader, never in a collate_fn.

python examples/torchvision_loop.py

A collate_fn runs in worker processes, which cannot see what the agent decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import digits
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.models import shufflenet_v2_x0_5

from rlmix import RLMix


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    options = digits.options(__doc__, "torchvision_loop", arguments)
    dataset, held_out = digits.load(channels=3)
    order = digits.EpochOrder(len(dataset))
    loader = DataLoader(dataset, batch_size=64, sampler=order, drop_last=True)
    images_val, labels_val = held_out.tensors
    torch.manual_seed(0)
    model = shufflenet_v2_x0_5(num_classes=10)
    updates = options.epochs * len(loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=updates)

    # In torchvision: mix = v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])
    mix = RLMix(options.policy, num_classes=10, total_updates=updates, train_size=len(dataset), optimizer=optimizer)

    parts = (("model", model), ("optimizer", optimizer), ("lr_scheduler", lr_scheduler), ("mix", mix))
    checkpoint, first = options.out / "checkpoint.pth", 0
    if options.resume:
        state = torch.load(checkpoint, weights_only=True)
        first = state["epoch"]
        for name, part in parts:
            part.load_state_dict(state[name])
    with SummaryWriter(str(options.out), purge_step=first) as writer:
        for epoch in range(first, options.last):
            order.set_epoch(epoch)
            model.train()
            for images, target in loader:
                images, target = mix(images, target)
                output = model(images)
                loss = cross_entropy(output, target)  # takes targets [B, K] too
                mix.note(output, target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                lr_scheduler.step()
            model.eval()
            with torch.no_grad():
                output = model(images_val)
            mix.observe(logits=output, labels=labels_val)
            acc1 = digits.accuracy(output, labels_val)
            for name, value in {"val/acc1": acc1, **mix.scalars()}.items():
                writer.add_scalar(name, value, epoch)
            print(f"epoch {epoch}: acc1 {100 * acc1:.1f} %, {mix.policy}")
            torch.save({"epoch": epoch + 1, **{name: part.state_dict() for name, part in parts}}, checkpoint)


if __name__ == "__main__":
    main()
