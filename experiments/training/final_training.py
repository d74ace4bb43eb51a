"""Final training of a classifier under a schedule or an agent: resumable, logged to TensorBoard, tested once."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

from safetensors.torch import save
from torch import Tensor, distributed
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from rlmix.agent.decisions import NOTHING_MIXED, PolicyFn, agent_mixed_nothing
from rlmix.agent.scheduler import PolicyScheduler
from rlmix.agent.tags import Layout, Tag, multiline
from rlmix.classifier.data import Splits
from rlmix.classifier.evaluation import check_labels
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import set_threads
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.mixing.picture import mixed_picture
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Task
from rlmix.envs.observation import TrainingState
from rlmix.envs.task_trainer import VALIDATION_LIMIT
from rlmix.experiments.reports import REPORT_FILE, describe_rollback
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder, stop_file
from rlmix.experiments.runs.signals import StopSignal
from rlmix.experiments.training.by_class import by_class, confusion_figure, write_confusion
from rlmix.experiments.training.config import FinalConfig

CHUNK = 20  # updates between two checks of clock and signals
METHOD_RUN = "policy_"  # start of the name of each method's TensorBoard run, which shows its share


class DivergedError(Exception):
    """Divergence of a training; the message says what was not finite, and when."""


def train_to_the_end(
    config: FinalConfig,
    run: RunFolder | None,
    data: Splits,
    choose: PolicyFn,
    segments: Sequence[float],
    name: str,
    *,
    labels_checked: bool = False,
    distributed: bool = False,
) -> dict[str, Any]:
    """Train to the end, from a checkpoint if there is one; keep the best network, read the test set once, and report.

    Args:
        config: configuration with nothing left to `auto`.
        run: run folder; None in every distributed process but the first.
        data: images of the training.
        choose: function that returns each segment's policy.
        segments: progress at which each segment ends.
        name: name of the policy, for the report.
        labels_checked: whether the policy sees signs of wrong training labels.
        distributed: train with all processes of `torch.distributed`'s default group.

    Returns:
        The content of `summary.json`.
    """
    set_threads(config.threads, stored=True)
    trainer = Trainer(config.train, data, seed=config.seed, distributed=distributed)
    training = FinalTraining(config, run, trainer, choose, segments, labels_checked=labels_checked)
    if run is not None:
        print(
            f"{describe(config, data)}{f', {trainer.world} processes' if distributed else ''}\nunder: {name}",
            flush=True,
        )
    training.run()
    return finish(config, run, training, name)


def describe(config: FinalConfig, data: Splits) -> str:
    """Return one line about a training's images and setting."""
    train = config.train
    return (
        f"{data.name}: {len(data.train):,} training images ({len(data.validation):,} for validation, "
        f"{len(data.development):,} for development), {train.updates:,} updates of {train.batch_size}, "
        f"network {train.model!r} in {train.precision} on {train.device}{', compiled' if train.compile == 'on' else ''}"
    )


