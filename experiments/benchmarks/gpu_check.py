"""Check on a CUDA machine that everything works there, and measure it, within 8 minutes and without a download.

    python experiments/benchmarks/gpu_check.py
    python experiments/benchmarks/gpu_check.py --parts tests speed
    python experiments/benchmarks/gpu_check.py --device cpu --tiny --minutes 30 --out check.json

Runs the tests that are marked `gpu`, then measures the GPU's attainable rates, training images a second, and
trainings an hour by number of environment processes and of trainings in lockstep. The parts run one after another,
each in a process of its own with a time limit, and the report is written as they go: one that fails or takes too long
loses nothing of the others. The exit status is 1 if a part failed. Without a CUDA device there is nothing to check,
which is said in a line. The last form runs the same code on a CPU, at sizes of seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlmix.classifier.errors import InputError
from rlmix.classifier.files import write_atomic
from rlmix.experiments.benchmarks import gpu_environments, gpu_speed, gpu_tests, lockstep_speed
from rlmix.experiments.benchmarks.gpu_sizes import FULL, TINY, Note, Sizes
from rlmix.experiments.benchmarks.timing import prepare_output, say
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError


@dataclass(frozen=True)
class Part:
    """Part of the check.

    Attributes:
        run: takes the device's name, the sizes, the folder of the tests, and where results are noted.
        seconds: time limit.
    """

    run: Callable[[str, Sizes, str, Note], None]
    seconds: float


PARTS = {
    "machine": Part(gpu_speed.measure_machine, 45),
    "tests": Part(gpu_tests.run_tests, 170),
    "speed": Part(gpu_speed.measure_speed, 140),
    "environments": Part(gpu_environments.measure_environments, 100),
    "lockstep": Part(lockstep_speed.measure_part, 80),
    "compiled": Part(gpu_speed.measure_compiled, 90),
}
PATIENCE = 10  # times a part's limit, for a CPU
WARNING = 5.0  # seconds between the request to end and the end


@dataclass(frozen=True)
class GpuCheckConfig:
    """Check and measure a CUDA machine."""

    device: str = "cuda"
    """Device: cuda or cuda:N; cpu tries the check itself."""
    parts: tuple[str, ...] = tuple(PARTS)
    """Parts to run, in this order."""
    minutes: float = 8.0
    """Time limit of all parts together; a part that would begin after it is left out."""
    tests: str = "tests/gpu"
    """Folder of the tests."""
    tiny: bool = False
    """Take sizes that a CPU does in seconds."""
    out: str = "experiments/results/gpu_check.json"
    """File of the report, JSON."""

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise InputError(f"--parts must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
        if not 0 < self.minutes <= 24 * 60:
            raise InputError(f"--minutes must be above 0 and at most a day, got {self.minutes:g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/gpu_check", arguments) as call:
        config = call.parse(GpuCheckConfig, __doc__)
        import torch

        if config.device != "cpu" and not torch.cuda.is_available():
            print("no CUDA device is there: nothing to check")
            return
        if "tests" in config.parts and not Path(config.tests).is_dir():
            raise RunError(f"--tests {config.tests}: no such folder; run this in a checkout, or name its tests/gpu")
        out = Path(config.out)
        prepare_output(out)
        report: dict[str, Any] = {"kind": "gpu_check", "command": call.line, "config": asdict(config), "parts": {}}
        started = time.monotonic()
        for name in config.parts:
            left = 60 * config.minutes - (time.monotonic() - started)
            limit = PARTS[name].seconds * (PATIENCE if config.tiny else 1)
            report["parts"][name] = found = run_part(name, config, min(limit, left))
            report["seconds"] = round(time.monotonic() - started, 1)
            _write(out, report)
            say(f"{name}: {found['state']} after {found['seconds']:.0f} s" + _last_line(found.get("error")))
    print(f"written: {out}")
    if any(found["state"] != "done" for found in report["parts"].values()):
        sys.exit(1)


def run_part(name: str, config: GpuCheckConfig, limit: float) -> dict[str, Any]:
    """Run a part in a process of its own; return its state, seconds, results, and error if there was one.

    The state is `done`, `failed`, `timed out`, or `left out` where no time is left.

    Args:
        name: a name of `PARTS`.
        config: options of the check.
        limit: seconds after which its processes are ended.
    """
    if limit <= 0:
        return {"state": "left out", "seconds": 0.0, "results": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        # Spawned, not forked: a process that has used CUDA cannot be forked.
        process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(name, config, file))
        started = time.monotonic()
        process.start()
        process.join(limit)
        late = process.is_alive()
        if late:
            _end(process)
        found = json.loads(file.read_text()) if file.exists() else {"results": {}}
        found |= {"state": "done", "seconds": round(time.monotonic() - started, 1)}
        if late:
            found["state"] = "timed out"
        elif process.exitcode or "error" in found:
            found["state"] = "failed"
            found.setdefault("error", f"the process ended with status {process.exitcode}")
    return found


def _in_process(name: str, config: GpuCheckConfig, file: Path) -> None:
    os.setsid()  # so that whatever it starts is ended with it
    # Only read when cuBLAS starts: without it the sums of some products depend on the streams in use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found: dict[str, Any] = {"results": {}}

    def note(key: str, value: Any) -> None:
        found["results"][key] = value
        _write(file, found)

    try:
        PARTS[name].run(config.device, TINY if config.tiny else FULL, config.tests, note)
    except Exception:
        found["error"] = traceback.format_exc()
        _write(file, found)
        traceback.print_exc()
    _write(file, found)


def _end(process: Any) -> None:
    """End a part and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it has not come as far as its own group, or is gone
            process.kill()
        process.join(WARNING)
    process.join()


def _last_line(error: str | None) -> str:
    return "" if not error else f": {error.strip().splitlines()[-1]}"


def _write(file: Path, content: Any) -> None:
    write_atomic(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
