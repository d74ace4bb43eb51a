"""The cost of RL-Mix on a tiny setting: its figures follow from the rounds, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.config import RLMixAgentConfig
from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.classifier.training.rmix_trainer import RMixTrainer
from rlmix.experiments.benchmarks import rl_mix_cost

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

TINY = "--dataset digits --model search --train-size 60 --batch-size 20 --seconds 0.02 --rounds 3".split()
AGENT = RLMixAgentConfig(extractor="image", n_steps=8, batch_size=4, epochs=3)


def test_figures_follow_from_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rl_mix_cost, "RLMixAgentConfig", lambda: AGENT)
    methods = RMixTrainer.train_mixed, RLMixLearner.choose
    learned: list[tuple[int, int]] = []
    update = RLMixLearner.update

    def counted(self: RLMixLearner, *arguments: Any, **keywords: Any) -> None:
        learned.append((self.model.rollout_buffer.pos, self.model.n_epochs))
        update(self, *arguments, **keywords)

    monkeypatch.setattr(RLMixLearner, "update", counted)
    rl_mix_cost.main([*TINY, "--out", str(tmp_path / "cost.json")])
    report = json.loads((tmp_path / "cost.json").read_text())
    (result,) = report["models"]
    assert result["model"] == "search" and result["image_shape"] == [1, 8, 8] and result["threads"] == 1
    assert 2 <= result["updates_per_round"] < AGENT.n_steps
    exact, ours = (np.array(result[name]["rounds"]) for name in ("exact_seconds", "rl_mix_seconds"))
    assert len(exact) == 3 and (exact > 0).all()
    assert result["ratio"]["rounds"] == pytest.approx((ours / exact).tolist())
    assert result["ratio"]["median"] == pytest.approx(np.median(ours / exact))
    parts = [values["rounds"] for values in result["percent_of_rl_mix"].values()]
    assert np.sum(parts, axis=0) == pytest.approx(100)
    assert all(value >= 0 for rounds in parts for value in rounds)
    assert learned == [(8, 1)] * 4, "one pass is timed on a full rollout, in the warm-up and in every round"
    assert (RMixTrainer.train_mixed, RLMixLearner.choose) == methods, "the clocks are taken off again"
    out = capsys.readouterr().out
    assert f"ratio {result['ratio']['median']:.2f} [" in " ".join(out.split()) and "published: about 2" in out


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--rounds 0", "rounds must be at least 1"),
        ("--threads 0", "threads must be at least 1"),
        ("--seconds 0", "seconds must be a finite number above 0"),
        ("--device cuda:99", "torch sees"),
        ("--train-size 40", "--train-size must be above 40, 2 batches, got 40"),
        ("--dataset nonsense", "'nonsense'"),
    ],
)
def test_refuses_what_cannot_be_measured(option: str, named: str, refused: Refused) -> None:
    assert named in refused(rl_mix_cost.main, [*TINY, *option.split(), "--out", "cost.json"])
