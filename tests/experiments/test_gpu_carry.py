"""The folder that takes the GPU check along: what it must hold, and what it refuses."""

import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from rlmix.experiments.benchmarks import gpu_carry
from rlmix.experiments.benchmarks.gpu_carry import HAS, to_carry


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_carried_or_there(python: str) -> None:
    carried = {name for name, _ in to_carry(python)}
    direct = {re.split(r"[<>=!~ ;\[]", line)[0] for line in requires("rl-mix") or [] if "extra ==" not in line}
    # With torch come its own dependencies, with scikit-learn NumPy and SciPy, with torchvision Pillow, with timm tqdm.
    there = {*HAS, "jinja2", "markupsafe", "numpy", "scipy", "pillow", "tqdm"}
    assert direct <= carried | there
    assert {"gymnasium", "stable-baselines3", "tyro", "cloudpickle", "farama-notifications"} <= carried
    assert not carried & {*HAS, "ray", "rl-mix", "numpy", "triton"}
    assert not [name for name in carried if name.startswith(("nvidia", "cuda"))]


def test_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[Sequence[str]] = []
    monkeypatch.setattr(gpu_carry, "_pip", lambda *words: called.append(words))
    wheel = tmp_path / "gco_wrapper-3.0.9-cp312-cp312-linux_x86_64.whl"
    wheel.write_bytes(b"")
    folder = tmp_path / "carry"
    for _ in range(2):  # the second replaces the first
        called.clear()
        gpu_carry.main(["--python", "3.12", "--wheels", str(wheel), "--out", str(folder)])
    download, build = called
    assert download[:2] == ("download", "--quiet") and "--no-deps" in download and "3.12" in download
    assert f"stable-baselines3=={dict(to_carry('3.12'))['stable-baselines3']}" in download
    assert build[0] == "wheel" and "--no-index" in build
    names = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert {"gymnasium", "rl-mix", "gco_wrapper"} <= set(names)
    assert (folder / "wheels" / wheel.name).is_file() and (folder / "tests" / "gpu" / "conftest.py").is_file()
    assert subprocess.run(["sh", "-n", folder / "run.sh"], check=False).returncode == 0
    assert "MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--python", "new"], "--python must be versions such as 3.12, got new"),
        (["--out", "."], "there is something else of this name"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], message: str, refused: Any) -> None:
    assert message in refused(gpu_carry.main, arguments)


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_carry, "_pip", lambda *words: None)
    with pytest.raises(SystemExit):
        gpu_carry.main(["--limit", "0.01", "--out", str(tmp_path / "carry")])
