"""Bad input of every kind, by chance and by malice: it is read or refused, and never runs."""

import contextlib
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from rlmix.classifier.data import DataError
from rlmix.classifier.data import idx as idx_files
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import STATE_VERSION, DamagedFileError, LineLog, load_state, write_atomic
from rlmix.experiments import evaluate, replay_policy, report, train_agent, train_classifier, train_rl_mix, tune_agent
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError, exit_on_user_error
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import TUNE, with_options
from rlmix.experiments.search.config import AGENT, SearchConfig
from rlmix.experiments.training.config import CLASSIFIER, REPLAY, RL_MIX, ClassifierConfig, RLMixConfig
from tests.soak import inputs, kills, writes
from tests.soak.inputs import KINDS, Kind, Outcome, Workshop, cut_policies, survey, tally
from tests.soak.kills import PROGRAMS, KillsSoak, Program, Undisturbed, tell
from tests.soak.writes import Cases, Disk, Failed, WritesSoak


@pytest.mark.slow
def test_bad_input_is_read_or_refused() -> None:
    outcomes = [outcome for _, outcome in survey(1500, seed=1)]
    assert [outcome for outcome in outcomes if not outcome.kept] == []
    counts = tally(outcomes)
    assert len(counts) >= len(KINDS) - 5  # command lines are rare ones
    assert sum(row["tried"] for row in counts.values()) == 1500
    assert sum(row["refused"] for row in counts.values()) > 750


def test_bad_command_lines_are_refused() -> None:
    kinds = [kind for kind in KINDS if "command" in kind]
    assert [outcome for _, outcome in survey(60, seed=2, kinds=kinds) if not outcome.kept] == []


def test_every_cut_of_a_policy_is_refused(tmp_path: Path) -> None:
    KINDS["policy"].make(tmp_path)
    outcomes = cut_policies()
    assert {outcome.result for outcome in outcomes} == {"refused"}
    assert len(outcomes) == len((tmp_path / "policy.json").read_bytes().rstrip())


def _hang(_: Path) -> None:
    while True:
        pass


def _raise(error: BaseException) -> Any:
    def read(_: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "result"),
    [
        (lambda _: None, "read"),
        (_raise(RunError("no")), "refused"),
        (_raise(KeyError("segments")), "another error"),
        (_raise(MemoryError()), "too much memory"),
        (_hang, "too long"),
    ],
)
def test_what_breaks_the_contract_is_noticed(
    read: Any, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> None:
        (folder / "file").write_bytes(b"whole")

    monkeypatch.setitem(KINDS, "tried", Kind(make, {"file": lambda content, _: content[:2]}, read, 1))
    monkeypatch.setattr(inputs, "SECONDS", 0.2)
    before = signal.signal(signal.SIGALRM, inputs._out_of_time)
    try:
        outcome = Workshop(tmp_path, 0, ["tried"]).attempt(5)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (outcome.kind, outcome.result) == ("tried", result)
    assert outcome.kept == (result in ("read", "refused"))


def test_a_number_is_always_the_same_input(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name / "place").mkdir(parents=True)
        kind = Workshop(tmp_path / name, 7).make(11, tmp_path / name / "place")
        made.append((kind, {path.name: path.read_bytes() for path in (tmp_path / name / "place").rglob("*.*")}))
    assert made[0] == made[1]


# Logs


@pytest.mark.parametrize(
    "damaged", [b'{"n": 2', b"\xff\xfe", b"[2]", b"2", b"null", b"", b"[" * 100_000], ids=lambda line: repr(line[:8])
)
def test_a_damaged_line_is_an_error_before_the_end_and_dropped_there(damaged: bytes, tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.jsonl")
    content = b'{"n": 0}\n{"n": 1}\n' + damaged + b'\n{"n": 3}\n'
    log.path.write_bytes(content)
    for use in (log.read, lambda: log.keep(2)):
        with pytest.raises(DamagedFileError, match=r"log\.jsonl: expected a JSON object in line 3"):
            use()
    assert log.path.read_bytes() == content  # nothing is lost
    log.path.write_bytes(b'{"n": 0}\n{"n": 1}\n' + damaged)
    assert log.read() == [{"n": 0}, {"n": 1}]
    log.keep(2)
    log.append({"n": 2})
    assert log.read() == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_log_that_is_shorter_than_what_was_counted_is_an_error(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.jsonl")
    log.append({"n": 0})
    with pytest.raises(DamagedFileError, match="expected 2 lines, as many as the checkpoint has counted, got 1"):
        log.keep(2)
    assert log.read() == [{"n": 0}]


# Stored values of the wrong kind


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"updates": "abc"}, "updates"),
        ({"updates": [8]}, "updates"),
        ({"train_size": [100, "120"]}, "train_size"),
        ({"lr": None}, "lr"),
        ({"reward": 3}, "reward"),
        ({"ppo": {"hidden": "x"}}, "hidden"),
        ({"ppo": 3}, "ppo"),
        ({"unknown": 1}, "unknown"),
        ({"workers": True}, "workers.*boolean"),
        ({"train_size": [100, True]}, "train_size.*boolean"),
        ({"lr": 10**400}, "lr.*64 bits"),
        ({"dataset": {"dataset": "digits"}}, "dataset"),
    ],
)
def test_a_configuration_of_wrong_types_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    stored = json.loads(json.dumps(asdict(SearchConfig())))
    assert stored_config(SearchConfig, stored) == SearchConfig()
    with pytest.raises(RunError, match=rf"config\.json does not fit this version.*{named}"):
        stored_config(SearchConfig, {**stored, **changes})


