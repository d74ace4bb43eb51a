"""MixPolicy, its interleaving and its JSON: what is refused, what comes back, what shares mean."""

import json
import math
import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.classifier.mixing import METHODS, Interleaver, LamDistribution, MixPolicy, PolicyError, PolicySchedule
from rlmix.classifier.mixing.method import Option
from rlmix.classifier.mixing.schedule import MAX_BYTES, MAX_SEGMENTS

# Strategies


def all_shares() -> st.SearchStrategy[dict[str, float]]:
    """Shares of one to all methods, small ones among them, summing to 1."""
    weights = st.dictionaries(st.sampled_from(list(METHODS)), st.integers(1, 1000), min_size=1)
    return weights.map(lambda parts: {name: part / sum(parts.values()) for name, part in parts.items()})


def distributions() -> st.SearchStrategy[LamDistribution]:
    return st.one_of(
        st.just(LamDistribution("uniform", None)),
        st.floats(0.01, 100).map(lambda value: LamDistribution("beta", value)),
        st.floats(0, 1).map(lambda value: LamDistribution("fixed", value)),
    )


@st.composite
def some_options(draw: st.DrawFn, shares: dict[str, float]) -> dict[str, dict[str, float]]:
    """Options of up to one method, which may be set to their defaults."""
    method = draw(st.sampled_from([None, *(method for method in shares if METHODS[method].options)]))
    if method is None:
        return {}
    names = draw(st.sets(st.sampled_from(list(METHODS[method].options))))
    return {method: {name: draw(allowed(METHODS[method].options[name])) for name in names}}


def allowed(option: Option) -> st.SearchStrategy[float]:
    numbers = st.integers(int(option.low), int(option.high)) if option.whole else st.floats(option.low, option.high)
    return st.just(option.default) | numbers


@st.composite
def policies(draw: st.DrawFn) -> MixPolicy:
    shares = draw(all_shares())
    return MixPolicy(
        shares,
        options=draw(some_options(shares)),
        lam=draw(distributions()),
        threshold=draw(st.none() | st.floats(0, 1, exclude_max=True)),
        label_beta=draw(st.floats(0, 1)),
        label_smoothing=draw(st.floats(0, 1)),
    )


def progress_values() -> st.SearchStrategy[list[float]]:
    inner = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=6, unique=True)
    return inner.map(lambda values: [*sorted(values), 1.0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def schedules(draw: st.DrawFn) -> PolicySchedule:
    segments = tuple((until, draw(policies())) for until in draw(progress_values()))
    return PolicySchedule(segments, draw(st.dictionaries(st.text(max_size=5), JSON, max_size=3)))


# LamDistribution


@settings(deadline=None)
@given(distributions())
def test_a_distribution_is_read_back_from_its_text(distribution: LamDistribution) -> None:
    assert LamDistribution.parse(str(distribution)) == distribution


def test_distributions_read_as_a_person_would_write_them() -> None:
    assert str(LamDistribution()) == "beta(1)"
    assert str(LamDistribution("beta", 0.2)) == "beta(0.2)"
    assert str(LamDistribution("fixed", 0.5)) == "fixed(0.5)"
    assert str(LamDistribution("uniform", None)) == "uniform"
    assert LamDistribution.parse("beta(1)") == LamDistribution.parse("beta(1.0)") == LamDistribution()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "beta",
            "beta()",
            "beta(x)",
            "beta(0)",
            "beta(-1)",
            "beta(101)",
            "beta(nan)",
            "beta(1e999)",
            "beta(1)(1)",
        ),
        *("fixed(1.1)", "fixed(-0.1)", "fixed(1e)", "uniform(1)", "Uniform", " uniform", "uniform\n", "gamma(1)"),
        *("beta(" + "1" * 33 + ")", "fixed(\u0661)", None, 1, ["uniform"]),
    ],
)
def test_any_other_text_is_refused_by_the_field_lam(text: Any) -> None:
    with pytest.raises(PolicyError, match=r"^lam"):
        LamDistribution.parse(text)


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        *(("beta", None), ("beta", math.nan), ("beta", math.inf), ("beta", 0.0)),
        *(("fixed", None), ("fixed", 2.0), ("uniform", 0.5), ("gamma", 1.0)),
    ],
)
def test_a_distribution_out_of_range_cannot_be_made(kind: str, parameter: float | None) -> None:
    with pytest.raises(PolicyError, match=r"^lam must be"):
        LamDistribution(kind, parameter)


