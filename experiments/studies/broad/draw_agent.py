"""Plot the agent's choices on an easy, a short, a noisy and a colour task and on few images, and save each schedule.

    python experiments/studies/broad/draw_agent.py --data ../shared/data --out experiments/results/choices

Grey tasks are of Fashion-MNIST, the colour one is of CIFAR-10, all with a residual network that people might take. One
training each: the agent looks at it, so that another seed may be treated otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.record import data_places, shared_trainer

OPTIONS: dict[str, Any] = {
    "model": "residual_batch_16",
    "batch_size": 100,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "crop_padding": 1,
}
GREY: dict[str, Any] = {"dataset": "fashion_mnist", "image_size": 16, "flip": True, "options": OPTIONS}
TASKS = {
    "easy": Task(train_size=5000, updates=2000, label_noise=0.0, data_seed=1, **GREY),
    "short": Task(train_size=2000, updates=200, label_noise=0.0, data_seed=2, **GREY),
    "few images": Task(train_size=200, updates=2000, label_noise=0.0, data_seed=3, **GREY),
    "noisy": Task(train_size=1000, updates=2000, label_noise=0.45, data_seed=4, **GREY),
    "colour": Task(train_size=2000, updates=1000, label_noise=0.0, data_seed=5, **GREY | {"dataset": "cifar10"}),
}


@dataclass(frozen=True)
class DrawConfig:
    """Plot the choices of an agent on some tasks."""

    data: str
    """Folder of the data sets: NAME.zip or NAME/, with train/CLASS/* and test/CLASS/* inside."""
    agent: str = SHIPPED
    """Agent with the menu and the segments of the recorded tasks: shipped, or a folder."""
    seed: int = 0
    """RNG seed for the trainings."""
    out: str = "runs/choices"
    """Folder of choices.png, and of a schedule for each task."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/draw_agent", arguments) as call:
        config = call.parse(DrawConfig, __doc__)
        agent = Agent.load(config.agent)
        checksum = agent.checksum
        torch.set_num_threads(1)
        if (agent.menu, agent.segments) != (MENU, SEGMENTS):
            raise RunError(f"--agent: {config.agent} has another menu or other segments than the recorded tasks")
        names = dict.fromkeys(str(task.dataset) for task in TASKS.values())
        places = tuple(data_places(config.data, tuple(names)).items())
        trainer = shared_trainer(places, resolve_precision("auto", resolve_device("cpu")))
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        probabilities = {}
        for name, task in TASKS.items():
            given = []
            env = agent.environment(trainer, task)
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
