"""The rooms of the house: imports point down only, so that each room can be used without those above."""

import json
import pkgutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What importing all of a room, and nothing of a room above, must not bring in.
NOT_FOR = {
    "classifier": (
        "stable_baselines3",
        "ray",
        "envs",
        "agent",
        "experiments",
        "tensorboard",
        "tyro",
        "timm",
        "torchvision",  # takes a second
        "torchmetrics",  # as do these, and only evaluation needs them
        "torchattack",
        "pytorch_grad_cam",
        "cv2",
    ),
    "envs": ("stable_baselines3", "ray", "agent", "experiments"),
    "agent": ("ray", "experiments"),
}


def modules(room: str) -> list[str]:
    return [f"rlmix.{room}", *(entry.name for entry in pkgutil.walk_packages([str(ROOT / room)], f"rlmix.{room}."))]


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Top-level modules there are once each room, from the lowest up, has been imported whole in a new process."""
    rooms = json.dumps({room: modules(room) for room in NOT_FOR})
    code = f"""
import importlib, json, sys
found = {{}}
for room, modules in {rooms}.items():
    for module in modules:
        importlib.import_module(module)
    found[room] = sorted({{name.removeprefix("rlmix.").partition(".")[0] for name in sys.modules}})
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_every_room_is_found() -> None:
    assert "rlmix.classifier.mixing.rmix" in modules("classifier")
    assert "rlmix.envs.mix_policy" in modules("envs")
    assert "rlmix.agent.ppo" in modules("agent")


def test_no_command_hides_a_module_of_python_or_of_a_package() -> None:
    """A script's folder stands first on the path: a file called statistics.py was once imported by torch.compile."""
    folders = [path.parent for path in (ROOT / "experiments").rglob("*.py")]
    names = {
        path.stem
        for folder in {ROOT / "experiments", *folders}
        for path in folder.glob("*")
        if path.suffix in ("", ".py")
    }
    taken = {*sys.stdlib_module_names, *packages_distributions()}
    assert "train_agent" in names and "torch" in taken
    assert not (names - {"__init__"}) & taken


@pytest.mark.parametrize("room", NOT_FOR)
def test_imports_point_down_only(room: str, imported: dict[str, list[str]]) -> None:
    assert room in imported[room]
    assert not set(imported[room]) & set(NOT_FOR[room])
