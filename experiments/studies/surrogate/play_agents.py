"""Play agents on recorded tasks for real, and compare with what the surrogate says of them.

    python experiments/studies/surrogate/play_agents.py --agents experiments/results/surrogate/agents/ppo-0 \\
        experiments/policies/fashion --out runs/played

Each agent trains tasks of the family by its most probable actions (or by draws, with `--draws`), from the seed of
the recorded reference. The log has the lines of task_family/collect.py: train_model.py learns from it too (`--logs`),
so that rounds of play, fit and learning can follow each other, as in Dyna. Finished trainings do not run again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.files import SURROGATE
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import Precision
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.surrogate_model import SHIPPED, SurrogateModel
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.comparison.runner import TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, StudyConfig
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.surrogate.fidelity import surrogate_accuracies
from rlmix.experiments.studies.surrogate.recordings import LOG, group_of, read_log, recordings
from rlmix.experiments.studies.task_family.recording import draw_action, record_training

RESULTS = ("validation", "development", "surrogate")  # differences that are compared


@dataclass(frozen=True)
class PlayConfig:
    """Play agents on recorded tasks for real."""

    agents: tuple[str, ...] = (SURROGATE,)
    """Agents that see what the family shows: surrogate, which comes with the program, or folders."""
    split: Literal["train", "validation", "test"] = "test"
    """Tasks to play, as the surrogate parts them."""
    tasks: int = 12
    """Number of tasks, spread evenly over those of the split."""
    first: int = 0
    """Number of the split's tasks that are left out first, so that rounds play different ones."""
    draws: bool = False
    """Draw actions by the agent's probabilities, for recordings to learn from, instead of taking the most probable."""
    log: str = LOG
    """Log of task_family/collect.py, with the references of the tasks."""
    model: str = SHIPPED
    """Folder of the surrogate."""
    study: Annotated[StudyConfig, UNPREFIXED] = field(default_factory=lambda: StudyConfig(processes=1))
    out: str = "runs/played"
    """Folder of episodes.jsonl, played.json and played.md."""

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2, first=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/surrogate/play_agents", arguments) as call:
        call.resume = call.line
        play_for_real(call.parse(PlayConfig, __doc__), call.line)


def play_for_real(config: PlayConfig, made_by: str) -> None:
    """Play agents on recorded tasks for real, compare, and write the folder of `config.out`.

    Args:
        config: options.
        made_by: the command line, for the files.

    Raises:
        RunError: the options do not fit what they name.
    """
    agents = {folder: Agent.load(folder) for folder in config.agents}
    for folder, agent in agents.items():
        if (agent.menu, agent.segments, agent.features) != (MENU, SEGMENTS, DEFAULT_FEATURES):
            raise RunError(f"--agents: {folder} has another menu, other segments or features than the family")
    model = SurrogateModel.load(config.model)
    numbers = sorted(model.tasks.numbers[model.tasks.rows(config.split)].tolist())[config.first :]
    if config.tasks > len(numbers):
        raise RunError(f"--tasks must be at most {len(numbers)}, those that are left of the split")
    chosen = [numbers[int(place)] for place in np.linspace(0, len(numbers) - 1, config.tasks).round()]
    out = Path(config.out)
    with with_filename(out):
        out.mkdir(parents=True, exist_ok=True)
    log = TrainingLog(
        out / "episodes.jsonl", lambda lines: {(line["agent"], line["task"], line["draw"]): line for line in lines}
    )
    precision = resolve_precision("auto", resolve_device("cpu"))
    draw = int(config.draws)  # number 0 is what is most probable
    jobs = {
        (agent.checksum, number, draw): functools.partial(
            train, agent.to_files(), agent.checksum, number, draw, precision, config.study.data_root
        )
        for number in chosen
        for agent in agents.values()
    }
    log.run(jobs, processes=config.study.processes, describe=lambda line: f"task {line['task']:<8} {line['agent'][:8]}")
    played = {
        folder: [log.finished[agent.checksum, number, draw] for number in chosen] for folder, agent in agents.items()
    }
    result = {
        "command": made_by,
        "machine": machine(),
        "tasks": chosen,
        "agents": compare(model, played, read_log(config.log)),
    }
    write_atomic(out / "played.json", (json.dumps(result, indent=2) + "\n").encode())
    write_atomic(out / "played.md", markdown(result).encode())
    print(f"{markdown(result)}\nwritten: {out}/played.json, played.md, episodes.jsonl")


