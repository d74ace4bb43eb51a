"""RLMix: the learned policy, or a fixed one, inside a training loop of your own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import get_worker_info

from rlmix.agent import loop_measures
from rlmix.agent.agent import Agent, Allowed
from rlmix.agent.any_agent import AnyAgent
from rlmix.agent.decisions import Decision, choose_by, segments_of
from rlmix.agent.experience import Experience, Scale
from rlmix.agent.files import SHIPPED
from rlmix.agent.loop_checks import (
    as_colours,
    as_imbalance,
    as_logits,
    as_loss,
    as_pair,
    batch_targets,
    require_first_batch,
    require_module,
    require_optimizer,
    whole_number,
)
from rlmix.agent.loop_gradients import (
    CleanBatch,
    LoopGradients,
    TakesGradient,
    exact_gradient,
    is_compiled,
    why_no_gradient,
)
from rlmix.agent.loop_loss import LoopLoss
from rlmix.agent.loop_policy import LoopLimits, Policy, load_policy, policies_of, require
from rlmix.agent.loop_processes import average, from_first, processes
from rlmix.agent.rule import Rule
from rlmix.agent.scheduler import Choice, PolicyScheduler
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, Interleaver, MixPolicy, PolicySchedule
from rlmix.classifier.mixing.draw import seed_from
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.targets import smooth
from rlmix.classifier.training.draws import UpdateDraws
from rlmix.classifier.training.resting import RestingBatches
from rlmix.classifier.training.segment_sums import SegmentSums
from rlmix.classifier.training.stats import EvalStats
from rlmix.envs.observation import TrainingState, reads_validation
from rlmix.envs.tasks import Task
from rlmix.envs.training_state import Setting

STATE_VERSION = 1
EVALUATION = "call mix.eval() before validation, and mix.train() after it"
UNMIXED = MixPolicy({"clean": 1.0})
ENDLESS = 2**53  # updates of a training whose length does not matter


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
        policy: `"shipped"`, `"surrogate"` or `"rule"`, agents that come with the program; an agent's folder, a
            `policy.json` or `rule.json`, the name of a method (for `share` of the batches), or an `Agent`, `Rule`,
            `PolicySchedule` or `MixPolicy`.
        num_classes: number of classes K; 1 for a single yes-or-no output.
        total_updates: number of calls in the whole training, e.g. epochs times batches; needed unless one policy holds
            from start to end.
        train_size: number of training images; needed for an agent.
        imbalance: training images of the most frequent class over those of the rarest; optional, defaults to 1.
        share: share of the batches that a method given by its name mixes, in (0, 1]; optional, defaults to one half.
        optimizer: the loop's optimiser, from which an agent reads the learning rate; may be set later.
        loss: loss of `loss()`, `cross_entropy` or `binary_cross_entropy`; one output always takes the second.
        class_weights: `[K]`, factor of each class in `loss()`; optional, defaults to 1.
        saliency: gradient of the methods that mix by saliency. `recycled`: that of a clean batch 16 or more calls ago,
            taken from the loop's own backward pass; that batch, which is kept until then, is trained on once more,
            mixed, in place of the one that the loop gives. `exact`: a second pass for every such batch.
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
        imbalance: float = 1.0,
        share: float | None = None,
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
        self._experience: Experience | None = None
        if isinstance(policy, str | Path) and isinstance(self.source, AnyAgent):
            self._experience = Experience.load(policy)
        self._name = repr(str(policy)) if isinstance(policy, str | Path) else type(policy).__name__
        if saliency not in ("recycled", "exact"):
            raise InputError(f"saliency must be recycled or exact, got {saliency!r}")
        require_optimizer(optimizer)
        if isinstance(self.source, AnyAgent) and train_size is None:
            raise InputError("an agent looks at the number of training images; pass train_size=len(dataset)")
        if total_updates is None and (len(segments_of(self.source)) > 1 or isinstance(self.source, AnyAgent)):
            raise InputError("a policy that changes needs the length of the training; pass total_updates")
        self.num_classes, self.seed = whole_number("num_classes", num_classes), whole_number("seed", seed, least=0)
        self.optimizer = optimizer
        self.training = True
        self.mixup_enabled = True
        """False mixes nothing, as timm's scripts set it for the last epochs; labels still become targets."""
        self._loss = LoopLoss(loss, self.num_classes, class_weights)
        self._accumulate = whole_number("accumulate", accumulate)
        length, size = "; batches in the training, epochs * len(loader)", "; training images, len(dataset)"
        self._total = ENDLESS if total_updates is None else whole_number("total_updates", total_updates, advice=length)
        self._train_size = 1 if train_size is None else whole_number("train_size", train_size, advice=size)
        self._imbalance = as_imbalance(imbalance)
        self._setting: Setting | None = None  # from the first batch on
        self._colours = as_colours(mean, std)
        self._limits = LoopLimits(self._colours is not None)
        self._done = self._end = 0  # calls so far, and the call at which the running segment ends
        self.method = "clean"
        """Method of the last batch, a name of `METHODS`."""
        self._sums, self._started = SegmentSums(torch.device("cpu")), time.perf_counter()
        self._interleaver = Interleaver()
        agent = isinstance(self.source, AnyAgent)
        self._drawing = f"seed={self.seed}, saliency={saliency!r}"
        self._gradients = LoopGradients(policies_of(self.source), recycles=saliency == "recycled", probes=agent)
        self._observed: EvalStats | None = None
        self._highest_lr = 0.0
        self._said: list[str] = []
        self._batch_size = 0
        self._compiled: bool | None = None  # whether the network is, or a part of it; from the first batch on
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

    def __repr__(self) -> str:
        batches = f"batch {self._done:,}" + ("" if self._total == ENDLESS else f" of {self._total:,}")
        first = segments_of(self.source)[0] if isinstance(self.source, PolicySchedule) else 0.0
        holds = self.policy or (policies_of(self.source)[0] if first == 1 else "nothing chosen yet")
        states = {", in evaluation mode": not self.training, ", switched off": not self.mixup_enabled}
        now = "".join(text for text, so in states.items() if so)
        return f"RLMix({self._name}, {self.num_classes} classes, {batches}: {holds}{now})"

    @property
    def total_updates(self) -> int | None:
        """Number of calls in the whole training; None where it was not given."""
        return None if self._total == ENDLESS else self._total

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
        """Return whether the next call asks an agent that looks at validation: the best moment for `observe`."""
        begins = 0 < self._done == self._end < self._total
        if isinstance(self.source, Rule):  # looks once
            begins = begins and self.source.segment(self._done, self._total) == self.source.look
        return self._asks_for_validation and begins

    @property
    def may_return_earlier_batches(self) -> bool:
        """Return whether a call may mix a clean batch of before in place of its own, as recycled saliency does."""
        return self._gradients.are_ever_recycled

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
                `[B, 1]`, in [0, 1]. A list or array of such numbers will do.
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
        require_module(model)
        batch = CleanBatch(images, batch_targets(images, labels, self.num_classes))
        if model is not None and not model.training:
            self._say({"eval": f"the network is in evaluation mode: call its train() to train, or {EVALUATION}"})
        if not self._done:
            size = self._train_size if isinstance(self.source, AnyAgent) else None
            self._say(require_first_batch(batch.images, batch.targets, self._colours, train_size=size))
        self._gradients.forget(self._done)
        policy = self._current_policy(batch, model)
        self.method = self._interleaver.next(policy.shares) if self.mixup_enabled else "clean"
        reused = METHODS[self.method].needs_gradient
        if reused:
            batch = self._with_gradient(batch, model)
        draw = self._draws.draw(self._done, len(batch.images), images.device)
        mean, std = self._colours or (None, None)
        targets = smooth(batch.targets, policy.label_smoothing)
        mixed, targets = policy.mix(self.method, MixInput(batch.images, targets, batch.gradient, mean, std), draw)
        self._done += 1
        took: list[TakesGradient] = []
        if self.method == "clean":
            holds = policy if self.mixup_enabled else UNMIXED  # while off, no saliency method follows
            left, credit = self._end - self._done, self._interleaver.credit
            took = self._gradients.takers(
                batch, holds, credit, update=self._done - 1, left=left, model=model, probed=self._add_probe
            )
        if self._compiled is None and model is not None:
            self._compiled = is_compiled(model)
        # A compiled network would be compiled again where the images need a gradient now and then.
        if took or (self._compiled and self._gradients.are_ever_read):
            mixed = mixed.detach().requires_grad_()
        if took:
            self._gradients.watch.watch_images(mixed, took)
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
        logits, targets = as_pair(logits, targets, self.num_classes)
        value = self._loss.weighted(logits, targets)
        if self.training:
            if not torch.is_grad_enabled():
                self._say({"no_grad": f"a loss without gradients: {EVALUATION}"})
            self._note(logits, targets, value)
            self._gradients.watch.watch_loss(value)
        return value

    def note(
        self, logits: Tensor, targets: Tensor, loss: Tensor | None = None, *, scale: Tensor | float | None = None
    ) -> None:
        """Note a batch of training for the agent, where the loss is your own.

        The agent sees the norm of the loss's gradient. Where the loss is multiplied before its backward pass, by a
        `GradScaler` or by 1 over the accumulated batches, give it or its factor, or the norm is multiplied too.

        Args:
            logits: `[B, K]`, of any precision; with one output also `[B]`.
            targets: `[B, K]`, as the call returned them.
            loss: 0-d, your mean loss before it is multiplied; optional, defaults to one that never is.
            scale: factor by which it will be multiplied, where the loss is not at hand; optional, defaults to 1.

        Raises:
            InputError: nothing has been mixed yet, or an argument has another form.
        """
        if not self.training:
            return
        self._note(*as_pair(logits, targets, self.num_classes))
        if loss is not None:
            self._gradients.watch.watch_loss(as_loss(loss))
        if scale is not None:
            self._gradients.watch.take_scale(torch.as_tensor(scale))

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
        if logits is not None or labels is not None:
            if val_accuracy is not None:
                raise InputError("observe takes val_accuracy or logits and labels, got both; pass one of them")
            self._observed = loop_measures.evaluated(logits, labels, self.num_classes)
            return
        self._observed = loop_measures.stated(
            val_accuracy, val_loss, val_confidence, val_calibration_error, num_classes=self.num_classes
        )
        if self._asks_for_validation:
            calibration = {"confidence": val_confidence, "calibration error": val_calibration_error}
            self._say(loop_measures.not_given({"loss": val_loss, **calibration}))

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

        Each process of a distributed training has its own: one that resumes from another's leaves out the batches that
        were kept there for saliency.
        """
        return {
            "version": STATE_VERSION,
            "policy": self._identity(),
            "arguments": self._arguments(),
            "drawing": self._drawing,
            "process": list(processes()),
            "done": self._done,
            "end": self._end,
            "method": self.method,
            "batch_size": self._batch_size,
            "credit": dict(self._interleaver.credit),
            "sums": self._sums.state_dict(),
            "resting": [[update, batch.state_dict()] for update, batch in self._gradients.resting.entries],
            "observed": None if self._observed is None else asdict(self._observed),
            "highest_lr": self._highest_lr,
            "said": list(self._said),
            "allowed": None if self._allowed is None else [list(choices) for choices in self._allowed],
            "mixup_enabled": self.mixup_enabled,
            "setting": None if self._setting is None else asdict(self._setting),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`, made with the same arguments.

        Raises:
            InputError: the state is of another version or policy.
        """
        version = state.get("version") if isinstance(state, dict) else None
        if version != STATE_VERSION:
            raise InputError(f"expected what state_dict returned, of version {STATE_VERSION}, got one of {version}")
        if state["policy"] != self._identity():
            raise InputError("the state is of a training under another policy; make RLMix with that of before")
        if state["arguments"] != self._arguments():
            raise InputError(f"the state is of {state['arguments']}, got {self._arguments()}; pass the same")
        drawing = state.get("drawing", self._drawing)  # older states do not have it
        if drawing != self._drawing:
            raise InputError(f"the state is of {drawing}, got {self._drawing}; pass the same")
        self._done, self._end, self.method = state["done"], state["end"], state["method"]
        self._interleaver = Interleaver(state["credit"])
        self._observed = None if state["observed"] is None else EvalStats(**state["observed"])
        self._highest_lr, self._said = state["highest_lr"], list(state["said"])
        self._gradients.resting = RestingBatches()
        own, resting = list(processes()), state.get("resting", ())  # older states do not have it
        before = state.get("process", own)  # nor this
        if resting and before != own:
            which = "process {} of {} resumes from the state of process {} of {}".format(*own, *before)
            rest = "batches kept for saliency are left out, and some second passes come in their place"
            self._say({"process": f"{which}: {rest}; save each process's own state"})
            resting = ()
        for update, kept in resting:
            self._gradients.resting.keep(update, CleanBatch(**kept))
        self.mixup_enabled = state["mixup_enabled"]
        self._scheduler, self._allowed = None, state["allowed"]
        setting = state.get("setting")  # older states do not have it
        self._setting = None if setting is None else Setting(**setting)
        self._sums = SegmentSums(torch.device("cpu"))
        self._sums.load_state_dict(state["sums"])
        if state["scheduler"] is not None:
            self._begin(state["batch_size"], relative_lr=0.0)  # the state has it
            assert self._scheduler is not None
            self._scheduler.load_state_dict(state["scheduler"])

    def _note(self, logits: Tensor, targets: Tensor, loss: Tensor | None = None) -> None:
        if not self._done:
            raise InputError("nothing has been mixed yet; call images, targets = mix(images, labels) before the loss")
        self._sums = self._sums.to(logits.device)  # which need not be that of the images
        if self.method == "clean" or isinstance(self.source, AnyAgent):
            self._sums.add(self.method, self._loss.measured(logits, targets, loss))
        else:
            self._sums.counts[self.method] += 1  # nobody looks at the others

    def _add_probe(self, measured: Tensor) -> None:
        self._sums = self._sums.to(measured.device)
        self._sums.add_probe(measured)

    def _begin(self, batch_size: int, *, relative_lr: float) -> None:
        """Start a training with batches of `batch_size` images."""
        state = self._state_at_start(batch_size, relative_lr=relative_lr)
        self._rank, self._world = processes()
        self._batch_size = batch_size
        self._draws = UpdateDraws(self.seed, rank=self._rank, world=self._world)
        self._ask = choose_by(self.source, self._allowed, self._total)
        self._scheduler = PolicyScheduler(self._decide, segments_of(self.source), state, updates=self._total)

    def _state_at_start(self, batch_size: int, *, relative_lr: float) -> TrainingState:
        steps, (_, world) = self._accumulate if isinstance(self.source, AnyAgent) else 1, processes()
        return TrainingState(
            task=Task(self._train_size, max(self._total // steps, 1), label_noise=0.0, data_seed=0),
            num_classes=max(self.num_classes, 2),
            batch_size=batch_size * world * steps,
            progress=self._done / self._total,
            relative_lr=relative_lr,
            setting=self._setting,
        )

    def _current_policy(self, batch: CleanBatch, model: nn.Module | None) -> MixPolicy:
        """Return the policy of the next update; the agent is asked where a segment begins."""
        images = batch.images
        if self._scheduler is None:
            if self._experience is not None and (remark := self._experience.remark(self._scale(images))):
                self._say({"experience": remark})
            if isinstance(self.source, AnyAgent):
                self._setting = loop_measures.setting_of(images, model, self._imbalance)
                self._say(loop_measures.not_shown(model, self.source.features))
            source = self.source
            if isinstance(source, Rule):
                source = source.within_reach(self._state_at_start(len(images), relative_lr=0.0))
            limits = self._limits_at(batch, model, policies_of(source))
            if isinstance(source, Agent):
                self._allowed, reasons = limits.allowed(source.menu)
                self._say({reason: f"left out of the agent's choices: {reason}" for reason in reasons})
            else:
                for policy in policies_of(source):
                    require(limits.why_not(policy))
            self._begin(len(images), relative_lr=self._relative_lr())
        scheduler = self._scheduler
        assert scheduler is not None
        if images.device.type != "cpu":  # sums stay on the accelerator where a loop mixes before it moves the batch
            self._sums = self._sums.to(images.device)
        if self._colours is not None:  # copied once
            self._colours = (self._colours[0].to(images.device), self._colours[1].to(images.device))
        if self._done >= self._total:
            counts = f"total_updates={self._total:,}, which counts batches, epochs * len(loader)"
            self._say({"over": f"the training is longer than {counts}; the last policy stays"})
            return scheduler.chosen[-1][1]
        if scheduler.policy is not None and self._done == self._end:
            self._end_segment(scheduler)
        if scheduler.policy is None:
            scheduler.start_segment(self._done)
            self._end = scheduler.end(self._done)
        assert scheduler.policy is not None
        return scheduler.policy

    def _limits_at(self, batch: CleanBatch, model: nn.Module | None, policies: Sequence[MixPolicy]) -> LoopLimits:
        """Return the limits that the first batch shows; the gradient at the images is tried where it may be needed."""
        limits = self._limits.at(batch.images, model)
        possible = {name for policy in policies if limits.why_not(policy) is None for name in policy.shares}
        reading = [METHODS[name] for name in possible if METHODS[name].needs_gradient]
        if model is None or not reading:
            return limits
        try:
            self._exact_gradient(batch, model, evaluating=all(method.gradient_in_eval for method in reading))
        except torch.OutOfMemoryError:  # says nothing about the network
            raise
        except Exception as error:  # the network is not ours, and may raise anything
            return replace(limits, no_gradient=why_no_gradient(error, batch.images, model))
        return limits

    def _end_segment(self, scheduler: PolicyScheduler) -> None:
        if isinstance(self.source, AnyAgent):
            self._say(loop_measures.not_noted(self._sums.counts.total(), calls=self._done - self.choices[-1].update))
        average(self._sums.tensors, self._world)
        images = self._sums.counts.total() * self._batch_size * self._world
        scheduler.add(self._sums.read(images=images, started=self._started))
        progress = self._done / self._total
        scheduler.end_segment(progress=progress, relative_lr=self._relative_lr(), evaluation=self._observed)
        self._sums, self._started = SegmentSums(self._sums.tensors[0].device), time.perf_counter()

    def _decide(self, state: TrainingState) -> Decision:
        """Ask the schedule or the agent; in a distributed training the first process decides for all."""
        decision: Decision | None = None
        if self._rank == 0:
            if missing := self._missing(state):
                self._say(loop_measures.not_told(missing, self._done))
                assert self._scheduler is not None and self.policy is not None
                decision = Decision(self.policy, state.action, self._scheduler.probabilities[-1])
            else:
                decision = self._ask(state)
        if self._world > 1:
            decision = from_first(decision)
        assert decision is not None
        return decision

    def _scale(self, images: Tensor) -> Scale:
        """Return the size of the training of which this is the first batch."""
        state = self._state_at_start(len(images), relative_lr=0.0)
        task, side = state.task, min(images.shape[-2:])
        return Scale(task.train_size, task.updates, state.batch_size, state.num_classes, side)

    def _missing(self, state: TrainingState) -> str | None:
        """Return what was not given and without which the choice at a state is not possible, or None."""
        if isinstance(self.source, Rule):
            looks = self.source.segment(self._done, self._total) >= self.source.look
            return self.source.lacks(state) if looks and self.source.seen(state, self._total) is None else None
        waits = self._asks_for_validation and state.segment is not None and state.evaluation is None
        return "validation" if waits else None

    @property
    def _asks_for_validation(self) -> bool:
        return isinstance(self.source, AnyAgent) and reads_validation(self.source.features)

    def _relative_lr(self) -> float:
        """Return the learning rate of the next update over the highest one."""
        if not isinstance(self.source, AnyAgent) or "relative_lr" not in self.source.features:
            return 0.0
        if self.optimizer is None:
            self._say({"lr": "the learning rate is not known: taken to follow one cycle; pass optimizer="})
            return loop_measures.one_cycle(self._done / self._total)
        rate, highest = loop_measures.learning_rates(self.optimizer)
        self._highest_lr = max(self._highest_lr, highest)
        return rate / self._highest_lr if self._highest_lr else 0.0

    def _with_gradient(self, batch: CleanBatch, model: nn.Module | None) -> CleanBatch:
        """Return a clean batch that has rested, whose gradient is there, or this one with that of a second pass."""
        rested = self._gradients.give_rested(self._done, batch.images.device)
        if rested is not None:
            return rested
        if model is None:
            raise InputError(f"{self.method} needs the network's gradient; call mix(images, labels, model)")
        batch.gradient = self._exact_gradient(batch, model, evaluating=METHODS[self.method].gradient_in_eval)
        return batch

    def _exact_gradient(self, batch: CleanBatch, model: nn.Module, *, evaluating: bool) -> Tensor:
        """Return the gradient at a batch's images by a pass of its own; what layers draw follows from the seed."""
        rank, _ = processes()
        return exact_gradient(
            model,
            lambda logits: self._loss.plain(as_logits(logits, self.num_classes), batch.targets),
            batch.images,
            evaluating=evaluating,
            seed=seed_from(self.seed, self._done, rank),
        )

    def _identity(self) -> str:
        return self.source.checksum if isinstance(self.source, AnyAgent) else str(self.source.to_json()["segments"])

    def _arguments(self) -> str:
        sizes = f"num_classes={self.num_classes}, total_updates={self._total}, train_size={self._train_size}"
        return f"{sizes}, accumulate={self._accumulate}"

    def _say(self, told: Mapping[str, str]) -> None:
        """Warn once in a training, of each key."""
        for key, text in told.items():
            if key not in self._said:
                self._said.append(key)
                warnings.warn(f"RLMix: {text}", stacklevel=3)
