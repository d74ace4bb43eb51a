"""The forecaster fitted to recorded trainings: what it sees is what a final training shows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.files import NAMED, SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.envs import BroadTasks, Source
from rlmix.envs.observation import RECORDED_FEATURES
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import fit_forecaster, record


@pytest.fixture(scope="module")
def line() -> dict[str, Any]:
    tasks = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(10, 10), seconds=1.5)
    recorded: dict[str, Any] = record.record(record.plans(3)[3], tasks, (("digits", "digits"),), "fp32")
    return recorded


def test_recorded_observations_are_those_of_the_environment(line: dict[str, Any]) -> None:
    meaning = {"known": RECORDED_FEATURES[: record.BEFOREHAND], "rows": RECORDED_FEATURES[record.BEFOREHAND :]}
    (episode,) = fit_forecaster.episodes([line], meaning)
    assert episode.score == 100 * line["development"] and len(episode.actions) == len(SEGMENTS)
    tasks = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(10, 10), seconds=1.5)
    env = record.MixPolicyEnv(
        task_trainer=record.shared_trainer((("digits", "digits"),), "fp32"),
        tasks=tasks,
        segments=SEGMENTS,
        reward="final",
        menu=MENU,
        features=fit_forecaster.FEATURES,
    )
    seen, _ = env.reset(seed=3)
    for observation, action in zip(episode.observations, episode.actions, strict=True):
        assert observation == pytest.approx(seen, abs=1e-3)
        seen, *_ = env.step(action)


def test_the_command_fits_a_forecaster(line: dict[str, Any], tmp_path: Path, refused: Any, capsys: Any) -> None:
    names = {"known": RECORDED_FEATURES[: record.BEFOREHAND], "rows": RECORDED_FEATURES[record.BEFOREHAND :]}
    (tmp_path / "learn.json").write_text(json.dumps(names))
    lines = [
        {**line, "task": task, "policies": [choice] * 5, "development": 0.5 + 0.01 * choice}
        for task in range(6)
        for choice in range(3)
    ]
    (tmp_path / "learn.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    short = ["--regression.steps", "150", "--regression.members", "2"]
    fit_forecaster.main(["--log", str(tmp_path / "learn.jsonl"), "--out", str(tmp_path / "out"), *short])
    forecaster = Forecaster.load(tmp_path / "out")
    (episode,) = fit_forecaster.episodes([line], names)
    told = forecaster(episode.observations[:1])[:, 0].mean(axis=0)
    assert 0.7 < told[2] - told[0] < 2.3  # two points, less what weight decay takes
    assert "18 trainings of 6 tasks" in capsys.readouterr().out
    assert "studies/broad/record.py writes both" in refused(
        fit_forecaster.main, ["--log", str(tmp_path / "none.jsonl")]
    )


def test_the_shipped_forecaster_sees_what_any_final_training_shows() -> None:
    forecaster = Forecaster.load(NAMED[SHIPPED])
    assert forecaster.features == fit_forecaster.FEATURES
    assert (forecaster.menu, forecaster.segments) == (MENU, SEGMENTS)
    assert all(0 < noise < 10 for noise in forecaster.noise)
    assert np.isfinite(forecaster(np.zeros((1, len(forecaster.features) + sum(MENU.sizes)), np.float32))).all()
