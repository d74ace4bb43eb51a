"""When mixing helps: planted gains come back in the right cell, and the committed table is what the command gives."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.experiments.search.task_family import MENU, PLAIN
from rlmix.experiments.studies.broad import when_mixing_helps
from rlmix.experiments.studies.broad.logs import FEATURES, RecordedTraining

ROOT = Path(__file__).parents[2]
Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]
HALF, OTHER_HALF, ALL = ((source, 0, 0, 0) for source in (1, 3, 2))


def training(task: int, action: tuple[int, ...], development: float, passes: float) -> RecordedTraining:
    rows = np.zeros((6, len(FEATURES)), dtype=np.float32)
    rows[:, FEATURES.index("log_passes")] = np.log10(1 + passes) / 4
    return RecordedTraining({"task": task, "development": development}, rows, [action] * 5)


def test_gains_are_averaged_within_a_task_first() -> None:
    trainings = []
    for task, passes in enumerate((10, 30, 40, 50, 100)):
        trainings += [training(task, PLAIN, 0.5, passes), training(task, PLAIN, 0.6, passes)]
        trainings += [training(task, HALF, 0.6 + 0.01 * task, passes), training(task, OTHER_HALF, 0.7, passes)]
        trainings += [training(task, ALL, 0.45, passes)]
    switching = training(1, HALF, 0.9, 30)
    switching.actions[0] = PLAIN
    trainings += [switching, training(9, ALL, 0.9, 30)]  # not fixed; without a plain training
    wrong = {**dict.fromkeys(range(5), 0.0), 9: 0.0}
    rows = when_mixing_helps.table_of(trainings, wrong)
    assert [(row["labels"], row["passes"], row["tasks"]) for row in rows] == [
        (labels, passes, count)
        for labels, counts in (("clean", (1, 3, 1)), ("wrong", (0, 0, 0)))
        for passes, count in zip(("below 25", "25 to 80", "80 and more"), counts, strict=True)
    ]
    assert rows[0]["gains"] == {}, "one task says nothing"
    found = rows[1]["gains"]
    assert set(found) == {"half", "all"}
    assert found["half"][0] == pytest.approx(np.mean([10.5, 11, 11.5])) and found["half"][2] == 3
    assert found["all"][:2] == pytest.approx([-10, 0])
    moved = when_mixing_helps.table_of(trainings, {**wrong, 1: 0.2, 2: 0.2, 3: 0.4})
    assert moved[4]["gains"] == found


def test_every_policy_of_the_menu_is_of_a_kind() -> None:
    kinds = [when_mixing_helps.kind_of(MENU.policy(action)) for action in MENU.actions()]
    counts = {kind: kinds.count(kind) for kind in (None, *when_mixing_helps.KINDS)}
    assert counts == {None: 1, "label smoothing": 1, "half": 4, "half, smoothing": 4, "all": 3, "all, smoothing": 3}


def test_refuses_the_log_of_the_family(refused: Refused, tmp_path: Path) -> None:
    log = str(ROOT / "experiments/results/family/episodes.jsonl")
    options = ["--logs", log, "--out", str(tmp_path)]
    assert "expected logs of broad tasks" in refused(when_mixing_helps.main, options)


def test_the_committed_table_is_of_the_committed_logs(tmp_path: Path) -> None:
    logs = [str(ROOT / f"experiments/results/broad/{name}.jsonl") for name in ("usual", "longer")]
    when_mixing_helps.main(["--logs", *logs, "--out", str(tmp_path)])
    ours, committed = (
        json.loads((folder / "results.json").read_bytes())["logs"]
        for folder in (tmp_path, ROOT / "experiments/results/broad/when")
    )
    assert json.dumps(ours) == json.dumps(committed) or all(
        one["gains"].keys() == other["gains"].keys()
        and all(one["gains"][kind] == pytest.approx(other["gains"][kind]) for kind in one["gains"])
        for name in ours
        for one, other in zip(ours[name], committed[name], strict=True)
    )
