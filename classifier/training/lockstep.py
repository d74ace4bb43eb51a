"""Lockstep: trainings of networks of one shape, each by its own policy, with one pass and one step for all of them.

A small network leaves a GPU idle: most of an update's time is spent on launching its operations. Here the networks'
operations are launched once for all (`torch.func.vmap`: convolutions become grouped ones), and so is the step of the
optimiser, over one matrix of all weights. Batches are drawn and mixed one by one, by the trainings themselves.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import deterministic_convolutions, send
from rlmix.classifier.mixing.methods import METHODS
from rlmix.classifier.mixing.policy import MixPolicy
from rlmix.classifier.mixing.targets import lamix_target, soft_cross_entropy
from rlmix.classifier.training.segment import MixedBatch, SegmentPlan
from rlmix.classifier.training.segment_sums import measure_update
from rlmix.classifier.training.stats import TrainStats
from rlmix.classifier.training.trainer import Trainer


class Lockstep:
    """Trains classifiers of one shape side by side, each with its own seed, images, labels, learning rate and policies.

    The trainers stay what they are: between segments each may be evaluated, reset, saved or trained by itself. Their
    weights are moved into memory that they share with each other. A training has the numbers that it has by itself, but
    for rounding: operations on several networks add up in another order.

    On a CPU this is slower than one by one (`experiments/benchmarks/lockstep_speed.py`).

    Attributes:
        trainers: the trainers, in order.

    Args:
        trainers: at least one, whose settings differ in length and learning rate alone.

    Raises:
        InputError: they differ in more, train in several processes or by another optimiser than SGD, or the networks
            have frozen parameters or draw random numbers, as dropout does.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.trainers = list(trainers)
        _require_alike(self.trainers)
        first = self.trainers[0]
        self._network = copy.deepcopy(first.model).train()
        parameters = dict(first.model.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        rows = [_flat(list(trainer.model.parameters())) for trainer in self.trainers]
        self._weights = torch.stack(rows)
        self._moments = torch.zeros_like(self._weights)
        states = [dict(trainer.model.named_buffers()) for trainer in self.trainers]
        self._buffers = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        self._require_steps()
        for row, (trainer, state) in enumerate(zip(self.trainers, states, strict=True)):
            for parameter, own in zip(trainer.model.parameters(), self._parts(self._weights[row]), strict=True):
                parameter.data = own
            for name, buffer in state.items():
                buffer.data = self._buffers[name][row]

    def train(
        self, policies: Sequence[MixPolicy | None], updates: Sequence[int], *, probe: bool = True
    ) -> list[TrainStats | None]:
        """Train a segment of each training; a shorter one ends earlier.

        Args:
            policies: mixing policy of each training; None leaves it as it is.
            updates: length of each segment, as for `Trainer.train`; not read where there is no policy.
            probe: whether saliency and gradient are measured at the last clean updates.

        Returns:
            Statistics of each segment, None without one. Their seconds are those of all together.

        Raises:
            ValueError: a segment leaves its training, the network or images do not fit a policy, or one mixes hidden
                states.
        """
        asked = list(zip(range(len(self.trainers)), policies, updates, strict=True))
        for _, policy, _ in asked:
            hidden = [method for method in (policy.shares if policy else ()) if METHODS[method].stage]
            if hidden:
                raise InputError(f"{hidden[0]} mixes hidden states, which trainings in lockstep cannot; choose another")
        plans = {
            row: self.trainers[row]._plan(policy, length, probe=probe)
            for row, policy, length in asked
            if policy is not None
        }
        for row in plans:
            self.trainers[row].model.train()
            self._take_moments(row)
        with deterministic_convolutions(self.trainers[0].device), warnings.catch_warnings():
            # The optimisers' steps are made here.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for step in range(max((len(plan.methods) for plan in plans.values()), default=0)):
                rows = [row for row, plan in plans.items() if step < len(plan.methods)]
                self._update(rows, [plans[row] for row in rows], step)
        for row in plans:
            self._give_moments(row)
        return [self.trainers[row]._read(plans[row]) if row in plans else None for row, _, _ in asked]

    def _update(self, rows: Sequence[int], plans: Sequence[SegmentPlan], step: int) -> None:
        """Make one update of some of the trainings."""
        trainers = [self.trainers[row] for row in rows]
        batches = [trainer._mix(plan, step) for trainer, plan in zip(trainers, plans, strict=True)]
        everybody = len(rows) == len(self.trainers)
        chosen = None if everybody else send(torch.tensor(rows), trainers[0].device)
        weights, moments = (_rows(whole, chosen) for whole in (self._weights, self._moments))
        buffers = {name: _rows(whole, chosen) for name, whole in self._buffers.items()}
        balance = [trainer.batches.class_weights for trainer in trainers]
        loss, stats = self._loss_and_stats(weights.requires_grad_(), buffers, batches, plans, balance)
        loss.backward()
        gradients = weights.grad
        assert gradients is not None
        measured = zip(trainers, plans, batches, stats.unbind(), gradients.unbind(), strict=True)
        for trainer, plan, batch, own_stats, gradient in measured:
            plan.sums.add(batch.method, own_stats)
            parameters = list(trainer.model.parameters()) if batch.probed else []
            for parameter, part in zip(parameters, self._parts(gradient) if batch.probed else [], strict=True):
                parameter.grad = part
            trainer._note_gradients(plan, batch)
            for parameter in parameters:
                parameter.grad = None
        _sgd(weights, moments, gradients, trainers)
        if chosen is not None:
            pairs = [(self._weights, weights), (self._moments, moments)]
            for whole, part in [*pairs, *((self._buffers[name], part) for name, part in buffers.items())]:
                whole.index_copy_(0, chosen, part.detach())
        for trainer in trainers:
            trainer._advance()

    def _logits(self, weights: Tensor, buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the logits `[E, B, 2K]` of each training's images `[E, B, C, H, W]`; changes buffers in place."""
        first = self.trainers[0]
        parameters = {
            name: part.view(len(images), *shape)
            for (name, shape), part in zip(self._shapes.items(), weights.split(self._sizes, dim=1), strict=True)
        }

        def logits_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            return functional_call(self._network, (parameters, buffers), (images,))

        with torch.autocast(
            first.device.type, dtype=torch.bfloat16, enabled=first.precision == "bf16", cache_enabled=False
        ):
            return vmap(logits_of)(parameters, buffers, images)

    def _loss_and_stats(
        self,
        weights: Tensor,
        buffers: dict[str, Tensor],
        batches: Sequence[MixedBatch],
        plans: Sequence[SegmentPlan],
        balance: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the trainings' losses, and each one's loss, target entropy and accuracy, `[E, 3]`."""
        images = torch.stack([batch.images for batch in batches])
        logits = self._logits(weights, buffers, images)
        count, size = images.shape[:2]
        local, global_logits = logits.float().flatten(0, 1).chunk(2, dim=1)  # [E B, K] each

        def for_each_image(values: Sequence[Tensor]) -> Tensor:
            """Return a value or row of each training for each of its images, `[E B, ...]`."""
            return torch.stack([value.view(-1) for value in values]).repeat_interleave(
                size, dim=0, output_size=count * size
            )

        targets = lamix_target(
            torch.stack([batch.targets for batch in batches]).flatten(0, 1),
            global_logits,
            for_each_image([plan.beta for plan in plans]),
            for_each_image([plan.attached for plan in plans]),
        )
        factors = [weight for weight in balance if weight is not None]
        losses = soft_cross_entropy(local, targets, for_each_image(factors) if factors else None)
        means = losses.view(count, size).mean(dim=1)
        shape = (count, size, -1)
        stats = vmap(measure_update)(means.detach(), local.detach().view(shape), targets.detach().view(shape))
        return means.sum(), stats

    def _require_steps(self) -> None:
        """Check that the networks can make a step together, on images of nothing.

        Raises:
            InputError: they draw random numbers, or have operations that only one network at a time can do.
        """
        first = self.trainers[0]
        shape = (len(self.trainers), 2, *first.data.train.image_shape)
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        try:
            with torch.no_grad():
                self._logits(self._weights, buffers, torch.zeros(shape, device=first.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            needed = f"that torch.func.vmap takes ({error!s:.200})"
            if "random operation" in str(error):
                needed = "without dropout and whatever else draws"
            raise InputError(f"trainings in lockstep need a network {needed}, got {first.config.model}") from None

    def _parts(self, row: Tensor) -> list[Tensor]:
        """Return views of a training's row of weights, or of what belongs to them, in the parameters' shapes."""
        return [part.view(shape) for part, shape in zip(row.split(self._sizes), self._shapes.values(), strict=True)]

    def _take_moments(self, row: int) -> None:
        """Read a training's momentum from its optimiser; none yet is 0, which has the same effect."""
        trainer = self.trainers[row]
        state = trainer.optimizer.state
        kept = [
            state[parameter].get("momentum_buffer") for parameter in trainer.model.parameters() if parameter in state
        ]
        there = [moment for moment in kept if moment is not None]
        if there:
            self._moments[row] = _flat(there)
        else:
            self._moments[row].zero_()

    def _give_moments(self, row: int) -> None:
        """Write a training's momentum into its optimiser, in memory of its own."""
        trainer = self.trainers[row]
        moments = self._parts(self._moments[row].clone())
        for parameter, moment in zip(trainer.model.parameters(), moments, strict=True):
            trainer.optimizer.state[parameter]["momentum_buffer"] = moment


def _sgd(weights: Tensor, moments: Tensor, gradients: Tensor, trainers: Sequence[Trainer]) -> None:
    """Make a step of `torch.optim.SGD` for each training, in place.

    Args:
        weights: `[E, T]`.
        moments: `[E, T]`, momentum.
        gradients: `[E, T]`.
        trainers: the trainings, whose optimisers say how.
    """
    groups = [trainer.optimizer.param_groups[0] for trainer in trainers]
    rates = torch.tensor([[group["lr"], group["momentum"]] for group in groups], dtype=weights.dtype)
    lr, momentum = send(rates, weights.device)[:, :, None].unbind(1)
    with torch.no_grad():
        gradients = gradients.add(weights, alpha=groups[0]["weight_decay"])
        moments.mul_(momentum).add_(gradients)
        step = gradients.addcmul(moments, momentum) if groups[0]["nesterov"] else moments
        weights.addcmul_(step, lr, value=-1)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the values of tensors in one row, `[T]`, in the order of their indices whatever their memory format."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _rows(whole: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the whole, detached but in the same memory, or a copy of the chosen rows."""
    return whole.detach() if chosen is None else whole.index_select(0, chosen)


def _require_alike(trainers: Sequence[Trainer]) -> None:
    if not trainers:
        raise InputError("expected trainers to train in lockstep, got none")
    first = trainers[0]
    for trainer in trainers:
        if replace(trainer.config, updates=first.config.updates, lr=first.config.lr) != first.config:
            raise InputError(
                f"trainings in lockstep may differ in updates and lr alone, got {first.config} and {trainer.config}"
            )
        shapes = [(*each.data.train.image_shape, each.num_classes) for each in (first, trainer)]
        if shapes[0] != shapes[1]:
            raise InputError(f"trainings in lockstep need images and classes alike, got {shapes[0]} and {shapes[1]}")
    if first.world > 1:
        raise InputError(f"trainings in lockstep need one process, got {first.world}")
    if first.config.optimizer != "sgd":
        raise InputError(f"trainings in lockstep need the optimiser sgd, got {first.config.optimizer}")
    frozen = [name for name, parameter in first.model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise InputError(
            f"trainings in lockstep need a network that is trained whole, got one whose {frozen[0]} is not"
        )
