"""Plot the agent's choices on an easy, a short and a noisy task and on few images, and save each task's schedule.

One training each (results/choices): clean updates where images are many or updates few, CutMix and later LaMix's
average where images are few, R-Mix and LaMix's average in turn where labels are wrong.

    python experiments/studies/task_family/draw_agent.py --out experiments/results/choices
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from rlmix.agent.agent import Agent
from rlmix.agent.decisions import as_provenance
from rlmix.agent.files import SHIPPED
from rlmix.agent.plots import heat_map, png
from rlmix.agent.replay import to_schedule
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs import DIMENSIONS, Task
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import environment

TASKS = {
    "easy": Task(train_size=5000, updates=2000, label_noise=0.0, data_seed=1),
    "short": Task(train_size=2000, updates=200, label_noise=0.0, data_seed=2),
    "few images": Task(train_size=200, updates=2000, label_noise=0.0, data_seed=3),
    "noisy": Task(train_size=1000, updates=2000, label_noise=0.45, data_seed=4),
}


@dataclass(frozen=True)
class DrawConfig:
    """Plot the choices of an agent on some tasks."""

    agent: str = SHIPPED
    """Agent with the family's menu and segments: shipped, or a folder."""
    seed: int = 0
    """RNG seed for the trainings."""
    data_root: str | None = None
    """Folder of the data set; optional, defaults to $RLMIX_DATA, else ~/.cache/rlmix/data, else a download."""
    out: str = "runs/choices"
    """Folder of choices.png, and of a schedule for each task."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/draw_agent", arguments) as call:
        config = call.parse(DrawConfig, __doc__)
        agent = Agent.load(config.agent)
        checksum = agent.checksum
        torch.set_num_threads(1)
        family = environment(precision=resolve_precision("auto", resolve_device("cpu")), data_root=config.data_root)
        if (agent.menu, agent.segments) != (family.menu, family.segments):
            raise RunError(f"--agent: {config.agent} has another menu or other segments than the family's")
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        probabilities = {}
        for name, task in TASKS.items():
            given = []
            env = agent.environment(family.task_trainer, task)
            observation, _ = env.reset(seed=config.seed, options={"task": task})
            terminated, actions = False, []
            while not terminated:
                given.append(agent.probabilities(observation))
                actions.append(agent.choose(observation))
                observation, _, terminated, _, info = env.step(actions[-1])
            if info["diverged"]:
                raise RunError(f"the training of the {name} task diverged; try another --seed")
            segments = to_schedule(actions, agent.menu, agent.segments).segments
            provenance = {
                "chosen_by": config.agent,
                "agent_sha256": checksum,
                "command": call.line,
                "task": task.to_json(),
                "validation_accuracy": info["validation_accuracy"],
                **as_provenance(given),
            }
            PolicySchedule(segments, provenance).save(out / _file(name))
            probabilities[name] = given
            print(f"{name}: {_describe(task)}; validation accuracy {100 * info['validation_accuracy']:.2f} %")
            for until, policy in segments:
                print(f"  until {100 * until:5.1f} %  {policy}")
        write_atomic(out / "choices.png", png(plot_choices(agent, probabilities)))
        print(f"written: {out}/choices.png and {', '.join(map(_file, TASKS))}")


def plot_choices(agent: Agent, probabilities: dict[str, list[dict[str, dict[str, float]]]]) -> Figure:
    """Plot the agent's probability of each choice, a column for each task, a row for each dimension."""
    dimensions = [dimension for dimension, size in zip(DIMENSIONS, agent.menu.sizes, strict=True) if size > 1]
    sizes = [len(agent.menu.names(dimension)) for dimension in dimensions]
    figure = Figure(figsize=(2.0 + 2.3 * len(probabilities), 1.2 + 0.3 * sum(sizes)), layout="constrained")
    panels = figure.subplots(
        len(dimensions),
        len(probabilities),
        squeeze=False,
        sharex=True,
        sharey="row",
        gridspec_kw={"height_ratios": sizes},
    )
    ends = [f"{100 * end:.0f}" for end in agent.segments]
    for column, (name, given) in enumerate(probabilities.items()):
        for row, dimension in enumerate(dimensions):
            panel = panels[row, column]
            names = agent.menu.names(dimension)
            shares = np.array([[segment[dimension][choice] for segment in given] for choice in names])
            image = heat_map(panel, shares, names=names, columns=ends)
            for place in range(len(ends)):
                panel.plot(place, shares[:, place].argmax(), "o", color="#d55e00", markersize=4)
        title = _describe(TASKS[name]).replace(" updates, ", " updates,\n")
        panels[0, column].set_title(f"{name}\n{title}", fontsize=9)
    figure.supxlabel("segment, until this much of the training, %", fontsize=10)
    figure.colorbar(image, ax=panels, label="probability; dots: what was taken", fraction=0.03)
    return figure


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.json"


def _describe(task: Task) -> str:
    noise = f", {100 * task.label_noise:.0f} % wrong labels" if task.label_noise else ""
    return f"{task.train_size:,} images, {task.updates:,} updates{noise}"


if __name__ == "__main__":
    main()
