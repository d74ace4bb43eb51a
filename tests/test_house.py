"""The rooms of the house: imports point down only, so that each room can be used without those above."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What importing all of a room, and nothing of a room above, must not bring in.
NOT_FOR = {
    "classifier": (
        "gymnasium",
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
    return [room, *(entry.name for entry in pkgutil.walk_packages([str(ROOT / room)], f"{room}."))]


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
    found[room] = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_every_room_is_found() -> None:
    assert "classifier.mixing.rmix" in modules("classifier")
    assert "envs.mix_policy" in modules("envs")
    assert "agent.ppo" in modules("agent")


@pytest.mark.parametrize("room", NOT_FOR)
def test_imports_point_down_only(room: str, imported: dict[str, list[str]]) -> None:
    assert room in imported[room]
    assert not set(imported[room]) & set(NOT_FOR[room])