# What a uniform draw can be; between 0 and the smallest of them lie numbers that even SciPy has no answer for.
DRAWN = st.integers(0, 2**53).map(lambda step: step / 2**53)


@settings(deadline=None, max_examples=200)
@given(parameter=st.floats(0.05, 50), probability=DRAWN)
def test_beta_quantiles_are_scipys(parameter: float, probability: float) -> None:
    lam = LamDistribution("beta", parameter).quantile(probability)
    assert lam == pytest.approx(scipy.stats.beta.ppf(probability, parameter, parameter), abs=1e-9)
    assert 0 <= lam <= 1


@settings(deadline=None, max_examples=200)
@given(parameter=st.floats(0.1, 50), probability=st.floats(0.01, 0.99))
def test_the_beta_distribution_function_undoes_the_quantile(parameter: float, probability: float) -> None:
    lam = LamDistribution("beta", parameter).quantile(probability)
    if 1e-12 < lam < 1 - 1e-6:  # closer to the ends, neighbouring numbers are far apart in probability
        assert scipy.stats.beta.cdf(lam, parameter, parameter) == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize("parameter", [0.01, 100.0])
@pytest.mark.parametrize("probability", [0.0, 2**-53, 0.25, 0.5, 1 - 2**-53])
def test_extreme_beta_quantiles_stay_ratios(parameter: float, probability: float) -> None:
    assert 0 <= LamDistribution("beta", parameter).quantile(probability) <= 1


def test_uniform_and_fixed_quantiles() -> None:
    assert LamDistribution("uniform", None).quantile(0.3) == 0.3
    assert LamDistribution("fixed", 0.7).quantile(0.3) == 0.7
    assert LamDistribution("beta", 1.0).quantile(0.3) == pytest.approx(0.3)