def finish(
    config: FinalConfig, run: RunFolder | None, training: FinalTraining, name: str, **facts: Any
) -> dict[str, Any]:
    """Keep the best network of a training at its end, read the test set once, and report.

    Args:
        config: configuration with nothing left to `auto`.
        run: run folder; None in every distributed process but the first.
        training: the training.
        name: name of the policy, for the report.
        facts: further entries of `summary.json`.

    Returns:
        The content of `summary.json`.
    """
    trainer, train, data = training.trainer, config.train, training.trainer.data
    schedule = training.scheduler.schedule()
    trainer.model.load_state_dict(training.best_network)
    test, confusion = trainer.evaluate_classes("test")  # the one time that it is read
    confusions, development = {"test": confusion}, None
    if len(data.development):
        development, confusions["development"] = trainer.evaluate_classes("development")
    classes = by_class(confusions, data.class_names)
    summary = {
        "trained_under": name,
        "schedule": schedule.to_json(),
        "kept": {"progress": training.best_progress, "selected_by": training.selected_by},
        "validation": None if config.train_on_validation else asdict(training.best_validation),
        "development": None if development is None else asdict(development),
        "test": asdict(test),
        "images_trained": train.updates * train.batch_size,
        "went_back": training.went_back,
        "seconds_this_time": round(training.seconds, 1),
        "by_class": classes,
        **facts,
    }
    if run is None:
        return summary
    weights = {key: tensor.contiguous().cpu() for key, tensor in trainer.network_state().items()}
    # One entry alone: safetensors writes several in no fixed order, and equal trainings should give equal files.
    metadata = {"trained": f"{train.model} on {data.name}"}
    write_atomic(run.path / "model.safetensors", save(weights, metadata=metadata))
    write_confusion(run.path, confusion, data.class_names)
    with SummaryWriter(str(run.events), purge_step=train.updates + 1) as writer:
        writer.add_figure(Tag.CONFUSION, confusion_figure(confusion, data.class_names), train.updates + 1)
    run.write_json("summary.json", summary)
    if not (run.path / "policy.json").exists():  # a schedule that was replayed is there from the start
        schedule.save(run.path / "policy.json")
    from rlmix.experiments.reports.training_page import write_training_report  # takes seconds to import

    write_training_report(run.path, data, trainer.model, trainer.device)
    notes = [] if training.went_back is None else [describe_rollback(training.went_back)]
    if agent_mixed_nothing(schedule):
        notes.append(NOTHING_MIXED)
    said = "".join(f"{note}\n" for note in notes)
    print(
        f"\ntest accuracy {100 * test.accuracy:.2f} % on {test.images:,} images (balanced over the classes "
        f"{100 * classes['test']['balanced_accuracy']:.2f} %, calibration error "
        f"{100 * test.calibration_error:.2f} %), network of {100 * training.best_progress:.0f} % progress, "
        f"{training.selected_by}\n"
        f"{said}written: {run.path}/model.safetensors, policy.json, summary.json, {REPORT_FILE}\n"
        f"watch: tensorboard --logdir {run.events}"
    )
    return summary


def layout(*, validated: bool) -> Layout:
    """Return TensorBoard's custom scalars: charts side by side, by category.

    Args:
        validated: whether there is a validation accuracy to show.
    """
    accuracy = {"validation accuracy": multiline(Tag.ACCURACY)} if validated else {}
    measures = {
        "validation loss": multiline(Tag.VALIDATION_LOSS),
        "validation calibration error": multiline(Tag.CALIBRATION_ERROR),
    }
    return {
        "Policy, accuracy and loss over the training": {
            "policy: share of the updates": multiline(Tag.METHOD_SHARE),
            **accuracy,
            "training loss, clean and mixed": multiline(Tag.CLEAN_LOSS, Tag.MIXED_LOSS),
            "policy: label β and smoothing": multiline(Tag.LABEL_BETA, Tag.LABEL_SMOOTHING),
            "training accuracy, clean and mixed": multiline(Tag.CLEAN_ACCURACY, Tag.MIXED_ACCURACY),
            "learning rate": multiline(Tag.LEARNING_RATE),
        },
        "Further measures": {
            **(measures if validated else {}),
            "images per second": multiline(Tag.IMAGES_PER_SECOND),
        },
    }


