"""Gradients in a loop of the user's own, taken by hooks from its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, Interleaver, MixPolicy
from rlmix.classifier.mixing.saliency import input_gradient
from rlmix.classifier.training.resting import RestingBatches, resting_saliency
from rlmix.classifier.training.segment_sums import PROBES, measure_probe

TakesGradient = Callable[[Tensor], None]


@dataclass
class CleanBatch:
    """A clean batch that a saliency method will mix once its gradient is there.

    Attributes:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, not smoothed.
        gradient: `[B, C, H, W]`, gradient of the loop's loss at the images, or their saliency `[B, 1, H, W]`; None
            before the backward pass.
    """

    images: Tensor
    targets: Tensor
    gradient: Tensor | None = None

    def take(self, gradient: Tensor) -> None:
        """Set the saliency from a gradient."""
        self.gradient = resting_saliency(gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return the batch as plain tensors."""
        return {"images": self.images, "targets": self.targets, "gradient": self.gradient}


class Watch:
    """Hooks on the tensors of one update; `remove` takes them away again.

    Gradients of a scaled loss are divided by the scale where `watch_loss` has seen it.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._scale: Tensor | None = None

    def remove(self) -> None:
        """Remove the hooks that are still there, and forget the scale."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._scale = [], None

    def watch_loss(self, loss: Tensor) -> None:
        """Note by what the loss is multiplied before its backward pass: a scaler's factor, 1 / accumulated batches."""
        if loss.requires_grad and self._handles:
            self._handles.append(loss.register_hook(self.take_scale))

    def take_scale(self, scale: Tensor) -> None:
        """Set by what the loss is multiplied, one number; `watch_loss` sees it by itself."""
        self._scale = scale.detach().float().reshape(())

    def watch_images(self, leaf: Tensor, takers: Sequence[TakesGradient]) -> None:
        """Hand the gradient at the images to all `takers`; nothing stays in `leaf.grad`."""

        def hook(images: Tensor) -> None:
            gradient, images.grad = images.grad, None
            assert gradient is not None
            for take in takers:
                take(gradient)

        self._handles.append(leaf.register_post_accumulate_grad_hook(hook))

    def probe(self, model: nn.Module, took: TakesGradient) -> TakesGradient:
        """Hand `measure_probe` of this update to `took` once the gradients of parameters and images are there.

        Returns:
            The function to call with the gradient at the images.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        known: dict[str, Any] = {}

        def finish() -> None:
            if len(known) == 2:
                gradients, image_gradient = known.pop("gradients"), known.pop("images")
                owners = [own for one, own in zip(gradients, parameters, strict=True) if one is not None]
                with torch.no_grad():
                    # A loop may mix on the host, and move what it gets.
                    image_gradient = image_gradient.to(owners[0].device)
                    measured = measure_probe(image_gradient, [one for one in gradients if one is not None], owners)
                    if self._scale is not None:
                        scale = self._scale.to(measured.device)
                        measured = measured / torch.stack((torch.ones_like(scale), scale))
                took(measured)

        def of_parameters(gradients: Sequence[Tensor | None]) -> None:
            known["gradients"] = [None if one is None else one.detach() for one in gradients]
            finish()

        def of_images(gradient: Tensor) -> None:
            known["images"] = gradient
            finish()

        self._handles.append(register_multi_grad_hook(parameters, of_parameters))
        return of_images


class LoopGradients:
    """Gradients at clean images, which the loop's own backward pass gives to saliency methods and to the agent.

    Args:
        policies: policies that may be chosen.
        recycles: whether saliency methods mix a clean batch whose gradient was taken.
        probes: whether saliency and gradient are measured for an agent.
    """

    def __init__(self, policies: Sequence[MixPolicy], *, recycles: bool, probes: bool) -> None:
        self._recycles, self._probes = recycles, probes
        self.are_ever_read = any(map(self._reads, policies))
        """True if the gradient is read under any of the policies."""
        self.are_ever_recycled = any(map(self._reads_saliency, policies))
        """True if a saliency method may mix an earlier batch under any of them."""
        self.resting: RestingBatches[CleanBatch] = RestingBatches()
        """Clean batches whose saliency serves saliency methods to come."""
        self.watch = Watch()

    def takers(
        self,
        batch: CleanBatch,
        policy: MixPolicy,
        credit: Mapping[str, float],
        *,
        update: int,
        left: int,
        model: nn.Module | None,
        probed: TakesGradient,
    ) -> list[TakesGradient]:
        """Return what reads the gradient at the images of a clean update; hooks the parameters where needed.

        Args:
            batch: batch of the update, which is kept where a saliency method follows.
            policy: policy of the running segment.
            credit: `Interleaver.credit` after the update.
            update: number of the update, from 0.
            left: number of updates after it in the segment; below 0 after the end of the training.
            model: the network; None where it is not known.
            probed: takes the result of `measure_probe`.
        """
        takers: list[TakesGradient] = []
        if left < 0 or not self._reads(policy):
            return takers
        if self._recycles and saliency_follows(policy, credit, left):
            # Copies: the loader may write its next batch into the same memory, and views would be saved whole.
            kept = CleanBatch(batch.images.detach().clone(), batch.targets.detach().clone())
            self.resting.keep(update, kept)
            takers.append(kept.take)
        if self._probes and model is not None and is_among_last_clean(policy, credit, left, last=PROBES):
            takers.append(self.watch.probe(model, probed))
        return takers

    def forget(self, update: int) -> None:
        """Forget what is of no use from an update on: hooks of the one before, and batches that are too old."""
        self.watch.remove()
        self.resting.forget_stale(update)

    def give_rested(self, update: int, device: torch.device) -> CleanBatch | None:
        """Return a clean batch that has rested at an update, on a device; None where there is none with a gradient."""
        while (rested := self.resting.give(update)) is not None:
            if rested.gradient is not None:
                saliency = rested.gradient.to(device).float()
                return CleanBatch(rested.images.to(device), rested.targets.to(device), saliency)
        return None

    def _reads(self, policy: MixPolicy) -> bool:
        """Return whether the loop's gradient at clean images is read under a policy."""
        return self._reads_saliency(policy) or ("clean" in policy.shares and self._probes)

    def _reads_saliency(self, policy: MixPolicy) -> bool:
        saliency = any(METHODS[method].needs_gradient for method in policy.shares)
        return self._recycles and "clean" in policy.shares and saliency


