"""Rule: a small decision tree that a person can read, which looks at a training once and chooses how to go on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.agent import playing_environment
from rlmix.agent.files import RULE_FILE, place_of
from rlmix.classifier.errors import near_matches
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing.policy import MixPolicy, PolicyError, require_fields
from rlmix.envs.menu import Menu
from rlmix.envs.observation import FEATURES, KNOWN_FEATURES, observe, reads_training, reads_validation
from rlmix.envs.segments import segment_ends

if TYPE_CHECKING:
    from rlmix.envs import MixPolicyEnv, Task, TaskTrainer
    from rlmix.envs.training_state import TrainingState

FORMAT, VERSION = "rl-mix rule", 1
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
Action = tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """Actions of the segments after the look."""

    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Split:
    """Question about one feature: the branch `below` is for values below the threshold, `above` for all others."""

    feature: str
    threshold: float
    below: Node
    above: Node


Node = Split | Leaf


@dataclass(frozen=True)
class Rule:
    """Actions of the first segments, then a tree of questions at the next look, whose leaves have those of the others.

    Attributes:
        menu: menu of the actions.
        segments: progress at which each segment ends.
        first: actions before the look; fewer than there are segments.
        tree: questions and leaves.
        provenance: how it was found; any JSON object.

    Raises:
        ValueError: a leaf has not one action for each segment after the look.
    """

    menu: Menu
    segments: tuple[float, ...]
    first: tuple[Action, ...]
    tree: Node
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        rest = len(self.segments) - len(self.first)
        for leaf in (node for node in _nodes(self.tree) if isinstance(node, Leaf)):
            if rest < 1 or len(leaf.actions) != rest:
                raise ValueError(
                    f"a training has {len(self.segments)} segments: expected fewer policies before the look, and at "
                    f"the end of every branch one for each segment after it, got {len(self.first)} and "
                    f"{len(leaf.actions)}"
                )

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it asks for, each once."""
        return tuple(dict.fromkeys(node.feature for node in _nodes(self.tree) if isinstance(node, Split)))

    @property
    def actions(self) -> tuple[Action, ...]:
        """Actions that it may choose, each once."""
        leaves = (node.actions for node in _nodes(self.tree) if isinstance(node, Leaf))
        return tuple(dict.fromkeys((*self.first, *(action for leaf in leaves for action in leaf))))

    @property
    def look(self) -> int:
        """Number of segments before the look."""
        return len(self.first)

    def segment(self, done: int, updates: int) -> int:
        """Return the number of the segment that begins, from 0, where `done` updates of `updates` are done."""
        ends = (max(round(end * updates), 1) for end in self.segments[:-1])  # as `PolicyScheduler` has them
        return sum(end <= done for end in ends)

    def seen(self, state: TrainingState, updates: int) -> TrainingState | None:
        """Return the state that the look of a training sees: the first one from the look on.

        What a question is about is waited for: then it is the first one that has been validated, and before which
        losses of training were noted.

        Args:
            state: state from the look on.
            updates: length of the training, of which the state's progress is a share.

        Returns:
            The state, or None where it is still waited for.
        """
        found = None
        at: TrainingState | None = state
        while at is not None and self.segment(round(at.progress * updates), updates) >= self.look:
            if not self.lacks(at):
                found = at
            at = at.before
        return found

    def lacks(self, state: TrainingState) -> str | None:
        """Return what a question is about and a state does not have, `validation` or `training loss`, or None.

        Args:
            state: state of a training.
        """
        if self.look == 0:  # nothing could have been measured
            return None
        if reads_validation(self.features) and state.evaluation is None:
            return "validation"
        noted = state.segment is not None and (state.segment.clean or state.segment.mixed) is not None
        return "training loss" if reads_training(self.features) and not noted else None

    def choose(self, observation: NDArray[np.float32]) -> tuple[Action, ...]:
        """Return the actions of the segments after the look.

        Args:
            observation: values of `features` at the look, in their order; more may follow.
        """
        return self._walk(observation)[0].actions

    def explain(self, observation: NDArray[np.float32]) -> str:
        """Return the questions that were asked at the look, with what was seen; arguments as those of `choose`."""
        return ", ".join(_answered(asked, value) for asked, value in self._walk(observation)[1])

    def _walk(self, observation: NDArray[np.float32]) -> tuple[Leaf, list[tuple[Split, float]]]:
        """Return the leaf that is reached, and the questions on the way with their values."""
        seen = dict(zip(self.features, observation.tolist(), strict=False))
        node, asked = self.tree, []
        while isinstance(node, Split):
            asked.append((node, seen[node.feature]))
            node = node.below if seen[node.feature] < node.threshold else node.above
        return node, asked

    def within_reach(self, state: TrainingState) -> Rule:
        """Return the rule without the branches that a training cannot reach, by what is known before it starts."""

        def of(node: Node) -> Node:
            if isinstance(node, Leaf):
                return node
            if node.feature in KNOWN_FEATURES:
                (value, *_) = observe(state, self.menu, (node.feature,)).tolist()
                return of(node.below if value < node.threshold else node.above)
            return Split(node.feature, node.threshold, of(node.below), of(node.above))

        return replace(self, tree=of(self.tree))

    def environment(self, trainer: TaskTrainer, task: Task) -> MixPolicyEnv:
        """Return the environment in which the rule can play `task`; the reward is that of the end, `final`."""
        return playing_environment(trainer, task, self.menu, self.segments, self.features)

    def play(self, env: MixPolicyEnv, task: Task, seed: int) -> list[Action]:
        """Train a task as the rule says; the environment's trainer is then at its end.

        Args:
            env: environment with the rule's menu, segments and features.
            task: task to train.
            seed: RNG seed for the training.

        Returns:
            The actions; fewer than there are segments where the training diverged.
        """
        observation, _ = env.reset(seed=seed, options={"task": task})
        planned = list(self.first)
        played: list[Action] = []
        over = False
        while not over:
            if len(played) == len(self.first):
                planned += self.choose(observation)
            played.append(planned[len(played)])
            observation, _, over, _, _ = env.step(played[-1])
        return played

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        def said(actions: Sequence[Action], start: int) -> str:
            held: list[tuple[str, float]] = []
            for place, action in enumerate(actions, start):
                name = str(self.menu.policy(action))
                if held and held[-1][0] == name:
                    held.pop()
                held.append((name, self.segments[place]))
            return "; ".join(f"{name} until {end:.0%}" for name, end in held)

        def of(node: Node, indent: str) -> Iterator[str]:
            if isinstance(node, Leaf):
                yield indent + said(node.actions, len(self.first))
                return
            yield f"{indent}if {node.feature} < {node.threshold:g}:"
            yield from of(node.below, indent + "  ")
            yield f"{indent}else:"
            yield from of(node.above, indent + "  ")

        if self.first:
            yield said(self.first, 0) + "; then"
        yield from of(self.tree, "")

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` reads back."""

        def policies(actions: Sequence[Action]) -> list[dict[str, Any]]:
            return [self.menu.policy(action).to_json() for action in actions]

        def of(node: Node) -> Any:
            if isinstance(node, Leaf):
                return policies(node.actions)
            return {
                "feature": node.feature,
                "threshold": node.threshold,
                "below": of(node.below),
                "above": of(node.above),
            }

        return {
            "format": FORMAT,
            "version": VERSION,
            "menu": self.menu.to_json(),
            "segments": list(self.segments),
            "first": policies(self.first),
            "tree": of(self.tree),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Any) -> Rule:
        """Return the rule that `to_json` wrote.

        Raises:
            PolicyError: a field is missing, unknown or out of range; the message names it.
        """
        if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (FORMAT, VERSION):
            raise PolicyError(
                f"format must be {FORMAT!r} of version {VERSION}, got {value!r:.80}: this is not a rule; an agent is "
                "given by its folder, a schedule as a policy"
            )
        require_fields("rule", value, ["format", "version", "menu", "segments", "first", "tree", "provenance"])
        try:
            menu = Menu.from_json(value["menu"])

            def actions(policies: Any, place: str) -> tuple[Action, ...]:
                if not isinstance(policies, list):
                    raise ValueError(f"{place} must be a list of policies, got {policies!r:.80}")
                found = []
                for number, policy in enumerate(policies):
                    try:
                        found.append(menu.find(MixPolicy.from_json(policy)))
                    except ValueError as error:
                        raise ValueError(f"{place}[{number}]: {error}") from None
                return tuple(found)

            def node(tree: Any, place: str, depth: int) -> Node:
                if isinstance(tree, list):
                    return Leaf(actions(tree, place))
                if depth == MAX_DEPTH:
                    raise ValueError(f"a rule asks at most {MAX_DEPTH} questions")
                if isinstance(tree, dict) and "shares" in tree:
                    raise ValueError(f"{place} must be a question or a list of policies, got one policy: put it in [ ]")
                require_fields(place, tree, ["feature", "threshold", "below", "above"])
                feature = _feature(tree["feature"], place)
                threshold = _threshold(tree["threshold"], feature, place)
                below, above = (node(tree[way], f"{place}.{way}", depth + 1) for way in ("below", "above"))
                return Split(feature, threshold, below, above)

            if not isinstance(value["provenance"], dict):
                raise ValueError(f"provenance must be an object, got {value['provenance']!r:.80}")
            segments = segment_ends(value["segments"])
            first, tree = actions(value["first"], "first"), node(value["tree"], "tree", 0)
            return cls(menu, segments, first, tree, value["provenance"])
        except (ValueError, TypeError, OverflowError) as error:  # OverflowError: a whole number beyond all floats
            raise PolicyError(str(error)) from None

    @property
    def checksum(self) -> str:
        """SHA-256 of what the rule says, by which logs and protocols name it."""
        said = {name: part for name, part in self.to_json().items() if name != "provenance"}
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `rule.json` into `folder`, atomically."""
        write_atomic(folder / RULE_FILE, (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Rule:
        """Read a rule; runs no code from the file.

        Args:
            path: the JSON file, or the folder of a `rule.json`, or `"rule"` for the one that comes with the program.

        Raises:
            PolicyError: the file is missing, not JSON, or not a rule; the message names file and field.
        """
        place = place_of(path)
        try:
            with open(place / RULE_FILE if place.is_dir() else place, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
            if len(raw) > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES:,} bytes, which no rule is")
            return cls.from_json(json.loads(raw))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise PolicyError(f"{path!s:.300}: cannot be used as a rule ({reason!s:.300})") from None


def _feature(name: Any, place: str) -> str:
    if not isinstance(name, str) or name not in FEATURES:
        raise ValueError(f"{place}: there is no feature {name!r:.80}{near_matches(str(name), FEATURES)}")
    return name


def _threshold(value: Any, feature: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{place}: threshold must be a finite number, got {value!r:.80}")
    known = FEATURES[feature]
    if not known.low <= value <= known.high:
        raise ValueError(
            f"{place}: a threshold of {feature} must be from {known.low:g} to {known.high:g}, got {value!r:.80}; it is "
            f"{known.meaning}"
        )
    return value


def is_rule(path: str | Path) -> bool:
    """Return whether a JSON file says that it is a rule, which need not be a usable one."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _answered(asked: Split, value: float) -> str:
    """Return a question and its answer; in words too where the feature's value says little."""
    text = f"{asked.feature} {value:.3g} {'<' if value < asked.threshold else '≥'} {asked.threshold:g}"
    plainly = FEATURES[asked.feature].plainly
    return text if plainly is None else f"{text} ({plainly(value)}; limit {plainly(asked.threshold)})"


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Split):
        yield from _nodes(node.below)
        yield from _nodes(node.above)
