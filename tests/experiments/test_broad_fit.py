"""Agent and forecaster fitted to recorded trainings: what they see is what a final training shows."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.files import NAMED, SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.envs import BroadTasks, MixPolicyEnv, Source
from rlmix.envs.observation import DEFAULT_FEATURES, RECORDED_FEATURES
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import fit_agent, logs, record

TASKS = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(10, 10), seconds=1.5)


def environment(features: Sequence[str]) -> MixPolicyEnv:
    return MixPolicyEnv(
        task_trainer=record.shared_trainer((("digits", "digits"),), "fp32"),
        tasks=TASKS,
        segments=SEGMENTS,
        reward="final",
        menu=MENU,
        features=features,
    )


@pytest.fixture
def line() -> dict[str, Any]:
    recorded: dict[str, Any] = record.record(record.plans(3)[3], TASKS, (("digits", "digits"),), "fp32")
    return recorded


def test_recorded_observations_are_those_of_the_environment(line: dict[str, Any]) -> None:
    meaning = {"known": RECORDED_FEATURES[: record.BEFOREHAND], "rows": RECORDED_FEATURES[record.BEFOREHAND :]}
    (episode,) = map(logs.episode_of, logs.broad_trainings([line], meaning))
    assert episode.score == 100 * line["development"] and len(episode.actions) == len(SEGMENTS)
    env = environment(logs.FEATURES)
    seen, _ = env.reset(seed=3)
    for observation, action in zip(episode.observations, episode.actions, strict=True):
        assert observation == pytest.approx(seen, abs=1e-3)
        seen, *_ = env.step(action)


def test_the_familys_log_says_the_same_in_other_features() -> None:
    """Its first observation, and the features that an agent of broad tasks sees, of one state of a training."""
    seen = {}
    for features in (DEFAULT_FEATURES, logs.FEATURES):
        env = environment(features)
        observations = [env.reset(seed=3)[0]]
        actions = [MENU.actions()[4], MENU.actions()[0]]
        observations += [env.step(action)[0] for action in actions]
        seen[features] = [observation[: len(features)].tolist() for observation in observations]
    line = {"task": 0, "observations": seen[DEFAULT_FEATURES], "actions": actions, "development": 0.5}
    (episode,) = map(logs.episode_of, logs.family_trainings([line]))
    found, expected = episode.observations[:, : len(logs.FEATURES)], np.array(seen[logs.FEATURES][:2])
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_command_fits_an_agent_and_a_forecaster(
    line: dict[str, Any], tmp_path: Path, refused: Any, capsys: Any
) -> None:
    names = {"known": RECORDED_FEATURES[: record.BEFOREHAND], "rows": RECORDED_FEATURES[record.BEFOREHAND :]}
    (tmp_path / "learn.json").write_text(json.dumps(names))
    best, gains = 6, {0: 0, 1: -2, 2: 0, 4: 0, 6: 4, 8: 0, 12: 0}  # in points
    lines = [
        {
            **line,
            "task": task,
            "policies": [choice] * 5,
            "development": 0.5 + gain / 100,
            **({"task_drawn": {"dataset": ("one", "two")[task % 2]}} if not choice else {}),
        }
        for task in range(12)
        for choice, gain in gains.items()
    ]
    (tmp_path / "learn.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    logs_of = ["--logs", str(tmp_path / "learn.jsonl"), "--weights", "1", "--ridge.members", "2"]
    short = ["--follow.steps", "200", "--ridge.state-penalty", "0.1", "--ridge.advantage-penalty", "0.1"]
    fit_agent.main([*logs_of, *short, "--out", str(tmp_path / "out")])
    forecaster = Forecaster.load(tmp_path / "out")
    (episode,) = map(logs.episode_of, logs.broad_trainings([line], names))
    told = forecaster(episode.observations[:1])[:, 0].mean(axis=0)
    assert told[best] - told[0] == pytest.approx(4, abs=0.5) and told[best] == told[list(gains)].max()
    agent = Agent.load(tmp_path / "out")
    assert agent.features == logs.FEATURES
    assert MENU.policy(agent.choose(episode.observations[0])) == MENU.policy(MENU.actions()[best])
    start = json.loads((tmp_path / "out" / "start.json").read_bytes())
    # The better one of a pair is half their difference above its mean.
    best_of_pairs = np.mean([abs(one - other) / 2 for one, other in itertools.combinations(gains.values(), 2)])
    assert start["left_out_data_sets"]["chosen"][0] == pytest.approx(best_of_pairs, abs=0.01)
    assert start["left_out_data_sets"]["by_policy"][0] == pytest.approx(best_of_pairs, abs=0.01)
    assert "84 trainings of 12 tasks over 2 data sets" in capsys.readouterr().out
    missing = ["--logs", str(tmp_path / "none.jsonl"), "--weights", "1"]
    assert "studies/broad/record.py" in refused(fit_agent.main, missing)
    (tmp_path / "learn.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines if not one["task"] % 2))
    assert "two data sets, got one" in refused(fit_agent.main, logs_of)
    assert "--weights" in refused(fit_agent.main, ["--weights", "1"])


def test_the_shipped_forecaster_sees_what_any_final_training_shows() -> None:
    forecaster = Forecaster.load(NAMED[SHIPPED])
    assert forecaster.features == logs.FEATURES
    assert (forecaster.menu, forecaster.segments) == (MENU, SEGMENTS)
    assert all(0 < noise < 10 for noise in forecaster.noise)
    assert np.isfinite(forecaster(np.zeros((1, len(forecaster.features) + sum(MENU.sizes)), np.float32))).all()
