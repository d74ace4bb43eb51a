"""A saved agent chooses as before, and a file that somebody was sent runs no code."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlmix.agent.agent import Agent
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError
from rlmix.envs import DIMENSIONS, Menu
from rlmix.envs.observation import FEATURES, Feature, observation_space

PROVENANCE = {"learned_by": "ppo", "episodes": 3, "updates": [20, 20]}


def new_agent(menu: Menu | None = None, hidden: tuple[int, ...] = (16, 8), seed: int = 0) -> Agent:
    """An agent with weights large enough to choose differently at different observations."""
    menu = menu or Menu()
    policy = new_policy(menu, hidden)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return to_agent(policy, menu, (0.3, 0.8, 1.0), PROVENANCE)


def observations(menu: Menu, count: int = 100) -> np.ndarray:
    space = observation_space(menu)
    space.seed(0)
    return np.stack([space.sample() for _ in range(count)])


def test_an_agent_says_which_features_it_sees_where_they_are_not_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_agent()
    before = first.to_files()
    assert json.loads(before["agent.json"])["observation_version"] == 1
    monkeypatch.setitem(FEATURES, "images", Feature("images", 0.0, 1.0, lambda state: 0.0))
    names = ("images", "progress")
    agent = to_agent(new_policy(Menu(), [8], names), Menu(), (0.5, 1.0), PROVENANCE, names)
    agent.save(tmp_path)
    assert json.loads((tmp_path / "agent.json").read_bytes())["observation_version"] == list(names)
    loaded = Agent.load(tmp_path)
    assert loaded.features == names
    seen = np.ones(2 + sum(Menu().sizes), dtype=np.float32)
    assert loaded.choose(seen) == agent.choose(seen)
    assert Agent.from_files(before).to_files() == before, "an added feature changes nothing for it"
    monkeypatch.delitem(FEATURES, "images")
    with pytest.raises(ValueError, match=r"features must be .* images, progress"):
        Agent.load(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    new_agent().save(tmp_path)
    return tmp_path


def test_probabilities_are_those_of_the_networks_logits() -> None:
    agent = new_agent()
    for observation in observations(agent.menu, 20):
        hidden = torch.from_numpy(observation)
        weights = agent.policy.state_dict()
        for layer in (0, 2):
            name = f"mlp_extractor.policy_net.{layer}"
            hidden = torch.tanh(weights[f"{name}.weight"] @ hidden + weights[f"{name}.bias"])
        logits = weights["action_net.weight"] @ hidden + weights["action_net.bias"]
        expected = [part.exp() / part.exp().sum() for part in logits.split(agent.menu.sizes)]
        found = agent.probabilities(observation)
        assert list(found) == list(DIMENSIONS)
        for dimension, shares, choice in zip(DIMENSIONS, expected, agent.choose(observation), strict=True):
            assert list(found[dimension]) == agent.menu.names(dimension)
            assert list(found[dimension].values()) == pytest.approx(shares.tolist(), abs=1e-5)
            assert max(found[dimension], key=lambda name: found[dimension][name]) == agent.menu.names(dimension)[choice]


@pytest.mark.parametrize("menu", [Menu(), Menu(thresholds=(0.25,), lams=("uniform", "beta(2)"))])
@pytest.mark.parametrize("hidden", [(16, 8), (), (4, 4, 4)])
def test_a_loaded_agent_chooses_as_the_saved_one(tmp_path: Path, menu: Menu, hidden: tuple[int, ...]) -> None:
    agent = new_agent(menu, hidden)
    agent.save(tmp_path)
    torch.manual_seed(8)
    loaded = Agent.load(tmp_path)
    seen = observations(menu)
    choices = [agent.choose(observation) for observation in seen]
    assert len(set(choices)) > 2
    assert [loaded.choose(observation) for observation in seen] == choices
    assert (loaded.menu, loaded.segments, loaded.provenance) == (menu, agent.segments, PROVENANCE)
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor)


@pytest.mark.parametrize("hidden", [(16, 8), ()])
def test_an_agent_computes_what_stable_baselines3_does(hidden: tuple[int, ...]) -> None:
    agent = new_agent(hidden=hidden)
    theirs = new_policy(agent.menu, hidden)
    theirs.load_state_dict(agent.policy.state_dict())
    for observation in observations(agent.menu, 50):
        tensor = torch.from_numpy(observation[None])
        with torch.no_grad():
            distribution = theirs.get_distribution(tensor).distribution
            _, value = agent.policy(tensor)
            torch.testing.assert_close(value, theirs.predict_values(tensor))
        action, _ = theirs.predict(observation, deterministic=True)
        assert agent.choose(observation) == tuple(action)
        found = [list(shares.values()) for shares in agent.probabilities(observation).values()]
        # The last bits depend on where the weights lie in memory.
        for ours, part in zip(found, distribution, strict=True):
            assert ours == pytest.approx(part.probs[0].tolist(), rel=1e-5)


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(saved: Path, name: str, writer: str) -> None:
    mark = saved / "code was run"
    if writer == "pickle":
        (saved / name).write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({"weights": Hostile(mark)}, saved / name)
    with pytest.raises(DamagedFileError, match=str(saved)):
        Agent.load(saved)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors"])
@pytest.mark.parametrize("tenths", range(10))
def test_a_cut_file_is_refused(saved: Path, name: str, tenths: int) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) * tenths // 10])
    with pytest.raises(DamagedFileError, match=r"agent\.json and agent\.safetensors"):
        Agent.load(saved)


@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors"])
def test_a_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DamagedFileError, match=name.replace(".", r"\.")):
        Agent.load(saved)
    with pytest.raises(DamagedFileError):
        Agent.load(saved / "nowhere")


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something else"},
        {"version": 2},
        {"version": None},
        {"observation_version": 99},
        {"hidden": [16, 9]},
        {"hidden": [16]},
        {"hidden": [0]},
        {"hidden": [10**9]},
        {"hidden": [8] * 9},
        {"hidden": [float("inf")]},
        {"hidden": [float("nan")]},
        {"hidden": ["a"]},
        {"hidden": 5},
        {"hidden": None},
        {"menu": {}},
        {"menu": [1, 2]},
        {"menu": {**Menu().to_json(), "thresholds": [None]}},
        {"menu": {**Menu().to_json(), "sources": [["x", {"nothing": 1.0}]]}},
        {"menu": {**Menu().to_json(), "sources": [["x", {"clean": {}}]]}},
        {"menu": {**Menu().to_json(), "lams": [[]]}},
        {"segments": [0.5]},
        {"segments": [0.5, 0.2, 1.0]},
        {"segments": []},
        {"segments": 3},
        {"segments": ["x"]},
        {"segments": [float("nan"), 1.0]},
        {"segments": [float("inf")]},
        {"provenance": 5},
        {"extra": 1},
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved: Path, change: dict[str, Any]) -> None:
    value = json.loads((saved / "agent.json").read_text())
    (saved / "agent.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(DamagedFileError):
        Agent.load(saved)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"5", b"\xff\xfe", b'{"format": "rl-mix agent"}', nested(10**5)]
)
def test_json_that_is_no_agent_is_refused(saved: Path, content: bytes) -> None:
    (saved / "agent.json").write_bytes(content)
    with pytest.raises(DamagedFileError):
        Agent.load(saved)


def test_weights_that_do_not_fit_are_refused(saved: Path) -> None:
    path = saved / "agent.safetensors"
    weights = load_file(path)
    name = "action_net.bias"
    for changed in (
        {**weights, name: weights[name][:-1].clone()},
        {**weights, name: weights[name][None].clone()},
        {key: tensor for key, tensor in weights.items() if key != name},
        {**weights, "more": torch.zeros(1)},
        {},
    ):
        save_file(changed, path)
        with pytest.raises(DamagedFileError):
            Agent.load(saved)
    save_file(weights, path)
    Agent.load(saved)


def test_the_files_are_json_and_plain_tensors(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["agent.json", "agent.safetensors"]
    assert json.loads((saved / "agent.json").read_text())["version"] == 1
    content = (saved / "agent.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    stored = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + stored, "nothing behind the tensors"
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F32"}


def test_the_checksum_is_that_of_both_files(saved: Path) -> None:
    content = (saved / "agent.json").read_bytes() + (saved / "agent.safetensors").read_bytes()
    assert Agent.load(saved).checksum == hashlib.sha256(content).hexdigest()
    assert new_agent(seed=1).checksum != new_agent(seed=0).checksum


def test_loading_the_shipped_agent_takes_no_compiler_and_no_optimiser(tmp_path: Path) -> None:
    code = (
        "import sys; from rlmix.agent.agent import Agent; from rlmix.envs.observation import observation_space\n"
        "agent = Agent.load('shipped'); agent.choose(observation_space(agent.menu, agent.features).sample())\n"
        "slow = ('torch._dynamo', 'torch.distributed.fsdp', 'scipy.stats', 'ray')\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_an_observation_of_other_features_is_refused_with_what_is_expected() -> None:
    agent = Agent.load("shipped")
    choices = sum(agent.menu.sizes)
    short = np.zeros(len(agent.features) + choices - 1, dtype=np.float32)
    expected = rf"{len(agent.features)} features and {choices} choices .*got shape \({len(short)},\)"
    for ask in (agent.choose, agent.probabilities):
        with pytest.raises(InputError, match=expected):
            ask(short)
