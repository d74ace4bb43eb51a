"""What the tests of the commands share: starting them as a user does, looking at processes, being refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from PIL import Image

from tests.experiments.inline import skip_drawing

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds; starting takes some, and much more of them on a busy machine


class Start(Protocol):
    """Starts a command of `experiments/` in a folder, as the leader of a process group of its own."""

    def __call__(
        self, script: str, *arguments: object, cwd: Path, modules: Path | None = None
    ) -> subprocess.Popen[str]: ...


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """One thread, as workers have; and take back what a command that ran in this process has set for all of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Starts commands; whatever is left of them at the end is killed."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As a shell starts what it puts into the background; a command would inherit it, and never be interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object, cwd: Path, modules: Path | None = None) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if modules is not None:
            environment["PYTHONPATH"] = str(modules)
        started.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)],
                cwd=cwd,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        for member in _members(process):
            os.kill(member, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits for something; a process that ends meanwhile, though it should not, is an error."""

    def wait(what: str, condition: Callable[[], object], running: subprocess.Popen[str] | None = None) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if running is not None and running.poll() is not None:
                pytest.fail(f"it ended before {what}: {running.communicate()}")
            if time.monotonic() > end:
                pytest.fail(f"waited {PATIENCE} s for {what}")
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def members() -> Callable[[subprocess.Popen[str]], list[int]]:
    """The living processes of a command's group."""
    return _members


@pytest.fixture(scope="session")
def titled() -> Callable[[str, Sequence[int]], list[int]]:
    """Those of some processes whose title begins so; Ray gives its processes titles."""

    def find(title: str, processes: Sequence[int]) -> list[int]:
        found = []
        for process in processes:
            try:
                if Path(f"/proc/{process}/cmdline").read_bytes().startswith(title.encode()):
                    found.append(process)
            except OSError:
                continue
        return found

    return find


def _members(leader: subprocess.Popen[str]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # "PID (NAME) STATE PARENT GROUP ..."; the name may hold anything.
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == leader.pid and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and TensorBoard's figures stay without drawings."""
    skip_drawing(monkeypatch)


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]:
    """Runs a command that must be refused: status 2, one line on standard error, nothing left behind; gives the line.

    The working folder is `tmp_path`.
    """

    def run(main: Callable[[Sequence[str]], Any], arguments: Sequence[object]) -> str:
        monkeypatch.chdir(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert stopped.value.code == 2
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert out == ""
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return err

    return run


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Folder with one small data set of its own, `squares`: two classes of grey squares, dark and bright."""
    random = np.random.default_rng(0)
    for part, label, number in product(("train", "test"), "ab", range(150)):
        (images := tmp_path / "data" / "squares" / part / label).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 128, (16, 16)) + 127 * (label == "b")
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number}.png")
    return tmp_path / "data"