def exact_gradient(
    model: nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor, *, evaluating: bool, seed: int
) -> Tensor:
    """Return the gradient of a loss at the images by a pass of its own; see `input_gradient`.

    Args:
        model: the network, whose gradients, running statistics and modes stay as they are.
        loss: maps logits to a scalar.
        images: `[B, C, H, W]`.
        evaluating: whether the pass is made in evaluation mode.
        seed: RNG seed for what layers such as dropout draw; the global generators stay as they are.
    """
    plain: Any = model
    while isinstance(plain, DistributedDataParallel) or hasattr(plain, "_orig_mod"):
        plain = plain.module if isinstance(plain, DistributedDataParallel) else plain._orig_mod
    modes = {module: module.training for module in plain.modules()}  # parts of it may be frozen
    cuda = [images.device] if images.device.type == "cuda" else []
    # Not compiled: it would be so once more for this pass.
    eager = torch.compiler.set_stance("force_eager") if is_compiled(plain) else nullcontext()
    if evaluating:
        plain.eval()
    try:
        with torch.random.fork_rng(devices=cuda), eager:
            torch.default_generator.manual_seed(seed)
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            return input_gradient(lambda leaf: loss(plain(leaf)), images, plain)
    finally:
        for module, training in modes.items():
            module.training = training


def why_no_gradient(error: Exception, images: Tensor, model: nn.Module) -> str:
    """Return why a network gives no gradient at the images, where `exact_gradient` failed with an error."""
    device = next((parameter.device for parameter in model.parameters()), images.device)
    if device != images.device:
        both = f"needs images and network on one device, got {images.device} and {device}"
        return f"which {both}; call mix after images.to(device)"
    told = str(error).partition("\n")[0]
    if isinstance(error, InputError):
        return f"but {told}"
    return (
        f"but the network's gradient at the images fails: {type(error).__name__}: {told:.100}; network(images) must "
        "work, no part of it under torch.no_grad, checkpoints with use_reentrant=False"
    )


def is_compiled(model: nn.Module) -> bool:
    """Return whether a network, or a part of it, is compiled, by `torch.compile(part)` or `part.compile()`."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())


def saliency_follows(policy: MixPolicy, credit: Mapping[str, float], left: int) -> bool:
    """Return whether a saliency method comes before the next clean update, or may come in the next segment.

    Args:
        policy: policy of the running segment.
        credit: `Interleaver.credit` after the present update.
        left: number of updates after it in the segment.
    """
    if not any(METHODS[method].needs_gradient for method in policy.shares):
        return False
    to_come = Interleaver(credit).ahead(policy.shares, left, clean=1)
    return "clean" not in to_come or any(METHODS[method].needs_gradient for method in to_come)


def is_among_last_clean(policy: MixPolicy, credit: Mapping[str, float], left: int, *, last: int) -> bool:
    """Return whether the present clean update is one of a segment's last clean ones; see `saliency_follows`."""
    return Interleaver(credit).ahead(policy.shares, left, clean=last).count("clean") < last