# MixPolicy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": {}}, "shares must name"),
        ({"shares": None}, "shares must name"),
        ({"shares": [("clean", 1.0)]}, "shares must name"),
        ({"shares": {"clean": 0.5}}, "shares must sum to 1, got a sum of 0.5"),
        ({"shares": {"clean": 0.5, "mixup": 0.50001}}, "shares must sum to 1"),
        ({"shares": {"clean": 1.5, "mixup": -0.5}}, r"shares\[clean\]"),
        ({"shares": {"clean": 1.0, "mixup": -0.0001}}, r"shares\[mixup\]"),
        ({"shares": {"clean": math.nan}}, r"shares\[clean\]"),
        ({"shares": {"clean": True}}, r"shares\[clean\]"),
        ({"shares": {"clean": "1"}}, r"shares\[clean\]"),
        ({"shares": {"clean": np.bool_(True)}}, r"shares\[clean\]"),
        ({"shares": {"clean": np.float32(math.nan)}}, r"shares\[clean\]"),
        ({"shares": {"clean": torch.tensor(1.0)}}, r"shares\[clean\] .*, got tensor\(1.\) of type Tensor"),
        ({"shares": {"clean": 0.5, "cutmax": 0.5}}, "shares: unknown method 'cutmax'"),
        ({"shares": {1: 1.0}}, "shares: unknown method 1"),
        ({"lam": "beta(1)"}, "lam must be a LamDistribution"),
        ({"lam": 0.5}, "lam must be"),
        ({"threshold": 1.0}, "threshold must be below 1"),
        ({"threshold": -0.1}, "threshold must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"threshold": "0.5"}, "threshold must be"),
        ({"label_beta": 1.1}, "label_beta must be"),
        ({"label_beta": None}, "label_beta must be"),
        ({"label_beta": math.inf}, "label_beta must be"),
        ({"label_smoothing": -1e-9}, "label_smoothing must be"),
        ({"label_smoothing": 10**400}, "label_smoothing must be"),
        ({"label_smoothing": False}, "label_smoothing must be"),
        ({"options": [("fmix", {"decay": 1})]}, "options must map methods to their options"),
        ({"options": {"clean": 1}}, "options must map methods to their options"),
        ({"options": {"fmax": {}}}, "options: unknown method 'fmax'; known are clean, mixup"),
        ({"options": {"fmix": {"decay": 1}}}, "options: fmix is not among the shares, clean"),
        ({"options": {"clean": {"decay": 1}}}, r"options\[clean\]: unknown option 'decay'; clean has none"),
        *(
            ({"shares": {"fmix": 1.0}, "options": {"fmix": options}}, message)
            for options, message in (
                ({"delay": 1}, r"options\[fmix\]: unknown option 'delay'; fmix has decay, max_soft"),
                ({"decay": -1}, r"options\[fmix\]\[decay\] must be a number in \[0, 10\], got -1"),
                ({"max_soft": 0.51}, r"options\[fmix\]\[max_soft\] must be a number in \[0, 0.5\], got 0.51"),
                ({"decay": math.nan}, r"options\[fmix\]\[decay\] must"),
                ({"decay": math.inf}, r"options\[fmix\]\[decay\] must"),
                ({"decay": 10**400}, r"options\[fmix\]\[decay\] must"),
                ({"decay": "3"}, r"options\[fmix\]\[decay\] must"),
                ({"decay": True}, r"options\[fmix\]\[decay\] must"),
                ({"decay": None}, r"options\[fmix\]\[decay\] must"),
            )
        ),
        (
            {"shares": {"puzzlemix": 1.0}, "options": {"puzzlemix": {"t_size": 4.5}}},
            r"options\[puzzlemix\]\[t_size\] must be a whole number in \[-1, 64\], got 4.5",
        ),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=f"^{message}"):
        MixPolicy(**{"shares": {"clean": 1.0}, **fields})


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.longdouble, Fraction])
def test_numbers_of_any_type_are_those_of_python(number: Any) -> None:
    shares = {"clean": number(0.5), "rmix": number(0.25), "fmix": number(0.25)}
    others = {"threshold": number(0.75), "label_beta": number(0.5), "label_smoothing": number(0.125)}
    policy = MixPolicy(shares, options={"fmix": {"decay": number(2)}}, **others)
    plain = MixPolicy(
        {"clean": 0.5, "rmix": 0.25, "fmix": 0.25},
        threshold=0.75,
        label_beta=0.5,
        label_smoothing=0.125,
        options={"fmix": {"decay": 2}},
    )
    assert policy == plain and str(policy) == str(plain)
    assert json.dumps(policy.to_json()) == json.dumps(plain.to_json())


def test_equal_policies_are_one_key_whatever_the_order_they_were_written_in() -> None:
    one = MixPolicy({"clean": 0.5, "cutmix": 0.5, "mixup": 0.0})
    other = MixPolicy({"cutmix": 0.5, "clean": 0.5})
    assert one == other and hash(one) == hash(other) and str(one) == str(other)
    assert len({one, other, MixPolicy({"clean": 0.5, "cutmix": 0.5}, label_beta=0.5)}) == 2
    assert list(other.shares) == ["clean", "cutmix"]


def test_a_policy_keeps_nothing_of_the_dictionary_it_was_made_from() -> None:
    shares = {"clean": 1.0}
    policy = MixPolicy(shares)
    shares["clean"] = 0.0
    assert policy.shares == {"clean": 1.0}


def test_options_that_change_nothing_make_no_other_policy() -> None:
    plain = MixPolicy({"fmix": 0.5, "puzzlemix": 0.5, "resizemix": 0.0})
    for options in (
        {"fmix": {}},
        {"fmix": {"decay": 3, "max_soft": 0.0}, "puzzlemix": {"t_size": 4}},
        {"resizemix": {"min_scale": 0.2}},  # no update is mixed by it
    ):
        policy = MixPolicy(plain.shares | {"resizemix": 0.0}, options=options)
        assert policy == plain and hash(policy) == hash(plain) and policy.options == {}
    one = {"fmix": {"max_soft": 0.5, "decay": 2}, "puzzlemix": {"eta": 1}}
    other = {"puzzlemix": {"eta": 1.0, "beta": 1.2}, "fmix": {"decay": 2.0, "max_soft": 0.5}}
    first, second = (MixPolicy(plain.shares, options=options) for options in (one, other))
    assert first == second != plain and hash(first) == hash(second) != hash(plain)
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    one["fmix"]["decay"] = 9
    assert first == second


