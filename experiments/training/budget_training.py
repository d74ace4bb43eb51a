"""Final training within a budget of several: candidates in this process, in several or on Ray, and what was tried.

Every step, a segment of one candidate, is a pure function of the checkpoint that it continues. Checkpoints and results
are in the run folder until nothing needs them: a training that was killed at any moment resumes to the same result,
and so does one with another number of workers.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard.writer import SummaryWriter

from rlmix.agent.any_agent import AnyAgent, load_agent
from rlmix.agent.budget import FIRST, BudgetSearch, Outlook, Step, StepResult
from rlmix.agent.decisions import Decision, choose_by
from rlmix.agent.rule import Rule
from rlmix.agent.tags import Tag
from rlmix.agent.values import Forecaster
from rlmix.classifier.data import Splits
from rlmix.classifier.errors import DataWarning, InputError
from rlmix.classifier.files import LineLog, load_state, save_state
from rlmix.classifier.hardware import set_threads
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.observation import TrainingState, checks_labels, observe
from rlmix.envs.seeds import derive_seed
from rlmix.experiments.comparison.runner import training_processes
from rlmix.experiments.reports import describe_kept
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.signals import StopSignal
from rlmix.experiments.search.cluster import check_capacity, ray_session, root_message
from rlmix.experiments.training.config import ReplayConfig
from rlmix.experiments.training.final_training import (
    METHOD_RUN,
    DivergedError,
    Events,
    FinalTraining,
    describe,
    finish,
    layout,
)
from rlmix.experiments.training.replay import PolicySource, resources_of
from rlmix.experiments.training.resolve import load_data

CANDIDATES = "candidates"  # folder of the checkpoints
LOG = "candidates.jsonl"
CANDIDATE_RUN = "candidate_"  # start of the name of each candidate's TensorBoard run

Line = dict[str, Any]  # what came of a step: a line of the log
Checkpoint = dict[str, Any]
TrainSteps = Callable[[Sequence[Step]], Iterator[Line]]  # saves each checkpoint, then yields the line


class StepTrainer:
    """Trains the steps of candidates, one after the other, with one `Trainer`.

    Args:
        config: configuration with nothing left to `auto`.
        data: images of the training.
        agent: agent or rule, which chooses for the candidate that is its own.
        forecaster: says what is observed.
    """

    def __init__(self, config: ReplayConfig, data: Splits, agent: AnyAgent, forecaster: Forecaster) -> None:
        set_threads(config.threads, stored=True)
        self._config, self._forecaster = config, forecaster
        self._lead = choose_by(agent)
        self._labels_checked = checks_labels((*forecaster.features, *agent.features))
        self._trainer = Trainer(config.train, data, seed=config.seed)

    def start(self) -> TrainingState:
        """Return the state at the start of a training."""
        self._trainer.reset(self._config.seed)
        return self._training(None, None).scheduler.state

    def own_choice(self, state: TrainingState) -> tuple[int, ...]:
        """Return the action that the agent or rule chooses in a state."""
        action = self._lead(state).action
        assert action is not None
        return action

    def train(
        self,
        step: Step,
        before: Checkpoint | None,
        save: Callable[[Checkpoint], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[Line, Checkpoint | None]:
        """Train one step.

        Args:
            step: the step.
            before: checkpoint after the step that it continues, or of the midst of this one; None at a candidate's
                start.
            save: takes a checkpoint of the midst of the step, every `checkpoint_seconds`; optional.
            stopped: whether to stop as soon as a checkpoint is saved; optional.

        Returns:
            What came of it, and the checkpoint after it; None where it diverged.

        Raises:
            KeyboardInterrupt: stopped.
        """
        started = saved = time.monotonic()
        if before is None:
            self._trainer.reset(candidate_seed(self._config.seed, step.candidate))
        training = self._training(step, before)
        events = _Recorded([] if before is None else before["events"])
        observation, accuracy, kept_accuracy, own_choice = None, 1 / self._trainer.num_classes, None, None

        def checkpoint() -> Checkpoint:
            return {**training.checkpoint(), "events": events.scalars}

        def save_in_between() -> None:
            nonlocal saved
            if training.scheduler.policy is None:  # the segment has ended, and is saved as a whole
                return
            stop = stopped()
            if stop or time.monotonic() - saved >= self._config.checkpoint_seconds:
                save(checkpoint())
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt

        try:
            training.train_segment(events, save_in_between)
        except DivergedError:  # nothing is rolled back in a candidate: it ends
            pass
        else:
            state = training.scheduler.state
            observation = observe(state, self._forecaster.menu, self._forecaster.features).tolist()
            if state.evaluation is None:
                # At the end, on all validation images; what decides is the best network so far, which would be kept.
                accuracy = next(value for tag, value, _ in reversed(events.scalars) if tag == Tag.ACCURACY)
                kept_accuracy = training.best_validation.accuracy
            else:
                accuracy = state.evaluation.accuracy
                own_choice = list(self.own_choice(state))
        line = {
            "step": step.number,
            "candidate": step.candidate,
            "observation": observation,
            "accuracy": accuracy,
            "kept_accuracy": kept_accuracy,
            "own_choice": own_choice,
            "reason": training.scheduler.choices[-1].reason,
            "seconds": round(time.monotonic() - started, 1),
        }
        return line, None if observation is None else checkpoint()

    def finished(self, checkpoint: Checkpoint) -> FinalTraining:
        """Return the training that has ended with a checkpoint."""
        return self._training(None, checkpoint)

    def _training(self, step: Step | None, before: Checkpoint | None) -> FinalTraining:
        def choose(state: TrainingState) -> Decision:
            assert step is not None
            if step.own:  # the step has the same action
                return self._lead(state)
            return Decision(self._forecaster.menu.policy(step.action), step.action)

        return FinalTraining(
            self._config,
            None,
            self._trainer,
            choose,
            self._forecaster.segments,
            labels_checked=self._labels_checked,
            start=before,
        )


def candidate_seed(seed: int, candidate: int) -> int:
    """Return the seed of a candidate; the first one has that of the training."""
    return seed if candidate == 0 else derive_seed(seed, candidate)


def train_within_budget(
    config: ReplayConfig, run: RunFolder, data: Splits, source: PolicySource, address: str | None
) -> dict[str, Any]:
    """Train candidates within the budget, from where an earlier call has stopped; keep the best, test it, and report.

    Args:
        config: configuration with nothing left to `auto`.
        run: run folder.
        data: images of the training.
        source: agent or rule, which chooses for the first candidate, and a forecaster.
        address: address of a Ray cluster; None for Ray on this machine.

    Returns:
        The content of `summary.json`.

    Raises:
        RunError: all candidates diverged, or a worker failed.
    """
    started = time.monotonic()
    agent, forecaster = source.policy, source.forecaster
    assert isinstance(agent, AnyAgent) and forecaster is not None
    trainer = StepTrainer(config, data, agent, forecaster)
    start = trainer.start()
    log = LineLog(run.path / LOG)
    lines = log.read()
    log.keep(len(lines))  # a torn last line would spoil the next one
    with reject_incompatible(log.path):
        branching = _branching(lines)
    search = BudgetSearch(
        forecaster,
        config.trainings,
        observe(start, forecaster.menu, forecaster.features),
        trainer.own_choice(start),
        images=len(data.validation),
        worth=config.worth if config.budget == "auto" else None,
        branching=branching,
    )
    counts = f"{', '.join(map(str, search.counts))} candidates in the {len(search.counts)} segments"
    if search.branching:
        counts += ", after each the last quarter gives way to branches of the first"
    if search.worth is not None:
        counts = f"{FIRST}, then one after the other while it is expected to add {search.worth:g} points"
    print(
        f"{describe(config, data)}\nunder: {source.name}, the updates of at most {config.trainings:g} trainings: "
        f"{counts}",
        flush=True,
    )
    folder = run.path / CANDIDATES
    folder.mkdir(exist_ok=True)
    with reject_incompatible(log.path):
        known = {line["step"]: line for line in lines}
        while search.due and all(step.number in known for step in search.due):
            _tell(search, known)
    leader = "rule" if isinstance(agent, Rule) else "agent"
    if search.due:
        with _steps_trained(config, run, trainer, agent, forecaster, address) as train:
            while due := search.due:
                _forget(folder, search)
                for line in train([step for step in due if step.number not in known]):
                    line |= {"branching": search.branching}
                    log.append(line)
                    known[line["step"]] = line
                    print(_describe(search, line, leader), flush=True)
                _tell(search, known)
    winner = search.winner
    if winner is None:
        raise RunError(f"every candidate diverged; start again with an --lr lower than {config.train.lr:g}")
    kept = load_state(_file(folder, winner.number))
    training = trainer.finished(kept)
    training.seconds = time.monotonic() - started
    _write_events(run, search, training.scheduler.schedule(), kept["events"], config.train.updates)
    facts = {
        "trainings": config.trainings,
        "spent": round(search.cost, 3),
        "kept": winner.number,
        "expected_validation_accuracy": round(search.expected_accuracies()[winner.number], 5),
        "segments": list(forecaster.segments),
        "leader": leader,
        "steps": [
            {
                **step,
                "policy": str(forecaster.menu.policy(step["action"])),
                "reason": known[step["step"]]["reason"],
            }
            for step in search.to_json()
        ],
        "worth": search.worth,
        "outlooks": search.outlooks_to_json(),
    }
    print(describe_kept(facts))
    summary = finish(config, run, training, _led_by(search.path(winner), source.name, forecaster), budget=facts)
    for step in search.steps:
        if step is not winner:  # that one is kept, for a resume after the end
            _file(folder, step.number).unlink(missing_ok=True)
    return summary


def _led_by(path: Sequence[Step], name: str, forecaster: Forecaster) -> str:
    """Say who chose for a candidate: agent or rule of this name, from the start or later, or the portfolio."""
    first = next((step.segment for step in path if step.own), None)
    if first is None:
        return "a policy of the portfolio" if len({step.action for step in path}) == 1 else "policies of the portfolio"
    return f"{name} from {100 * forecaster.segments[first - 1]:.0f} % on" if first else name


def _branching(lines: Sequence[Line]) -> bool | None:
    """Return whether a run that has begun branches; others go on as they began.

    Args:
        lines: the run's log so far. At first it did not name candidates, and there were no branches; then it did not
            say whether there are, and budgets of four and more branched.

    Returns:
        None where nothing has been trained: its budget says it.
    """
    return lines[0].get("branching", "candidate" in lines[0]) if lines else None


def _tell(search: BudgetSearch, known: Mapping[int, Line]) -> None:
    """Tell what came of all steps that are due, and print what is expected of more."""
    looks = len(search.outlooks)
    for step in search.due:
        line = known[step.number]
        seen = None if line["observation"] is None else np.array(line["observation"], np.float32)
        choice = None if line["own_choice"] is None else tuple(line["own_choice"])
        search.tell(step.number, StepResult(seen, line["accuracy"], line["kept_accuracy"], choice))
    for outlook in search.outlooks[looks:]:
        print(in_words(outlook, search.worth), flush=True)


@contextmanager
def _steps_trained(
    config: ReplayConfig,
    run: RunFolder,
    trainer: StepTrainer,
    agent: AnyAgent,
    forecaster: Forecaster,
    address: str | None,
) -> Iterator[TrainSteps]:
    """Yield the function that trains steps: here, in processes of this machine, or on Ray."""
    folder = run.path / CANDIDATES
    if config.backend == "ray":
        with ray_session(address), _on_ray(config, run, agent, forecaster) as train:
            yield train
    elif config.workers > 1:
        resume = f"resume with {run.resume_options} --workers N: fewer need less memory"
        with training_processes(config.workers, resume) as run_jobs:

            def in_processes(steps: Sequence[Step]) -> Iterator[Line]:
                jobs = {
                    step.number: functools.partial(_train_in_process, str(run.path), config, step) for step in steps
                }
                yield from (line for _, line in run_jobs(jobs))

            yield in_processes
    else:

        def here(steps: Sequence[Step]) -> Iterator[Line]:
            for step in steps:
                with StopSignal() as stop:
                    line = _train_and_save(trainer, folder, step, lambda: stop.asked)
                yield line
                if stop.asked:
                    raise KeyboardInterrupt

        yield here


@contextmanager
def _on_ray(config: ReplayConfig, run: RunFolder, agent: AnyAgent, forecaster: Forecaster) -> Iterator[TrainSteps]:
    """Yield the function that trains steps in Ray's actors; this process keeps the checkpoints."""
    import ray
    from ray.util import ActorPool

    share, folder = resources_of(config), run.path / CANDIDATES
    check_capacity(config.workers, share, advice="--workers, or for less with --threads or --gpus-per-worker")

    class Actor:
        def __init__(self) -> None:
            self._trainer: StepTrainer | None = None

        def train(self, step: Step, before: Checkpoint | None) -> tuple[Line, Checkpoint | None]:
            # Not in the constructor, where Ray would hide an error's own message.
            self._trainer = self._trainer or StepTrainer(config, _load_again(config), agent, forecaster)
            return self._trainer.train(step, before)

    remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(Actor)
    actors = [remote.remote() for _ in range(config.workers)]

    def on_actors(steps: Sequence[Step]) -> Iterator[Line]:
        pool = ActorPool(actors)
        try:
            # Checkpoints are read when an actor is free.
            for line, checkpoint in pool.map_unordered(
                lambda actor, step: actor.train.remote(step, _checkpoint_before(folder, step)), list(steps)
            ):
                _keep(_file(folder, line["step"]), checkpoint)
                yield line
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise RunError(root_message(error)) from error
            raise  # a bug of ours
        except ray.exceptions.RayError as error:
            raise RunError(
                f"a worker was lost: {root_message(error):.500}; resume with {run.resume_options} --workers N"
            ) from error

    yield on_actors


