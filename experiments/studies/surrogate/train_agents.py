"""Train agents in the surrogate, and write its reference scores: PPO over several seeds, A2C and double DQN beside it.

python experiments/studies/surrogate/train_agents.py --out experiments/results/surrogate/agents
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from rlmix.agent.config import PPOConfig
from rlmix.agent.plots import png
from rlmix.agent.ppo import build_agent, to_agent
from rlmix.agent.surrogate_vec_env import SurrogateVecEnv
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.envs.surrogate_model import SHIPPED, SurrogateModel
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.studies.double_dqn import DoubleDQN
from rlmix.experiments.studies.surrogate.scores import (
    Choose,
    Played,
    play,
    references,
    scores_table,
    summarise,
)

REWARD = "standing"
PPO_IN_SURROGATE = PPOConfig(
    episodes_per_update=1024, learning_rate=1e-3, epochs=5, minibatches=4, entropy=0.01, gae_lambda=0.95
)
POINTS = 100  # of a learning curve
FLAT_POINTS, FLAT_GAIN = 10, 0.05  # a search ends when so many points have not raised the best score by so much


@dataclass(frozen=True)
class AgentsConfig:
    """Train agents in the surrogate."""

    model: str = SHIPPED
    """Folder of the surrogate; "shipped" is the one that comes with the program."""
    seeds: int = 5
    """PPO agents, by seeds 0, 1, 2, ..."""
    reference_seeds: int = 2
    """Agents of A2C and of double DQN each."""
    episodes: int = 1_000_000
    """Most episodes of each agent; PPO ends before where its score on validation tasks is flat."""
    reference_episodes: int = 200_000
    """Episodes of each agent of A2C and double DQN."""
    caution: float = 0.0
    """Standard deviations among the ensemble's accuracies that are taken off each reward."""
    ppo: PPOConfig = field(default_factory=lambda: PPO_IN_SURROGATE)
    """Hyperparameters of PPO; its parallel environments are as many as its episodes of an update."""
    out: str = "runs/surrogate_agents"
    """Folder of scores.json, scores.md, learning.png, the agents, ppo-0 and so on, and agents.jsonl, those finished."""

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, reference_seeds=0, episodes=1, reference_episodes=1)


class Curve(BaseCallback):
    """Callback that plays the validation tasks at regular intervals, and ends a search that is flat.

    Args:
        model: the surrogate.
        every: episodes between two points.
        segments: steps of an episode.
        chooser: from the learner to its most probable actions.
        until_flat: whether to end a search that is flat.
    """

    def __init__(
        self,
        model: SurrogateModel,
        every: int,
        segments: int,
        chooser: Callable[[BaseAlgorithm], Choose],
        *,
        until_flat: bool,
    ) -> None:
        super().__init__()
        self._surrogate, self._every, self._segments = model, every, segments
        self._chooser, self._until_flat = chooser, until_flat
        self.points: list[dict[str, Any]] = []
        self._returns: list[float] = []
        self._next = 0

    def _on_training_start(self) -> None:
        self._point()

    def _on_step(self) -> bool:
        self._returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps // self._segments < self._next:
            return True
        self._point()
        scores = [point["score"] for point in self.points]
        before, last = scores[:-FLAT_POINTS], scores[-FLAT_POINTS:]
        return not (self._until_flat and before and max(last) < max(before) + FLAT_GAIN)

    def _point(self) -> None:
        played = play(self._surrogate, "validation", self._chooser(self.model))
        self.points.append(
            {
                "episodes": self.num_timesteps // self._segments,
                "return": float(np.mean(self._returns)) if self._returns else None,
                "score": float(played.score.mean()),
                "accuracy": float(played.accuracy.mean()),
            }
        )
        self._returns = []
        self._next = self.num_timesteps // self._segments + self._every


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/surrogate/train_agents", arguments) as call:
        call.resume = call.line
        train(call.parse(AgentsConfig, __doc__), call.line)


def train(config: AgentsConfig, made_by: str) -> None:
    """Train agents in the surrogate, and write them and their scores.

    Args:
        config: options.
        made_by: the command line, for the files.

    Raises:
        RunError: the options do not fit what they name.
    """
    torch.set_num_threads(1)
    model, out = SurrogateModel.load(config.model), Path(config.out)
    with with_filename(out):
        out.mkdir(parents=True, exist_ok=True)
    jobs = {f"PPO {seed}": ("PPO", seed) for seed in range(config.seeds)}
    for kind in ("A2C", "double DQN"):
        jobs |= {f"{kind} {seed}": (kind, seed) for seed in range(config.reference_seeds)}
    options = {name: value for name, value in asdict(config).items() if name not in ("seeds", "reference_seeds")}
    settings = json.loads(json.dumps({**options, "out": None, "surrogate": model.provenance}))
    log = TrainingLog(out / "agents.jsonl", lambda lines: _finished(lines, settings))
    for title, (kind, seed) in jobs.items():
        if title in log.finished:
            continue
        started = time.process_time(), time.monotonic()
        learner, chooser, curve = _learn(kind, seed, model, config)
        seconds = [time.process_time() - started[0], time.monotonic() - started[1]]
        played = play(model, "test", chooser(learner))
        scores = {name: values.tolist() for name, values in asdict(played).items()}
        print(
            f"{title}: {curve[-1]['episodes']:,} episodes in {seconds[1]:.0f} s, validation score "
            f"{curve[0]['score']:+.2f} to {curve[-1]['score']:+.2f}",
            flush=True,
        )
        if kind != "double DQN":
            facts = {
                "learned_by": f"{kind} in the surrogate",
                "command": made_by,
                "seed": seed,
                "episodes": curve[-1]["episodes"],
                "surrogate": model.provenance,
            }
            folder = out / f"{kind.lower()}-{seed}"
            folder.mkdir(exist_ok=True)
            to_agent(learner.policy, model.menu, model.segments, facts, model.view.recorded).save(folder)  # type: ignore[arg-type]
        line = {"agent": title, "settings": settings, "seconds": seconds, "curve": curve, "test": scores}
        log.add(title, line)
    learned: dict[str, list[Played]] = {}
    for title, (kind, _) in jobs.items():
        told = {name: np.array(values) for name, values in log.finished[title]["test"].items()}
        learned.setdefault(kind, []).append(Played(**told))
    fixed = {split: references(model, split) for split in ("validation", "test")}
    result = {
        "command": made_by,
        "machine": machine(),
        "seconds": {title: log.finished[title]["seconds"] for title in jobs},
        "curves": {title: log.finished[title]["curve"] for title in jobs},
        "validation": {name: float(played.score.mean()) for name, played in fixed["validation"].items()},
        "test": summarise(model, "test", learned, fixed["test"]),
    }
    write_atomic(out / "scores.json", (json.dumps(result, indent=2) + "\n").encode())
    write_atomic(out / "scores.md", markdown(result).encode())
    write_atomic(out / "learning.png", png(plot_curves(result)))
    print(f"{markdown(result)}\nwritten: {out}/scores.json, scores.md, learning.png and the agents")