class FinalTraining:
    """Long training in chunks of a few updates, with evaluations, checkpoints and TensorBoard between them.

    The first time that it diverges, it is rolled back to its last good state, that of the last evaluation or the start,
    and resumed with half the learning rate. That state does not depend on when checkpoints are made, and each of them
    has it, so that resumed and uninterrupted trainings are rolled back to the same state.

    Args:
        config: configuration with nothing left to `auto`.
        run: run folder for checkpoints and events; its newest checkpoint is resumed. None in every distributed process
            but the first, which shares what it reads.
        trainer: Trainer at the start of its training.
        choose: function that returns each segment's policy.
        segments: progress at which each segment ends.
        labels_checked: whether signs of wrong training labels are measured after each segment, for an agent.
        start: checkpoint to resume; optional, defaults to the folder's newest.
    """

    def __init__(
        self,
        config: FinalConfig,
        run: RunFolder | None,
        trainer: Trainer,
        choose: PolicyFn,
        segments: Sequence[float],
        *,
        labels_checked: bool = False,
        start: dict[str, Any] | None = None,
    ) -> None:
        self._labels_checked = labels_checked
        self._config, self._run, self._trainer = config, run, trainer
        total = config.train.updates
        self._evaluation_ends = {
            round((number + 1) / config.evaluations * total) for number in range(config.evaluations)
        }
        task = Task(len(trainer.data.train), total, config.data.label_noise, config.data_seed)
        state = TrainingState.at_start(trainer, task)
        self.scheduler = PolicyScheduler(choose, segments, state, updates=total)
        self.best_network: dict[str, Tensor] = {}
        self.best_progress = 0.0
        self.best_validation = EvalStats(0.0, 0.0, 0.0, 0.0, 0)
        self.selected_by = "the last one" if config.train_on_validation else "best on validation"
        self.seconds = 0.0
        self.went_back: dict[str, Any] | None = None
        checkpoint = self._broadcast(start if start is not None or run is None else run.load_checkpoint())
        if checkpoint is not None:
            with reject_incompatible("the checkpoint" if run is None else run.checkpoints):
                self._restore(checkpoint)
                best = checkpoint["best"]
                self.best_network, self.best_progress = best["network"], best["progress"]
                self.best_validation = EvalStats(**best["validation"])
                self.went_back = checkpoint.get("went_back")
        # State to roll back to: that of the last evaluation or the start, which do not depend on the clock. The best
        # network cannot change in between. None after a rollback, and where `run` is not called.
        self._good: dict[str, Any] | None = (checkpoint or {}).get("good")
        self._started_at = trainer.updates_done

    @property
    def trainer(self) -> Trainer:
        """Trainer of the training."""
        return self._trainer

    def train_segment(self, events: SummaryWriter | Events, after_chunk: Callable[[], None] = lambda: None) -> None:
        """Train to the end of the next segment, or of the running one; nothing is rolled back.

        Args:
            events: writer of TensorBoard's events.
            after_chunk: called every few updates, in a state that `checkpoint` can keep; optional.

        Raises:
            DivergedError: the training diverged.
        """
        end = self.scheduler.end(self._trainer.updates_done)
        if self.scheduler.policy is None:
            self._start_segment(events)
        with tqdm(disable=True) as bar:
            while self._trainer.updates_done < end:
                self._train_chunk(events, bar)
                after_chunk()

    def run(self) -> None:
        """Train to the end; roll back to the last good state, with half the learning rate, if it diverges once.

        Raises:
            RunError: the training diverged twice.
            KeyboardInterrupt: after saving.
        """
        started = time.monotonic()
        if self._good is None and self.went_back is None:
            self._good = self._progress()
        with (
            # Distributed processes are not in their main threads, and all have to stop at the same update.
            StopSignal() if self._trainer.world == 1 else nullcontext() as stop,
            tqdm(
                total=self._config.train.updates,
                initial=self._trainer.updates_done,
                desc="training",
                unit="update",
                mininterval=0.5 if sys.stderr.isatty() else 20,
                disable=self._run is None,
            ) as bar,
        ):
            while self._trainer.updates_done < self._config.train.updates:
                try:
                    self._train(stop, bar)
                except DivergedError as error:
                    self._roll_back(str(error), bar)
            self._save()
        self.seconds = time.monotonic() - started

    def _train(self, stop: StopSignal | None, bar: tqdm[Any]) -> None:
        """Train from the present state to the end, with new TensorBoard writers."""
        saved = time.monotonic()
        with (
            nullcontext(Events()) if self._run is None else self._writer(self._run) as writer,
            ExitStack() as self._method_runs,
        ):
            self._methods: dict[str, SummaryWriter] = {}
            if self._run is not None:
                # Also those of an interrupted run, so that what it wrote after its checkpoint is not shown.
                for folder in sorted(self._run.events.glob(f"{METHOD_RUN}*")):
                    self._open_method(self._run, folder.name.removeprefix(METHOD_RUN))
            writer.add_custom_scalars(layout(validated=not self._config.train_on_validation))
            while self._trainer.updates_done < self._config.train.updates:
                if self.scheduler.policy is None:
                    self._start_segment(writer)
                self._train_chunk(writer, bar)
                due = time.monotonic() - saved >= self._config.checkpoint_seconds
                stopped, due = self._broadcast((self._stop_requested(stop), due))
                if stopped or due:
                    self._save()
                    saved = time.monotonic()
                if stopped:
                    raise KeyboardInterrupt

    def _roll_back(self, reason: str, bar: tqdm[Any]) -> None:
        """Return to the last good state and halve the learning rate.

        All distributed processes do so at the same update, since their losses and weights are the same.

        Raises:
            RunError: it has been rolled back before.
        """
        if self._good is None:
            first = self.went_back
            assert first is not None
            raise RunError(
                f"the training diverged twice: {first['reason']}, then, from update {first['to_update']} on with half "
                f"the learning rate, {reason}; start again with an --lr lower than {first['lr']:g}"
            )
        diverged_at = self._trainer.updates_done
        self._restore(self._good)
        self._good = None
        self._trainer.scale_lr(0.5)
        self._started_at = self._trainer.updates_done
        self.went_back = {
            "from_update": diverged_at,
            "to_update": self._started_at,
            "reason": reason,
            "lr": self._config.train.lr / 2,
        }
        bar.update(self._started_at - bar.n)
        if self._run is not None:
            tqdm.write(f"warning: {describe_rollback(self.went_back)}", file=sys.stderr)

    def _stop_requested(self, stop: StopSignal | None) -> bool:
        """Return whether to stop: after a signal, or in the first distributed process if there is a stop file."""
        return stop.asked if stop is not None else self._run is not None and stop_file(self._run.path).exists()

    def _start_segment(self, writer: SummaryWriter | Events) -> None:
        done = self._trainer.updates_done
        policy = self.scheduler.start_segment(done)
        choice = self.scheduler.choices[-1]
        why = f" ({choice.reason})" if choice.reason else ""
        writer.add_text(Tag.POLICY, f"{policy}{why}", done)
        if len(self.scheduler.ends) > 1 and self._run is not None:
            tqdm.write(f"from {done / self._config.train.updates:>4.0%}  {policy}{why}", file=sys.stdout)
        self._show_policy(writer, policy, done)

    def _show_policy(self, writer: SummaryWriter | Events, policy: MixPolicy, update: int) -> None:
        """Log the policy at an update; each method is a run of its own, because TensorBoard colours lines by run."""
        writer.add_scalar(Tag.LABEL_BETA, policy.label_beta, update)
        writer.add_scalar(Tag.LABEL_SMOOTHING, policy.label_smoothing, update)
        if self._run is None:
            return
        for method in dict.fromkeys(method for _, chosen in self.scheduler.chosen for method in chosen.shares):
            if method not in self._methods:
                self._open_method(self._run, method)
            self._methods[method].add_scalar(Tag.METHOD_SHARE, policy.shares.get(method, 0.0), update)

    def _open_method(self, run: RunFolder, method: str) -> None:
        self._methods[method] = self._method_runs.enter_context(self._writer(run, f"{METHOD_RUN}{method}"))

    def _writer(self, run: RunFolder, name: str = "") -> SummaryWriter:
        """Return a writer whose events replace those that an interrupted run wrote after its checkpoint."""
        return SummaryWriter(str(run.events / name), purge_step=self._started_at + 1)

    def _train_chunk(self, writer: SummaryWriter | Events, bar: tqdm[Any]) -> None:
        """Train up to the next evaluation or end of a segment, at most `CHUNK` updates, and log it."""
        trainer = self._trainer
        done = trainer.updates_done
        segment_end = self.scheduler.end(done)
        evaluation_end = min(end for end in self._evaluation_ends if end > done)
        end = min(done + CHUNK, segment_end, evaluation_end)
        policy = self.scheduler.policy
        assert policy is not None
        stats = trainer.train(policy, end - done, ahead=segment_end - end)
        if stats.diverged:
            losses = [part.loss for part in (stats.clean, stats.mixed) if part is not None]
            raise self._diverged("a weight" if all(map(math.isfinite, losses)) else "the loss")
        self.scheduler.add(stats)
        bar.update(end - done)
        for loss_tag, accuracy_tag, part in (
            (Tag.CLEAN_LOSS, Tag.CLEAN_ACCURACY, stats.clean),
            (Tag.MIXED_LOSS, Tag.MIXED_ACCURACY, stats.mixed),
        ):
            if part is not None:
                writer.add_scalar(loss_tag, part.loss, end)
                writer.add_scalar(accuracy_tag, part.accuracy, end)
        self._show_policy(writer, policy, end)
        writer.add_scalar(Tag.LEARNING_RATE, trainer.relative_lr * self._config.train.lr, end)
        writer.add_scalar(Tag.IMAGES_PER_SECOND, stats.images / stats.seconds, end)
        if end in self._evaluation_ends:
            self._evaluate(writer, bar)
        if end == segment_end:
            self._end_segment(writer)
        if end in self._evaluation_ends and self._good is not None:
            self._good = self._progress()

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what} was not finite before update {self._trainer.updates_done:,} of {self._config.train.updates:,}"
        )

    def _validated(self, limit: int | None = None) -> EvalStats:
        """Evaluate the network on validation images.

        Raises:
            DivergedError: its loss is not finite.
        """
        result = self._trainer.evaluate("validation", limit=limit)
        if not math.isfinite(result.loss):
            raise self._diverged("the validation loss")
        return result

    def _evaluate(self, writer: SummaryWriter | Events, bar: tqdm[Any]) -> None:
        trainer = self._trainer
        if self._config.train_on_validation:
            better = trainer.updates_done == self._config.train.updates
        else:
            result = self._validated()
            writer.add_scalar(Tag.ACCURACY, result.accuracy, trainer.updates_done)
            writer.add_scalar(Tag.VALIDATION_LOSS, result.loss, trainer.updates_done)
            writer.add_scalar(Tag.CALIBRATION_ERROR, result.calibration_error, trainer.updates_done)
            better = result.accuracy >= self.best_validation.accuracy  # the later one if they are equal
            if better:
                self.best_validation = result
            bar.set_postfix_str(
                f"validation {100 * result.accuracy:.2f} %, best {100 * self.best_validation.accuracy:.2f} %",
                refresh=False,
            )
        if better:
            self.best_network = {key: tensor.detach().clone() for key, tensor in trainer.model.state_dict().items()}
            self.best_progress = trainer.progress

    def _end_segment(self, writer: SummaryWriter | Events) -> None:
        trainer = self._trainer
        if trainer.last_mixed is not None:
            images, targets = trainer.last_mixed
            data = trainer.data
            picture = mixed_picture(images, targets, class_names=data.class_names, mean=data.mean, std=data.std)
            writer.add_image(Tag.MIXED_IMAGES, picture, trainer.updates_done, dataformats="HWC")
        looked_at = trainer.updates_done < self._config.train.updates  # nothing is chosen at the end
        self.scheduler.end_segment(
            progress=trainer.progress,
            relative_lr=trainer.relative_lr,
            evaluation=self._validated(VALIDATION_LIMIT) if looked_at else None,
            labels=check_labels(trainer) if looked_at and self._labels_checked else None,
        )

    def _broadcast(self, value: Any) -> Any:
        """Return the first process's value in all distributed processes: only the first reads folder and clock."""
        if self._trainer.world == 1:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, 0)
        return shared[0]

    def _progress(self) -> dict[str, Any]:
        """Return a copy of the training's state, for `_restore`."""
        return {"trainer": self._trainer.state_dict(), **self.scheduler.state_dict()}

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that resumes the training, in the memory of its own that the trainer's state has."""
        best = {
            "network": self.best_network,
            "progress": self.best_progress,
            "validation": asdict(self.best_validation),
        }
        return {**self._progress(), "best": best, "good": self._good, "went_back": self.went_back}

    def _save(self) -> None:
        checkpoint = self.checkpoint()
        if self._run is None:
            return
        # After a rollback, above all earlier numbers: the highest number is the newest checkpoint.
        number = self._trainer.updates_done + (0 if self.went_back is None else self._config.train.updates)
        self._run.save_checkpoint(number, checkpoint)

    def _restore(self, progress: dict[str, Any]) -> None:
        self._trainer.load_state_dict(progress["trainer"])
        self.scheduler.load_state_dict(progress)


class Events:
    """Writer of TensorBoard's events that discards all of them, for every distributed process but the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
