"""The surrogate's speed on a tiny setting: its figures follow from the rounds, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.experiments.benchmarks import surrogate_speed

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]


def test_figures_follow_from_the_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surrogate_speed.main(["--games", "1", "3", "--steps", "7", "--rounds", "2", "--out", str(tmp_path / "speed.json")])
    report = json.loads((tmp_path / "speed.json").read_text())
    found = {(entry["kind"], entry["games"]): entry for entry in report["batches"]}
    assert set(found) == {(kind, games) for kind in ("VectorEnv", "VecEnv") for games in (1, 3)}
    out = " ".join(capsys.readouterr().out.split())
    for (kind, games), entry in found.items():
        rounds = entry["steps_per_second"]["rounds"]
        assert len(rounds) == 2 and min(rounds) > 0
        assert entry["steps_per_second"]["median"] == pytest.approx(np.median(rounds))
        assert f"{kind} {games} {np.median(rounds):,.0f}" in out


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--rounds 0", "rounds must be at least 1, got 0"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--games 4 0", "--games must be at least 1 each, got 4 0"),
        ("--model no/such", "no/such"),
    ],
)
def test_refuses_what_cannot_be_measured(option: str, named: str, refused: Refused) -> None:
    assert named in refused(surrogate_speed.main, [*option.split(), "--out", "speed.json"])
