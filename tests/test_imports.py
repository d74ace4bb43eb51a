"""What is imported: little for a help text, and nothing heavy for `import rlmix`."""

import subprocess
import sys

import pytest

from rlmix.cli import COMMANDS

HEAVY = ("torch", "numpy", "scipy", "matplotlib", "stable_baselines3", "gymnasium", "ray", "tensorboard")


def imported(code: str) -> list[str]:
    """The heavy packages that a fresh process has after some code."""
    told = f"\nimport sys; print('imported', *(name for name in {HEAVY!r} if name in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code + told], capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()[-1].split()[1:]


def test_the_package_takes_nothing() -> None:
    assert imported("import rlmix, rlmix.cli") == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("arguments", [["--help"], ["--no-such-option", "3"]])
def test_help_and_wrong_options_take_nothing(command: str, arguments: list[str]) -> None:
    code = f"from rlmix.cli import main\ntry:\n    main({[command, *arguments]!r})\nexcept SystemExit:\n    pass"
    assert imported(code) == []


@pytest.mark.parametrize("first", ["rlmix", "gymnasium", "rlmix.envs"])
def test_the_environments_are_found_whatever_is_imported_first(first: str) -> None:
    code = f"import {first}, rlmix, gymnasium\nassert gymnasium.spec('MixPolicy-v0').entry_point"
    assert "gymnasium" in imported(code)