@pytest.mark.parametrize(
    "structure", ['{"pairs": 3}', '{"tensor": "nothing"}', "[1]", '{"pairs": [[[], 1]]}', "{", "[" * 100_000]
)
def test_a_sealed_state_of_another_structure_is_damaged(structure: str, tmp_path: Path) -> None:
    seal = hashlib.sha256(structure.encode()).hexdigest()
    metadata = {"version": str(STATE_VERSION), "state": structure, "sha256": seal}
    (tmp_path / "state").write_bytes(save({}, metadata=metadata))
    with pytest.raises(DamagedFileError, match="not a state that this program wrote"):
        load_state(tmp_path / "state")


def test_what_unpacks_to_more_than_a_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["IDX files"].make(tmp_path)
    monkeypatch.setattr(idx_files, "MAX_BYTES", 47)  # labels have 48
    with pytest.raises(DataError, match="at most 47 bytes"):
        KINDS["IDX files"].read(tmp_path)
    monkeypatch.setattr(idx_files, "MAX_BYTES", 10_000)
    KINDS["IDX files"].read(tmp_path)


# Code


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self._path),))


FILES = [(kind, file) for kind, entry in KINDS.items() if "command" not in kind for file in entry.mutations]


@pytest.mark.parametrize(("kind", "file"), FILES, ids=str)
def test_no_file_is_unpickled(kind: str, file: str, tmp_path: Path) -> None:
    place, proof = tmp_path / "place", tmp_path / "it ran"
    place.mkdir()
    KINDS[kind].make(place)
    hostile = pickle.dumps(Hostile(proof))
    (place / file).write_bytes(hostile)
    with contextlib.suppress(InputError):  # a log of one line is taken for one with a torn line
        KINDS[kind].read(place)
    assert not proof.exists()
    pickle.loads(hostile)
    assert proof.exists()  # so it would have run


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder with a module in it that tells when it is imported, in the folder that the user stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "received").mkdir()
    (tmp_path / "received" / "hook.py").write_text("raise ZeroDivisionError('it ran')\n")
    yield tmp_path / "received"


def write_config(folder: Path, kind: str, config: Any) -> None:
    value = {"kind": kind, "version": 1, "config": asdict(config), "machine": {}, "command": []}
    (folder / "config.json").write_text(json.dumps(value))


HOOK = "received.hook:build"
TRAINING = with_options(ClassifierConfig(), **inputs.FINAL)
RECEIVED = {
    "train_agent.py": (train_agent.main, AGENT, with_options(inputs.SEARCH, model=HOOK)),
    "train_agent.py, data": (train_agent.main, AGENT, with_options(inputs.SEARCH, dataset=HOOK)),
    "train_classifier.py": (train_classifier.main, CLASSIFIER, with_options(TRAINING, model=HOOK)),
    "train_classifier.py, a slash": (train_classifier.main, CLASSIFIER, with_options(TRAINING, model=f"a/{HOOK}")),
    "train_classifier.py, data": (train_classifier.main, CLASSIFIER, with_options(TRAINING, dataset=HOOK)),
    "replay_policy.py": (replay_policy.main, REPLAY, with_options(inputs.REPLAY, dataset=HOOK)),
    "train_rl_mix.py": (train_rl_mix.main, RL_MIX, with_options(RLMixConfig(), **{**inputs.FINAL, "model": HOOK})),
    "tune_agent.py": (tune_agent.main, TUNE, inputs.MANY),
    "tune_agent.py, model": (
        tune_agent.main,
        TUNE,
        with_options(inputs.MANY, agent=with_options(inputs.MANY.agent, model=HOOK)),
    ),
}


