"""A bug of the program is never reported as a user's mistake: it ends a command with its traceback."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmix.classifier.errors import InputError
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments import compare, replay_policy, report, train_agent, train_classifier, train_rl_mix
from tests.experiments.test_report import comparison

Main = Callable[[Sequence[str]], Any]
Refused = Callable[[Main, Sequence[object]], str]

SMALL = "--dataset digits --train-size 60 --updates 6 --batch-size 20".split()
COMMANDS = {
    "train_classifier": (train_classifier.main, [*SMALL, "--method", "cutmix"]),
    "replay_policy": (replay_policy.main, [*SMALL, "--updates", "60", "--agent", "shipped"]),
    "train_rl_mix": (train_rl_mix.main, SMALL),
    "train_agent": (train_agent.main, "--dataset digits --batch-size 20".split()),
    "compare": (compare.main, [*SMALL, "--contestants", "plain", "cutmix", "--seeds", "2"]),
}
PLANTED = "a bug of the trainer"


def plant(monkeypatch: pytest.MonkeyPatch, method: str, kind: type[Exception]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind(PLANTED)

    monkeypatch.setattr(Trainer, method, fail)


@pytest.mark.parametrize("kind", [ValueError, TypeError])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bug_of_the_trainer_keeps_its_traceback(
    command: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "__init__", kind)
    main, arguments = COMMANDS[command]
    with pytest.raises(kind, match=PLANTED):
        main([*arguments, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_users_mistake_from_the_same_place_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    plant(monkeypatch, "__init__", InputError)
    main, arguments = COMMANDS[command]
    assert PLANTED in refused(main, [*arguments, "--out", "run"])


@pytest.mark.parametrize("command", ["train_classifier", "replay_policy"])
def test_a_bug_in_the_midst_of_a_training_keeps_its_traceback(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "train", ValueError)
    main, arguments = COMMANDS[command]
    with pytest.raises(ValueError, match=PLANTED):
        main([*arguments, "--out", str(tmp_path / "run")])


def test_a_bug_while_a_report_mixes_images_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"kind": "comparison", **comparison(["plain", "cutmix"])}
    (tmp_path / "results.json").write_text(json.dumps(results))
    plant(monkeypatch, "train", ValueError)
    with pytest.raises(ValueError, match=PLANTED):
        report.main(["--run", str(tmp_path)])


def test_damaged_results_are_refused_in_one_line(tmp_path: Path, refused: Refused) -> None:
    results = {"kind": "comparison", **comparison(["plain", "cutmix"])}
    for damage in ({"machine": 3}, {"setting": {**results["setting"], "train_size": "many"}}, {"methods": []}):
        (tmp_path / "results.json").write_text(json.dumps({**results, **damage}))
        refused(report.main, ["--run", tmp_path])