def test_a_policys_name_shows_the_options_that_it_changes() -> None:
    options = {"fmix": {"decay": 4, "max_soft": 0.25}, "puzzlemix": {"t_size": 4}}
    policy = MixPolicy({"clean": 0.5, "fmix": 0.25, "puzzlemix": 0.25}, options=options)
    assert str(policy) == ("clean 50 % + puzzlemix 25 % + fmix 25 %, λ beta(1), fmix decay 4, fmix max_soft 0.25")


def test_the_options_that_methods_declare_allow_their_defaults() -> None:
    declared = [option for method in METHODS.values() for option in method.options.values()]
    assert len(declared) > 3
    assert all(option.allows(option.default) for option in declared)


@settings(deadline=None)
@given(policies())
def test_a_policy_survives_json(policy: MixPolicy) -> None:
    again = MixPolicy.from_json(json.loads(json.dumps(policy.to_json(), allow_nan=False)))
    assert again == policy and hash(again) == hash(policy)


# Interleaver


def sequence(shares: dict[str, float], updates: int) -> list[str]:
    interleaver = Interleaver()
    return [interleaver.next(shares) for _ in range(updates)]


def furthest_from_share(shares: dict[str, float], updates: int) -> float:
    counts: Counter[str] = Counter()
    furthest = 0.0
    for step, method in enumerate(sequence(shares, updates), 1):
        counts[method] += 1
        furthest = max(furthest, *(abs(counts[name] - step * share) for name, share in shares.items()))
    return furthest


@settings(deadline=None)
@given(all_shares())
def test_shares_are_kept_to_within_one_update_over_any_beginning(shares: dict[str, float]) -> None:
    limit = 1.0 if len(shares) <= 3 else 1.25
    assert furthest_from_share(shares, 300) < limit + 1e-6


def test_halves_alternate_strictly_and_clean_comes_first() -> None:
    assert sequence(MixPolicy({"cutmix": 0.5, "clean": 0.5}).shares, 200) == ["clean", "cutmix"] * 100


def test_thirds_take_turns() -> None:
    assert sequence(dict.fromkeys(("clean", "mixup", "cutmix"), 1 / 3), 3000) == ["clean", "mixup", "cutmix"] * 1000


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7])
def test_shares_that_floats_cannot_hold_do_not_drift(share: float) -> None:
    updates = 20_000
    plan = sequence({"clean": 1 - share, "rmix": share}, updates)
    assert abs(plan.count("rmix") - share * updates) < 1e-3
    assert plan[:10] == plan[-10:]  # the pattern is as it was at the start


@settings(deadline=None)
@given(shares=all_shares(), cut=st.integers(0, 50))
def test_an_interleaver_goes_on_from_its_credit(shares: dict[str, float], cut: int) -> None:
    first = Interleaver()
    start = [first.next(shares) for _ in range(cut)]
    second = Interleaver(json.loads(json.dumps(first.credit)))
    assert start + [second.next(shares) for _ in range(50)] == sequence(shares, cut + 50)


def test_a_new_policy_is_followed_from_its_first_update_on() -> None:
    interleaver = Interleaver()
    for _ in range(7):
        interleaver.next({"clean": 0.5, "mixup": 0.5})
    later = [interleaver.next({"clean": 0.5, "rmix": 0.5}) for _ in range(100)]
    assert set(later) == {"clean", "rmix"}
    assert abs(later.count("rmix") - 50) <= 1
    assert {interleaver.next({"cutmix": 1.0}) for _ in range(5)} == {"cutmix"}


# PolicySchedule

