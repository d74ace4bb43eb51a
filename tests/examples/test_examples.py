"""The examples: each trains, resumes to the same weights, and shows the agent's choices in its framework's own log."""

import csv
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix.agent.ppo import new_policy, to_agent
from rlmix.envs import Menu

EXAMPLES = Path(__file__).parents[2] / "examples"


def weights_in(name: str, part: str) -> Callable[[Path], Any]:
    return lambda out: torch.load(out / name)[part]


def tensorboard(out: Path) -> set[str]:
    return set(EventAccumulator(str(out)).Reload().Tags()["scalars"])


def json_lines(out: Path) -> set[str]:
    return {key for line in (out / "log.jsonl").read_text().splitlines() for key in json.loads(line)}


def columns(name: str) -> Callable[[Path], set[str]]:
    return lambda out: {key for file in out.glob(name) for row in csv.DictReader(file.open()) for key in row}


def trainer_state(out: Path) -> set[str]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return {key for entry in history for key in entry}


LOOPS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], set[str]], str]] = {
    "plain_loop": (weights_in("checkpoint.pt", "network"), json_lines, "rlmix/label_smoothing"),
    "timm_loop": (weights_in("last.pth.tar", "state_dict"), columns("summary.csv"), "train_rlmix/label_smoothing"),
    "torchvision_loop": (weights_in("checkpoint.pth", "model"), tensorboard, "rlmix/label_smoothing"),
    "lightning_loop": (
        weights_in("last.ckpt", "state_dict"),
        columns("version_*/metrics.csv"),
        "rlmix/label_smoothing",
    ),
    "accelerate_loop": (
        lambda out: load_file(out / "epoch_2/model.safetensors"),
        lambda out: tensorboard(out / "log"),
        "rlmix/label_smoothing",
    ),
    "huggingface_loop": (lambda out: load_file(out / "model.safetensors"), trainer_state, "rlmix/label_smoothing"),
}
NEEDS = {
    "accelerate_loop": "accelerate",
    "timm_loop": "timm",
    "lightning_loop": "lightning",
    "huggingface_loop": "transformers",
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an agent that has learned nothing but does not always choose the same."""
    folder, menu = tmp_path_factory.mktemp("agent"), Menu(labels=((1.0, 0.0), (1.0, 0.3)))
    torch.manual_seed(3)
    policy = new_policy(menu, [16])
    with torch.no_grad():
        policy.action_net.weight.mul_(300)  # type: ignore[operator]
    to_agent(policy, menu, (0.25, 0.5, 0.75, 1.0), {}).save(folder)
    return folder


@pytest.mark.parametrize("name", LOOPS)
def test_a_resumed_run_equals_one_without_a_break_and_its_log_shows_the_choices(
    name: str, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    main = importlib.import_module(name).main
    weights, logged, tag = LOOPS[name]
    options = ["--epochs", "2", "--policy", str(agent)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([*options, "--out", str(tmp_path / "whole")])
        main([*options, "--out", str(tmp_path / "broken"), "--stop-after", "1"])
        main([*options, "--out", str(tmp_path / "broken"), "--resume"])
    expected, found = (weights(tmp_path / folder) for folder in ("whole", "broken"))
    assert len(expected) > 3 and list(found) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    assert tag in logged(tmp_path / "whole")
