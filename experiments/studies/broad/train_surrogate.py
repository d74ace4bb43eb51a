"""Train a surrogate from recorded trainings of tasks from many data sets, for agents that are to hold elsewhere.

    python experiments/studies/broad/train_surrogate.py --out runs/broad_surrogate
    python experiments/studies/surrogate/train_agents.py --model runs/broad_surrogate --out runs/broad_agents
    python experiments/studies/broad/rehearse.py --data ../shared/data --agents shipped ppo=runs/broad_agents/ppo-0

It knows what a task is (network, images, share of wrong labels); an agent sees what any loop shows. A score in it is
the lead over plain training. What is seen on the way comes from the ensemble; what a training ends with is told by few
numbers of how it was mixed and of the task (`envs/surrogate_gains.py`). Tasks are parted by the last digit of their
number, as in the surrogate of the family.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.models import build_model
from rlmix.envs.surrogate_fit import SurrogateConfig, fit_surrogate
from rlmix.envs.surrogate_gains import RecordedGain, fit_gains, methods_of
from rlmix.envs.surrogate_model import FILE, SurrogateModel
from rlmix.envs.surrogate_tasks import BROAD_VIEW, SPLITS, RecordedTask, Recording, split_of
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.search.task_family import MENU, PARTS, PLAIN, SEGMENTS, part_of
from rlmix.experiments.studies.broad.logs import TASKS_OF_A_LOG, RecordedLog, RecordedTraining, read_logs
from rlmix.experiments.studies.surrogate.fidelity import surrogate_accuracies
from rlmix.experiments.studies.surrogate.recordings import provenance_of

LOGS = ("broad/usual.jsonl", "broad/played.jsonl", "family/episodes.jsonl")
UNIT = 0.005  # accuracy that is worth 1 of the score; the same for every task, for points are what counts
# Few trainings of many unlike tasks: networks that may bend more tell trainings of unseen tasks less well.
STIFF = SurrogateConfig(hidden=64, steps=3000, weight_decay=10.0, ridge=3.0)
FAVOUR = 0.005  # accuracy that is expected of mixing every update by a favoured method
MIN_TRAININGS = 3  # of a task, for a rank correlation among them
FAMILY_SIDE, FAMILY_CLASSES = 14, 10


@dataclass(frozen=True)
class ModelConfig:
    """Train a surrogate from recorded trainings of tasks from many data sets."""

    logs: tuple[str, ...] = tuple(f"experiments/results/{name}" for name in LOGS)
    """Logs of studies/broad/record.py and studies/task_family/collect.py."""
    seed: int = 0
    """RNG seed for the ensemble."""
    ensemble: SurrogateConfig = field(default_factory=lambda: STIFF)
    """Hyperparameters of the ensemble."""
    penalty: float = 500.0
    """Ridge penalty of the model of gains, which tells the final accuracy; at 0 the ensemble tells it."""
    family_weight: float = 0.2
    """Weight of a training of the family, all of one data set, in the model of gains; others weigh 1."""
    likeness: float = 10.0
    """Factor of the penalty for differences between methods, which carry over least between data sets; at least 1."""
    favoured: tuple[str, ...] = ("cutmix", "rmix")
    """Methods that are expected to gain half a point on all updates, before any recording."""
    out: str = "runs/broad_surrogate"
    """Folder of surrogate.safetensors and of fidelity.json."""

    def __post_init__(self) -> None:
        require_at_least(self, seed=0, penalty=0)
        if not self.likeness >= 1:
            raise RunError(f"--likeness must be at least 1, got {self.likeness}")
        unknown = sorted(set(self.favoured) - set(methods_of(MENU)))
        if unknown:
            raise RunError(f"--favoured must be among {', '.join(methods_of(MENU))}, got {', '.join(unknown)}")
        if not self.family_weight > 0:
            raise RunError(f"--family-weight must be above 0, got {self.family_weight}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/train_surrogate", arguments) as call:
        config = call.parse(ModelConfig, __doc__)
        torch.set_num_threads(1)
        tasks, recordings, gains = read_recordings(config.logs, config.family_weight)
        if not any(split_of(task.number) == "train" for task in tasks):
            raise RunError("--logs: expected tasks of split train, whose numbers end in 0 to 6, got none")
        provenance = provenance_of(config.logs, tasks, recordings, call.line)
        model = fit_surrogate(
            recordings,
            tasks,
            menu=MENU,
            segments=SEGMENTS,
            config=config.ensemble,
            seed=config.seed,
            provenance=provenance,
            view=BROAD_VIEW,
        )
        learned = [gain for gain in gains if split_of(gain.task) == "train"]
        if config.penalty and learned:
            model.gains = fit_gains(
                learned,
                model.tasks,
                BROAD_VIEW,
                menu=MENU,
                segments=SEGMENTS,
                penalty=config.penalty,
                likeness=config.likeness,
                favoured=dict.fromkeys(config.favoured, FAVOUR),
            )
        result = {"command": call.line, "machine": machine(), **measure(model, recordings)}
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        model.save(out)
        write_atomic(out / "fidelity.json", (json.dumps(result, indent=2) + "\n").encode())
        print(f"{len(recordings):,} trainings of {len(tasks):,} tasks")
        for split, figures in result["splits"].items():
            print(f"  {split}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))
        print(f"written: {out}/{FILE}, fidelity.json")


def read_recordings(
    files: Sequence[str], family_weight: float = 1.0
) -> tuple[list[RecordedTask], list[Recording], list[RecordedGain]]:
    """Return the tasks whose plain training is in the logs, their trainings that did not diverge, and these' gains.

    Args:
        files: the logs.
        family_weight: how much the gain of a training of the family counts.

    Raises:
        RunError: a file is missing or damaged.
    """
    tasks: list[RecordedTask] = []
    recordings: list[Recording] = []
    gains: list[RecordedGain] = []
    for log in read_logs(files):
        whole = [
            one
            for one in log.trainings
            if not one.line["diverged"] and len(one.rows) == len(one.actions) + 1 == len(SEGMENTS) + 1
        ]
        plain: dict[int, list[RecordedTraining]] = {}
        for training in whole:
            if training.line["kind"] == "plain":
                plain.setdefault(training.line["task"], []).append(training)
        for number, trainings in sorted(plain.items()):
            curve = np.mean([training.line["validation"] for training in trainings], axis=0)
            scale = [UNIT] * len(curve)
            described = {**log.drawn[number], "number": number, "part": _part(log, number)}
            context = context_of(log, number, trainings[0])
            tasks.append(RecordedTask(number, context, trainings[0].rows, curve.tolist(), scale, described))
        recordings += [
            Recording(training.line["task"], training.rows, training.actions)
            for training in whole
            if training.line["task"] in plain
        ]
        base = {number: np.mean([one.line["development"] for one in trainings]) for number, trainings in plain.items()}
        weight = family_weight if log.meaning is None else 1.0
        for training in whole:
            number = training.line["task"]
            if number in base and {tuple(action) for action in training.actions} != {PLAIN}:
                gain = float(training.line["development"] - base[number])
                gains.append(RecordedGain(number, training.actions, gain, weight))
    return tasks, recordings, gains


def context_of(log: RecordedLog, number: int, training: RecordedTraining) -> tuple[float, ...]:
    """Return the numbers of the view's context of a task.

    Args:
        log: log of the task.
        number: number of the task.
        training: a plain one of it.
    """
    drawn = log.drawn[number]
    wrong = float(drawn["label_noise"])
    if log.meaning is None:
        part = PARTS[_part(log, number)]
        network = build_model(part.model, num_classes=FAMILY_CLASSES, in_channels=1)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        known = {
            "log_parameters": math.log10(parameters) / 8,
            "image_side": math.log2(FAMILY_SIDE) / 8,
            "normalised": float(any("Norm" in type(module).__name__ for module in network.modules())),
        }
        lr, adamw = part.lr * drawn.get("lr_scale", 1.0), False
    else:
        known = dict(zip(log.meaning["known"], training.line["known"], strict=True))
        options = drawn["options"]
        lr, adamw = options["lr"], options["optimizer"] == "adamw"
    values = {
        **known,
        "label_noise": wrong,
        "pair_noise": float(wrong > 0 and drawn.get("noise", "symmetric") != "symmetric"),
        "adamw": float(adamw),
        "log_lr": math.log10(lr) / 2,
    }
    for of in ("validation", "clean"):
        ways = training.rows[1:, BROAD_VIEW.recorded.index(f"{of}_way")].tolist()
        values |= {f"plain_{of}_way_{segment}": way for segment, way in enumerate(ways, start=1)}
    return tuple(values.get(name, 0.0) for name in BROAD_VIEW.context)


def measure(model: SurrogateModel, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return how well the surrogate tells the accuracy at the end of recorded trainings, split by split.

    Returns:
        `splits`, of each `trainings`, Spearman's rank correlation `over_tasks` and the mean of those `within_tasks`,
        `error` of the differences within a task, in points, and `gains`: Pearson's correlation of the leads over plain
        training of the same task, told and real, and their means in points.
    """
    splits = {}
    for split in SPLITS:
        chosen = [recording for recording in recordings if split_of(recording.task) == split]
        if not chosen:
            continue
        told = surrogate_accuracies(model, chosen)[:, :, -1].mean(axis=1)
        rows = torch.tensor([model.tasks.row(recording.task) for recording in chosen])
        column = BROAD_VIEW.recorded.index(BROAD_VIEW.accuracy)
        chance = BROAD_VIEW.chance(model.tasks.known[rows]).numpy()
        way = np.array([recording.observations[-1, column] for recording in chosen])
        real = chance + (1 - chance) * way
        of_task = np.array([recording.task for recording in chosen])
        plain = np.array([{tuple(action) for action in recording.actions} == {PLAIN} for recording in chosen])
        ranks, off, gains = [], [], []
        for number in np.unique(of_task):
            members = of_task == number
            if (members & plain).any():
                base = [values[members & plain].mean() for values in (told, real)]
                gains.append(np.stack([told - base[0], real - base[1]])[:, members & ~plain])
            if members.sum() >= MIN_TRAININGS:
                off.append(told[members] - told[members].mean() - real[members] + real[members].mean())
                if np.ptp(real[members]) > 0:
                    ranks.append(spearmanr(told[members], real[members]).statistic)
        splits[split] = {
            "trainings": len(chosen),
            "over_tasks": round(float(spearmanr(told, real).statistic), 3),
            "within_tasks": round(float(np.mean(ranks)), 3) if ranks else None,
            "error": round(100 * float(np.sqrt(np.mean(np.concatenate(off) ** 2))), 2) if off else None,
            "gains": _compared(np.concatenate(gains, axis=1)) if gains else None,
        }
    return {"splits": splits}


def _compared(gains: NDArray[np.float64]) -> dict[str, float]:
    """Return how gains that are told, `gains[0]`, agree with those that came, `gains[1]`."""
    told, real = 100 * gains
    spread = np.ptp(told) > 0 and np.ptp(real) > 0
    return {
        "correlation": round(float(np.corrcoef(told, real)[0, 1]), 3) if spread else 0.0,
        "told": round(float(told.mean()), 2),
        "real": round(float(real.mean()), 2),
    }


def _part(log: RecordedLog, number: int) -> str:
    return part_of(number % TASKS_OF_A_LOG) if log.meaning is None else "broad"


if __name__ == "__main__":
    main()