POLICY = MixPolicy({"clean": 0.5, "rmix": 0.5}, threshold=0.55)
SCHEDULE = PolicySchedule(
    ((0.25, MixPolicy({"clean": 1.0})), (1.0, POLICY)), {"learned on": "digits", "validation": 0.97}
)


@settings(deadline=None, max_examples=60)
@given(schedules())
def test_a_schedule_survives_its_file(tmp_path_factory: pytest.TempPathFactory, schedule: PolicySchedule) -> None:
    path = tmp_path_factory.getbasetemp() / "schedule.json"
    schedule.save(path)
    again = PolicySchedule.load(path)
    assert again == schedule
    assert again.provenance == schedule.provenance


def test_a_schedule_is_saved_as_text_that_a_person_can_edit(tmp_path: Path) -> None:
    SCHEDULE.save(tmp_path / "policy.json")
    text = (tmp_path / "policy.json").read_text()
    assert '"until": 0.25' in text and '"lam": "beta(1)"' in text and text.endswith("}\n")
    (tmp_path / "policy.json").write_text(text.replace('"until": 0.25', '"until": 0.5'))
    assert PolicySchedule.load(tmp_path / "policy.json").segments[0][0] == 0.5


WITH_OPTIONS = MixPolicy({"fmix": 1.0}, options={"fmix": {"decay": 4}})


def test_only_a_schedule_with_options_needs_the_new_version(tmp_path: Path) -> None:
    plain, with_options = PolicySchedule.fixed(POLICY), PolicySchedule(((0.5, POLICY), (1.0, WITH_OPTIONS)))
    assert plain.to_json()["version"] == 2 and "options" not in json.dumps(plain.to_json())
    assert with_options.to_json()["version"] == 3
    first, second = (segment["policy"] for segment in with_options.to_json()["segments"])
    assert "options" not in first and second["options"] == {"fmix": {"decay": 4.0}}
    with_options.save(tmp_path / "policy.json")
    assert PolicySchedule.load(tmp_path / "policy.json") == with_options


def test_schedules_of_every_version_are_read() -> None:
    value = PolicySchedule.fixed(POLICY).to_json()
    assert PolicySchedule.from_json({**value, "version": 3}) == PolicySchedule.fixed(POLICY)
    policy = dict(value["segments"][0]["policy"])
    del policy["label_detach"]
    first = {**value, "version": 1, "segments": [{"until": 1.0, "policy": policy}]}
    assert PolicySchedule.from_json(first) == PolicySchedule.fixed(POLICY)


def test_a_fixed_policy_is_a_schedule_of_one() -> None:
    assert PolicySchedule.fixed(POLICY).segments == ((1.0, POLICY),)
    assert PolicySchedule.fixed(POLICY).ends(10) == [(10, POLICY)]


@settings(deadline=None)
@given(values=progress_values(), updates=st.integers(1, 10**6))
def test_a_schedule_in_updates_rises_to_the_last_one_and_rounds_each_end(values: list[float], updates: int) -> None:
    policies = [MixPolicy({"clean": 1.0}, label_beta=index / 10) for index in range(len(values))]
    ends = PolicySchedule(tuple(zip(values, policies, strict=True))).ends(updates)
    numbers = [end for end, _ in ends]
    assert numbers[-1] == updates
    assert numbers[0] > 0 and numbers == sorted(set(numbers))
    exact = {policy: value * updates for value, policy in zip(values, policies, strict=True)}
    assert all(abs(end - exact[policy]) <= 0.5 for end, policy in ends)
    assert [policy for _, policy in ends] == [policy for policy in policies if policy in {p for _, p in ends}]


@pytest.mark.parametrize(
    ("untils", "message"),
    [
        ([], "segments must hold 1 to"),
        ([0.5], r"segments\[0\].until must be 1 for the last one, got 0.5"),
        ([0.0, 1.0], r"segments\[0\].until must be a number in \(0, 1\]"),
        ([0.5, 0.5, 1.0], r"segments\[1\].until must be a number in \(0.5, 1\]"),
        ([0.5, 0.4, 1.0], r"segments\[1\].until"),
        ([1.0, 1.5], r"segments\[1\].until"),
        ([math.nan, 1.0], r"segments\[0\].until"),
        ([True], r"segments\[0\].until"),
        (["1"], r"segments\[0\].until"),
        ([None], r"segments\[0\].until"),
    ],
)
def test_progress_must_rise_to_one(untils: list[Any], message: str) -> None:
    with pytest.raises(PolicyError, match=f"^{message}"):
        PolicySchedule(tuple((until, POLICY) for until in untils))


