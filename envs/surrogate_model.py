"""SurrogateModel: an ensemble of small networks in a classifier training's place, learned from recorded trainings."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.files import DamagedFileError, load_state, save_state
from rlmix.envs.effects import action_effects
from rlmix.envs.menu import Menu
from rlmix.envs.observation import FEATURES
from rlmix.envs.segments import segment_ends
from rlmix.envs.surrogate_gains import Gains, gain_context, mixed_in_phases, mixing_shares, phase_shares
from rlmix.envs.surrogate_tasks import FIRST_VIEW, VIEWS, TaskTable, View

FILE = "surrogate.safetensors"
SHIPPED = "shipped"  # name of the model that comes with the program
SHIPPED_FOLDER = Path(__file__).parents[1] / "experiments" / "policies" / "surrogate"
FORMAT = "rl-mix surrogate 1"
LAYERS = ("weight0", "bias0", "weight1", "bias1", "weight2", "bias2")  # of the ensemble's networks, in half precision
MIN_LOG_STD, MAX_LOG_STD = math.log(0.1), math.log(10.0)  # over the usual deviation of a segment


def measured_features(menu: Menu, view: View) -> Tensor:
    """Return which predicted features of a view a segment under each action measures, `[A, P]`, bool."""
    rows = []
    for action in menu.combinations():
        methods = set(menu.policy(action).shares)
        there = {"clean": "clean" in methods, "mixed": bool(methods - {"clean"}), "all": True}
        rows.append([there[kind] for kind in view.predicted.values()])
    return torch.tensor(rows)


@dataclass(frozen=True)
class Ensemble:
    """Members that predict what a segment of a training changes.

    A member is a linear map for each of the S segments, and a network of two hidden layers for all of them, which
    corrects it and says how far off the outcome may be.

    Attributes:
        linear: `[M, S, I + 1, P]`, from standardised inputs and 1 to the changes of features.
        weight0, bias0, weight1, bias1, weight2, bias2: layers of the networks, `[M, in, out]` and `[M, 1, out]`.
        input_mean, input_spread: by which the I inputs are standardised, `[I]`.
        spread: unit of what the networks tell, for each segment and feature, `[S, P]`.
        correlate: makes independent normal numbers correlated like the features' deviations, `[P, P]`.
    """

    linear: Tensor
    weight0: Tensor
    bias0: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    input_mean: Tensor
    input_spread: Tensor
    spread: Tensor
    correlate: Tensor

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, inputs: int, features: int, segments: int) -> Ensemble:
        """Build the ensemble from the tensors that `state` returned.

        Args:
            state: tensors by name; the networks' layers in half precision.
            inputs: number of inputs.
            features: number of features that it predicts.
            segments: number of segments.

        Raises:
            ValueError: a tensor is missing, does not fit the others or is not finite.
        """
        found = cls(**{field.name: state[field.name].float() for field in fields(cls)})
        members, hidden = found.weight0.shape[0], found.weight0.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            "linear": (members, segments, inputs + 1, features),
            "weight0": (members, inputs, hidden),
            "bias0": (members, 1, hidden),
            "weight1": (members, hidden, hidden),
            "bias1": (members, 1, hidden),
            "weight2": (members, hidden, 2 * features),
            "bias2": (members, 1, 2 * features),
            "input_mean": (inputs,),
            "input_spread": (inputs,),
            "spread": (segments, features),
            "correlate": (features, features),
        }
        for name, shape in shapes.items():
            tensor = getattr(found, name)
            if tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name}: expected finite numbers of shape {shape}, got {tuple(tensor.shape)}")
        if not bool((found.input_spread > 0).all() and (found.spread > 0).all()):
            raise ValueError("spreads must be above 0")
        return found

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors by name, the networks' layers in half precision."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.half() if name in LAYERS else value for name, value in named.items()}

    def __len__(self) -> int:
        return int(self.weight0.shape[0])

    def predict(self, inputs: Tensor, *, member: int, segment: int) -> tuple[Tensor, Tensor]:
        """Return one member's mean change of each feature and its standard deviation, `[N, P]` each.

        Args:
            inputs: `[N, I]`, as `SurrogateModel.inputs` gives them.
            member: number of the member.
            segment: number of the segment, of all N.
        """
        seen = (inputs - self.input_mean) / self.input_spread
        linear, unit = self.linear[member, segment], self.spread[segment]
        hidden = torch.addmm(self.bias0[member], seen, self.weight0[member]).relu_()
        hidden = torch.addmm(self.bias1[member], hidden, self.weight1[member]).relu_()
        told, log_std = torch.addmm(self.bias2[member], hidden, self.weight2[member]).chunk(2, dim=1)
        mean = torch.addmm(linear[-1], seen, linear[:-1])
        return mean + told * unit, log_std.clamp(MIN_LOG_STD, MAX_LOG_STD).exp() * unit


@dataclass
class Trainings:
    """N surrogate trainings, each before one of its segments.

    Attributes:
        task: row of each one's task, `[N]`.
        segment: number of the segment, from 0, `[N]`.
        values: predicted features as last measured, `[N, P]`.
        previous: effect of the action before, `[N, E]`; 0 at the start.
        so_far: effects of all actions so far, weighted by the segments' lengths, `[N, E]`; 0 at the start.
        taken: number of each segment's action among the menu's `combinations()`, `[N, S]`; 0 for those to come.
    """

    task: Tensor
    segment: Tensor
    values: Tensor
    previous: Tensor
    so_far: Tensor
    taken: Tensor


class SurrogateModel:
    """Model of recorded trainings: how a segment under an action changes what is observed of a training.

    Each member of the ensemble predicts the change of every feature of its view and its standard deviation from the
    features, the task, how the training was mixed so far, and what the action does. Progress, learning rate and sizes
    are known; a feature that a segment does not measure stays as it was.

    Args:
        menu: menu of the recordings.
        segments: progress at which each of their segments ends.
        tasks: recorded tasks.
        described: description of each task; any JSON object.
        ensemble: the networks.
        provenance: how they were learned; any JSON object.
        view: features of the recordings, one of `VIEWS`.
        gains: tells the accuracy at the end of a training, if given; optional, by default the ensemble does.

    Raises:
        ValueError: tasks, segments and descriptions do not fit each other.
    """

    def __init__(
        self,
        menu: Menu,
        segments: Sequence[float],
        tasks: TaskTable,
        described: Sequence[Mapping[str, Any]],
        ensemble: Ensemble,
        provenance: Mapping[str, Any],
        view: View = FIRST_VIEW,
        gains: Gains | None = None,
    ) -> None:
        self.menu, self.segments, self.tasks, self.view = menu, tuple(segments), tasks, view
        self.described, self.ensemble, self.provenance = list(described), ensemble, dict(provenance)
        if tasks.progress.shape[1] != len(self.segments) + 1 or len(self.described) != len(tasks):
            raise ValueError(
                f"expected descriptions and {len(self.segments)} segments of {len(tasks)} tasks, got "
                f"{len(self.described)} descriptions and {tasks.progress.shape[1] - 1} segments"
            )
        self.effects, self.measured = action_effects(menu), measured_features(menu, view)
        self.low = torch.tensor([FEATURES[name].low for name in view.predicted])
        self.high = torch.tensor([FEATURES[name].high for name in view.predicted])
        self._chance = view.chance(tasks.known)
        self.gains = gains
        self._shares, self._phases = mixing_shares(menu), phase_shares(self.segments)
        self._interacting = [(*view.known, *view.context).index(name) for name in view.interacting]

    def save(self, folder: Path) -> None:
        """Write the model into a folder, as one safetensors file that holds a checksum."""
        state = {
            "format": FORMAT,
            "view": next(name for name, view in VIEWS.items() if view == self.view),
            "menu": self.menu.to_json(),
            "segments": list(self.segments),
            "described": self.described,
            "provenance": self.provenance,
            "tasks": self.tasks.state,
            "ensemble": self.ensemble.state,
            **({} if self.gains is None else {"gains": self.gains.state}),
        }
        save_state(folder / FILE, state)

    @classmethod
    def load(cls, folder: Path | str = SHIPPED) -> SurrogateModel:
        """Read a model that `save` wrote; no code is run.

        Args:
            folder: folder of the model, or `"shipped"` for the one that comes with the program.

        Raises:
            DamagedFileError: the file is missing, damaged, or of another format.
        """
        file = (SHIPPED_FOLDER if folder == SHIPPED else Path(folder)) / FILE
        state = load_state(file)
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"expected the format {FORMAT!r}, got {state['format']!r:.80}")
            menu, view = Menu.from_json(state["menu"]), VIEWS[state.get("view", "first")]
            return cls(
                menu,
                segment_ends(state["segments"]),
                TaskTable.from_state(state["tasks"], view),
                state["described"],
                Ensemble.from_state(
                    state["ensemble"],
                    inputs=count_inputs(view, action_effects(menu).shape[1]),
                    features=len(view.predicted),
                    segments=len(state["segments"]),
                ),
                state["provenance"],
                view,
                Gains.from_state(state["gains"], menu) if "gains" in state else None,
            )
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise DamagedFileError(
                f"{file}: not a surrogate model as this program writes it ({error!s:.200})"
            ) from None

    def start(self, task: Tensor) -> Trainings:
        """Return new trainings of tasks.

        Args:
            task: row of each one's task, `[N]`.
        """
        nothing = torch.zeros(len(task), self.effects.shape[1])
        segment = torch.zeros(len(task), dtype=torch.int64)
        taken = torch.zeros(len(task), len(self.segments), dtype=torch.int64)
        return Trainings(task, segment, self.tasks.start[task], nothing, nothing.clone(), taken)

    def accuracy(self, task: Tensor, values: Tensor) -> Tensor:
        """Return the validation accuracy that predicted features tell, `[N]`.

        Args:
            task: row of each one's task, `[N]`.
            values: predicted features, `[N, P]`.
        """
        chance = self._chance[task]
        return chance + (1 - chance) * values[:, self.view.accuracy_column]

    def inputs(self, trainings: Trainings, action: Tensor) -> Tensor:
        """Return what the networks see of trainings, and of the actions that they take now, `[N, I]`.

        Args:
            trainings: N trainings, none at its end.
            action: row of `effects` for each, `[N]`.
        """
        tasks, row, segment = self.tasks, trainings.task, trainings.segment
        begin, end = tasks.progress[row, segment], tasks.progress[row, segment + 1]
        rates = tasks.relative_lr[row, segment], tasks.relative_lr[row, segment + 1]
        effects, told = self.effects[action], torch.cat((tasks.known[row], tasks.context[row]), dim=1)
        products = [effects * told[:, [column]] for column in self._interacting]
        return torch.cat(
            (
                trainings.values,
                told,
                torch.stack((begin, end - begin, *rates), dim=1),
                effects,
                trainings.previous,
                trainings.so_far,
                *products,
            ),
            dim=1,
        )

    def advance(self, trainings: Trainings, action: Tensor, values: Tensor) -> None:
        """Move trainings one segment on, in place.

        Args:
            trainings: N trainings, none at its end.
            action: row of `effects` for each, `[N]`.
            values: predicted features after the segment, `[N, P]`; what was not measured is left as it was.
        """
        progress, row = self.tasks.progress, trainings.task
        trainings.taken = trainings.taken.scatter(1, trainings.segment[:, None], action[:, None])
        length = progress[row, trainings.segment + 1] - progress[row, trainings.segment]
        trainings.values = torch.where(self.measured[action], values, trainings.values)
        trainings.previous = self.effects[action]
        trainings.so_far = trainings.so_far + length[:, None] * trainings.previous
        trainings.segment = trainings.segment + 1

    def sample(self, trainings: Trainings, action: Tensor, member: Tensor, noise: Tensor) -> Tensor:
        """Return predicted features after a segment, drawn from the ensemble, `[N, P]`.

        Args:
            trainings: N trainings, none at its end.
            action: row of `effects` for each, `[N]`.
            member: member of the ensemble that each one follows, `[N]`.
            noise: independent standard normal numbers, `[N, P]`.
        """
        inputs, change = self.inputs(trainings, action), torch.empty_like(trainings.values)
        noise = noise @ self.ensemble.correlate.T
        count = len(self.segments)
        kind = member * count + trainings.segment
        for number in kind.unique().tolist():
            rows = (kind == number).nonzero()[:, 0]
            mean, std = self.ensemble.predict(inputs[rows], member=number // count, segment=number % count)
            change[rows] = mean + std * noise[rows]
        return (trainings.values + change).clamp(self.low, self.high)

    @functools.cached_property
    def _gain_contexts(self) -> Tensor:
        return gain_context(self.tasks, self.view)

    def conclude(self, trainings: Trainings) -> None:
        """Give trainings at their end the accuracy that `gains` tells, in place; others stay as they are."""
        over = (trainings.segment == len(self.segments)).nonzero()[:, 0]
        if self.gains is None or not len(over):
            return
        task = trainings.task[over]
        mixed = mixed_in_phases(trainings.taken[over], self._shares, self._phases)
        gain = self.gains.tell(mixed, self._gain_contexts[task])
        chance = self._chance[task]
        way = ((self.tasks.reference[task, -1] + gain).clamp(0.0, 1.0) - chance) / (1 - chance)
        trainings.values[over, self.view.accuracy_column] = way

    def disagreement(self, trainings: Trainings, action: Tensor) -> Tensor:
        """Return the standard deviation among the members' mean changes of the validation accuracy, `[N]`.

        The arguments are those of `sample`.
        """
        inputs = self.inputs(trainings, action)
        means = torch.empty(len(self.ensemble), *trainings.values.shape)
        for segment in trainings.segment.unique().tolist():
            rows = (trainings.segment == segment).nonzero()[:, 0]
            for member in range(len(self.ensemble)):
                means[member, rows] = self.ensemble.predict(inputs[rows], member=member, segment=segment)[0]
        spread = means.std(dim=0, correction=0)[:, self.view.accuracy_column]
        return spread * (1 - self._chance[trainings.task])


def count_inputs(view: View, effects: int) -> int:
    """Return the number of the networks' inputs, for actions whose effect is so many numbers."""
    return len(view.predicted) + len(view.known) + len(view.context) + 4 + (3 + len(view.interacting)) * effects
