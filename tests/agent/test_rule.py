"""Rules: read back as written, played as they say, refused where they are damaged."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmix.agent.agent import Agent
from rlmix.agent.any_agent import load_agent
from rlmix.agent.decisions import choose_by
from rlmix.agent.rule import Leaf, Node, Rule, Split
from rlmix.classifier.files import DamagedFileError
from rlmix.classifier.mixing.policy import PolicyError
from rlmix.classifier.training.stats import EvalStats, TrainStats, UpdateStats
from rlmix.envs import BroadTasks, Source, Task
from rlmix.envs.observation import (
    FEATURES,
    RECORDED_FEATURES,
    Setting,
    TrainingState,
    observe,
    reads_training,
    reads_validation,
)
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.record import shared_trainer

ACTIONS = MENU.actions()
LOOK = 2
NUMBERS = st.floats(-1, 1, width=32)  # as observations have them


def leaves(count: int = len(SEGMENTS) - LOOK) -> st.SearchStrategy[Leaf]:
    return st.lists(st.sampled_from(ACTIONS), min_size=count, max_size=count).map(lambda found: Leaf(tuple(found)))


def trees() -> st.SearchStrategy[Node]:
    questions = st.sampled_from(RECORDED_FEATURES).flatmap(
        lambda name: st.tuples(st.just(name), st.floats(FEATURES[name].low, min(FEATURES[name].high, 1)))
    )

    def asked(parts: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.builds(lambda question, *both: Split(*question, *both), questions, parts, parts)

    return st.recursive(leaves(), asked, max_leaves=6)


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


def test_the_shipped_rule_is_that_of_the_contest() -> None:
    root = Path(__file__).parents[2]
    protocol = json.loads((root / "experiments/results/broad/contest/protocol.json").read_bytes())
    shipped = Rule.load("rule")
    assert shipped == load_agent("rule") == Rule.from_json(protocol["contestants"]["rule"]["rule"])
    assert [shipped.menu.policy(action).shares for action in shipped.actions] == [
        {"clean": 0.5, "mixup": 0.5},
        {"clean": 1.0},
        {"mixup": 1.0},
        {"rmix": 1.0},
    ]


def test_a_folder_may_have_the_name_of_an_agent_that_comes_with_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load_agent("rule")
    assert isinstance(shipped, Rule)
    own = replace(shipped, tree=Leaf(shipped.actions[:1] * (len(shipped.segments) - shipped.look)))
    Path("rule").mkdir()
    own.save(Path("rule"))
    assert load_agent(Path("rule")) == Rule.load(Path("rule")) == own
    assert load_agent("rule") == shipped


def test_a_rule_is_no_network_to_learn_on() -> None:
    with pytest.raises(DamagedFileError, match=r"expected an agent with a network, .* got a rule"):
        Agent.load("rule")


def states(ends: Sequence[float], draws: np.random.Generator, updates: int) -> Iterator[TrainingState]:
    """States of a training at its start and after each segment but the last, with losses drawn at random."""
    state = TrainingState(Task(100, updates, 0.0, 0), 10, 20, 0.0, 1.0)
    yield state
    for end in ends[:-1]:
        losses = [UpdateStats(*draws.uniform(0, 1, len(fields(UpdateStats))).tolist()) for _ in range(2)]
        segment = TrainStats(1, 20, 1.0, {"clean": 1, "mixup": 1}, *losses, None, None, False)
        state = state.after(
            progress=round(end * updates) / updates,
            relative_lr=1.0,
            segment=segment,
            evaluation=EvalStats(*draws.uniform(0, 1, 4).tolist(), 100),
            action=None,
        )
        yield state


@given(tree=trees(), seed=st.integers(0, 1000), updates=st.integers(20, 3000))
def test_chooses_in_a_training_as_its_look_says(tree: Node, seed: int, updates: int) -> None:
    asks = rule(tree)
    followed = list(states(SEGMENTS, np.random.default_rng(seed), updates))
    choose = choose_by(asks)
    setting = Setting(1000, True, 1, 8, 1.0)
    followed = [replace(state, setting=setting) for state in followed]
    for place, state in enumerate(followed[1:], 1):
        followed[place] = replace(state, before=followed[place - 1])
    expected = [*asks.first, *asks.choose(observe(followed[LOOK], MENU, asks.features))]
    assert [choose(state).action for state in followed] == expected
    assert [choose(state).policy for state in followed] == [MENU.policy(action) for action in expected]


def test_features_of_validation_are_those_that_it_changes() -> None:
    setting = Setting(1000, True, 1, 8, 1.0)
    *_, last = states((0.25, 0.5, 0.75, 1.0), np.random.default_rng(1), 100)

    def seen(first: EvalStats | None, second: EvalStats | None, third: EvalStats | None) -> list[float]:
        one, two = last.earlier(2), last.earlier(1)
        one = replace(one, setting=setting, evaluation=first)
        two = replace(
            two, setting=setting, evaluation=second, before=one, accuracy_before=first.accuracy if first else 0
        )
        three = replace(
            last, setting=setting, evaluation=third, before=two, accuracy_before=second.accuracy if second else 0
        )
        return observe(three, MENU, tuple(FEATURES)).tolist()

    none = seen(None, None, None)
    some = seen(*(EvalStats(0.3 + 0.1 * n, 2.0 - n / 4, 0.4 + n / 10, 0.1 * (n + 1), 100) for n in range(3)))
    changed = {name for name, before, after in zip(FEATURES, none, some, strict=False) if before != after}
    assert changed == {name for name in FEATURES if reads_validation([name])}


def test_features_of_training_are_those_that_its_batches_change() -> None:
    *_, last = states((0.25, 0.5, 0.75, 1.0), np.random.default_rng(1), 100)

    def seen(losses: UpdateStats | None) -> list[float]:
        before = None
        for back in (2, 1, 0):
            state = last.earlier(back)
            assert state.segment is not None
            segment = replace(state.segment, clean=losses, mixed=losses)
            before = replace(state, setting=Setting(1000, True, 1, 8, 1.0), segment=segment, before=before)
        assert before is not None
        return observe(before, MENU, tuple(FEATURES)).tolist()

    none, some = seen(None), seen(UpdateStats(loss=2.0, target_entropy=0.5, accuracy=0.6))
    changed = {name for name, before, after in zip(FEATURES, none, some, strict=False) if before != after}
    assert changed == {name for name in FEATURES if reads_training([name])}


PLAIN = MENU.policy(ACTIONS[0]).to_json()


def asks(*, above: Any, **question: float) -> dict[str, Any]:
    ((feature, threshold),) = question.items()
    return {"feature": feature, "threshold": threshold, "below": [], "above": above}


def changed(**values: Any) -> dict[str, Any]:
    return {**rule(Leaf((ACTIONS[0],) * 3)).to_json(), **values}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"format": "other"}, "this is not a rule"),
        (changed(version=2), "this is not a rule"),
        (changed(extra=1), "unknown field 'extra'"),
        (changed(tree=[]), "at the end of every branch one for each segment after it, got 2 and 0"),
        (changed(tree=3), "tree must be an object with the fields feature"),
        (changed(first="clean"), "first must be a list of policies"),
        (changed(tree={"shares": {"clean": 1.0}}), "tree must be a question or a list of policies, got one policy"),
        (changed(tree=asks(log_passes=20, above=[])), "from 0 to 2, got 20; it is log10(1 + passes over"),
        (changed(tree=asks(gap=0, above=[3])), "tree.above[0]: policy must be an object"),
        (changed(tree=asks(gap=0, above={"feature": "gaps"})), "tree.above: the field 'threshold' is missing"),
        (changed(first=[{**PLAIN, "threshold": 0.5}]), "first[0]: clean 100 % has a threshold, 0.5, that none"),
        (changed(first=[{**PLAIN, "label_smoothing": 0.7}]), "its lists (sources, thresholds, labels, lams)"),
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
    rule(Leaf((ACTIONS[1],) * 3)).save(tmp_path)
    assert Rule.load(tmp_path) == rule(Leaf((ACTIONS[1],) * 3))


@pytest.mark.parametrize(
    ("name", "threshold", "told"),
    [
        ("log_passes", 0.25, "log_passes 0.373 ≥ 0.25 (30.0 passes; limit 9.0 passes)"),
        ("log_train_size", 0.8, "log_train_size 0.6 < 0.8 (1000 images; limit 10000 images)"),
        ("log_updates", 0.4, "log_updates 0.556 ≥ 0.4 (600 updates; limit 100 updates)"),
        ("log_classes", 0.5, "log_classes 0.333 < 0.5"),
        (
            "clean_excess_loss",
            0.5,
            "clean_excess_loss 0.9 ≥ 0.5 (90.0 % of guessing's loss; limit 50.0 % of guessing's loss)",
        ),
    ],
)
def test_what_was_asked_is_said_in_words_too(name: str, threshold: float, told: str) -> None:
    clean = UpdateStats(loss=0.9 * float(np.log(10)), target_entropy=0.0, accuracy=0.2)
    segment = TrainStats(240, 12_000, 1.0, {"clean": 240}, clean, None, None, None, False)
    state = TrainingState(Task(1000, 600, label_noise=0.0, data_seed=0), 10, 50, 0.4, 1.0, segment=segment)
    leaf = Leaf((ACTIONS[0],) * (len(SEGMENTS) - LOOK))
    asked = rule(Split(name, threshold, leaf, leaf))
    assert asked.explain(observe(state, MENU, asked.features)) == told
