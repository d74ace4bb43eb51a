"""The Trainer: updates, evaluation and state of one training.

Everything random is a pure function of (seed, number of the update), so that a training needs no generator's state to
be resumed; `BatchSource` draws it. Nothing is copied from the device before a segment of training ends.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rlmix.classifier.data import ImageFiles, Splits, evaluation_chunks, normalise
from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import deterministic_convolutions, resolve_device, resolve_precision, why_not_compile
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.manifold import mixed_stage
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.methods import METHODS
from rlmix.classifier.mixing.policy import Interleaver, MixPolicy
from rlmix.classifier.mixing.saliency import input_gradient
from rlmix.classifier.mixing.targets import lamix_target, one_hot, smooth, soft_cross_entropy
from rlmix.classifier.models import attach_label_head, build_model, hidden_stages, without_label_head
from rlmix.classifier.training.batches import Batch, BatchSource, RestingBatch, recycled_updates
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.draws import stream_seed
from rlmix.classifier.training.optimisers import LR_SCHEDULES, OPTIMISERS, load_optimiser, restart_optimiser, scale_lr
from rlmix.classifier.training.resting import RestingBatches
from rlmix.classifier.training.segment import MixedBatch, SegmentPlan
from rlmix.classifier.training.segment_sums import PROBES, SegmentSums, measure_probe, measure_update
from rlmix.classifier.training.stats import CALIBRATION_BINS, EvalStats, TrainStats, evaluation_sums

EVALUATION_BATCH = 500  # images; where it is compiled all have one shape, so that it is compiled once


class Trainer:
    """Trains one classifier on one data set, segment by segment, each under its own `MixPolicy`.

    Args:
        config: setting of the training.
        data: the images; copied to the device.
        seed: RNG seed for weights, data order and every other draw.
        distributed: train with all processes of `torch.distributed`'s default group, each on its slice of every batch.
            The batches are those of one process, gradients and sums are averaged, partners to mix with come from the
            slice, and batch statistics are the slice's. All processes make the same calls.

    Raises:
        ValueError: the network does not fit the images, the setting is out of range, or the batch size is not divisible
            by the number of processes.
    """

    def __init__(self, config: TrainConfig, data: Splits, *, seed: int = 0, distributed: bool = False) -> None:
        if distributed and config.compile == "on":
            raise InputError("compile must be off where several processes train one network, got on")
        self.config = config
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.num_classes = data.num_classes
        self.data = data.to(self.device)
        self.batches = self._batch_source(seed)
        with torch.random.fork_rng(devices=[]):  # the weights are drawn by `reset`
            self.model, self.head_layer = self._new_model()
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self._network = DistributedDataParallel(self.model) if distributed else self.model
        self.optimizer = OPTIMISERS[config.optimizer](self.model, config)
        self._training_loss, self._evaluation_sums = self._loss_and_stats, self._batch_sums
        if config.compile == "on":
            self._compile()
        # For pictures; of the training before, after a reset.
        self.last_mixed: tuple[Tensor, Tensor] | None = None
        self.last_mixed_policy: MixPolicy | None = None
        self.updates_done = 0
        self._fresh_batches = 0
        self._resting: RestingBatches[RestingBatch] = RestingBatches()
        self._interleaver = Interleaver()
        self._lr_schedule = self._new_lr_schedule()
        self._random_state = torch.get_rng_state()  # of layers that draw
        self._device_random_state: Tensor | None = None  # likewise, on a GPU
        self.reset(seed)

    def reset(
        self, seed: int, *, data: Splits | None = None, updates: int | None = None, lr: float | None = None
    ) -> None:
        """Start a new training: new weights, in place, so that nothing is compiled again.

        Args:
            seed: RNG seed for weights, data order and every other draw.
            data: other images of the same shape and classes; optional, defaults to those of before.
            updates: length of the new training; optional, defaults to that of before.
            lr: highest learning rate; optional, defaults to that of before.
        """
        if updates is not None:
            self.config = replace(self.config, updates=updates)
        if lr is not None:
            self.config = replace(self.config, lr=lr)
        if data is None:
            self.batches.reset(seed)
        else:
            self.data = data.to(self.device)
            self.batches = self._batch_source(seed)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the CUDA generators too, for everybody.
            torch.default_generator.manual_seed(stream_seed(seed, "data", -1))
            self.model.load_state_dict(self._new_model()[0].state_dict())
            if self.rank:  # the weights are everybody's, what layers draw is not
                torch.default_generator.manual_seed(stream_seed(seed, "data", -1) + self.rank)
            self._random_state = torch.get_rng_state()
        if self.device.type == "cuda":
            drawing = torch.Generator(self.device).manual_seed(stream_seed(seed, "data", -1) + self.rank)
            self._device_random_state = drawing.get_state()
        restart_optimiser(self.optimizer, self.config)
        self._lr_schedule = self._new_lr_schedule()
        self.updates_done = self._fresh_batches = 0
        self._resting = RestingBatches()
        self._interleaver = Interleaver()

    @property
    def seed(self) -> int:
        """RNG seed of this training."""
        return self.batches.seed

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return self.updates_done / self.config.updates

    @property
    def relative_lr(self) -> float:
        """Learning rate of the next update over the highest one."""
        return self.optimizer.param_groups[0]["lr"] / self.config.lr if self.config.lr else 0.0

    def train(self, policy: MixPolicy, updates: int, *, probe: bool = True, ahead: int = 0) -> TrainStats:
        """Train a segment under one policy, or a part of it.

        Parts of a segment have the weights and, merged, the statistics of the whole.

        Args:
            policy: mixing policy of the segment.
            updates: number of updates, at least 1 and not past the end of the training.
            probe: whether saliency and gradient are measured at the segment's last clean updates.
            ahead: number of updates of the same segment that later calls train.

        Raises:
            ValueError: the segment leaves the training, or the network or images do not fit the policy.
        """
        plan = self._plan(policy, updates, probe=probe, ahead=ahead)
        self.model.train()
        with self._reproducibly():
            for step in range(updates):
                mixed = self._mix(plan, step)
                measure = self._mixed_loss(mixed.method, policy, mixed.draw)
                loss, stats, _ = measure(mixed.images, mixed.targets, plan.beta, plan.attached)
                loss.backward()
                plan.sums.add(mixed.method, stats)
                self._note_gradients(plan, mixed)
                self._end_update()
        return self._read(plan)

    def _plan(self, policy: MixPolicy, updates: int, *, probe: bool, ahead: int = 0) -> SegmentPlan:
        """Return the plan of a segment or a part of it; arguments and errors are those of `train`."""
        left = self.config.updates - self.updates_done
        if not 1 <= updates <= left:
            raise ValueError(f"updates must be in [1, {left}], what is left of {self.config.updates}, got {updates}")
        self.check(policy)
        started = time.perf_counter()
        methods = [self._interleaver.next(policy.shares) for _ in range(updates)]
        known = methods + self._interleaver.ahead(policy.shares, ahead, clean=PROBES)
        clean = [step for step, method in enumerate(known) if method == "clean"]
        recycled = recycled_updates(known, policy)[:updates]
        return SegmentPlan(
            policy,
            methods,
            probes=set(clean[-PROBES:]) if probe else set(),
            # The input gradient of these clean updates serves saliency updates to come, on the same batches.
            recycled=recycled if self.config.saliency == "recycled" else [False] * updates,
            beta=torch.full((), policy.label_beta, device=self.device),
            attached=torch.full((), 0.0 if policy.label_detach else 1.0, device=self.device),
            sums=SegmentSums(self.device),
            started=started,
        )

    def _mix(self, plan: SegmentPlan, step: int) -> MixedBatch:
        """Return the mixed batch of a segment's update."""
        method, policy = plan.methods[step], plan.policy
        batch = self._next_batch(method)
        draw = self.batches.draw(self.updates_done)
        targets = smooth(one_hot(self.batches.labels(batch), self.num_classes), policy.label_smoothing)
        given = MixInput(batch.images, targets, batch.gradient, self.batches.mean, self.batches.std)
        images, targets = policy.mix(method, given, draw)
        if method != "clean":
            self.last_mixed, self.last_mixed_policy = (images, targets), policy
        probed, recycled = step in plan.probes, plan.recycled[step]
        leaf = images.detach().requires_grad_(probed or recycled)
        return MixedBatch(method, batch, draw, leaf, targets, probed, recycled)

    def _note_gradients(self, plan: SegmentPlan, mixed: MixedBatch) -> None:
        """Keep and measure an update's gradients where that is wanted, once they have been taken."""
        if mixed.recycled or mixed.probed:
            mixed.batch.gradient = mixed.images.grad
        self._resting.forget_stale(self.updates_done)
        if mixed.recycled:
            self._resting.keep(self.updates_done, RestingBatch.of(mixed.batch))
        if mixed.probed:
            assert mixed.batch.gradient is not None
            plan.sums.add_probe(measure_probe(mixed.batch.gradient, *self._gradients()))

    def _read(self, plan: SegmentPlan) -> TrainStats:
        """Copy a segment's sums to the host and return its statistics."""
        self._average(*plan.sums.tensors)
        weights = [parameter.detach() for parameter in self.model.parameters()]
        return plan.sums.read(
            images=len(plan.methods) * self.config.batch_size,
            started=plan.started,
            # The largest weight: a sum of squares could overflow although every weight is finite.
            largest=nn.utils.get_total_norm(weights, math.inf),
        )

    def _end_update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._advance()

    def _advance(self) -> None:
        self._lr_schedule.step()
        self.updates_done += 1
        if self.updates_done == self.config.updates:
            self.batches.end_readers()

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate of all updates to come, until a reset; `state_dict` keeps it.

        Args:
            factor: above 0.
        """
        scale_lr(self.optimizer, self._lr_schedule, factor)

    def check(self, policy: MixPolicy) -> None:
        """Raise for a policy that this network or these images cannot be trained under.

        Raises:
            ValueError: it mixes hidden states of a network whose stages are not known, has no grid for images of this
                size, or needs a library that is not installed.
        """
        sizes = [(side, side) for _, side in self.config.image_sizes]
        if not sizes or not isinstance(self.data.train, ImageFiles):  # images in memory keep their size
            sizes = [self.data.train.image_shape[1:]]
        for method in policy.shares:
            if (fits := METHODS[method].fits) is not None:
                for height, width in sizes:
                    fits(height, width)
            if (library := METHODS[method].library) is not None:
                try:
                    library()
                except ImportError as error:
                    raise InputError(str(error)) from None
        if any(METHODS[method].stage for method in policy.shares):
            hidden_stages(self.model)

    def evaluate(self, split: str, *, limit: int | None = None) -> EvalStats:
        """Measure the network on `train`, `validation`, `development` or `test`; see `evaluate_classes`."""
        return self.evaluate_classes(split, limit=limit)[0]

    def evaluate_classes(self, split: str, *, limit: int | None = None) -> tuple[EvalStats, Tensor]:
        """Measure the network on `train`, `validation`, `development` or `test`, without augmentation.

        Args:
            split: name of the split; measure `test` only once, at the very end.
            limit: number of images, from the start of the split; None for all.

        Returns:
            The measures, and the confusion matrix `[K, K]` int64, on the device: numbers of images by true class (row)
            and answer (column).

        Raises:
            ValueError: the split is not known or empty, or the limit is below 1.
        """
        if split not in ("train", "validation", "development", "test"):
            raise ValueError(f"split must be train, validation, development or test, got {split!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 image, or None for all, got {limit}")
        part = getattr(self.data, split)
        count = len(part) if limit is None else min(limit, len(part))
        if not count:
            raise ValueError(f"expected images in the {split} split, got none; choose another split, or give it some")
        sums = torch.zeros(3, device=self.device)
        bins = torch.zeros(2, CALIBRATION_BINS, device=self.device)
        confusion = torch.zeros(self.num_classes**2, device=self.device, dtype=torch.float64)
        self.model.eval()
        if self.world > 1:
            for buffer in self.model.buffers():  # each process has statistics of its own
                dist.broadcast(buffer, 0)
        with torch.no_grad():
            chunks = evaluation_chunks(
                part, count=count, batch_size=EVALUATION_BATCH, device=self.device, workers=self.config.readers
            )
            for number, (chunk, answers) in enumerate(chunks):
                if number % self.world != self.rank:
                    continue
                missing = EVALUATION_BATCH - len(answers) if self.config.compile == "on" else 0
                weight = torch.ones(len(answers) + missing, device=self.device)
                if missing:
                    weight[len(answers) :] = 0
                    chunk = torch.cat((chunk, chunk[:1].expand(missing, -1, -1, -1)))
                    answers = torch.cat((answers, answers[:1].expand(missing)))
                chunk_sums, chunk_bins, answered = self._evaluation_sums(
                    normalise(chunk, self.batches.mean, self.batches.std).contiguous(memory_format=torch.channels_last),
                    answers,
                    weight,
                )
                sums += chunk_sums
                bins += chunk_bins
                confusion.index_add_(0, answers * self.num_classes + answered, weight.double())
        self._average(sums, bins, confusion)
        sums, bins = sums * self.world, bins * self.world
        cells = (confusion * self.world).round().long().view(self.num_classes, self.num_classes)
        return EvalStats.from_sums(sums, bins, count), cells

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed training needs to end as an uninterrupted one, bit for bit."""
        own = self._own_state()
        processes: list[Any] = [own]
        if self.world > 1:
            processes = [None] * self.world
            dist.all_gather_object(processes, own)
        return {
            "processes": processes,
            "seed": self.seed,
            "updates": self.config.updates,
            "updates_done": self.updates_done,
            "fresh_batches": self._fresh_batches,
            "credit": self._interleaver.credit,
            # Copies: training changes the network and the optimiser in place.
            "model": {name: tensor.clone() for name, tensor in self.model.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "lr_schedule": self._lr_schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`, with the same config and data.

        Raises:
            ValueError: the state is that of another network or length.
        """
        if state["updates"] != self.config.updates:
            raise ValueError(f"expected a state of {self.config.updates} updates, got one of {state['updates']}")
        if len(state["processes"]) != self.world:
            raise ValueError(f"expected a state of {self.world} processes, got one of {len(state['processes'])}")
        own = state["processes"][self.rank]
        self.reset(state["seed"])
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"expected a state of {self.config.model}, got one of another network ({error})") from None
        load_optimiser(self.optimizer, state["optimizer"])
        self._lr_schedule.load_state_dict(state["lr_schedule"])
        self.updates_done = state["updates_done"]
        self._fresh_batches = state["fresh_batches"]
        self._interleaver = Interleaver(state["credit"])
        self._random_state = own["random_state"]
        if self._device_random_state is not None:  # that of `reset` stays for a state from a CPU
            self._device_random_state = own.get("device_random", self._device_random_state)
        for update, batch in own.get("resting", ()):  # states of older versions have none
            self._resting.keep(update, RestingBatch.from_state(batch, self.device))

    def _own_state(self) -> dict[str, Any]:
        """Return the part of the state that each process has for itself."""
        resting = [[update, batch.state()] for update, batch in self._resting.entries]
        state = {"resting": resting, "random_state": self._random_state}
        return state if self._device_random_state is None else state | {"device_random": self._device_random_state}

    def network_state(self) -> dict[str, Tensor]:
        """Return the weights of the network as its author wrote it, without the global-label head."""
        return without_label_head(dict(self.model.state_dict()), self.head_layer)

    def _new_model(self) -> tuple[nn.Module, str]:
        channels, height, width = shape = self.data.train.image_shape
        model = build_model(
            self.config.model, num_classes=self.num_classes, in_channels=channels, image_size=(height, width)
        )
        layer = attach_label_head(
            model, num_classes=self.num_classes, image_shape=shape, embedding=self.config.embedding
        )
        return model, layer

    def _new_lr_schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        with warnings.catch_warnings():
            # The optimiser has made steps in the training that this one replaces.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            return LR_SCHEDULES[self.config.lr_schedule](self.optimizer, self.config)

    def _compile(self) -> None:
        reason = why_not_compile(self.device)
        if reason:
            warnings.warn(f"{reason}; training eagerly, which is slower", stacklevel=3)
            return
        self._training_loss = torch.compile(self._loss_and_stats, dynamic=False)
        self._evaluation_sums = torch.compile(self._batch_sums, dynamic=False)

    def _logits(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return local and global logits, `[B, K]` float32 each, of images `[B, C, H, W]`."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits = network(images)
        local, global_logits = logits.float().chunk(2, dim=1)
        return local, global_logits

    def _loss_and_stats(
        self, images: Tensor, targets: Tensor, beta: Tensor, attached: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss (LaMix, eq. 11); detached, (loss, target entropy, accuracy) `[3]`; logits `[B, K]`."""
        local, global_logits = self._logits(self._network, images)
        target = lamix_target(targets, global_logits, beta, attached)
        loss = soft_cross_entropy(local, target, self.batches.class_weights).mean()
        seen = local.detach()
        return loss, measure_update(loss, seen, target.detach()), seen

    def _batch_sums(self, images: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `evaluation_sums` of images `[B, C, H, W]`."""
        local, _ = self._logits(self.model, images)
        return evaluation_sums(local, labels, weight)

    def _mixed_loss(
        self, method: str, policy: MixPolicy, draw: MixDraw
    ) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """Return the training loss; it mixes hidden states of the network where the method does."""
        drawn = METHODS[method].stage
        if (number := drawn(draw.choice) if drawn else 0) == 0:
            return self._training_loss
        stage = hidden_stages(self.model)[number - 1]

        def loss(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            # Eager: torch.compile would compile again each time that the hook is added or removed.
            with mixed_stage(stage, partner=draw.partner, lam=policy.lam.quantile(draw.lam_quantile)):
                return self._loss_and_stats(*arguments)

        return loss

    def _next_batch(self, method: str) -> Batch:
        """Return a clean batch that has rested if the method can use one, else a fresh one, with gradient if needed."""
        needs_gradient = METHODS[method].needs_gradient
        if needs_gradient and (rested := self._resting.give(self.updates_done)) is not None:
            return self.batches.seen_anew(rested, self.updates_done)
        batch = self._fresh_batch()
        if needs_gradient:
            self._take_gradient(batch, method)
        return batch

    def _take_gradient(self, batch: Batch, method: str) -> None:
        """Set a batch's input gradient and logits by a pass of their own, in the mode that the method needs."""
        targets = one_hot(self.batches.labels(batch), self.num_classes)
        one = torch.ones((), device=self.device)

        def loss(leaf: Tensor) -> Tensor:
            value, _, batch.logits = self._training_loss(leaf, targets, one, one)
            return value

        self.model.train(not METHODS[method].gradient_in_eval)
        with self._unsynchronised():
            batch.gradient = input_gradient(loss, batch.images, self.model)
        self.model.train()

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Return a context without synchronisation: no gradient of the parameters is computed inside."""
        return self._network.no_sync() if isinstance(self._network, DistributedDataParallel) else nullcontext()

    def _average(self, *tensors: Tensor) -> None:
        """Replace tensors by their mean over all processes, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world

    def _fresh_batch(self) -> Batch:
        sides = [side for until, side in self.config.image_sizes if self.progress < until]
        batch = self.batches.batch(self._fresh_batches, side=sides[0] if sides else None)
        self._fresh_batches += 1
        return batch

    def _batch_source(self, seed: int) -> BatchSource:
        return BatchSource(self.config, self.data, seed=seed, device=self.device, rank=self.rank, world=self.world)

    def _gradients(self) -> tuple[list[Tensor], list[nn.Parameter]]:
        """Return the gradients that there are, and their parameters."""
        pairs = [(each.grad, each) for each in self.model.parameters() if each.grad is not None]
        return [gradient for gradient, _ in pairs], [parameter for _, parameter in pairs]

    @contextmanager
    def _reproducibly(self) -> Iterator[None]:
        """Take deterministic algorithms and this training's own random state, as layers such as dropout draw.

        The global states are restored.
        """
        drawing = [self.device] if self._device_random_state is not None else []
        with torch.random.fork_rng(devices=drawing), deterministic_convolutions(self.device):
            torch.set_rng_state(self._random_state)
            if self._device_random_state is not None:
                torch.cuda.set_rng_state(self._device_random_state, self.device)
            yield
            self._random_state = torch.get_rng_state()
            if self._device_random_state is not None:
                self._device_random_state = torch.cuda.get_rng_state(self.device)
