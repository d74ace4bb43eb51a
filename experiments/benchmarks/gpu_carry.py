"""Make a folder that takes the GPU check to a machine which reaches no package registry.

    python experiments/benchmarks/gpu_carry.py
    python experiments/benchmarks/gpu_carry.py --python 3.11 3.12 3.13 --out gpu-carry
    sh gpu-carry/run.sh --out check.json   # there

The machine is taken to have torch, torchvision, timm, tensorboard, safetensors, scikit-learn, pytest and hypothesis.
The folder holds wheels of RL-Mix and of whatever else it needs, in the versions that are installed here, and the tests.
Its images are generated, or come with scikit-learn. Needs pip and setuptools.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlmix.classifier.errors import InputError
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError

HAS = ("torch", "torchvision", "timm", "tensorboard", "safetensors", "scikit-learn", "pytest", "hypothesis")
ALWAYS = {"cloudpickle"}  # scikit-learn needs it too, but older versions do not
ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20

RUN = """\
#!/bin/sh
# Check this machine's GPU: sh run.sh [options of gpu_check.py]. PYTHON names the Python that has torch.
set -eu
python=${PYTHON:-python3}
out=$PWD
cd "$(dirname "$0")"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-index --no-deps --no-compile --find-links wheels --target "$site" \\
    --requirement requirements.txt
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" "$python" -m rlmix.experiments.benchmarks.gpu_check \\
    --out "$out/gpu_check.json" "$@"
"""


@dataclass(frozen=True)
class CarryConfig:
    """Make a folder that takes the GPU check to a machine without a package registry."""

    python: tuple[str, ...] = ("3.12",)
    """Versions of Python that the wheels are for, each such as 3.12."""
    wheels: tuple[str, ...] = ()
    """Further wheels to take along, such as gco-wrapper's for Puzzle Mix, by their paths."""
    limit: float = 40.0
    """Largest size of the folder in MiB."""
    out: str = "gpu-carry"
    """The folder; replaced where there is one that this command made."""

    def __post_init__(self) -> None:
        if not self.python or any(not version.replace(".", "", 1).isdigit() for version in self.python):
            raise InputError(f"--python must be versions such as 3.12, got {' '.join(self.python) or 'none'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/gpu_carry", arguments) as call:
        config = call.parse(CarryConfig, __doc__)
        folder = Path(config.out)
        _make_empty(folder)
        needed = sorted({(name, version) for python in config.python for name, version in to_carry(python)})
        for python in config.python:
            _download([f"{name}=={version}" for name, version in to_carry(python)], python, folder / "wheels")
        _build(folder / "wheels")
        for wheel in config.wheels:
            shutil.copy(wheel, folder / "wheels")
        extra = [name for name, version in map(_wheel_name, config.wheels)]
        lines = [*(f"{name}=={version}" for name, version in needed), "rl-mix", *extra]
        (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
        (folder / "run.sh").write_text(RUN)
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > config.limit * MIB:
            raise RunError(
                f"{folder} has {size / MIB:.1f} MiB, more than --limit {config.limit:g}; take fewer --python"
            )
    print(f"{folder}: {size / MIB:.1f} MiB, {len(lines)} packages, for Python {', '.join(config.python)}")


def to_carry(python: str) -> list[tuple[str, str]]:
    """Return the packages that RL-Mix needs and the machine lacks, with the versions that are installed here.

    Args:
        python: version of Python there, such as 3.12.
    """
    needed = _needs(["rl-mix"], python) - _needs(HAS, python) - {"rl-mix"} | ALWAYS
    return sorted((name, distribution(name).version) for name in needed)


def _needs(names: Iterable[str], python: str) -> set[str]:
    """Return packages and all that they need in turn, without extras."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:  # that of another platform
            found.discard(name)
            continue
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                left.append(canonicalize_name(requirement.name))
    return found


def _make_empty(folder: Path) -> None:
    if folder.exists():
        if not (folder / "run.sh").is_file():
            raise RunError(f"--out {folder}: there is something else of this name; choose another")
        shutil.rmtree(folder)
    (folder / "wheels").mkdir(parents=True)


def _download(requirements: Sequence[str], python: str, folder: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    _pip("download", *options, *platforms, "--dest", str(folder), *requirements)


def _build(folder: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    with tempfile.TemporaryDirectory() as place:  # so that nothing is left in the checkout, nor taken from an old build
        tree = Path(place) / "tree"
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
        tree.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        for name in ("src", "agent", "classifier", "envs", "experiments"):
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
        _pip("wheel", *options, "--wheel-dir", str(folder.resolve()), str(tree))


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise RunError(f"pip {words[0]}: {' '.join(told)}")


def _wheel_name(path: str) -> tuple[str, str]:
    name, version, *_ = Path(path).name.split("-")
    return name, version


if __name__ == "__main__":
    main()