def _finished(lines: Sequence[Line], settings: dict[str, Any]) -> dict[str, Line]:
    """Return the log's agents by title.

    Raises:
        RunError: they learned otherwise.
    """
    if any(line["settings"] != settings for line in lines):
        raise RunError("agents of other options or of another surrogate are there already; choose another --out")
    return {line["agent"]: line for line in lines}


def _learn(
    kind: str, seed: int, model: SurrogateModel, config: AgentsConfig
) -> tuple[BaseAlgorithm, Callable[[BaseAlgorithm], Choose], list[dict[str, Any]]]:
    """Return a learner that has learned, what makes a choice of it, and its learning curve."""
    segments = len(model.segments)
    options: dict[str, Any] = {"model": model, "reward": REWARD, "caution": config.caution}
    episodes, chooser = config.reference_episodes, _most_probable
    learner: BaseAlgorithm
    if kind == "PPO":
        episodes = config.episodes
        workers = SurrogateVecEnv(config.ppo.episodes_per_update, **options)
        learner = build_agent(config.ppo, workers, segments=segments, seed=seed)
    elif kind == "A2C":
        workers = SurrogateVecEnv(256, **options)
        learner = A2C(
            *("MlpPolicy", workers),
            n_steps=segments,
            gamma=1.0,
            ent_coef=config.ppo.entropy,
            policy_kwargs={"net_arch": [config.ppo.hidden] * 2},
            seed=seed,
            device="cpu",
        )
    else:
        workers = SurrogateVecEnv(128, flat=True, **options)
        learner = DoubleDQN(
            *("MlpPolicy", workers),
            learning_rate=5e-4,
            buffer_size=200_000,
            learning_starts=5_000,
            batch_size=256,
            gamma=1.0,
            train_freq=1,
            gradient_steps=2,
            target_update_interval=64_000,
            exploration_fraction=0.5,
            policy_kwargs={"net_arch": [config.ppo.hidden] * 2},
            seed=seed,
            device="cpu",
        )
        actions = np.array(model.menu.actions())

        def chooser(learner: BaseAlgorithm) -> Choose:
            return lambda observations: actions[learner.predict(observations, deterministic=True)[0]]

    curve = Curve(model, max(1, episodes // POINTS), segments, chooser, until_flat=kind == "PPO")
    learner.learn(episodes * segments, callback=curve)
    return learner, chooser, curve.points


def _most_probable(learner: BaseAlgorithm) -> Choose:
    def choose(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        return learner.predict(observations, deterministic=True)[0]

    return choose


def markdown(result: dict[str, Any]) -> str:
    """Return the reference scores as a page."""
    test = result["test"]
    times = [f"{wall / 60:.1f}" for title, (_, wall) in result["seconds"].items() if title.startswith("PPO")]
    lengths = [f"{curve[-1]['episodes']:,}" for title, curve in result["curves"].items() if title.startswith("PPO")]
    return "\n".join(
        [
            f"# Reference scores of the surrogate on its {test['tasks']} test tasks",
            "",
            "Most probable actions; means over tasks. A score is the final accuracy less that of the surrogate's "
            "reference, in units of its scale. Differences are points of accuracy, with 95 % intervals over tasks; the "
            "columns of groups are less the best fixed policy of the group. Best fixed policies are chosen on train "
            f"tasks, the oracle's on other episodes of the same task. Made by `{result['command']}`.",
            "",
            scores_table(test),
            "",
            f"PPO's agents learned for {', '.join(lengths)} episodes, in {', '.join(times)} minutes.",
            "",
        ]
    )


def plot_curves(result: dict[str, Any]) -> Figure:
    """Plot learning curves on validation tasks beside those who do not learn."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panel = figure.subplots()
    colours = {"PPO": "C0", "A2C": "C1", "double DQN": "C2"}
    for title, points in result["curves"].items():
        kind = title.rpartition(" ")[0]
        label = kind if title.endswith(" 0") else None
        x = [point["episodes"] for point in points]
        panel.plot(x, [point["score"] for point in points], color=colours[kind], label=label, linewidth=1.2)
    for (name, score), style in zip(result["validation"].items(), (":", "--", "-.", "-"), strict=True):
        panel.axhline(score, color="grey", linestyle=style, linewidth=1, label=name)
    panel.set(xlabel="episodes in the surrogate", ylabel="score on validation tasks, in units of their scale")
    panel.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
