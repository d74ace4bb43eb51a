"""What a search leaves behind: curves, pictures, and a log of episodes that can be repeated."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from stable_baselines3.common.logger import HParam, configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix.agent.callbacks import SearchLog
from rlmix.agent.plots import choices_figure
from rlmix.agent.tags import WRITTEN_BY, Tag
from rlmix.agent.workers import EpisodeCursor, Worker, episode_seed
from rlmix.envs import DIMENSIONS, Menu
from tests import board
from tests.agent.stub import CONFIG, DIVERGES, SEGMENTS, search, stub_workers
from tests.envs.tiny import play, tiny

NOISY = {"train_size": (80, 120), "label_noise": (0.0, 0.3), "pool": None}
ROLLOUTS = 2


def real_workers(positions: list[EpisodeCursor]) -> VecEnv:
    def worker(index: int) -> Worker:
        env = tiny(tasks=NOISY, reward="relative", reference_seeds=0, render_mode="rgb_array")
        return Worker(env, 3, index, positions[index])

    return DummyVecEnv([lambda: worker(0), lambda: worker(1)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SearchLog]]:
    folder = tmp_path_factory.mktemp("run")
    _, log = search(folder, real_workers, rollouts=ROLLOUTS)
    yield folder, log


@pytest.fixture(scope="module")
def events(run: tuple[Path, SearchLog]) -> EventAccumulator:
    accumulator = EventAccumulator(str(run[0] / "events"), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_the_log_is_the_record(run: tuple[Path, SearchLog]) -> None:
    found = entries(run[0])
    assert len(found) == ROLLOUTS * CONFIG.episodes_per_update == run[1].episodes_done
    assert sorted((entry["worker"], entry["number"]) for entry in found) == [(w, n) for w in (0, 1) for n in range(4)]
    env = tiny(tasks=NOISY, reward="relative", reference_seeds=0)
    for entry in found:
        assert entry["seed"] == episode_seed(3, "search", entry["worker"], entry["number"])
        _, rewards, infos = play(env, entry["actions"], seed=entry["seed"])
        # Stable-Baselines3 carries rewards as float32.
        assert entry["rewards"] == pytest.approx([round(float(np.float32(reward)), 6) for reward in rewards], abs=1e-12)
        assert entry["validation_accuracy"] == [info["validation_accuracy"] for info in infos[1:]]
        assert entry["task"] == infos[0]["task"]
        assert entry["diverged"] is False
    assert len({json.dumps(entry["task"]) for entry in found}) == len(found)


def test_shares_of_choices_are_those_of_the_log_and_sum_to_one(run: tuple[Path, SearchLog]) -> None:
    found = entries(run[0])
    menu = Menu()
    for rollout in range(ROLLOUTS):
        actions = np.array([entry["actions"] for entry in found[4 * rollout : 4 * rollout + 4]]).reshape(-1, 4)
        for index, dimension in enumerate(DIMENSIONS):
            shown = []
            for name in menu.names(dimension):
                scalars = board.scalars(run[0] / "events", f"policy/{dimension}", f"policy_{dimension}_{name}")
                assert [scalar.step for scalar in scalars] == [16, 32]
                shown.append(scalars[rollout].value)
            assert sum(shown) == pytest.approx(1)
            expected = [(actions[:, index] == choice).mean() for choice in range(menu.sizes[index])]
            assert shown == pytest.approx(expected)
            assert run[1].history[rollout][index] == pytest.approx(expected)


def test_curves_are_those_of_the_log(run: tuple[Path, SearchLog], events: EventAccumulator) -> None:
    found = entries(run[0])
    for rollout in range(ROLLOUTS):
        part = found[4 * rollout : 4 * rollout + 4]
        finals = [entry["validation_accuracy"][-1] for entry in part]
        returns = [sum(entry["rewards"]) for entry in part]
        low, high = stats.norm.interval(0.95, np.mean(returns), stats.sem(returns))
        for tag, expected in {
            "learning_curve/return_mean": np.mean(returns),
            "learning_curve/return_lower": low,
            "learning_curve/return_upper": high,
            "validation/accuracy_mean": np.mean(finals),
            "validation/accuracy_max": np.max(finals),
            "search/diverged": 0,
            "search/episodes": 4 * rollout + 4,
        }.items():
            assert events.Scalars(tag)[rollout].value == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("tag", ["policy/over_training_progress", "policy/over_the_search", "mixed_images"])
def test_pictures_are_pictures(events: EventAccumulator, tag: str) -> None:
    images = events.Images(tag)
    assert images
    for image in images:
        picture = Image.open(io.BytesIO(image.encoded_image_string))
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (image.width, image.height)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10, "something is drawn"


def test_every_tag_is_in_the_table_and_written_by_some_run(run: tuple[Path, SearchLog]) -> None:
    after_it = {Tag.COMPARISON, Tag.LEARNED_POLICY}  # of the command, when the search has ended
    assert board.written(run[0] / "events") == WRITTEN_BY["search"] - after_it
    assert set().union(*WRITTEN_BY.values()) == set(Tag)


def test_learning_curve_accuracy_and_choices_stand_side_by_side(run: tuple[Path, SearchLog]) -> None:
    learning, others = board.charts(run[0] / "events").values()
    band = ["learning_curve/return_lower", "learning_curve/return_mean", "learning_curve/return_upper"]
    assert [sorted(tags) for tags in learning.values()] == [band], "the learning curve is the first thing shown"
    assert [sorted(tags) for tags in others.values()] == [
        ["validation/accuracy_max", "validation/accuracy_mean"],
        *([f"policy/{dimension}"] for dimension in DIMENSIONS),
    ]


def test_hyperparameters_are_shown(tmp_path: Path) -> None:
    logger = configure(str(tmp_path), ["tensorboard"])
    logger.record("hparams", HParam({"lr": 0.2, "reward": "change"}, {"learning_curve/return_mean": 0.0}))
    logger.record("learning_curve/return_mean", 1.0)
    logger.dump(1)
    logger.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert "_hparams_/session_start_info" in accumulator.PluginTagToContent("hparams")


def test_a_resumed_search_shows_every_step_once(tmp_path: Path) -> None:
    """Killed between a rollout's events and its checkpoint: what the rollout wrote is replaced, not repeated."""
    search(tmp_path, stub_workers, rollouts=2)
    search(tmp_path, stub_workers, rollouts=3, checkpoint=tmp_path / "16.checkpoint")
    shown = board.read(tmp_path / "events")
    for run, entry in shown.Runs().items():
        for tag in entry["scalars"]:
            steps = [scalar.step for scalar in shown.Scalars(run, tag)]
            assert steps == [16, 32, 48], (run, tag)
    assert len(shown.Runs()) == 1 + sum(Menu().sizes)


