"""Rules: read back as written, played as they say, refused where they are damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmix.agent.rule import Leaf, Node, Rule, Split
from rlmix.classifier.mixing.policy import PolicyError
from rlmix.envs import BroadTasks, Source
from rlmix.envs.observation import RECORDED_FEATURES
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.record import shared_trainer

ACTIONS = MENU.actions()
LOOK = 2
NUMBERS = st.floats(-1, 1, width=32)  # as observations have them


def leaves(count: int = len(SEGMENTS) - LOOK) -> st.SearchStrategy[Leaf]:
    return st.lists(st.sampled_from(ACTIONS), min_size=count, max_size=count).map(lambda found: Leaf(tuple(found)))


def trees() -> st.SearchStrategy[Node]:
    names = st.sampled_from(RECORDED_FEATURES)
    numbers = st.floats(-1, 1)
    return st.recursive(leaves(), lambda parts: st.builds(Split, names, numbers, parts, parts), max_leaves=6)


def rule(tree: Node) -> Rule:
    return Rule(MENU, SEGMENTS, (ACTIONS[0], ACTIONS[1]), tree, {"found": "here"})


@given(tree=trees())
def test_is_read_back_as_it_was_written(tree: Node) -> None:
    written = rule(tree)
    read = Rule.from_json(json.loads(json.dumps(written.to_json())))
    assert read == written and read.checksum == written.checksum and read.provenance == {"found": "here"}
    assert set(read.features) <= set(RECORDED_FEATURES) and len(set(read.features)) == len(read.features)


@given(low=NUMBERS, high=NUMBERS, first=NUMBERS, second=NUMBERS)
def test_a_value_below_the_threshold_goes_below(low: float, high: float, first: float, second: float) -> None:
    parts = [Leaf((action,) * 3) for action in ACTIONS[:3]]
    asks = rule(Split("gap", low, parts[0], Split("progress", high, parts[1], parts[2])))
    expected = 0 if first < low else 1 if second < high else 2
    seen = np.array([first, second, 7.0], dtype=np.float32)
    assert asks.features == ("gap", "progress") and asks.choose(seen) == parts[expected].actions


def test_says_what_it_does() -> None:
    asks = rule(Split("validation_way", 0.25, Leaf((ACTIONS[2],) * 3), Leaf((ACTIONS[2], ACTIONS[0], ACTIONS[0]))))
    assert str(asks).splitlines() == [
        "clean 100 % until 15%; clean 100 %, smoothing 0.3 until 40%; then",
        "if validation_way < 0.25:",
        "  clean 50 % + mixup 50 %, λ beta(1) until 100%",
        "else:",
        "  clean 50 % + mixup 50 %, λ beta(1) until 70%; clean 100 % until 100%",
    ]


@pytest.mark.parametrize(("threshold", "taken"), [(-0.5, "above"), (2.0, "below")])
def test_leads_a_training(threshold: float, taken: str) -> None:
    """Progress is 0.4 at the look, so the answer is known."""
    below, above = Leaf((ACTIONS[3], ACTIONS[4], ACTIONS[5])), Leaf((ACTIONS[6], ACTIONS[7], ACTIONS[8]))
    asks = rule(Split("progress", threshold, below, above))
    task = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(20, 20), seconds=1.5).task(0)
    trainer = shared_trainer((("digits", "digits"),), "fp32")
    played = asks.play(asks.environment(trainer, task), task, 3)
    assert played == [*asks.first, *(below if taken == "below" else above).actions]
    once = trainer.measure(["validation"])
    assert asks.play(asks.environment(trainer, task), task, 3) == played and trainer.measure(["validation"]) == once


def changed(**values: Any) -> dict[str, Any]:
    return {**rule(Leaf((ACTIONS[0],) * 3)).to_json(), **values}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"format": "other"}, "this is not a rule"),
        (changed(version=2), "this is not a rule"),
        (changed(extra=1), "unknown field 'extra'"),
        (changed(tree=[]), "as many after it as segments are left, got 2 and 0"),
        (changed(tree=3), "must be an object with the fields feature"),
        (changed(first="clean"), "policies must be a list"),
        (changed(segments=[0.5, 0.4, 1]), "segments"),
        (changed(provenance=3), "provenance must be an object"),
        (changed(tree={"feature": "colour of the sky", "threshold": 0, "below": [], "above": []}), "colour of the sky"),
        (changed(tree={"feature": "gap", "threshold": 10**400, "below": [], "above": []}), "too large"),
        (changed(tree={"feature": "gap", "threshold": True, "below": [], "above": []}), "threshold must be a finite"),
    ],
)
def test_refuses_what_is_no_rule(value: dict[str, Any], named: str, tmp_path: Path) -> None:
    (file := tmp_path / "rule.json").write_text(json.dumps(value))
    with pytest.raises(PolicyError, match=r"rule\.json: cannot be used as a rule") as caught:
        Rule.load(file)
    assert named in str(caught.value)


def test_refuses_damaged_files(tmp_path: Path) -> None:
    for number, content in enumerate([b"", b"{", b"[" * 100_000, b"\xff\xfe"]):
        (file := tmp_path / f"{number}.json").write_bytes(content)
        with pytest.raises(PolicyError, match="cannot be used as a rule"):
            Rule.load(file)
    (tmp_path / "large.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(PolicyError, match="larger than 1,048,576 bytes"):
        Rule.load(tmp_path / "large.json")
    with pytest.raises(PolicyError, match="No such file"):
        Rule.load(tmp_path / "nothing.json")
    deep: Any = changed()["tree"]
    for _ in range(30):
        deep = {"feature": "gap", "threshold": 0, "below": deep, "above": deep}
    with pytest.raises(PolicyError, match="at most 20 questions"):
        Rule.from_json(changed(tree=deep))
    rule(Leaf((ACTIONS[1],) * 3)).save(tmp_path / "whole.json")
    assert Rule.load(tmp_path / "whole.json") == rule(Leaf((ACTIONS[1],) * 3))
