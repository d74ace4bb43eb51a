"""What an episode pays, against a reference that the tests train themselves."""

import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import MixPolicyEnv
from rlmix.envs.rewards import REWARDS, Outcome, Reward
from rlmix.envs.seeds import training_seed
from tests.envs.tiny import TRAINING, digits, play, tiny

ACTIONS = [(6, 0, 1, 0), (0, 0, 2, 0), (4, 2, 0, 1), (1, 0, 3, 2)]
ENDS = [5, 10, 15, 20]


def by_hand(
    env: MixPolicyEnv, train_seed: int, *, number: int = 0, policy: MixPolicy | None = None, limit: int | None = None
) -> list[float]:
    """Validation accuracy after each of four segments of a training under one policy."""
    task = env.tasks.task(number)
    data = digits().draw(task.train_size, data_seed=task.data_seed, label_noise=task.label_noise)
    trainer = Trainer(TrainConfig(**TRAINING, updates=20), data, seed=train_seed)
    accuracies = []
    for end in ENDS:
        trainer.train(policy or MixPolicy({"clean": 0.5, "cutmix": 0.5}), 5)
        accuracies.append(trainer.evaluate("validation", limit=None if end == 20 else limit).accuracy)
    return accuracies


def scores(accuracies: list[float], curves: list[list[float]], counts: list[int]) -> list[float]:
    """Standings against references: differences in standard deviations over seeds, or in what so few images allow."""
    found = []
    for accuracy, references, images in zip(accuracies, zip(*curves, strict=True), counts, strict=True):
        mean = statistics.fmean(references)
        spread = statistics.stdev(references) if len(references) > 1 else 0.0
        known = min(max(mean, 0.01), 0.99)
        scale = max(spread, math.sqrt(known * (1 - known) / images))
        found.append(min(max((accuracy - mean) / scale, -10), 10))
    return found


def differences(values: list[float]) -> list[float]:
    return [value - before for before, value in zip([0.0, *values], values, strict=False)]


def accuracies_of(infos: list[dict[str, Any]]) -> list[float]:
    return [info["validation_accuracy"] for info in infos[1:]]


def test_change_is_the_change_of_validation_accuracy() -> None:
    _, rewards, infos = play(tiny(reward="change"), ACTIONS, seed=0)
    accuracies = accuracies_of(infos)
    assert rewards == pytest.approx([accuracies[0] - 0.1, *differences(accuracies)[1:]])
    assert sum(rewards) == pytest.approx(accuracies[-1] - 0.1)
    assert accuracies[-1] > 0.3, "it learned something"


def test_final_is_paid_at_the_end_alone() -> None:
    _, rewards, infos = play(tiny(reward="final"), ACTIONS, seed=0)
    assert rewards == [0, 0, 0, accuracies_of(infos)[-1]]


def test_validation_accuracy_is_that_of_a_training_by_hand() -> None:
    env = tiny(reward="final", validation_limit=30)
    _, _, infos = play(env, [(2, 0, 0, 0)] * 4, seed=6)
    assert accuracies_of(infos) == by_hand(env, training_seed(6), limit=30)


@pytest.mark.parametrize(("seeds", "limit"), [(1, None), (2, None), (3, 40)])
def test_relative_is_the_standing_against_the_mean_of_the_references(seeds: int, limit: int | None) -> None:
    env = tiny(reference_seeds=seeds, validation_limit=limit, tasks={"label_noise": (0.1, 0.1)})
    curves = [by_hand(env, training_seed(-1 - index), limit=limit) for index in range(seeds)]
    for seed in (3, 4):
        _, rewards, infos = play(env, ACTIONS, seed=seed)
        expected = scores(accuracies_of(infos), curves, [limit or 100] * 3 + [100])
        assert rewards == pytest.approx(differences(expected))
        assert sum(rewards) == pytest.approx(expected[-1])


def test_reference_seeds_are_not_those_of_episodes() -> None:
    assert len({training_seed(seed) for seed in range(-1000, 1000)}) == 2000


def test_every_task_has_a_reference_of_its_own() -> None:
    env = tiny(reference_seeds=1, tasks={"pool": 2})
    for seed in (0, 1, 2, 3):
        curve = by_hand(env, training_seed(-1), number=seed % 2)
        _, rewards, infos = play(env, ACTIONS, seed=seed)
        assert sum(rewards) == pytest.approx(scores(accuracies_of(infos), [curve], [100] * 4)[-1])
    assert by_hand(env, training_seed(-1), number=0) != by_hand(env, training_seed(-1), number=1)


