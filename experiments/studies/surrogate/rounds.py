"""Learn in the surrogate, play for real, fit the surrogate to that too, and go round again, as in Dyna.

    python experiments/studies/surrogate/rounds.py --rounds 3 --out runs/rounds

Round 0 are the agents of `--agents`, learned in the surrogate that comes with the program. Each round's agents train
the validation tasks for real by their most probable actions, which tells whether what they learned holds outside. Then
they draw actions on train tasks; the next round's surrogate learns from these trainings too, and the next agents in it.
Whatever is finished is not done again: the same command resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.envs.surrogate_model import FILE, SHIPPED, SurrogateModel
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import StudyConfig
from rlmix.experiments.studies.surrogate import train_agents, train_model
from rlmix.experiments.studies.surrogate.play_agents import PlayConfig, play_for_real
from rlmix.experiments.studies.surrogate.recordings import LOG
from rlmix.experiments.studies.surrogate.train_agents import AgentsConfig
from rlmix.experiments.studies.surrogate.train_model import ModelConfig

FIRST_AGENTS = tuple(f"experiments/results/surrogate/agents/ppo-{seed}" for seed in range(5))


@dataclass(frozen=True)
class RoundsConfig:
    """Learn in the surrogate, play for real, and go round again."""

    agents: tuple[str, ...] = FIRST_AGENTS
    """Folders of the agents of round 0, which have learned in the surrogate that comes with the program."""
    rounds: int = 3
    """Rounds after the first agents; each round has as many agents as the first."""
    tasks: int = 31
    """Validation tasks that each agent plays."""
    recorded: int = 31
    """Train tasks that each agent draws actions for; other ones in each round."""
    caution: float = 0.0
    """Standard deviations among the ensemble's accuracies that are taken off each reward, from round 1 on."""
    episodes: int = 200_000
    """Most episodes of each agent in the surrogate."""
    log: str = LOG
    """Log of task_family/collect.py, with the references of the tasks."""
    processes: int = 2
    """Number of parallel trainings, one thread each."""
    out: str = "runs/rounds"
    """Folder of rounds.json, rounds.md and a folder for each round."""

    def __post_init__(self) -> None:
        require_at_least(self, rounds=0, tasks=2, recorded=2, episodes=1, processes=1)
        if not self.agents:
            raise RunError("--agents: expected at least one folder of an agent, got none")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/surrogate/rounds", arguments) as call:
        call.resume = call.line
        config = call.parse(RoundsConfig, __doc__)
        model, agents, logs = SHIPPED, config.agents, [config.log]
        rows = []
        for number in range(config.rounds + 1):
            folder = Path(config.out) / str(number)
            if number:
                model, agents = learn(folder, logs, len(agents), config, call.line)
            study = StudyConfig(processes=config.processes)
            common = PlayConfig(agents, log=config.log, model=model, study=study)
            validation = replace(common, split="validation", tasks=config.tasks, out=f"{folder}/played")
            play_for_real(validation, call.line)
            rows.append(row_of(folder, model, agents))
            if number < config.rounds:
                recorded = folder / "recorded"
                others = replace(
                    common, split="train", first=number, draws=True, tasks=config.recorded, out=str(recorded)
                )
                play_for_real(others, call.line)
                logs.append(f"{recorded}/episodes.jsonl")
        result = {"command": call.line, "machine": machine(), "tasks": config.tasks, "rounds": rows}
        out = Path(config.out)
        with with_filename(out):
            write_atomic(out / "rounds.json", (json.dumps(result, indent=2) + "\n").encode())
            write_atomic(out / "rounds.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/rounds.json, rounds.md")


def learn(
    folder: Path, logs: Sequence[str], count: int, config: RoundsConfig, made_by: str
) -> tuple[str, tuple[str, ...]]:
    """Fit a surrogate to the logs and let agents learn in it; return its folder and theirs.

    Args:
        folder: folder of the round.
        logs: trainings recorded so far.
        count: number of agents.
        config: options.
        made_by: the command line, for the files.
    """
    model, agents = str(folder / "model"), folder / "agents"
    if not (folder / "model" / FILE).is_file():
        train_model.train(ModelConfig(tuple(logs), model=model, out=model), made_by)
    learners = AgentsConfig(
        model, count, reference_seeds=0, episodes=config.episodes, caution=config.caution, out=str(agents)
    )
    train_agents.train(learners, made_by)
    return model, tuple(str(agents / f"ppo-{seed}") for seed in range(count))


def row_of(folder: Path, model: str, agents: Sequence[str]) -> dict[str, Any]:
    """Return what a round's agents are worth, in points: really, and by the surrogate that they learned in.

    Args:
        folder: folder of the round.
        model: folder of that surrogate.
        agents: folders of the agents.
    """
    played = json.loads((folder / "played/played.json").read_text())
    row: dict[str, Any] = {"agents": len(agents)}
    for name in ("reference", "plain"):
        entries = [played["agents"][agent][name]["by_task"] for agent in agents]
        for place, column in ((1, "really"), (2, "told")):  # mean over agents first: tasks are the units
            means = [sum(entry[task][place] for entry in entries) / len(entries) for task in entries[0]]
            row[f"{column}_less_{name}"] = mean_interval([100 * mean for mean in means])
        row[f"by_agent_less_{name}"] = [100 * played["agents"][agent][name]["validation"][0] for agent in agents]
    row["trainings"] = SurrogateModel.load(model).provenance["trainings"]
    if (report := Path(model) / "results.json").is_file():  # not beside the one that comes with the program
        test = json.loads(report.read_text())["splits"]["test"]
        row["within_task"], row["over_tasks"] = test["within_task"], test["over_tasks"]
    return row


def markdown(result: Mapping[str, Any]) -> str:
    """Return the rounds as a page."""
    rows = []
    for number, row in enumerate(result["rounds"]):
        cells = [
            format_interval(*row[f"{column}_less_{name}"], signed=True)
            for name in ("reference", "plain")
            for column in ("really", "told")
        ]
        one = row["by_agent_less_reference"]
        rows.append([number, f"{row['trainings']:,}", *cells, f"{min(one):+.2f} to {max(one):+.2f}"])
    return "\n".join(
        [
            "# Agents that learn in the surrogate, played for real, round by round",
            "",
            f"Points of validation accuracy on {result['tasks']} validation tasks, means over the agents of a round, "
            "95 % intervals over tasks. The surrogate is the one that the agents learned in, told the actions that "
            f"were taken. Trainings: those that it has learned from. Made by `{result['command']}`.",
            "",
            tabulate(
                rows,
                [
                    "round",
                    "trainings",
                    "less CutMix on half, really",
                    "in the surrogate",
                    "less plain, really",
                    "in the surrogate",
                    "agents, less CutMix on half",
                ],
                tablefmt="pipe",
                disable_numparse=True,
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