def _train_in_process(run: str, config: ReplayConfig, step: Step) -> Line:
    """Train a step in a process of its own."""
    return _train_and_save(_shared_trainer(run, config), Path(run) / CANDIDATES, step, lambda: False)


@functools.cache
def _shared_trainer(run: str, config: ReplayConfig) -> StepTrainer:
    """Return the trainer of a run, built once in each process."""
    return StepTrainer(config, _load_again(config), load_agent(Path(run)), Forecaster.load(Path(run)))


def _load_again(config: ReplayConfig) -> Splits:
    """Return the images in another process; the first one has told what is odd about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return load_data(config)


def _train_and_save(trainer: StepTrainer, folder: Path, step: Step, stopped: Callable[[], bool]) -> Line:
    own = _file(folder, step.number)
    before = _checkpoint_before(folder, step)
    line, checkpoint = trainer.train(step, before, functools.partial(save_state, own), stopped)
    _keep(own, checkpoint)
    return line


def _keep(file: Path, checkpoint: Checkpoint | None) -> None:
    """Save the checkpoint after a step; of a diverged one, which nothing continues, none is left."""
    if checkpoint is None:
        file.unlink(missing_ok=True)
    else:
        save_state(file, checkpoint)


def _checkpoint_before(folder: Path, step: Step) -> Checkpoint | None:
    """Return the checkpoint to train a step from: one of its midst, else that after its parent, else None."""
    own = _file(folder, step.number)
    if own.exists() and (midst := load_state(own))["running"]:
        return midst
    return None if step.parent is None else load_state(_file(folder, step.parent))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


def _forget(folder: Path, search: BudgetSearch) -> None:
    """Delete the checkpoints that no step that is due continues, but those of candidates that have ended."""
    needed = {step.parent for step in search.due} | {step.number for step in search.ends}
    for step in search.steps:
        if step.number in search.results and step.number not in needed:
            _file(folder, step.number).unlink(missing_ok=True)


def in_words(outlook: Outlook, worth: float | None) -> str:
    """Say whether more trainings are worth it: how far those that have ended are apart, and what is to be expected.

    Args:
        outlook: what is expected.
        worth: points that a further training must add; None where the whole budget is spent.
    """
    ended = f"{outlook.ended} training{'' if outlook.ended == 1 else 's'} ended"
    if outlook.spread is None:
        stop = "" if worth is None else ", so no more begin"
        return f"  {ended}: fewer than two do not tell what one more would add{stop}"
    stop = "" if worth is None else f", {'worth' if outlook.further >= worth else 'not worth'} {worth:g}"
    return (
        f"  {ended}, {outlook.spread:.2f} points apart in validation (standard deviation; {outlook.chance:.2f} by "
        f"chance alone): the best is expected to gain {outlook.gain:.2f} points over one alone, one more would add "
        f"{outlook.further:.2f}{stop}"
    )


def _describe(search: BudgetSearch, line: Line, leader: str) -> str:
    step, forecaster = search.steps[line["step"]], search.forecaster
    result = "diverged" if line["observation"] is None else f"validation {100 * line['accuracy']:5.2f} %"
    if line["kept_accuracy"] is not None:
        result += f", best {100 * line['kept_accuracy']:5.2f} %"
    chosen = f", the {leader} chose" if step.own else ""
    if step.parent is not None and (of := search.steps[step.parent].candidate) != step.candidate:
        chosen += f", a branch of candidate {of}"
    why = f" ({line['reason']})" if line["reason"] else ""
    return (
        f"  {100 * forecaster.segments[step.segment]:3.0f} %  candidate {step.candidate:<4} {result}  "
        f"{line['seconds']:6.1f} s  {forecaster.menu.policy(step.action)}{chosen}{why}"
    )


class _Recorded(Events):
    """Writer that keeps scalars, so that those of the training that is kept can be written.

    Args:
        scalars: those so far: tag, value and update.
    """

    def __init__(self, scalars: Sequence[Sequence[Any]]) -> None:
        self.scalars = [list(entry) for entry in scalars]

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Keep a scalar."""
        self.scalars.append([str(tag), float(value), step])


