"""RL-Mix in a loop as timm's train.py has it, in the place of timm's `Mixup`.

python examples/timm_loop.py
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import digits
import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, update_summary
from torch.utils.data import DataLoader

from rlmix import RLMix


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    options = digits.options(__doc__, "timm_loop", arguments)
    dataset, held_out = digits.load()
    order = digits.EpochOrder(len(dataset))
    loader = DataLoader(dataset, batch_size=64, sampler=order)
    images_val, labels_val = held_out.tensors
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=options.epochs, warmup_epochs=1)

    # In timm: mixup_fn = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=10)
    updates = options.epochs * len(loader)
    mixup_fn = RLMix(options.policy, num_classes=10, total_updates=updates, train_size=len(dataset))
    mixup_fn.optimizer = optimizer
    train_loss_fn = SoftTargetCrossEntropy()

    checkpoint, first = options.out / "last.pth.tar", 0
    if options.resume:
        state = torch.load(checkpoint, weights_only=True)
        first = state["epoch"]
        for name, part in (("state_dict", model), ("optimizer", optimizer), ("mixup_fn", mixup_fn)):
            part.load_state_dict(state[name])
    if scheduler is not None:
        scheduler.step(first)
    for epoch in range(first, options.last):
        order.set_epoch(epoch)
        losses = AverageMeter()
        model.train()
        for input, target in loader:
            input, target = mixup_fn(input, target)  # with a third argument, model, methods by saliency too
            output = model(input)
            loss = train_loss_fn(output, target)
            mixup_fn.note(output, target, loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(input))
        model.eval()
        with torch.no_grad():
            output = model(images_val)
        mixup_fn.observe(logits=output, labels=labels_val)
        if scheduler is not None:
            scheduler.step(epoch + 1)
        metrics = OrderedDict(top1=100 * digits.accuracy(output, labels_val))
        update_summary(
            epoch,
            OrderedDict(loss=losses.avg, **mixup_fn.scalars()),  # the columns train_rlmix/...
            metrics,
            filename=str(options.out / "summary.csv"),
            write_header=epoch == 0,
        )
        print(f"epoch {epoch}: top1 {metrics['top1']:.1f} %, {mixup_fn.policy}")
        torch.save(
            {
                "epoch": epoch + 1,
                "state_dict": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "mixup_fn": mixup_fn.state_dict(),
            },
            checkpoint,
        )


if __name__ == "__main__":
    main()
