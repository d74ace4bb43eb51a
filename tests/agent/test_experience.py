"""Experience of an agent: what it learned from, and notes on trainings far from it."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmix import RLMix
from rlmix.agent.experience import EXPERIENCE_FILE, Experience, Scale
from rlmix.classifier.files import DamagedFileError
from rlmix.experiments.studies.broad import experience as study
from tests.agent.loops import network

ROOT = Path(__file__).parents[2]
RANGES = {
    "training images": (100.0, 1000.0),
    "updates": (200.0, 2000.0),
    "passes over the images": (2.0, 200.0),
    "images per update": (64.0, 128.0),
    "classes": (2.0, 40.0),
    "pixels per side": (12.0, 32.0),
}
WITHIN = Scale(500, 1000, 100, 10, 28)


@given(updates=st.integers(1, 10_000))
def test_only_what_is_far_is_said(updates: int) -> None:
    """Half of the lowest to twice the highest is near; passes follow from the updates."""
    known = Experience(RANGES, "here")
    passes = updates * 100 / 500
    near = 100 <= updates <= 4000 and 1 <= passes <= 400
    said = known.beyond(Scale(500, updates, 100, 10, 28))
    assert (said is None) == near
    assert ("updates (200 to 2,000)" in (said or "")) == (not 100 <= updates <= 4000)


def test_every_quantity_is_said_with_its_range() -> None:
    known = Experience(RANGES, "here")
    assert known.remark(WITHIN) is None
    said = known.remark(Scale(50_000, 78_000, 512, 1000, 224))
    assert said is not None and said.endswith(
        "50,000 training images (100 to 1,000), 78,000 updates (200 to 2,000), 799 passes over the images (2 to 200), "
        "512 images per update (64 to 128), 1,000 classes (2 to 40), 224 pixels per side (12 to 32)"
    )


def test_the_shipped_ones_are_those_of_the_logs() -> None:
    logs = [ROOT / f"experiments/results/{name}.jsonl" for name in ("broad/usual", "broad/played", "family/episodes")]
    tasks = [
        line["task_drawn"]
        for log in logs
        for line in map(json.loads, log.read_text().splitlines())
        if "task_drawn" in line
    ]
    for name in ("shipped", "rule"):
        experience = Experience.load(name)
        assert experience is not None and "experiments/studies/broad/experience.py" in experience.command
        for unit, values in (
            ("training images", [task["train_size"] for task in tasks]),
            ("updates", [task["updates"] for task in tasks]),
            ("pixels per side", [task.get("image_size", 14) for task in tasks]),
            ("classes", [len(task.get("classes", range(10))) for task in tasks]),
            ("images per update", [task.get("options", {}).get("batch_size", 100) for task in tasks]),
        ):
            assert experience.ranges[unit] == (min(values), max(values)), unit


def test_is_read_back_and_found_beside_a_file(tmp_path: Path) -> None:
    assert Experience.load(tmp_path) is None
    Experience(RANGES, "here").save(tmp_path)
    assert Experience.load(tmp_path) == Experience.load(tmp_path / "rule.json") == Experience(RANGES, "here")
    value = json.loads((tmp_path / EXPERIENCE_FILE).read_text())
    for damage in (
        {**value, "version": 2},
        {**value, "ranges": {"updates": [1, 2]}},
        {**value, "ranges": {**value["ranges"], "updates": [2, 1]}},
        {**value, "ranges": {**value["ranges"], "updates": [2]}},
        [],
    ):
        (tmp_path / EXPERIENCE_FILE).write_text(json.dumps(damage))
        with pytest.raises(DamagedFileError, match=r"experience\.json: cannot be used"):
            Experience.load(tmp_path)


def test_a_loop_of_ones_own_is_told_once() -> None:
    arguments = {"num_classes": 10, "total_updates": 9000, "train_size": 500}
    images, labels = torch.randn(64, 1, 8, 8), torch.from_numpy(np.arange(64) % 10)
    mix = RLMix("shipped", **arguments)
    with pytest.warns(UserWarning, match=r"far from all trainings.* 9,000 updates \(200 to 1,996\)"):
        mix(images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix(images, labels)
        near = RLMix("rule", **{**arguments, "total_updates": 900})
        near(images, labels, network())


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["--logs", str(ROOT / "experiments/results/broad/usual.jsonl"), "--out", str(tmp_path / "nowhere")])
    assert "expected an agent's folder" in capsys.readouterr().err
