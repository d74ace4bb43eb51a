"""What can be chosen: a menu's actions, the policies they stand for, and its JSON."""

import itertools
import json
import re
from typing import Any

import pytest
from gymnasium import spaces

from rlmix.classifier.mixing import METHODS, MixPolicy
from rlmix.envs import DIMENSIONS, Menu, MixPolicyEnv


def test_default_sizes_and_number_of_distinct_policies() -> None:
    menu = Menu()
    assert menu.sizes == (7, 4, 4, 3)
    # clean: labels only; four sources without R-Mix: labels and λ; two with R-Mix: τ, labels and λ
    assert len(menu.actions()) == 4 + 4 * 4 * 3 + 2 * 4 * 4 * 3


def test_actions_are_distinct_and_cover_everything() -> None:
    menu = Menu()
    policies = [menu.policy(action) for action in menu.actions()]
    assert len(set(policies)) == len(policies)
    everything = {menu.policy(action) for action in itertools.product(*map(range, menu.sizes))}
    assert everything == set(policies)


def test_policy_is_what_the_action_says() -> None:
    policy = Menu().policy((5, 2, 1, 2))
    assert policy.to_json() == {
        "shares": {"clean": 0.5, "cutmix": 0.25, "rmix": 0.25},
        "lam": "fixed(0.5)",
        "threshold": 0.6,
        "label_beta": 0.5,
        "label_smoothing": 0.0,
        "label_detach": False,
    }


def test_a_dimension_without_effect_does_not_count() -> None:
    menu = Menu()
    for threshold, lam in itertools.product(range(4), range(3)):
        assert menu.policy((0, threshold, 2, lam)) == menu.policy((0, 0, 2, 0))
        assert menu.policy((2, threshold, 2, lam)) == menu.policy((2, 0, 2, lam))
    assert menu.policy((2, 0, 0, 1)) != menu.policy((2, 0, 0, 0))
    assert menu.policy((4, 1, 0, 0)) != menu.policy((4, 2, 0, 0))
    assert menu.policy((0, 0, 1, 0)) != menu.policy((0, 0, 0, 0)), "LaMix's β matters to clean updates too"


def test_find_is_the_way_back() -> None:
    menu = Menu()
    for action in menu.actions()[::15]:
        assert menu.find(menu.policy(action)) == action
    assert menu.find(MixPolicy({"clean": 0.5, "cutmix": 0.5})) == (2, 0, 0, 0)
    with pytest.raises(ValueError, match="does not offer"):
        menu.find(MixPolicy({"clean": 0.4, "cutmix": 0.6}))


@pytest.mark.parametrize("action", [(7, 0, 0, 0), (0, -1, 0, 0), (0, 0, 4, 0), (0, 0, 0, 3), (0, 0, 0), ()])
def test_an_action_outside_is_refused(action: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="action must be one index"):
        Menu().policy(action)


def test_names_have_a_name_for_each_choice() -> None:
    menu = Menu()
    for dimension, size in zip(DIMENSIONS, menu.sizes, strict=True):
        assert len(set(menu.names(dimension))) == size
    assert menu.names("threshold") == ["drawn", "0.3", "0.6", "0.9"]
    assert menu.names("label")[3] == "β 1, smoothing 0.3"
    with pytest.raises(ValueError, match="dimension must be one of source, threshold, label, lam, got 'colour'"):
        menu.names("colour")