@pytest.mark.parametrize("name", RECEIVED)
def test_a_received_run_runs_no_code_unless_it_is_trusted(name: str, received: Path, refused: Any) -> None:
    main, kind, config = RECEIVED[name]
    write_config(received, kind, config)
    said = refused(main, ["--resume", "received"])
    assert "would run code (" in said and "add --trust" in said
    assert (HOOK in said) == (HOOK in str(config))
    assert "received.hook" not in os.sys.modules  # type: ignore[attr-defined]
    run, _ = RunFolder.open("received", kind, trust=True)
    assert run.resume_options == "--resume received --trust"
    run.release()


@pytest.mark.parametrize("main", [evaluate.main, report.main])
def test_looking_at_a_received_run_runs_no_code_unless_it_is_trusted(
    main: Any, received: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(received, CLASSIFIER, with_options(TRAINING, dataset=HOOK))
    (received / "model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
    assert HOOK in refused(main, ["--run", "received"])
    with pytest.raises((ZeroDivisionError, SystemExit)):
        main(["--run", "received", "--trust"])


def test_results_of_a_received_comparison_run_no_code(received: Path, refused: Any) -> None:
    KINDS["results of a comparison"].make(received)
    results = json.loads((received / "results.json").read_text())
    results["setting"]["dataset"] = HOOK
    (received / "results.json").write_text(json.dumps(results))
    assert HOOK in refused(report.main, ["--run", "received"])


def test_a_run_without_code_of_its_own_needs_no_trust(tmp_path: Path) -> None:
    for number, config in enumerate((TRAINING, with_options(TRAINING, dataset="./images:here", model="timm/hf_hub:a"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_config(folder, CLASSIFIER, config)
        run, _ = RunFolder.open(str(folder), CLASSIFIER, trust=False)
        assert run.resume_options == f"--resume {folder}"
        run.release()


def test_outcomes_are_tallied_by_kind() -> None:
    outcomes = [Outcome("a", "read"), Outcome("b", "refused"), Outcome("a", "too long", "x")]
    assert tally(outcomes) == {
        "a": {"tried": 2, "read": 1, "refused": 0, "too long": 1},
        "b": {"tried": 1, "read": 0, "refused": 1},
    }


# Kills


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    soak = KillsSoak(count=1, seed=1, programs=("train_classifier.py",), processes=1, out=str(tmp_path))
    result, failed = soak.run()
    assert failed == []
    assert result["total"]["kills"] >= 1 and result["total"]["runs"] == result["total"]["ended as undisturbed"] >= 1
    logged = LineLog(tmp_path / "kills.jsonl").read()
    assert sum(len(line["kills"]) for line in logged) == result["total"]["kills"]


KEPT = {
    None: "",
    # While Python ends, a signal does what it does to any program.
    "all is written": "(run / 'result').write_text('the same'); signal.signal(signal.SIGTERM, signal.SIG_DFL)",
}
BREAKAGES = {
    "another result": (
        "",
        "(run / 'result').write_text(f'{time.time()}')",
        "differ from the undisturbed run's: result",
    ),
    "cannot go on": ("if resumed: sys.exit(3)", "", "status 3"),
    "a traceback": ("", "", r"after .*SIGTERM.*: status 1(.|\n)*ZeroDivisionError"),
    "a process is left": (
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)",
        "",
        "left behind after 0.5 s",
    ),
    "does not end": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "", "did not end within 0.5 s"),
}
STAND_IN = """
import pathlib, signal, subprocess, sys, time
run, resumed = pathlib.Path("run"), "--resume" in sys.argv
run.mkdir(exist_ok=True)
(run / "config.json").write_text("{{}}")
signal.signal(signal.SIGTERM, lambda *_: {handler})
print("run folder: run", flush=True)
{first}
time.sleep(0 if resumed else 5)  # longer than it takes Python to start on a busy machine
(run / "result").write_text("the same")
{last}
"""


@pytest.mark.parametrize("breakage", [*KEPT, *BREAKAGES])
def test_what_a_kill_breaks_is_noticed(breakage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last, told = BREAKAGES.get(breakage or "", (KEPT.get(breakage, ""), "", ""))
    handler = "1 / 0" if breakage == "a traceback" else "sys.exit(130)"
    (tmp_path / "stand_in.py").write_text(STAND_IN.format(first=first, last=last, handler=handler))
    monkeypatch.setattr(kills, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(kills, "SIGNALS", {"SIGTERM": 1})
    program = Program("stand_in.py", "", ("result",), patience=0.5)
    monkeypatch.setitem(PROGRAMS, "stand in", program)
    whole = {"stand in": Undisturbed(4.0, {"result": b"the same"})}
    line = tell(0, 3, ["stand in"], whole, tmp_path / "stories")
    if breakage in KEPT:
        assert line["failed"] is None and len(line["kills"]) >= 1
        assert not any((tmp_path / "stories").iterdir())
    else:
        assert re.search(told, line["failed"])
        assert (tmp_path / "stories" / "00000" / "run").is_dir()  # to be looked at


# Writes


@pytest.mark.slow
def test_a_training_whose_disk_fails_goes_on_to_the_same_result(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = writes.PROGRAMS["train_classifier.py"]
    short = replace(program, options=program.options.replace("--updates 60", "--updates 12"))
    monkeypatch.setitem(writes.PROGRAMS, "train_classifier.py", short)
    result, failed = WritesSoak(programs=("train_classifier.py",), every=10**6, out=str(tmp_path)).run()
    assert failed == []
    assert result["total"]["survived"] == result["total"]["tried"] >= 35
    # What was tried is kept, a failure too, and not tried again.
    log = LineLog(tmp_path / "writes.jsonl")
    lines = log.read()
    assert len(lines) == result["total"]["tried"] and all(line["failed"] is None for line in lines)
    log.keep(0)
    for line in [*lines[1:], {**lines[0], "failed": "told"}]:
        log.append(line)
    result, failed = WritesSoak(programs=("train_classifier.py",), every=10**6, out=str(tmp_path)).run()
    assert len(failed) == 1 and failed[0].endswith("told")
    assert result["total"]["survived"] == result["total"]["tried"] - 1 == len(lines) - 1


def careful(arguments: Sequence[str]) -> None:
    """A program that writes a checkpoint and a result, each whole or not at all."""
    with exit_on_user_error(lambda: "--resume"):
        run = RunFolder(Path(arguments[-1]))
        run.save_checkpoint(1, {"number": 1})
        run.write_config("copy", {})
        write_atomic(run.path / "result", b"the same")


def careless(arguments: Sequence[str]) -> None:
    """Likewise, but its result grows by each start."""
    with exit_on_user_error(lambda: "--resume"):
        run = RunFolder(Path(arguments[-1]))
        run.write_config("copy", {})
        with open(run.path / "result", "ab") as file:
            file.write(b"the same")
        write_atomic(run.path / "done", b"")


def traced(arguments: Sequence[str]) -> None:
    """Likewise, but its errors are nobody's."""
    run = RunFolder(Path(arguments[-1]))
    run.save_checkpoint(1, {"number": 1})


def interrupted(_arguments: Sequence[str]) -> None:
    """A program that a signal for its soak has met."""
    with exit_on_user_error(lambda: "--resume"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("flushed", [False, True])
def test_output_that_nobody_reads_ends_a_command_quietly(flushed: bool, tmp_path: Path) -> None:
    code = f"""
        from rlmix.experiments.runs.errors import exit_on_user_error
        with exit_on_user_error():
            for number in range(100_000):
                print(number, flush={flushed})
    """
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_pipe_to_something_else_that_breaks_is_no_mistake_of_a_user() -> None:
    with pytest.raises(BrokenPipeError), exit_on_user_error():
        raise BrokenPipeError("a process of ours is gone")


def test_a_signal_ends_the_soak_and_not_a_fault_of_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Cases(writes.Program(interrupted, "", ("result",)), tmp_path)


@pytest.mark.parametrize(
    ("main", "told"), [(careful, None), (careless, "differ from the undisturbed"), (traced, "not told in a line")]
)
def test_what_a_failing_disk_breaks_is_noticed(main: Any, told: str | None, tmp_path: Path) -> None:
    program = writes.Program(main, "", ("result",))
    run = tmp_path / "counted"
    with (disk := Disk(run)).watched():
        writes.start(program, run)
    assert [done.split()[0] for done in disk.operations[:5]] == ["write", "write", "flush", "rename", "flush"]
    assert str(os.getpid()) not in " ".join(disk.operations)  # a soak that goes on finds them again
    cases = object.__new__(Cases)
    cases._program, cases._whole = program, writes.outcome(program, run)
    failures = []
    for number in range(0, len(disk.operations), 3):
        for error in (None, "ENOSPC"):
            try:
                cases._operation(number, error, tmp_path / f"{number} {error}")
            except Failed as failed:
                failures.append(str(failed))
    assert (told is None and not failures) or (told is not None and any(told in failure for failure in failures))