def test_own_seed_reference_is_trained_from_the_episodes_seed() -> None:
    env = tiny(reference_seeds=0)
    for seed in (3, 8):
        _, rewards, infos = play(env, ACTIONS, seed=seed)
        expected = scores(accuracies_of(infos), [by_hand(env, training_seed(seed))], [100] * 4)
        assert rewards == pytest.approx(differences(expected))


@pytest.mark.parametrize("reference", [None, (4, 1, 1, 2)])
def test_the_reference_itself_stands_at_exactly_zero(reference: tuple[int, ...] | None) -> None:
    env = tiny(reference_seeds=0)
    action = reference or (2, 0, 0, 0)
    if reference:
        env = tiny(reference_seeds=0, reference=env.menu.policy(reference))
    for seed in range(3):
        _, rewards, _ = play(env, [action] * 4, seed=seed)
        assert rewards == [0, 0, 0, 0]


def test_a_standing_is_limited_to_ten() -> None:
    # the reference learns next to nothing, and ten standard errors of 0.1 are 0.3
    env = tiny(
        reference=MixPolicy({"clean": 1.0}, label_smoothing=1.0),
        reference_seeds=1,
        tasks={"train_size": (400, 400), "updates": (80, 80)},
    )
    _, rewards, infos = play(env, [(0, 0, 0, 0)] * 4, seed=0)
    assert accuracies_of(infos)[-1] > 0.6
    assert sum(rewards) == 10


def test_a_training_that_diverges_is_measured_against_the_references_end(monkeypatch: pytest.MonkeyPatch) -> None:
    env = tiny(reference_seeds=1)
    curve = by_hand(env, training_seed(-1))
    env.reset(seed=0)  # measures the reference
    evaluate = Trainer.evaluate

    def evaluate_not_a_number(self: Trainer, *arguments: Any, **keywords: Any) -> EvalStats:
        return replace(evaluate(self, *arguments, **keywords), loss=math.nan, accuracy=0.9)

    *_, info = env.step(ACTIONS[0])
    monkeypatch.setattr(Trainer, "evaluate", evaluate_not_a_number)
    first = scores([info["validation_accuracy"]], [curve[:1]], [100])[0]
    _, reward, terminated, _, info = env.step(ACTIONS[1])
    assert terminated and info["diverged"] and info["validation_accuracy"] == 0.1
    assert first + reward == pytest.approx(scores([0.1], [curve[-1:]], [100])[0])


# Cached references


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_a_cached_reference_gives_the_same_rewards_and_is_not_measured_again(tmp_path: Path) -> None:
    expected = play(tiny(reference_seeds=2), ACTIONS, seed=1)[1]
    assert play(tiny(reference_seeds=2, reference_cache=tmp_path / "kept"), ACTIONS, seed=1)[1] == expected
    (file,) = cached(tmp_path / "kept")
    content = file.read_bytes()
    assert play(tiny(reference_seeds=2, reference_cache=tmp_path / "kept"), ACTIONS, seed=1)[1] == expected
    assert cached(tmp_path / "kept") == [file]
    assert file.read_bytes() == content


def test_what_the_cache_says_is_what_is_paid(tmp_path: Path) -> None:
    tiny(reference_cache=tmp_path).reset(seed=1)
    (file,) = cached(tmp_path)
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({**entry, "accuracies": [0.0, 0.0, 0.0, 0.05], "scales": [1.0, 1.0, 1.0, 0.5]}))
    _, rewards, infos = play(tiny(reference_cache=tmp_path), ACTIONS, seed=1)
    *before, last = accuracies_of(infos)
    assert rewards == pytest.approx(differences([*before, (last - 0.05) / 0.5]))


@pytest.mark.parametrize(
    "damage",
    ["cut", "another key", "no scale", "an infinite one", "a list", "zero scale", "NaN scale", "infinite scale"],
)
def test_a_damaged_reference_is_told_and_measured_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = play(tiny(reference_seeds=2, reference_cache=tmp_path), ACTIONS, seed=1)[1]
    (file,) = cached(tmp_path)
    content = file.read_bytes()
    entry = json.loads(content)
    scales = entry["scales"]
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "another key": json.dumps({**entry, "key": [*entry["key"][:-1], {}]}).encode(),
            "no scale": json.dumps({**entry, "scales": scales[:-1]}).encode(),
            "an infinite one": json.dumps({**entry, "accuracies": [math.inf] * len(scales)}).encode(),
            "a list": b"[]",
            "NaN scale": json.dumps({**entry, "scales": [*scales[:-1], math.nan]}).encode(),
            "infinite scale": json.dumps({**entry, "scales": [*scales[:-1], math.inf]}).encode(),
            "zero scale": json.dumps({**entry, "scales": [0.0] * len(scales)}).encode(),
        }[damage]
    )
    assert play(tiny(reference_seeds=2, reference_cache=tmp_path), ACTIONS, seed=1)[1] == expected
    assert str(file) in capsys.readouterr().err
    assert file.read_bytes() == content