def test_a_schedule_holds_no_more_segments_than_any_training_needs() -> None:
    count = MAX_SEGMENTS + 1
    with pytest.raises(PolicyError, match="segments must hold 1 to 10,000 entries, got 10,001"):
        PolicySchedule(tuple(((index + 1) / count, POLICY) for index in range(count)))


# Files that somebody sent


def changed(*keys: str | int, value: Any = None, remove: bool = False) -> bytes:
    """The file of SCHEDULE with the entry at `keys` set to `value` or removed."""
    whole = json.loads(json.dumps(SCHEDULE.to_json()))
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return json.dumps(whole).encode()


POLICY_AT = ("segments", 1, "policy")
TEXT = json.dumps(SCHEDULE.to_json())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"null", "format must be"),
        (b"[]", "format must be"),
        (b"{}", "format must be"),
        (changed("format", value="policy"), "format must be"),
        (changed("version", value=4), "version must be 1, 2 or 3, got 4"),
        (changed("version", value="1"), "version must be 1, 2 or 3, got '1'"),
        (changed("version", remove=True), "version must be 1, 2 or 3, got None"),
        (changed("provenance", remove=True), "schedule: the field 'provenance' is missing"),
        (changed("provenance", value=[]), "provenance must be an object"),
        (changed("author", value="me"), "schedule: unknown field 'author'"),
        (changed("segments", remove=True), "schedule: the field 'segments' is missing"),
        (changed("segments", value={}), "segments must be a list"),
        (changed("segments", value=[]), "segments must hold 1 to"),
        (changed("segments", 1, value=1), r"segments\[1\] must be an object"),
        (changed("segments", 1, "until", value=0.9), r"segments\[1\].until must be 1"),
        (changed("segments", 0, "until", value="0.5"), r"segments\[0\].until must be a number"),
        (changed("segments", 0, "until", remove=True), r"segments\[0\]: the field 'until' is missing"),
        (changed("segments", 0, "colour", value=1), r"segments\[0\]: unknown field 'colour'"),
        (changed(*POLICY_AT, value=None), r"segments\[1\].policy must be an object"),
        (changed(*POLICY_AT, "alpha", value=1), r"segments\[1\].policy: unknown field 'alpha'"),
        (changed(*POLICY_AT, "lam", remove=True), r"segments\[1\].policy: the field 'lam' is missing"),
        (changed(*POLICY_AT, "lam", value="beta(-1)"), r"segments\[1\].lam must"),
        (changed(*POLICY_AT, "lam", value={"beta": 1}), r"segments\[1\].lam must"),
        (changed(*POLICY_AT, "threshold", value=1.5), r"segments\[1\].threshold must"),
        (changed(*POLICY_AT, "label_beta", value="1"), r"segments\[1\].label_beta must"),
        (changed(*POLICY_AT, "label_smoothing", value=[0]), r"segments\[1\].label_smoothing must"),
        (changed(*POLICY_AT, "shares", value={"rmix": -1, "clean": 2}), r"segments\[1\].shares\[rmix\] must"),
        (changed(*POLICY_AT, "shares", value={"rmix": 0.5}), r"segments\[1\].shares must sum to 1"),
        (changed(*POLICY_AT, "shares", value={"__class__": 1}), r"segments\[1\].shares: unknown method"),
        (changed(*POLICY_AT, "options", value=[]), r"segments\[1\].options must map"),
        (
            changed(*POLICY_AT, "options", value={"rmix": {"decay": 1}}),
            r"segments\[1\].options\[rmix\]: unknown option",
        ),
        (TEXT.replace("0.55", "NaN").encode(), "numbers must be finite, got NaN"),
        (TEXT.replace("0.97", "-Infinity").encode(), "numbers must be finite, got -Infinity"),
        (TEXT.replace("0.55", "1e999").encode(), r"segments\[1\].threshold must"),
        (
            TEXT.replace('"threshold": 0.55', '"threshold": 0.55, "threshold": 0.1').encode(),
            "'threshold' appears twice",
        ),
        (TEXT.replace("0.55", "9" * 5000).encode(), "not a JSON file|threshold must"),
        (TEXT.encode() + b"}", "not a JSON file .* policy.json that a search"),
        (json.dumps({"schedule": json.loads(TEXT)}).encode(), "that of a run lies beside its summary, in policy.json"),
        (json.dumps({key: one for key, one in json.loads(TEXT).items() if key != "version"}).encode(), "is missing"),
        (changed("version", value=9), "got 9; another RL-Mix wrote it"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"a":' * 100_000, "not a JSON file"),
        (TEXT.replace('"digits"', "[" * 900 + "]" * 900).encode()[:-3], "not a JSON file"),
        (bytes(range(256)) * 4, "not a JSON file"),
        (b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", "not a JSON file"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        ((TEXT + " " * MAX_BYTES).encode(), "larger than"),
    ],
)
def test_a_bad_file_is_refused_by_its_name_and_field(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sent.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=f"sent.json: .*({message})") as caught:
        PolicySchedule.load(path)
    assert len(str(caught.value)) < 600


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    SCHEDULE.save(tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_bytes().rstrip()
    path = tmp_path / "cut.json"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(PolicyError, match=r"cut\.json"):
            PolicySchedule.load(path)


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, len(TEXT) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_schedule_or_a_policy_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    content = bytearray(TEXT.encode())
    content[position] = byte
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_bytes(content)
    try:
        assert isinstance(PolicySchedule.load(path), PolicySchedule)
    except PolicyError:
        pass


def test_a_file_of_very_many_fields_is_refused_without_comparing_each_with_each(tmp_path: Path) -> None:
    names = [f'"{index:x}":0' for index in range(90_000)]
    path = tmp_path / "many.json"
    path.write_text("{" + ",".join([*names, names[-1]]) + "}")
    assert path.stat().st_size < MAX_BYTES
    with pytest.raises(PolicyError, match="appears twice"):
        PolicySchedule.load(path)


def test_missing_files_and_folders_are_policy_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "none" / "none.json", "a\0b", "\ud800"):
        with pytest.raises(PolicyError, match="cannot be read"):
            PolicySchedule.load(path)
    with pytest.raises(PolicyError, match=r"expected a file, got a folder$"):
        PolicySchedule.load(tmp_path)
    PolicySchedule.fixed(MixPolicy({"clean": 1.0})).save(tmp_path / "policy.json")
    with pytest.raises(PolicyError, match=r"got a folder; did you mean .*policy\.json\?"):
        PolicySchedule.load(tmp_path)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, number: float) -> None:
    path = tmp_path / "policy.json"
    SCHEDULE.save(path)
    with pytest.raises(PolicyError, match="provenance"):
        PolicySchedule(SCHEDULE.segments, {"validation": number}).save(path)
    assert PolicySchedule.load(path) == SCHEDULE
    assert os.listdir(tmp_path) == ["policy.json"]


@given(
    shares=st.sampled_from([{"clean": 1.0}, {"clean": 0.5, "rmix": 0.5}, {"clean": 0.1, "mixup": 0.9}, {"rmix": 1.0}]),
    updates=st.integers(0, 60),
    clean=st.integers(0, 5),
    before=st.integers(0, 9),
)
def test_looking_ahead_takes_nothing(shares: dict[str, float], updates: int, clean: int, before: int) -> None:
    interleaver = Interleaver()
    for _ in range(before):
        interleaver.next(shares)
    told = interleaver.ahead(shares, updates, clean=clean)
    taken = [interleaver.next(shares) for _ in range(updates)]
    assert told == taken[: len(told)] and told.count("clean") <= clean
    assert len(told) == updates or "clean" not in shares or told.count("clean") == clean