def test_diverged_trainings_are_counted_and_logged(tmp_path: Path) -> None:
    _, log = search(tmp_path, lambda positions: stub_workers(positions, diverges=DIVERGES), rollouts=2)
    found = entries(tmp_path)
    assert any(entry["diverged"] for entry in found)
    for entry in found:
        assert entry["diverged"] == (entry["actions"][-1][0] == DIVERGES)
        assert len(entry["actions"]) == len(entry["rewards"]) <= 4
        assert entry["diverged"] or len(entry["actions"]) == 4
    accumulator = EventAccumulator(str(tmp_path / "events"))
    accumulator.Reload()
    assert sum(scalar.value for scalar in accumulator.Scalars("search/diverged")) == sum(e["diverged"] for e in found)
    assert log.episodes_done == len(found)
    assert log.learning_seconds > 0


def test_the_figure_has_a_panel_for_each_dimension_with_its_choices() -> None:
    menu = Menu()
    shares = [np.full((size, len(SEGMENTS)), 1 / size) for size in menu.sizes]
    figure = choices_figure(menu, shares, ticks=["a", "b", "c", "d"], xlabel="until")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}
    assert list(panels) == list(DIMENSIONS)
    for dimension, panel in panels.items():
        assert [label.get_text() for label in panel.get_yticklabels()] == menu.names(dimension)
        np.testing.assert_array_equal(panel.collections[0].get_array(), shares[DIMENSIONS.index(dimension)])
