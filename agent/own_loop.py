"""RLMix: the learned policy, or a fixed one, inside a training loop of your own."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.utils.data import get_worker_info

from rlmix.agent.agent import Agent, Allowed
from rlmix.agent.decisions import Decision, choose_by, segments_of
from rlmix.agent.files import SHIPPED
from rlmix.agent.loop_gradients import (
    CleanBatch,
    TakesGradient,
    Watch,
    exact_gradient,
    is_among_last_clean,
    saliency_follows,
)
from rlmix.agent.loop_measures import as_columns, evaluated, learning_rates, measured, not_given, one_cycle, stated
from rlmix.agent.loop_policy import LoopLimits, Policy, load_policy, policies_of, require
from rlmix.agent.scheduler import Choice, PolicyScheduler
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, Interleaver, MixPolicy, PolicySchedule
from rlmix.classifier.mixing.batch import require_float
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.targets import as_targets, smooth, soft_binary_cross_entropy, soft_cross_entropy
from rlmix.classifier.training.draws import UpdateDraws
from rlmix.classifier.training.segment_sums import PROBES, SegmentSums
from rlmix.classifier.training.stats import EvalStats
from rlmix.envs.observation import TrainingState
from rlmix.envs.tasks import Task

STATE_VERSION = 1
ENDLESS = 2**53  # updates of a training whose length does not matter
LOSSES = {"cross_entropy": soft_cross_entropy, "binary_cross_entropy": soft_binary_cross_entropy}


class RLMix:
    """Mixes the batches of your own training loop, and chooses how while it trains.

    ```python
    mix = RLMix(num_classes=10, total_updates=epochs * len(loader), train_size=len(dataset), optimizer=optimizer)
    for images, labels in loader:
        images, targets = mix(images, labels, model)
        logits = model(images)
        loss = mix.loss(logits, targets)
    ```

    It stands after the loader, on the device of the network: a worker process could not see the agent's choices. One
    call is one batch of training. What the caller cannot give counts as not measured, and a warning says so once.
    Everything random is a function of (seed, number of the call), as in the project's own training.

    Args:
        policy: `"shipped"` or `"surrogate"`, agents that come with the program; an agent's folder, a `policy.json`, the
            name of a method (for `share` of the batches), or an `Agent`, `PolicySchedule` or `MixPolicy`.
        num_classes: number of classes K; 1 for a single yes-or-no output.
        total_updates: number of calls in the whole training, e.g. epochs times batches; needed unless one policy holds
            from start to end.
        train_size: number of training images; needed for an agent.
        share: share of the batches that a method given by its name mixes, in (0, 1].
        optimizer: the loop's optimiser, from which an agent reads the learning rate; may be set later.
        loss: loss of `loss()`, `cross_entropy` or `binary_cross_entropy`; one output always takes the second.
        class_weights: `[K]`, factor of each class in `loss()`; optional, defaults to 1.
        saliency: gradient of the methods that mix by saliency. `recycled`: that of the clean batch before, taken from
            the loop's own backward pass; that batch is then trained on once more, mixed, in place of the one that the
            loop gives. `exact`: a second pass for every such batch.
        accumulate: calls per step of the optimiser, where gradients are accumulated.
        mean: mean of each colour in [0, 1] that the images are normalised by; needed by Puzzle Mix and SaliencyMix.
        std: standard deviation of each colour; likewise.
        seed: RNG seed for mixing.

    Raises:
        InputError: an argument is missing or out of range, or the policy cannot be used in a loop of one's own.
    """

    def __init__(
        self,
        policy: Policy = SHIPPED,
        *,
        num_classes: int,
        total_updates: int | None = None,
        train_size: int | None = None,
        share: float = 0.5,
        optimizer: Optimizer | None = None,
        loss: str = "cross_entropy",
        class_weights: Tensor | None = None,
        saliency: str = "recycled",
        accumulate: int = 1,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
    ) -> None:
        self.source = load_policy(policy, share=share)
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {num_classes}")
        if loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if saliency not in ("recycled", "exact"):
            raise InputError(f"saliency must be recycled or exact, got {saliency!r}")
        for name, number in (("total_updates", total_updates), ("train_size", train_size), ("accumulate", accumulate)):
            if number is not None and number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        if isinstance(self.source, Agent) and train_size is None:
            raise InputError("an agent looks at the number of training images; pass train_size=len(dataset)")
        if total_updates is None and len(segments_of(self.source)) > 1:
            raise InputError("a policy that changes needs the length of the training; pass total_updates")
        self.num_classes, self.optimizer, self.seed = num_classes, optimizer, seed
        self.training = True
        self.mixup_enabled = True
        """False mixes nothing, as timm's scripts set it for the last epochs; labels still become targets."""
        self._loss = LOSSES["binary_cross_entropy" if num_classes == 1 else loss]
        self._class_weights = class_weights
        self._recycles, self._accumulate = saliency == "recycled", accumulate
        self._total, self._train_size = total_updates or ENDLESS, train_size or 1
        self._colours = None if mean is None or std is None else (torch.tensor(mean), torch.tensor(std))
        self._limits = LoopLimits(self._colours is not None)
        self._done = self._end = 0  # calls so far, and the call at which the running segment ends
        self.method = "clean"
        """Method of the last batch, a name of `METHODS`."""
        self._sums, self._started = SegmentSums(torch.device("cpu")), time.perf_counter()
        self._interleaver = Interleaver()
        self._kept: CleanBatch | None = None  # a clean batch whose gradient serves a saliency method to come
        self._watch = Watch()
        self._observed: EvalStats | None = None
        self._highest_lr = 0.0
        self._said: list[str] = []
        self._batch_size = 0
        self._allowed: Allowed | None = None
        self._scheduler: PolicyScheduler | None = None  # from the first batch on
        if isinstance(self.source, PolicySchedule):
            for one in policies_of(self.source):
                require(self._limits.why_not(one))

    def train(self, mode: bool = True) -> RLMix:
        """Mix, or with False return every batch as it came."""
        self.training = mode
        return self

    def eval(self) -> RLMix:
        """Return every batch as it came, from now on."""
        return self.train(False)

    @property
    def policy(self) -> MixPolicy | None:
        """Policy of the last batch; None before the first."""
        return None if self._scheduler is None or not self._scheduler.chosen else self._scheduler.chosen[-1][1]

    @property
    def choices(self) -> list[Choice]:
        """The policies that were chosen so far."""
        return [] if self._scheduler is None else self._scheduler.choices

    @property
    def due(self) -> bool:
        """Return whether the next call asks the agent: the best moment for `observe`."""
        return isinstance(self.source, Agent) and 0 < self._done == self._end < self._total

    @property
    def clean_accuracy(self) -> float | None:
        """Training accuracy on the unmixed batches noted since the last choice, in [0, 1]; None without one.

        That on mixed batches is no accuracy: two classes are in every image. Reading it waits for the device.
        """
        return self._sums.clean_accuracy()

    def scalars(self) -> dict[str, float]:
        """Return what holds now, by name, for any logger: each method's share, and the label smoothing."""
        if self._scheduler is None or self.policy is None:
            return {}
        methods = dict.fromkeys(method for _, policy in self._scheduler.chosen for method in policy.shares)
        shares = {f"rlmix/{method}": self.policy.shares.get(method, 0.0) for method in methods}
        return {**shares, "rlmix/label_smoothing": self.policy.label_smoothing}

    def __call__(self, images: Tensor, labels: Tensor, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Mix a batch of training.

        Args:
            images: `[B, C, H, W]`, floating point, as the network sees them (normalised or not); left unchanged.
            labels: `[B]`, whole numbers; or targets `[B, K]`, one-hot, multi-hot or soft. With one output `[B]` or
                `[B, 1]`, in [0, 1].
            model: the network; without it, methods that mix by saliency are left out.

        Returns:
            Images `[B, C, H, W]` and targets `[B, K]`, float32. In evaluation mode, both as they came.

        Raises:
            InputError: the batch has another form, or a method lacks what it needs.
        """
        if not self.training:
            return images, labels
        if get_worker_info() is not None:
            raise InputError("a loader's worker cannot see what is decided; call mix after the loader, in the loop")
        require_float(images)
        if images.ndim != 4 or len(images) != len(labels):
            raise InputError(
                "expected images [B, C, H, W] and as many labels, "
                f"got images {tuple(images.shape)} and labels {tuple(labels.shape)}"
            )
        self._watch.remove()
        batch = CleanBatch(images, as_targets(labels, self.num_classes))
        policy = self._current_policy(images, model)
        self.method = self._interleaver.next(policy.shares) if self.mixup_enabled else "clean"
        reused = METHODS[self.method].needs_gradient
        if reused:
            batch = self._with_gradient(batch, model)
        draw = self._draws.draw(self._done, len(batch.images), images.device)
        mean, std = (None, None) if self._colours is None else (part.to(images.device) for part in self._colours)
        targets = smooth(batch.targets, policy.label_smoothing)
        mixed, targets = policy.mix(self.method, MixInput(batch.images, targets, batch.gradient, mean, std), draw)
        self._done += 1
        took = self._takers(policy, batch, model)
        # A compiled network would be compiled again where the images need a gradient now and then.
        if took or (hasattr(model, "_orig_mod") and any(map(self._reads_gradients, policies_of(self.source)))):
            mixed = mixed.detach().requires_grad_()
        if took:
            self._watch.watch_images(mixed, took)
        return mixed, targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, and note it for the agent.

        Class weights, and the smoothing that the policy has put into the targets, are in it: use neither twice.

        Args:
            logits: `[B, K]`, of any precision; with one output also `[B]`.
            targets: `[B, K]`, as the call returned them; whole numbers `[B]` too.

        Returns:
            0-d, in nats.
        """
        logits, targets = as_columns(logits, self.num_classes), as_targets(targets, self.num_classes)
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(logits.device)
        value = self._loss(logits, targets, self._class_weights).mean()
        if self.training:
            self.note(logits, targets)
            self._watch.watch_loss(value)
        return value

    def note(self, logits: Tensor, targets: Tensor) -> None:
        """Note a batch of training for the agent, where the loss is your own.

        Args:
            logits: `[B, K]`, of any precision; with one output also `[B]`.
            targets: `[B, K]`, as the call returned them.
        """
        if not self.training:
            return
        targets = as_targets(targets, self.num_classes)
        if self.num_classes > 1 and self._loss is soft_binary_cross_entropy:
            targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1e-6)  # rows may hold several classes
        self._sums.add(self.method, measured(as_columns(logits, self.num_classes), targets))

    def observe(
        self,
        *,
        val_accuracy: float | None = None,
        val_loss: float | None = None,
        val_confidence: float | None = None,
        val_calibration_error: float | None = None,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Tell the agent how the network does on validation images; it looks at the newest values when it chooses.

        Either all validation logits with their labels, or numbers; of these, the accuracy is needed. What is missing is
        taken to be that of a calibrated network of this accuracy.

        Args:
            val_accuracy: top-1 accuracy, in [0, 1].
            val_loss: mean cross-entropy, in nats.
            val_confidence: mean largest probability, in [0, 1].
            val_calibration_error: expected calibration error, in [0, 1].
            logits: `[N, K]`.
            labels: `[N]`, whole numbers.

        Raises:
            InputError: neither is given, or a value is out of range.
        """
        if logits is not None and labels is not None:
            self._observed = evaluated(logits, labels, self.num_classes)
            return
        self._observed = stated(
            val_accuracy, val_loss, val_confidence, val_calibration_error, num_classes=self.num_classes
        )
        if missing := not_given(loss=val_loss, confidence=val_confidence, calibration_error=val_calibration_error):
            self._say("validation", missing)

    def schedule(self) -> PolicySchedule:
        """Return what was chosen so far as a schedule; the last policy holds to the end.

        Raises:
            InputError: nothing has been chosen yet.
        """
        if self._scheduler is None or not self._scheduler.chosen:
            raise InputError("nothing has been chosen yet: the first policy is chosen at the first batch")
        return self._scheduler.schedule()

    def save(self, path: str | Path) -> None:
        """Write the schedule of `schedule()` to a JSON file, which `RLMix(path)` replays without an agent."""
        self.schedule().save(path)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed training needs, as plain values and tensors.

        Each process of a distributed training has its own.
        """
        return {
            "version": STATE_VERSION,
            "policy": self._identity(),
            "arguments": self._arguments(),
            "done": self._done,
            "end": self._end,
            "method": self.method,
            "batch_size": self._batch_size,
            "credit": dict(self._interleaver.credit),
            "sums": self._sums.state_dict(),
            "kept": None if self._kept is None else self._kept.state_dict(),
            "observed": None if self._observed is None else asdict(self._observed),
            "highest_lr": self._highest_lr,
            "said": list(self._said),
            "allowed": None if self._allowed is None else [list(choices) for choices in self._allowed],
            "mixup_enabled": self.mixup_enabled,
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`, made with the same arguments.

        Raises:
            InputError: the state is of another version or policy.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"expected a state of version {STATE_VERSION}, got {state.get('version')!r}")
        if state["policy"] != self._identity():
            raise InputError("the state is of a training under another policy; make RLMix with that of before")
        if state["arguments"] != self._arguments():
            raise InputError(f"the state is of {state['arguments']}, got {self._arguments()}; pass the same")
        self._done, self._end, self.method = state["done"], state["end"], state["method"]
        self._interleaver = Interleaver(state["credit"])
        kept = state["kept"]
        self._kept = None if kept is None else CleanBatch(kept["images"], kept["targets"], kept["gradient"])
        self._observed = None if state["observed"] is None else EvalStats(**state["observed"])
        self._highest_lr, self._said = state["highest_lr"], list(state["said"])
        self.mixup_enabled = state["mixup_enabled"]
        self._scheduler, self._allowed = None, state["allowed"]
        self._sums = SegmentSums(torch.device("cpu"))
        self._sums.load_state_dict(state["sums"])
        if state["scheduler"] is not None:
            self._begin(state["batch_size"], relative_lr=0.0)  # the state has it
            assert self._scheduler is not None
            self._scheduler.load_state_dict(state["scheduler"])

    def _begin(self, batch_size: int, *, relative_lr: float) -> None:
        """Start a training with batches of `batch_size` images."""
        together = distributed.is_available() and distributed.is_initialized()
        self._rank = distributed.get_rank() if together else 0
        self._world = distributed.get_world_size() if together else 1
        self._batch_size = batch_size
        self._draws = UpdateDraws(self.seed, rank=self._rank, world=self._world)
        self._ask = choose_by(self.source, self._allowed)
        steps = self._accumulate if isinstance(self.source, Agent) else 1
        state = TrainingState(
            task=Task(self._train_size, max(self._total // steps, 1), label_noise=0.0, data_seed=0),
            num_classes=max(self.num_classes, 2),
            batch_size=batch_size * self._world * steps,
            progress=self._done / self._total,
            relative_lr=relative_lr,
        )
        self._scheduler = PolicyScheduler(self._decide, segments_of(self.source), state, updates=self._total)

    def _current_policy(self, images: Tensor, model: nn.Module | None) -> MixPolicy:
        """Return the policy of the next update; the agent is asked where a segment begins."""
        if self._scheduler is None:
            limits = self._limits.at(images, model)
            if isinstance(self.source, Agent):
                self._allowed, reasons = limits.allowed(self.source.menu)
                for reason in reasons:
                    self._say(reason, f"left out of the agent's choices: {reason}")
            else:
                for policy in policies_of(self.source):
                    require(limits.why_not(policy))
            self._begin(len(images), relative_lr=self._relative_lr())
        scheduler = self._scheduler
        assert scheduler is not None
        self._sums = self._sums.to(images.device)
        if self._done >= self._total:
            self._say("over", f"the training is longer than total_updates={self._total:,}; the last policy stays")
            return scheduler.chosen[-1][1]
        if scheduler.policy is not None and self._done == self._end:
            self._end_segment(scheduler)
        if scheduler.policy is None:
            scheduler.start_segment(self._done)
            self._end = scheduler.end(self._done)
        assert scheduler.policy is not None
        return scheduler.policy

    def _end_segment(self, scheduler: PolicyScheduler) -> None:
        if isinstance(self.source, Agent) and not self._sums.counts:
            self._say("loss", "no training loss was noted, so the agent does not see it; call mix.loss or mix.note")
        if self._world > 1:
            for tensor in self._sums.tensors:
                distributed.all_reduce(tensor)
                tensor /= self._world
        images = self._sums.counts.total() * self._batch_size * self._world
        scheduler.add(self._sums.read(images=images, started=self._started))
        progress = self._done / self._total
        scheduler.end_segment(progress=progress, relative_lr=self._relative_lr(), evaluation=self._observed)
        self._sums, self._started = SegmentSums(self._sums.tensors[0].device), time.perf_counter()

    def _decide(self, state: TrainingState) -> Decision:
        """Ask the schedule or the agent; in a distributed training the first process decides for all."""
        decision: Decision | None = None
        if self._rank == 0:
            unseen = isinstance(self.source, Agent) and state.segment is not None and state.evaluation is None
            if unseen:
                text = f"no validation was given before the choice at batch {self._done}, so the one before holds"
                self._say("observe", f"{text}; call mix.observe sooner, at the latest where mix.due is true")
                assert self._scheduler is not None and self.policy is not None
                decision = Decision(self.policy, state.action, self._scheduler.probabilities[-1])
            else:
                decision = self._ask(state)
        if self._world > 1:
            shared = [None if decision is None else (decision.policy.to_json(), *decision[1:])]
            distributed.broadcast_object_list(shared, 0)
            assert shared[0] is not None
            decision = Decision(MixPolicy.from_json(shared[0][0]), *shared[0][1:])
        assert decision is not None
        return decision

    def _relative_lr(self) -> float:
        """Return the learning rate of the next update over the highest one."""
        if not isinstance(self.source, Agent):
            return 0.0
        if self.optimizer is None:
            self._say("lr", "the learning rate is not known: taken to follow one cycle; pass optimizer=")
            return one_cycle(self._done / self._total)
        rate, highest = learning_rates(self.optimizer)
        self._highest_lr = max(self._highest_lr, highest)
        return rate / self._highest_lr if self._highest_lr else 0.0

    def _reads_gradients(self, policy: MixPolicy) -> bool:
        """Return whether the loop's gradient at clean images is read under a policy."""
        saliency = self._recycles and any(METHODS[method].needs_gradient for method in policy.shares)
        return "clean" in policy.shares and (saliency or isinstance(self.source, Agent))

    def _takers(self, policy: MixPolicy, batch: CleanBatch, model: nn.Module | None) -> list[TakesGradient]:
        """Return what reads the gradient at the images of the present update; hooks the parameters where needed."""
        if self.method != "clean" or self._done > self._end or not self._reads_gradients(policy):
            if self.method == "clean":
                self._kept = None  # the gradient of an earlier batch is stale
            return []
        left = self._end - self._done
        takers: list[TakesGradient] = []
        self._kept = None
        if self._recycles and saliency_follows(policy, self._interleaver.credit, left):
            self._kept = batch
            takers.append(batch.take)
        if isinstance(self.source, Agent) and model is not None:
            if is_among_last_clean(policy, self._interleaver.credit, left, last=PROBES):
                takers.append(self._watch.probe(model, self._sums.add_probe))
        return takers

    def _with_gradient(self, batch: CleanBatch, model: nn.Module | None) -> CleanBatch:
        """Return the clean batch before, whose gradient is there, or this one with the gradient of a second pass."""
        kept, self._kept = self._kept, None
        if kept is not None and kept.gradient is not None:
            device = batch.images.device
            return CleanBatch(*(one.to(device) for one in (kept.images, kept.targets, kept.gradient)))
        if model is None:
            raise InputError(f"{self.method} needs the network's gradient; call mix(images, labels, model)")
        batch.gradient = exact_gradient(
            model,
            lambda logits: self._loss(as_columns(logits, self.num_classes), batch.targets).mean(),
            batch.images,
            evaluating=METHODS[self.method].gradient_in_eval,
        )
        return batch

    def _identity(self) -> str:
        return self.source.checksum if isinstance(self.source, Agent) else str(self.source.to_json()["segments"])

    def _arguments(self) -> str:
        sizes = f"num_classes={self.num_classes}, total_updates={self._total}, train_size={self._train_size}"
        return f"{sizes}, accumulate={self._accumulate}"

    def _say(self, key: str, text: str) -> None:
        """Warn once in a training."""
        if key not in self._said:
            self._said.append(key)
            warnings.warn(f"RLMix: {text}", stacklevel=3)