def _write_events(
    run: RunFolder, search: BudgetSearch, schedule: PolicySchedule, scalars: Sequence[Sequence[Any]], updates: int
) -> None:
    """Write TensorBoard's events: the curves of the training that is kept, and every candidate's accuracies."""
    with ExitStack() as writers:

        def writer(name: str = "") -> SummaryWriter:
            # An interrupted call may have written the same before.
            return writers.enter_context(SummaryWriter(str(run.events / name), purge_step=0))

        kept = writer()
        kept.add_custom_scalars(layout(validated=True))
        for tag, value, update in scalars:
            kept.add_scalar(tag, value, update)
        methods = dict.fromkeys(method for _, policy in schedule.segments for method in policy.shares)
        shares = {method: writer(f"{METHOD_RUN}{method}") for method in methods}
        for update in sorted({update for tag, _, update in scalars if tag == Tag.LEARNING_RATE}):
            policy = next(policy for until, policy in schedule.segments if round(until * updates) >= update)
            for method, one in shares.items():
                one.add_scalar(Tag.METHOD_SHARE, policy.shares.get(method, 0.0), update)
        continued = {step.parent for step in search.steps}
        for last in (step for step in search.steps if step.number not in continued):
            one = writer(f"{CANDIDATE_RUN}{last.candidate}")
            for step in search.path(last):
                end = round(search.forecaster.segments[step.segment] * updates)
                one.add_scalar(Tag.ACCURACY, search.results[step.number].accuracy, end)