def test_a_reference_that_cannot_be_kept_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = play(tiny(reference_seeds=2), ACTIONS, seed=1)[1]
    (tmp_path / "kept").write_text("a file where a folder should be")
    assert play(tiny(reference_seeds=2, reference_cache=tmp_path / "kept"), ACTIONS, seed=1)[1] == expected
    assert "File exists; this reference will be measured again" in capsys.readouterr().err


def test_prepare_reference_fills_the_cache_ahead_of_time(tmp_path: Path) -> None:
    env = tiny(reference_cache=tmp_path, tasks={"pool": 2})
    assert env.references is not None
    env.references.prepare(env.tasks.task(0))
    env.references.prepare(env.tasks.task(1))
    assert len(cached(tmp_path)) == 2
    for seed in (0, 1):
        play(env, ACTIONS, seed=seed)
        play(tiny(reference_cache=tmp_path, tasks={"pool": 2}), ACTIONS, seed=seed)
    assert len(cached(tmp_path)) == 2
    assert tiny(reference_cache=tmp_path, reward="change").references is None
    own_seed = tiny(reference_cache=tmp_path, reference_seeds=0)
    assert own_seed.references is not None
    own_seed.references.prepare(own_seed.tasks.task(0))
    assert len(cached(tmp_path)) == 2, "nothing to prepare"


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_seeds": 1},
        {"reference": MixPolicy({"clean": 1.0})},
        {"segments": 2},
        {"validation_limit": 50},
        {"validation_size": 150},
        {"training": {"lr": 0.02}},
        {"tasks": {"updates": (24, 24)}},
        {"tasks": {"seed": 1}},
    ],
)
def test_a_reference_of_another_setting_is_not_taken_from_the_cache(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny(reference_cache=tmp_path).reset(seed=0)
    actions = ACTIONS[: changes.get("segments", 4)]
    _, expected, _ = play(tiny(**changes), actions, seed=0)
    assert play(tiny(reference_cache=tmp_path, **changes), actions, seed=0)[1] == expected
    assert len(cached(tmp_path)) == 2


def test_standing_is_paid_at_the_end_alone_and_is_what_relative_sums_to() -> None:
    for seed in (3, 4):
        _, relative, _ = play(tiny(reference_seeds=2), ACTIONS, seed=seed)
        _, standing, _ = play(tiny(reference_seeds=2, reward="standing"), ACTIONS, seed=seed)
        assert standing[:-1] == [0, 0, 0]
        assert standing[-1] == pytest.approx(sum(relative))


# The registry


def test_a_reward_that_is_added_is_used_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Outcome] = []

    def squared(outcome: Outcome) -> float:
        seen.append(outcome)
        return outcome.score**2

    monkeypatch.setitem(REWARDS, "squared", Reward("square of the score", squared, needs_reference=True))
    monkeypatch.setitem(REWARDS, "error", Reward("less the error", lambda outcome: outcome.accuracy - 1))
    _, relative, infos = play(tiny(reference_seeds=1), ACTIONS, seed=3)
    accuracies = accuracies_of(infos)
    _, rewards, _ = play(tiny(reference_seeds=1, reward="squared"), ACTIONS, seed=3)
    assert rewards == pytest.approx([sum(relative[: segment + 1]) ** 2 for segment in range(4)])
    assert [outcome.accuracy for outcome in seen] == accuracies
    assert [outcome.accuracy_before for outcome in seen] == [0.1, *accuracies[:-1]]
    assert [outcome.score_before for outcome in seen] == [0.0, *(outcome.score for outcome in seen[:-1])]
    assert [outcome.terminated for outcome in seen] == [False, False, False, True]
    env = tiny(reward="error")
    assert env.references is None
    assert play(env, ACTIONS, seed=3)[1] == pytest.approx([accuracy - 1 for accuracy in accuracies])


def test_the_docstrings_reward_table_is_the_registry() -> None:
    section = (MixPolicyEnv.__doc__ or "").split("## Rewards")[1].split("## Starting State")[0]
    rows = re.findall(r"^ +\| `(\w+)` \| (.*?) \|$", section, flags=re.MULTILINE)
    assert rows == [(name, reward.meaning) for name, reward in REWARDS.items()]
