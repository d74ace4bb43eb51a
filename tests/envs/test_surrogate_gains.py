"""What a training gains in the end: parts of phases, planted gains, and the accuracy that an episode ends with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError, load_state, save_state
from rlmix.envs.effects import action_effects
from rlmix.envs.surrogate import SurrogateEnv, SurrogateVectorEnv
from rlmix.envs.surrogate_gains import (
    CONTEXTS,
    PHASES,
    Gains,
    RecordedGain,
    fit_gains,
    gain_context,
    mixed_in_phases,
    mixing_shares,
    phase_shares,
)
from rlmix.envs.surrogate_model import FILE, Ensemble, SurrogateModel, count_inputs
from rlmix.envs.surrogate_tasks import BROAD_VIEW, TaskTable
from rlmix.experiments.search.task_family import MENU, PLAIN, SEGMENTS

ACTIONS = MENU.actions()
COMBINATIONS = MENU.combinations()


def numbers(actions: list[tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor([[COMBINATIONS.index(action) for action in actions]])


@given(ends=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True))
def test_segments_fill_the_phases(ends: list[float]) -> None:
    """However a training is cut, the same policy throughout is mixed alike in every phase."""
    segments = [*sorted(ends), 1.0]
    shares = phase_shares(segments)
    assert shares.shape == (len(PHASES), len(segments)) and (shares >= 0).all()
    assert torch.allclose(shares.sum(dim=1), torch.ones(len(PHASES)), atol=1e-4)
    lengths = torch.diff(torch.tensor([0.0, *segments]))
    assert torch.allclose(torch.diff(torch.tensor([0.0, *PHASES])) @ shares, lengths, atol=1e-5)


def test_plain_training_is_mixed_nowhere() -> None:
    shares = mixing_shares(MENU)
    mixed = mixed_in_phases(numbers([PLAIN] * 5), shares, phase_shares(SEGMENTS))
    assert (mixed == 0).all() and Gains(torch.randn(mixed.shape[1], 8)).tell(mixed, torch.randn(1, 8)) == 0
    named = dict(zip(COMBINATIONS, shares.tolist(), strict=True))
    methods = ["mixup", "cutmix", "average", "rmix"]
    for action in ACTIONS:
        policy = MENU.policy(action)
        share = [policy.shares.get(method, 0.0) for method in methods]
        assert named[action] == pytest.approx([sum(share), float(sum(share) == 1), *share, policy.label_smoothing])


def table(count: int = 60) -> TaskTable:
    random = np.random.default_rng(0)
    known = torch.tensor(random.uniform(0.1, 0.7, size=(count, len(BROAD_VIEW.known))), dtype=torch.float32)
    known[:, BROAD_VIEW.known.index("log_classes")] = 1 / 3  # ten classes
    context = torch.tensor(random.uniform(0, 0.5, size=(count, len(BROAD_VIEW.context))), dtype=torch.float32)
    context[::2, BROAD_VIEW.context.index("label_noise")] = 0
    progress = torch.tensor([0.0, *SEGMENTS]).expand(count, -1).contiguous()
    return TaskTable(
        numbers=torch.arange(count) * 10,
        known=known,
        context=context,
        progress=progress,
        relative_lr=progress,
        start=torch.zeros(count, len(BROAD_VIEW.predicted)),
        reference=torch.tensor(random.uniform(0.4, 0.9, size=(count, len(SEGMENTS))), dtype=torch.float32),
        scale=torch.full((count, len(SEGMENTS)), 0.01),
    )


def test_the_context_says_what_decides() -> None:
    tasks = table()
    known, context = (dict(zip(names, values.unbind(dim=1), strict=True)) for names, values in (
        (BROAD_VIEW.known, tasks.known), (BROAD_VIEW.context, tasks.context)))  # fmt: skip
    found = dict(zip(CONTEXTS, gain_context(tasks, BROAD_VIEW).unbind(dim=1), strict=True))
    assert found["wrong labels"].tolist() == [0, 1] * 30 and torch.equal(found["their share"], context["label_noise"])
    assert torch.allclose(10 ** (1.8 + 0.5 * found["passes"]), 10 ** (4 * known["log_passes"]), rtol=1e-4)
    assert torch.allclose(found["error"], 1 - tasks.reference[:, -1])
    gap = context["plain_clean_way_5"] - context["plain_validation_way_5"]
    assert torch.allclose(found["learned by heart"], gap)
    for name in ("passes", "error"):
        assert torch.equal(found[f"wrong labels x {name}"], found["wrong labels"] * found[name])


def test_planted_gains_are_found() -> None:
    """Mixup in the first phase gains 0.04 where labels are wrong, and smoothing at the end loses 0.1 of itself."""
    tasks, random = table(), np.random.default_rng(1)
    context = gain_context(tasks, BROAD_VIEW)
    shares = mixing_shares(MENU)
    weights = torch.zeros(len(PHASES) * shares.shape[1], len(CONTEXTS))
    weights[2, CONTEXTS.index("wrong labels")] = 0.04
    weights[-1, CONTEXTS.index("always")] = -0.1
    truth = Gains(weights)
    plans = [[ACTIONS[choice] for choice in random.integers(16, size=5)] for _ in range(6000)]
    rows = random.integers(60, size=len(plans))
    mixed = torch.cat([mixed_in_phases(numbers(plan), shares, phase_shares(SEGMENTS)) for plan in plans])
    real = truth.tell(mixed, context[rows])
    first = (mixed[:, 2] * (context[rows, 1] > 0) * 0.04 - 0.1 * mixed[:, -1]).numpy()
    assert real.numpy() == pytest.approx(first, abs=1e-6)
    recorded = [
        RecordedGain(10 * int(row), plan, float(gain), 1.0) for row, plan, gain in zip(rows, plans, real, strict=True)
    ]
    # Trainings that say otherwise count nothing by their weight.
    recorded += [RecordedGain(0, [ACTIONS[2]] * 5, -0.5, 1e-9) for _ in range(200)]
    options = {"menu": MENU, "segments": SEGMENTS}
    found = fit_gains(recorded, tasks, BROAD_VIEW, penalty=1e-3, **options)
    assert found.tell(mixed, context[rows]).numpy() == pytest.approx(first, abs=2e-3)
    stiff = fit_gains(recorded, tasks, BROAD_VIEW, penalty=1e9, **options)
    assert stiff.tell(mixed, context[rows]).abs().max() < 1e-3


def test_methods_are_held_alike_and_favoured() -> None:
    """CutMix on every update gains 0.04, other methods nothing; nothing was recorded of R-Mix."""
    tasks, random = table(), np.random.default_rng(2)
    context, shares = gain_context(tasks, BROAD_VIEW), mixing_shares(MENU)

    def whole(method: str) -> tuple[int, ...]:
        return next(action for action in ACTIONS if MENU.policy(action).shares == {method: 1.0})

    rows = random.integers(60, size=400)
    recorded = [
        RecordedGain(10 * int(row), [whole(method)] * 5, 0.04 * (method == "cutmix"), 1.0)
        for row in rows
        for method in ("cutmix", "mixup")
    ]

    def told(method: str, **options: Any) -> float:
        found = fit_gains(recorded, tasks, BROAD_VIEW, menu=MENU, segments=SEGMENTS, **options)
        mixed = mixed_in_phases(numbers([whole(method)] * 5), shares, phase_shares(SEGMENTS))
        return float(found.tell(mixed.expand(60, -1), context).mean())

    apart, alike = ({"penalty": 1.0, "likeness": likeness} for likeness in (1.0, 1e6))
    assert told("cutmix", **apart) > 0.035 and abs(told("mixup", **apart)) < 0.005
    assert told("cutmix", **alike) == pytest.approx(0.02, abs=2e-3) == told("mixup", **alike)
    assert told("rmix", **alike) == pytest.approx(0.02, abs=2e-3), "as much as the others"
    favoured = {"rmix": 0.01}
    assert told("rmix", **alike, favoured=favoured) == pytest.approx(told("rmix", **alike) + 0.01, abs=1e-3)
    assert told("mixup", **alike, favoured=favoured) == pytest.approx(told("mixup", **alike), abs=1e-3)
    nothing = {"penalty": 1e12, "favoured": {"cutmix": 0.01}}
    assert told("cutmix", **nothing) == pytest.approx(0.01, abs=1e-4), "what is expected before any recording"
    with pytest.raises(InputError, match="favoured must be among mixup, cutmix, average, rmix, got snapmix"):
        told("cutmix", penalty=1.0, favoured={"snapmix": 0.01})


def still_ensemble() -> Ensemble:
    """An ensemble of one member, which predicts no change."""
    inputs, features, hidden = count_inputs(BROAD_VIEW, action_effects(MENU).shape[1]), len(BROAD_VIEW.predicted), 4
    sizes = {"0": (inputs, hidden), "1": (hidden, hidden), "2": (hidden, 2 * features)}
    layers = {f"weight{name}": torch.zeros(1, *size) for name, size in sizes.items()}
    layers |= {f"bias{name}": torch.zeros(1, 1, size[1]) for name, size in sizes.items()}
    return Ensemble(
        linear=torch.zeros(1, len(SEGMENTS), inputs + 1, features),
        input_mean=torch.zeros(inputs),
        input_spread=torch.ones(inputs),
        spread=torch.full((len(SEGMENTS), features), 0.01),
        correlate=torch.eye(features),
        **layers,
    )


def test_an_episode_ends_with_what_it_gains(tmp_path: Path) -> None:
    described = [{"number": 10 * row} for row in range(60)]
    wide = SurrogateModel(MENU, SEGMENTS, table(), described, still_ensemble(), {}, BROAD_VIEW)
    weights = torch.zeros(len(PHASES) * mixing_shares(MENU).shape[1], len(CONTEXTS))
    weights[0, 0] = 0.05  # for mixing every update of the first phase
    wide.gains = Gains(weights)
    wide.save(tmp_path)
    for one in (wide, SurrogateModel.load(tmp_path)):
        env = SurrogateEnv(model=one, split="train", reward="final")
        mixed_all = next(action for action in ACTIONS if MENU.policy(action).shares == {"mixup": 1.0})
        for first, gain in ((PLAIN, 0.0), (mixed_all, 0.05)):
            env.reset(seed=1, options={"task": 30})
            for action in (first, first, PLAIN, PLAIN, PLAIN):
                _, reward, over, _, info = env.step(action)
            expected = float(one.tasks.reference[3, -1]) + gain
            assert over and info["validation_accuracy"] == pytest.approx(expected, abs=1e-5)
            assert reward == pytest.approx(expected, abs=1e-5)
    # In a vector that starts its games anew, each ends with what it has gained, at whatever step the others are.
    options = {"model": wide, "split": "train", "reward": "final"}
    games = SurrogateVectorEnv(4, autoreset_mode=AutoresetMode.DISABLED, **options)
    games.reset(seed=5, options={"task": 30})
    late, ended = np.array([False, False, True, True]), []
    for step in range(5):
        if step == 2:
            games.reset(options={"task": 30, "reset_mask": late})
        games.step(np.array([mixed_all, PLAIN, mixed_all, PLAIN]))
    ended += games.episodes.accuracy.tolist()[:2]
    games.reset(options={"task": 30, "reset_mask": ~late})
    for _ in range(2):
        games.step(np.array([PLAIN, PLAIN, PLAIN, PLAIN]))
    ended += games.episodes.accuracy.tolist()[2:]
    plain = float(wide.tasks.reference[3, -1])
    assert ended == pytest.approx([plain + 0.05, plain, plain + 0.05, plain], abs=1e-5)
    damaged = load_state(tmp_path / FILE)
    damaged["gains"] = {"weights": weights[:-1]}
    save_state(tmp_path / FILE, damaged)
    with pytest.raises(DamagedFileError, match="gains: expected finite numbers"):
        SurrogateModel.load(tmp_path)
