"""Kills: programs that are stopped at random moments, by signal and without, and go on to an undisturbed run's result.

A story is one run: it is started, killed after a random time up to the length of an undisturbed run, started again with
`--resume`, perhaps killed again, and at last left alone. Its result is then to be that of the undisturbed run, byte for
byte, no process may be left behind by any of the kills, and none may keep the next from starting. Story n of a seed is
always killed at the same moments; what it is doing then depends on the machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rlmix.classifier.files import LineLog
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments.runs.errors import RunError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MARK = "RLMIX_SOAK_STORY"  # an environment variable by which a story's processes are known, wherever they have gone
LONGEST = 600.0  # seconds of a run that nobody disturbs
SIGNALS = {"SIGKILL": 5, "SIGTERM": 3, "SIGINT": 2}  # and how often each is sent
TIMINGS = ("timing", "seconds_this_time", "seconds")  # what two equal runs' summaries differ in


@dataclass(frozen=True)
class Program:
    """A command that is killed.

    Attributes:
        script: file below `experiments/`.
        options: of its first start, without `--out`.
        outcome: files of the run folder that are to be equal, as patterns.
        resume: options beside `--resume`.
        worker: text in the command line of its worker processes, one of which may be killed alone; none = has none.
        weight: how often it is chosen.
        patience: seconds that it may take to end after a signal, and its own processes after it.
    """

    script: str
    options: str
    outcome: tuple[str, ...]
    resume: str = ""
    worker: str | None = None
    weight: int = 3
    patience: float = 60.0


DATA = "--dataset digits --train-size 100 --validation-size 100 --device cpu --precision fp32"
FINAL = f"{DATA} --batch-size 50 --updates 400 --evaluations 4 --threads 1 --compile off --checkpoint-seconds 0.3"
SEARCH = (
    "--dataset digits --train-size 100 120 --updates 8 10 --validation-size 100 --tasks 2 --reference-seeds 2 "
    "--episodes 16 --ppo.episodes-per-update 4 --ppo.learning-rate 0.03 --candidate-seeds 2 --contest-seeds 2 "
    "--workers 2 --device cpu --precision fp32 --compile off"
)
TRAINED = ("model.safetensors", "summary.json")
LEARNED = ("policy.json", "agent.safetensors", "agent.json", "episodes.jsonl", "trainings.jsonl", "summary.json")
PROGRAMS = {
    "train_agent.py": Program("train_agent.py", SEARCH, LEARNED, worker="spawn_main"),
    "train_rl_mix.py": Program(
        "train_rl_mix.py",
        f"{DATA} --batch-size 20 --updates 60 --compile off --checkpoint-seconds 0 --ppo.n-steps 10 "
        "--ppo.batch-size 5 --threads 1",
        ("agent.json", "agent.safetensors", "epochs.jsonl", "model.safetensors"),
    ),
    "train_classifier.py": Program("train_classifier.py", f"{FINAL} --method rmix", TRAINED),
    "replay_policy.py": Program("replay_policy.py", f"{FINAL} --policy policy.json", TRAINED),
    "tune_agent.py": Program(
        "tune_agent.py",
        f"--trials 2 --grace 16 {SEARCH.replace('--', '--agent.')}",
        tuple(f"trials/*/{name}" for name in LEARNED[:-1]),
        resume="--trust",
        weight=1,
        patience=180.0,  # Ray's agents tell a control service that has died with them, and wait for its answer
    ),
}


@dataclass(frozen=True)
class Start:
    """A process of a story.

    Attributes:
        status: its exit status.
        err: its standard error.
        began: whether it had come to its run folder.
    """

    status: int
    err: str
    began: bool


class Failed(Exception):
    """The story did not end as it should; the message tells what happened."""


def lasting(path: Path) -> bytes:
    """What of a run's file must not depend on how the run went: all of it, but a summary's timings."""
    content = path.read_bytes()
    if path.name != "summary.json":
        return content
    return json.dumps({key: entry for key, entry in json.loads(content).items() if key not in TIMINGS}).encode()


class Stage:
    """Where runs of one program are made and told apart from each other.

    Args:
        program: what is run.
        folder: an empty one; the run is made in `run` below it.
    """

    def __init__(self, program: Program, folder: Path) -> None:
        self._program, self.folder, self.run = program, folder, folder / "run"
        self._mark = uuid.uuid4().hex
        folder.mkdir(parents=True)
        half = MixPolicy({"clean": 0.5, "rmix": 0.25, "cutmix": 0.25}, label_smoothing=0.1)
        PolicySchedule(((0.5, MixPolicy({"clean": 0.5, "average": 0.5})), (1.0, half))).save(folder / "policy.json")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the program, or let it go on with what is there."""
        options = f"{self._program.options} --out run"
        if (self.run / "config.json").exists():
            options = f"{self._program.resume} --resume run"
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            return subprocess.Popen(
                [sys.executable, str(EXPERIMENTS / self._program.script), *options.split()],
                cwd=self.folder,
                env={**os.environ, MARK: self._mark, "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=err,
                start_new_session=True,
                # A shell's background jobs ignore Ctrl-C, and hand that on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def living(self) -> dict[int, str]:
        """Command lines of all living processes that came of this stage, by process id."""
        found, mark = {}, f"{MARK}={self._mark}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is somebody else's
        return found

    def end(self, process: subprocess.Popen[bytes], patience: float) -> Start:
        """Wait for a process and for all that it has started.

        Raises:
            Failed: it does not end, or leaves a process behind; all of them are then killed.
        """
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            self.clear()
            process.wait()
            raise Failed(f"did not end within {patience:g} s\n{self._read('err')[-3000:]}") from None
        until = time.monotonic() + self._program.patience
        while left := self.living():
            if time.monotonic() > until:
                self.clear()
                told = f"left behind after {self._program.patience:g} s: {list(left.values())}"
                raise Failed(f"{told}\n{self._read('err')[-3000:]}")
            time.sleep(0.05)
        began = any(line.startswith("run folder: ") for line in self._read("out").splitlines())
        return Start(process.returncode, self._read("err"), began)

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def clear(self) -> None:
        """Kill whatever lives."""
        while left := self.living():
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def outcome(self) -> dict[str, bytes]:
        """Everything that must not depend on kills."""
        found = {}
        for pattern in self._program.outcome:
            for path in sorted(self.run.glob(pattern)):
                found[str(path.relative_to(self.run))] = lasting(path)
        return found


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody stopped.

    Attributes:
        seconds: how long it took.
        outcome: its result.
    """

    seconds: float
    outcome: Mapping[str, bytes]

    @classmethod
    def of(cls, program: Program, folder: Path) -> Undisturbed:
        """Run a program to its end.

        Raises:
            RunError: it fails by itself.
        """
        stage, started = Stage(program, folder), time.monotonic()
        try:
            ended = stage.end(stage.start(), LONGEST)
        except Failed as error:
            raise RunError(f"{program.script} fails undisturbed: {error}") from None
        outcome = stage.outcome()
        if ended.status or not outcome:
            raise RunError(f"{program.script} fails undisturbed with status {ended.status}: {ended.err[-2000:]}")
        return cls(time.monotonic() - started, outcome)


def tell(
    number: int, seed: int, names: Sequence[str], undisturbed: Mapping[str, Undisturbed], folder: Path
) -> dict[str, Any]:
    """Play story `number` in a folder of its own, which is kept if the story fails.

    Returns:
        Line of the log: the program, its kills (signal, whom it met, after how many seconds), and what went wrong.
    """
    draw = random.Random(f"{seed} {number}")
    name = draw.choices(names, [PROGRAMS[name].weight for name in names])[0]
    program, whole = PROGRAMS[name], undisturbed[name]
    stage = Stage(program, folder / f"{number:05d}")
    kills: list[dict[str, Any]] = []
    failed = None
    try:
        for _ in range(draw.randint(1, 4)):
            kill = _plan(draw, program, whole.seconds)
            process = stage.start()
            if not _strike(stage, process, program, kill):
                _judge(stage.end(process, program.patience), None)
                break  # it was faster than its kill
            kills.append(kill)
            ended = stage.end(process, program.patience)
            if stage.outcome() == whole.outcome:
                break  # all is written, and while Python ends a signal does what it does to any program
            _judge(ended, kill)
        if not (stage.run / "config.json").exists() or stage.outcome() != whole.outcome:
            ended = stage.end(stage.start(), LONGEST)
            if ended.status:
                raise Failed(f"did not go on: status {ended.status}\n{ended.err[-3000:]}")
        found = stage.outcome()
        different = [path for path in {**whole.outcome, **found} if found.get(path) != whole.outcome.get(path)]
        if different:
            raise Failed(f"differ from the undisturbed run's: {', '.join(different)}")
    except Failed as error:
        failed = f"{error}\nkept: {stage.folder}"
    else:
        shutil.rmtree(stage.folder)
    return {"story": number, "program": name, "kills": kills, "failed": failed}


def _plan(draw: random.Random, program: Program, seconds: float) -> dict[str, Any]:
    name = draw.choices(list(SIGNALS), list(SIGNALS.values()))[0]
    # SIGKILL comes to one process, SIGTERM and Ctrl-C also to all at once, as from a scheduler and a terminal.
    whom = draw.choice(["driver", "all"])
    if program.worker is not None and draw.random() < 0.25:
        name, whom = "SIGKILL", "worker"
    return {"signal": name, "whom": whom, "after": round(draw.uniform(0, seconds), 2)}


def _strike(stage: Stage, process: subprocess.Popen[bytes], program: Program, kill: Mapping[str, Any]) -> bool:
    """Send the signal when its time has come; gives whether it met anybody."""
    try:
        process.wait(kill["after"])
        return False
    except subprocess.TimeoutExpired:
        pass
    number = signal.Signals[kill["signal"]]
    targets = [process.pid]
    if kill["whom"] == "worker":
        targets = [pid for pid, command in stage.living().items() if program.worker and program.worker in command][:1]
    elif kill["whom"] == "all":
        targets = list(stage.living()) or targets
    met = False
    for target in targets:
        try:
            os.kill(target, number)
            met = True
        except ProcessLookupError:
            continue
    if not met:
        process.wait(LONGEST)  # no worker yet, or no more
    return met


def _judge(ended: Start, kill: Mapping[str, Any] | None) -> None:
    """Whether a process ended as one does that was stopped so.

    Raises:
        Failed: it did not.
    """
    if ended.status == 0 or (kill is not None and kill["signal"] == "SIGKILL" and kill["whom"] != "worker"):
        return
    polite = ended.status == (130 if kill is None or kill["whom"] != "worker" else 2) and "Traceback" not in ended.err
    # Before it has come to its run folder, while Python imports, a signal does what it does to any program.
    if kill is None or not (polite or not ended.began):
        raise Failed(f"after {kill}: status {ended.status}\n{ended.err[-3000:]}")


@dataclass(frozen=True)
class KillsSoak:
    """Kill programs at random moments and let them go on."""

    count: int = 300
    """Kills at least, over all programs."""
    seed: int = 0
    """Of programs, moments and signals."""
    programs: tuple[str, ...] = tuple(PROGRAMS)
    """Which programs; all of them by default."""
    processes: int = 2
    """Stories at a time."""
    out: str | None = None
    """Folder of the result, and of kills.jsonl, the stories so far: the same command goes on."""

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Play stories until there have been enough kills; gives the result and what failed.

        Raises:
            RunError: an option is out of range, or a program fails undisturbed.
        """
        for name in self.programs:
            if name not in PROGRAMS:
                raise RunError(f"--programs must be among {', '.join(PROGRAMS)}, got {name!r}")
        if self.count < 1 or self.processes < 1:
            raise RunError(f"--count and --processes must be at least 1, got {self.count} and {self.processes}")
        told: dict[int, dict[str, Any]] = {}
        log = None
        if self.out is not None:
            log = LineLog(Path(self.out) / "kills.jsonl")
            told = {line["story"]: line for line in log.read()}
            log.keep(len(told))
        folder = Path(tempfile.mkdtemp(prefix="rlmix-kills-"))
        undisturbed = {
            name: Undisturbed.of(PROGRAMS[name], folder / f"undisturbed {i}") for i, name in enumerate(self.programs)
        }
        enough = threading.Event()
        numbers = iter(number for number in range(10**9) if number not in told)

        def next_story() -> dict[str, Any] | None:
            return None if enough.is_set() else tell(next(numbers), self.seed, self.programs, undisturbed, folder)

        done = sum(len(line["kills"]) for line in told.values())
        with (
            ThreadPoolExecutor(self.processes) as pool,
            tqdm(total=self.count, initial=min(done, self.count), unit="kill", mininterval=20) as bar,
        ):
            running = {pool.submit(next_story) for _ in range(self.processes)}
            while running:
                try:
                    future = next(as_completed(running))
                    running.remove(future)
                    line = future.result()
                except BaseException:
                    enough.set()  # the stories that have begun come to their end, no other begins
                    raise
                if line is None:
                    continue
                told[line["story"]] = line
                if log is not None:
                    log.append(line)
                done += len(line["kills"])
                bar.update(len(line["kills"]))
                if done >= self.count:
                    enough.set()
                else:
                    running.add(pool.submit(next_story))
        return self._result(told, undisturbed)

    def _result(
        self, told: Mapping[int, Mapping[str, Any]], undisturbed: Mapping[str, Undisturbed]
    ) -> tuple[dict[str, Any], list[str]]:
        failed = [
            f"story {line['story']}, {line['program']}: {line['failed']}" for line in told.values() if line["failed"]
        ]
        programs = {}
        for name in self.programs:
            lines = [line for line in told.values() if line["program"] == name]
            kills = [kill for line in lines for kill in line["kills"]]
            programs[name] = {
                "runs": len(lines),
                "ended as undisturbed": sum(line["failed"] is None for line in lines),
                "kills": len(kills),
                "by signal": {name: sum(kill["signal"] == name for kill in kills) for name in SIGNALS},
                "of a worker alone": sum(kill["whom"] == "worker" for kill in kills),
                "seconds undisturbed": round(undisturbed[name].seconds, 1),
            }
        total = {key: sum(row[key] for row in programs.values()) for key in ("runs", "ended as undisturbed", "kills")}
        return {"total": total, "programs": programs}, failed