def train(
    files: Mapping[str, bytes], checksum: str, number: int, draw: int, precision: Precision, data_root: str | None
) -> dict[str, Any]:
    """Train a task as an agent chooses; give the line of the log, as `task_family/collect.py` has it.

    Args:
        files: contents of the agent's files.
        checksum: that of the agent.
        number: number of the task.
        draw: 0 for the most probable actions, else the number of the draw.
        precision: number format of the network.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.
    """
    agent, random = Agent.from_files(files), np.random.default_rng([number, 3, draw])

    def choose(_segment: int, observation: NDArray[np.float32]) -> tuple[int, ...]:
        return draw_action(agent, observation, random) if draw else agent.choose(observation)

    identity = {"task": number, "training": 0, "kind": "played", "agent": checksum, "draw": draw}
    return {**identity, **record_training(number, 0, choose, precision, data_root)}


def compare(
    model: SurrogateModel, played: Mapping[str, Sequence[Mapping[str, Any]]], recorded: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return how far each agent is ahead of recorded trainings of the same tasks and seed, really and by the surrogate.

    Args:
        model: the surrogate.
        played: each agent's trainings, of the same tasks.
        recorded: trainings of the family's log.
    """
    tasks = {line["task"] for lines in played.values() for line in lines}
    known: dict[str, dict[int, Mapping[str, Any]]] = {"reference": {}, "plain": {}}
    for line in recorded:
        if line["kind"] in known and line["training"] == 0 and line["task"] in tasks:
            known[line["kind"]].setdefault(line["task"], line)
    found = {}
    for folder, lines in played.items():
        whole = [line for line in lines if not line["diverged"]]
        told = surrogate_accuracies(model, recordings(whole))[:, :, -1].mean(axis=1)
        entry: dict[str, Any] = {"diverged": len(lines) - len(whole)}
        for name, base in known.items():
            theirs = [base[line["task"]] for line in whole]
            by_surrogate = surrogate_accuracies(model, recordings(theirs))[:, :, -1].mean(axis=1)
            real = [ours["validation"][-1] - other["validation"][-1] for ours, other in zip(whole, theirs, strict=True)]
            fresh = [ours["development"] - other["development"] for ours, other in zip(whole, theirs, strict=True)]
            entry[name] = {
                "validation": mean_interval(real),
                "development": mean_interval(fresh),
                "surrogate": mean_interval((told - by_surrogate).tolist()),
                "by_task": {
                    str(line["task"]): [
                        group_of({"number": line["task"], **line["task_drawn"]}),
                        round(gain, 5),
                        round(float(said), 5),
                    ]
                    for line, gain, said in zip(whole, real, told - by_surrogate, strict=True)
                },
            }
        found[folder] = entry
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Return the comparison as a page."""
    rows = []
    for folder, entry in result["agents"].items():
        for name, words in (("reference", "CutMix on half"), ("plain", "plain training")):
            parts = [format_interval(*(100 * x for x in entry[name][key]), signed=True) for key in RESULTS]
            rows.append([folder, words, *parts])
    return "\n".join(
        [
            f"# Agents on {len(result['tasks'])} recorded tasks, really and in the surrogate",
            "",
            "Points of accuracy by which an agent is ahead, same task and seed; 95 % intervals over tasks. The "
            f"surrogate is told the actions that were really taken. Made by `{result['command']}`.",
            "",
            tabulate(
                rows,
                ["agent", "less", "really, validation", "really, development", "in the surrogate"],
                tablefmt="pipe",
                disable_numparse=True,
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