def test_json_round_trip() -> None:
    for menu in (Menu(), Menu(thresholds=(0.0,), lams=("uniform", "beta(0.25)"))):
        assert Menu.from_json(json.loads(json.dumps(menu.to_json()))) == menu


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "sources"),
        ({"thresholds": []}, "thresholds"),
        ({"labels": []}, "labels"),
        ({"lams": []}, "lams"),
        ({"sources": [["x", {"clean": 0.5}]]}, "sum to 1"),
        ({"sources": [["x", {"nothing": 1.0}]]}, "nothing"),
        ({"sources": [["x", {"clean": "1"}]]}, "clean"),
        ({"sources": [["x", 5]]}, "expected a list"),
        ({"sources": 5}, "expected a list"),
        ({"thresholds": [1.0], "sources": [["r", {"rmix": 1.0}]]}, "threshold"),
        ({"labels": [[1.5, 0.0]]}, "label_beta"),
        ({"labels": [[1.0, float("nan")]]}, "label_smoothing"),
        ({"labels": [[1.0]]}, "unpack"),
        ({"lams": ["beta(-1)"], "sources": [["m", {"mixup": 1.0}]]}, "lam"),
        ({"lams": ["gamma(1)"], "sources": [["m", {"mixup": 1.0}]]}, "lam"),
        ({"colours": []}, "colours"),
        ({"thresholds": "a" * 100_000}, "at most 10,000 combinations"),
    ],
)
def test_a_bad_menu_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Menu.from_json({**Menu().to_json(), **change})


def test_a_menu_can_offer_every_method() -> None:
    others = [name for name in METHODS if name not in ("clean", "mixup", "cutmix", "average", "rmix")]
    menu = Menu().including(others)
    assert menu.sources[: len(Menu().sources)] == Menu().sources
    assert Menu.from_json(json.loads(json.dumps(menu.to_json()))) == menu
    env = MixPolicyEnv(
        menu=menu,
        reward="final",
        tasks={"train_size": (60, 60), "updates": (2 * len(others), 2 * len(others))},
        segments=len(others),
        training={"batch_size": 10, "device": "cpu", "precision": "fp32"},
    )
    assert env.action_space == spaces.MultiDiscrete(menu.sizes)
    env.reset(seed=0)
    for number, name in enumerate(others):
        *_, info = env.step((len(Menu().sources) + number, 0, 0, 0))
        assert info["policy"]["shares"] == {"clean": 0.5, name: 0.5} and not info["diverged"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["nothing"], "unknown method 'nothing'"),
        (["cutmix"], "offers 'cutmix' already; it has clean, mixup half"),
        (["manifold", "manifold"], "offers 'manifold' already"),
        (["clean"], "offers 'clean' already"),
    ],
)
def test_what_a_menu_cannot_offer_is_refused(methods: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Menu().including(methods)


@pytest.mark.parametrize("missing", ["sources", "thresholds", "labels", "lams"])
def test_a_menu_with_a_missing_field_is_refused(missing: str) -> None:
    value = Menu().to_json()
    del value[missing]
    with pytest.raises(ValueError, match=missing):
        Menu.from_json(value)
    with pytest.raises(ValueError, match="menu"):
        Menu.from_json([value])


def test_the_docstrings_action_table_is_the_default_menu() -> None:
    docstring = MixPolicyEnv.__doc__ or ""
    section = docstring.split("## Action Space")[1].split("## Observation Space")[0]
    rows = re.findall(r"^ +\| (\d) \| (.*?) \| (.*?) \|$", section, flags=re.MULTILINE)
    assert [int(index) for index, _, _ in rows] == list(range(4))
    sources, thresholds, labels, lams = (re.split(r"[;,] (?![^(]*\))", choices) for _, _, choices in rows)
    menu = Menu()
    assert tuple(len(choices) for choices in (sources, thresholds, labels, lams)) == menu.sizes
    assert sources[0] == "clean"
    for said, (name, _) in zip(sources[1:5], menu.sources[1:5], strict=True):
        assert said.lower().replace("-", "").split()[0] == name.split()[0]
    assert dict(menu.sources)["cutmix all"] == {"cutmix": 1.0}
    assert thresholds[0] == "drawn for each image"
    assert [float(value) for value in thresholds[1:]] == list(menu.thresholds[1:])
    said_labels = [
        (1.0, float(text[10:])) if text.startswith("smoothing ") else (float(text[2:]), 0.0) for text in labels
    ]
    assert said_labels == list(menu.labels)
    said_lams = [re.sub(r"Beta\((.*), \1\)", r"beta(\1)", text).replace("always 0.5", "fixed(0.5)") for text in lams]
    assert said_lams == list(menu.lams)
