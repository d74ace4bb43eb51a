"""What is installed: one package, `rlmix`, made of real files, which works beside a user's own packages."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("agent", "classifier", "envs", "experiments")
# Dependencies without which a loop of one's own must run.
UNNEEDED = ("stable_baselines3", "gymnasium", "ray", "matplotlib", "tensorboard", "scipy", "torchvision", "tyro")

pytestmark = pytest.mark.slow


def run(*words: str, cwd: Path, path: Path | None = None, python: str = sys.executable) -> str:
    """The output of a Python with these arguments; `path` is put in front of what it imports from."""
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run([python, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from a source archive that was built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*ROOMS, "src", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
    run("-c", build, "sdist", str(folder), cwd=tree)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        assert not [member.name for member in source if member.issym() or member.islnk()]
        source.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    run("-c", build, "wheel", str(folder), cwd=unpacked)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """An otherwise empty folder into which pip has installed the wheel."""
    target = wheel.parent / "installed"
    pip = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target))
    run(*pip, str(wheel), cwd=wheel.parent)
    return target


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Callable[..., str]:
    """A maker of virtual environments of the wheel and this environment's other packages, but for those left out."""

    def make(*left_out: str) -> str:
        libraries = tmp_path / "libraries"
        libraries.mkdir()
        for folder in dict.fromkeys(path for path in map(Path, sys.path) if path.name == "site-packages"):
            for entry in folder.iterdir():
                name = re.split(r"[-.]", entry.name)[0].lower()
                own = name in ("rlmix", "rl_mix") or entry.suffix == ".pth"
                if not (own or name in left_out or (libraries / entry.name).exists()):
                    (libraries / entry.name).symlink_to(entry)
        run("-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
        python = str(tmp_path / "venv/bin/python")
        pip = ("-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", "--no-compile")
        run(*pip, str(wheel), cwd=tmp_path)
        (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
        (packages / "libraries.pth").write_text(f"{libraries}\n")
        return python

    return make


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's own program, whose packages are called like the rooms of this one."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("OWNER = 'user'\n")
    return tmp_path


def test_the_wheel_holds_all_modules_and_no_results(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    assert {f"rlmix/{path.as_posix()}" for path in sources} <= names
    assert {"rlmix/py.typed", "rlmix/experiments/reports/report.html.j2"} <= names
    assert {f"rlmix/experiments/policies/shipped/agent.{end}" for end in ("json", "safetensors")} <= names
    assert {f"rlmix/experiments/policies/rule/{name}.json" for name in ("rule", "experience")} <= names
    assert not [name for name in names if name.endswith((".jsonl", ".png", ".md")) and ".dist-info" not in name]
    assert "rlmix/experiments/policies/surrogate/surrogate.safetensors" in names
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    for learned in ("surrogate/surrogate.safetensors", "shipped/forecaster.safetensors"):
        assert sizes.pop(f"rlmix/experiments/policies/{learned}") < 2_000_000
    assert max(sizes.values()) < 100_000


def test_one_name_is_installed(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()} - {"bin"}
    assert {name for name in names if not name.endswith(".dist-info")} == {"rlmix"}
    assert len(names) == 2


def test_a_users_own_packages_and_this_one_work_together(installed: Path, project: Path) -> None:
    code = f"""
import agent, classifier, envs, experiments
import gymnasium as gym
import rlmix
assert {{room.OWNER for room in (agent, classifier, envs, experiments)}} == {{"user"}}
assert rlmix.__file__.startswith({str(installed)!r}), rlmix.__file__
env = gym.make("rlmix:MixPolicy-v0", dataset="digits", segments=2, reward="final")
env.reset(seed=0)
print(env.step(env.action_space.sample())[0].shape == env.observation_space.shape)
"""
    assert run("-c", code, cwd=project, path=installed).split()[-1] == "True"


def test_the_installed_agent_chooses(installed: Path, project: Path) -> None:
    code = """
import numpy as np
from rlmix import Agent
from rlmix.envs.observation import observation_bounds
agent = Agent.load("shipped")
print(len(agent.choose(np.zeros(observation_bounds(agent.menu, agent.features)[0].shape, np.float32))))
"""
    assert run("-c", code, cwd=project, path=installed).split()[-1] == "4"


def test_importing_the_package_is_light(installed: Path, project: Path) -> None:
    code = "import sys, rlmix; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run("-c", code, cwd=project, path=installed).split())
    assert "rlmix" in loaded
    assert not loaded & {"ray", "matplotlib", "tensorboard", "torch", "stable_baselines3", "scipy"}


EXAMPLES = f"""
import importlib, importlib.util, sys, warnings, rlmix
assert rlmix.__file__.startswith(sys.prefix), rlmix.__file__
warnings.simplefilter("ignore")
sys.path.insert(0, {str(ROOT / "examples")!r})
names, left_out = (words.split() for words in sys.argv[1:])
assert not [name for name in left_out if importlib.util.find_spec(name)]
for name in names:
    importlib.import_module(name).main(["--epochs", "1", "--out", name])
"""


def test_the_plain_loop_runs_in_an_environment_of_little_but_torch(
    environment: Callable[..., str], tmp_path: Path
) -> None:
    python = environment(*UNNEEDED)
    assert "epoch 0" in run("-c", EXAMPLES, "plain_loop", " ".join(UNNEEDED), cwd=tmp_path, python=python)
    assert (tmp_path / "plain_loop/policy.json").is_file()


def test_the_examples_run_with_what_is_installed(environment: Callable[..., str], tmp_path: Path) -> None:
    needs = {
        "accelerate_loop": "accelerate",
        "timm_loop": "timm",
        "lightning_loop": "lightning",
        "huggingface_loop": "transformers",
    }
    names = [path.stem for path in sorted((ROOT / "examples").glob("*_loop.py"))]
    there = [name for name in names if name not in needs or find_spec(needs[name])]
    run("-c", EXAMPLES, " ".join(there), "", cwd=tmp_path, python=environment())
    assert len(names) >= 5 and all(any((tmp_path / name).iterdir()) for name in there)


def test_the_commands_are_installed(installed: Path, project: Path) -> None:
    command = str(installed / "bin" / "rlmix")
    assert "replay-policy" in run(command, "--help", cwd=project, path=installed)
    assert "--agent" in run(command, "replay-policy", "--help", cwd=project, path=installed)
