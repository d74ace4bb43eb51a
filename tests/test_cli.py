"""The console script: names of commands, and hints in its own spelling."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlmix import cli
from rlmix.experiments.runs.command import spelling


def test_it_lists_its_commands(capsys: Any) -> None:
    for arguments in ([], ["--help"]):
        cli.main(arguments)
        out = capsys.readouterr().out
        assert all(name in out for name in cli.COMMANDS)


def test_help_breaks_lines_for_the_terminal_not_as_the_source_does(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["train-classifier", "--help"])
    lines = capsys.readouterr().out.splitlines()
    long = "as vision transformers are trained, without decay of biases and normalisation layers"  # two lines there
    assert any(long in line for line in lines)
    examples = [line for line in lines if line.startswith("    python ")]
    assert len(examples) > 2 and not any(line.count("python ") > 1 for line in lines), "one example a line"


def test_a_wrong_name_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["trian"])
    assert stopped.value.code == 2
    assert "train-agent" in capsys.readouterr().err


def test_hints_are_spelled_as_the_program_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/rlmix", "replay-policy"])
    assert spelling("train_rl_mix") == "rlmix train-rl-mix"
    monkeypatch.setattr(sys, "argv", ["experiments/train_agent.py"])
    assert spelling("train_rl_mix") == "python experiments/train_rl_mix.py"


def test_a_bug_keeps_its_traceback_and_a_mistake_has_one_on_demand() -> None:
    code = (
        "from rlmix.classifier.errors import InputError\n"
        "from rlmix.experiments.runs.command import command\n"
        "with command('train_agent', []):\n"
        "    raise {}\n"
    )

    def said(error: str, **added: str) -> str:
        program = [sys.executable, "-c", code.format(error)]
        return subprocess.run(program, capture_output=True, text=True, env={**os.environ, **added}).stderr

    for bug in ("TypeError('x')", "ValueError('x')", "AttributeError('x')"):
        assert "Traceback" in said(bug)
    assert said("InputError('mistake')") == "error: mistake\n"
    debugged = said("InputError('mistake')", RLMIX_DEBUG="1")
    assert "Traceback" in debugged and debugged.endswith("error: mistake\n")


def test_what_is_odd_about_data_is_told_in_one_line(tmp_path: Path) -> None:
    """With the file and what is wrong with it, without the place in our code, which means nothing to a user."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                shade = 40 * number + (part == "test") + 10 * (name == "dog")
                Image.new("L", (8, 8), shade).save(folder / f"{number}.png")
    (tmp_path / "train/cat/2.heic").write_bytes(b"no image")
    code = (
        "from rlmix.classifier.data import load_dataset\n"
        "from rlmix.experiments.runs.command import command\n"
        "import warnings\n"
        "with command('train_agent', []):\n"
        f"    load_dataset({str(tmp_path)!r})\n"
        "    warnings.warn('of others')\n"
    )
    first, *others = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.splitlines()
    assert first.startswith(f"warning: {tmp_path}: 1 files are no images") and "registry.py" not in first
    assert others[0].endswith("UserWarning: of others")
