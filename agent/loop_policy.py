"""Policies for a loop of the user's own: the values that name one, and which policies such a loop can have."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from torch import Tensor, nn

from rlmix.agent.agent import Allowed
from rlmix.agent.any_agent import AnyAgent, load_agent
from rlmix.agent.files import NAMED
from rlmix.agent.loop_checks import as_share
from rlmix.agent.rule import Rule, is_rule
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, MixPolicy, PolicySchedule
from rlmix.envs.menu import DIMENSIONS, Menu
from rlmix.envs.observation import checks_labels

Policy = str | Path | PolicySchedule | MixPolicy | AnyAgent  # what RLMix is made from


def load_policy(policy: Policy, *, share: float | None) -> PolicySchedule | AnyAgent:
    """Return the schedule or agent that a value names.

    Args:
        policy: name of an agent that comes with the program, an agent's folder, a JSON file, a method's name, or a
            policy itself.
        share: share of the updates of a method that is given by its name, in (0, 1]; None is one half.

    Raises:
        InputError: there is no such policy, or it has shares of its own.
    """
    name = str(policy) if isinstance(policy, str | Path) else None
    if share is not None and name not in METHODS:
        raise InputError(f"share is for a method given by its name, got share={share} with a policy that has shares")
    if isinstance(policy, PolicySchedule):
        return policy
    if isinstance(policy, AnyAgent):
        return _seeing_what_a_loop_gives(policy)
    if isinstance(policy, MixPolicy):
        return PolicySchedule.fixed(policy)
    if name is None:
        example = "MixPolicy({'clean': 0.5, 'mixup': 0.25, 'cutmix': 0.25})"
        raise InputError(f"policy must be a name or a path, got {policy!r:.80}; several methods are {example}")
    if name in NAMED or Path(name).is_dir():
        return _seeing_what_a_loop_gives(load_agent(name))
    if name in METHODS:
        return PolicySchedule.fixed(MixPolicy({"clean": 1.0} if name == "clean" else _shares(name, share)))
    if name.endswith(".json"):
        return _seeing_what_a_loop_gives(Rule.load(name)) if is_rule(name) else PolicySchedule.load(name)
    agents, methods = " or ".join(map(repr, NAMED)), [name for name, one in METHODS.items() if not one.stage]
    near = get_close_matches(name.lower(), [*NAMED, *methods], 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"policy must be {agents}, an agent's folder, a policy.json, a rule.json or a method of {', '.join(methods)}, "
        f"got {name!r:.200}{meant}"
    )


def _seeing_what_a_loop_gives(agent: AnyAgent) -> AnyAgent:
    if checks_labels(agent.features):
        raise InputError(
            "the agent looks for wrong labels among the training images, which a loop of your own does not show it; "
            "use one without these features, such as 'shipped'"
        )
    return agent


def _shares(method: str, share: float | None) -> dict[str, float]:
    share = 0.5 if share is None else as_share(share)
    return {method: 1.0} if share == 1 else {"clean": 1 - share, method: share}


def policies_of(source: PolicySchedule | AnyAgent) -> list[MixPolicy]:
    """Return the policies of a schedule, or all that an agent or a rule may choose."""
    if isinstance(source, PolicySchedule):
        return [policy for _, policy in source.segments]
    actions = source.actions if isinstance(source, Rule) else source.menu.actions()
    return [source.menu.policy(action) for action in actions]


@dataclass(frozen=True)
class LoopLimits:
    """Limits of a loop: what it gives decides which policies it can have.

    Attributes:
        colours: whether the mean and standard deviation of the images' colours are known.
        size: height and width of the images; None before the first batch.
        model: whether the loop gives the network; not read before the first batch.
        no_gradient: why the network gives no gradient at the images; None if it does, as far as is known.
    """

    colours: bool
    size: tuple[int, int] | None = None
    model: bool = False
    no_gradient: str | None = None

    def at(self, images: Tensor, model: nn.Module | None) -> LoopLimits:
        """Return the limits that the first batch shows."""
        height, width = images.shape[-2:]
        return LoopLimits(self.colours, (height, width), model is not None)

    def why_not(self, policy: MixPolicy) -> str | None:
        """Return why the loop cannot have a policy; None if it can, as far as is known."""
        if policy.label_beta != 1:
            return "LaMix's global label (β below 1) needs a second head, which a loop of your own does not have"
        reasons = (self._why_not_method(name) for name in policy.shares)
        return next((reason for reason in reasons if reason is not None), None)

    def allowed(self, menu: Menu) -> tuple[Allowed, list[str]]:
        """Return the choices of a menu that the loop can have, and why the others cannot.

        Raises:
            InputError: a dimension has no such choice.
        """
        one_of_each = {
            "source": [MixPolicy(shares) for _, shares in menu.sources],
            "label": [MixPolicy({"clean": 1.0}, label_beta=beta) for beta, _ in menu.labels],
        }
        allowed, reasons = [], []
        for dimension, size in zip(DIMENSIONS, menu.sizes, strict=True):
            found = [self.why_not(policy) for policy in one_of_each.get(dimension, [])] or [None] * size
            allowed.append([index for index, reason in enumerate(found) if reason is None])
            reasons += [reason for reason in found if reason is not None]
            if not allowed[-1]:
                raise InputError(f"this loop can have none of the agent's choices of {dimension}: {reasons[-1]}")
        return allowed, reasons

    def _why_not_method(self, name: str) -> str | None:
        method = METHODS[name]
        if method.stage is not None:
            return f"{name} mixes hidden states; see rlmix.classifier.mixing.manifold"
        if method.needs_colours and not self.colours:
            return f"{name} looks at colours; pass mean= and std="
        if self.size is not None and method.needs_gradient and not self.model:
            return f"{name} mixes by saliency; call mix(images, labels, model)"
        if method.needs_gradient and self.no_gradient is not None:
            return f"{name} mixes by saliency, {self.no_gradient}"
        try:
            if method.library is not None:
                method.library()
            if method.fits is not None and self.size is not None:
                method.fits(*self.size)
        except (ImportError, InputError) as error:
            return f"{name}: {error}"
        return None


def require(reason: str | None) -> None:
    """Raise with a reason of `LoopLimits.why_not`, if there is one.

    Raises:
        InputError: there is.
    """
    if reason is not None:
        raise InputError(reason)
