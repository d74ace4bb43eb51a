"""Registry of the training methods that are compared and timed.

All of them mix half of the updates, as LaMix and CutMix do, unless the title says otherwise: R-Mix, Puzzle Mix, FMix,
ResizeMix, Manifold Mixup and mixup were published mixing every update, which costs short trainings most. λ has the
distribution that was published for CIFAR; the factor of label smoothing is the one that LaMix's authors found best.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from rlmix.agent.agent import Agent
from rlmix.agent.any_agent import AnyAgent
from rlmix.agent.config import RLMixAgentConfig
from rlmix.agent.experience import Experience
from rlmix.agent.files import NAMED
from rlmix.agent.rule import Rule
from rlmix.classifier.mixing import LamDistribution, MixPolicy, PolicySchedule
from rlmix.experiments.runs.errors import RunError

Saliency = Literal["recycled", "exact"]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ThresholdChoice:
    """Choice of R-Mix's thresholds for every batch while the classifier trains, in an `RLMixEnv`.

    Attributes:
        learned: whether RL-Mix's agent chooses them; otherwise they are drawn at random, as its control.
        agent: configuration of the agent.
        grid: patch grid of observations and rewards, `published` or `mixing`.
    """

    learned: bool = True
    agent: RLMixAgentConfig = field(default_factory=RLMixAgentConfig)
    grid: str = "published"


@dataclass(frozen=True)
class Contestant:
    """Training method, given by its mixing policies.

    Attributes:
        title: name in tables.
        policy: mixing policies from start to end, or the agent that chooses them as the training goes.
        saliency: source of the input gradient of saliency methods, `recycled` or `exact`.
        thresholds: choice of R-Mix's thresholds; None lets the Trainer draw them as the policy says.
        experience: what an agent learned from; None where it is not known, and of others.
    """

    title: str
    policy: PolicySchedule | AnyAgent
    saliency: Saliency = "recycled"
    thresholds: ThresholdChoice | None = None
    experience: Experience | None = None


def _require_new(name: str, option: str, taken: Collection[str]) -> None:
    """Refuse a name of a user's contestant that stands for another one already.

    Raises:
        RunError: it does.
    """
    if name in CONTESTANTS or name in taken:
        raise RunError(f"{option}: the name {name!r} stands for another contestant; choose another")


def agent_places(entries: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Return where the agents of `--agents` lie, by name.

    Args:
        entries: each the name of an agent that comes with the program, or NAME=FOLDER, or NAME=FILE of a rule.
        taken: names of other contestants.

    Raises:
        RunError: an entry has another form, or its name is taken.
    """
    places: dict[str, str] = {}
    for entry in entries:
        name, equals, path = (entry, "=", entry) if entry in NAMED else entry.partition("=")
        if not (name and equals and path):
            raise RunError(
                f"--agents must be {' or '.join(NAMED)}, or NAME=FOLDER (of a rule NAME=FILE), such as "
                "learned=runs/agent-DATE-TIME, "
                f"got {entry!r}"
            )
        _require_new(name, "--agents", {*taken, *places})
        places[name] = path
    return places


def only_networks(agents: Mapping[str, AnyAgent]) -> dict[str, Agent]:
    """Return agents by name, of which none may be a rule.

    Raises:
        RunError: one is.
    """
    networks: dict[str, Agent] = {}
    for name, agent in agents.items():
        if not isinstance(agent, Agent):
            raise RunError(f"--agents: {name} is a rule; give it by --rules {name}=FILE")
        networks[name] = agent
    return networks


def load_schedules(entries: Sequence[str], taken: Collection[str]) -> dict[str, PolicySchedule]:
    """Return the schedules of `--schedules` by name.

    Args:
        entries: each NAME=FILE.
        taken: names of other contestants.

    Raises:
        RunError: an entry has another form, or its name is taken.
        PolicyError: a schedule cannot be used; names the file and the field.
    """
    return _load_files("--schedules", "learned=policy.json", PolicySchedule.load, entries, taken)


def load_rules(entries: Sequence[str], taken: Collection[str]) -> dict[str, Rule]:
    """Return the rules of `--rules` by name.

    The arguments and errors are those of `load_schedules`.
    """
    return _load_files("--rules", "simple=rule.json", Rule.load, entries, taken)


def _load_files(
    option: str, example: str, load: Callable[[str], Loaded], entries: Sequence[str], taken: Collection[str]
) -> dict[str, Loaded]:
    found: dict[str, Loaded] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise RunError(f"{option} must be NAME=FILE, such as {example}, got {entry!r}")
        _require_new(name, option, {*taken, *found})
        found[name] = load(path)
    return found


def only_policy(contestant: Contestant) -> MixPolicy:
    """Return the one policy of a contestant whose schedule has a single segment."""
    assert isinstance(contestant.policy, PolicySchedule)
    ((_, policy),) = contestant.policy.segments
    return policy


def _fixed(shares: dict[str, float], lam: str = "beta(1)", **label: Any) -> PolicySchedule:
    return PolicySchedule.fixed(MixPolicy(shares, lam=LamDistribution.parse(lam), **label))


def _half(method: str, lam: str = "beta(1)", label_beta: float = 1.0, label_detach: bool = False) -> PolicySchedule:
    return _fixed({"clean": 0.5, method: 0.5}, lam, label_beta=label_beta, label_detach=label_detach)


def _all(method: str, lam: str = "beta(1)", label_beta: float = 1.0) -> PolicySchedule:
    return _fixed({method: 1.0}, lam, label_beta=label_beta)


CONTESTANTS = {
    "plain": Contestant("no mixing", _fixed({"clean": 1.0})),
    "label-smoothing": Contestant("label smoothing 0.2", _fixed({"clean": 1.0}, label_smoothing=0.2)),
    "mixup": Contestant("mixup", _half("mixup")),
    "mixup-all": Contestant("mixup, every update", _all("mixup")),
    "manifold": Contestant("Manifold Mixup", _half("manifold", "beta(2)")),
    "cutmix": Contestant("CutMix", _half("cutmix")),
    "saliencymix": Contestant("SaliencyMix", _half("saliencymix")),
    "fmix": Contestant("FMix", _half("fmix")),
    "resizemix": Contestant("ResizeMix", _half("resizemix")),
    "lamix": Contestant("LaMix", _half("average", "uniform", 0.5)),
    "lamix-all": Contestant("LaMix without clean batches", _all("average", "uniform", 0.5)),
    "lamix-local": Contestant("LaMix without global label", _half("average", "uniform")),
    "lamix-detached": Contestant("LaMix, global label detached", _half("average", "uniform", 0.5, True)),
    "lamix-rmix": Contestant("LaMix over R-Mix", _half("lamix_rmix", "uniform")),
    "lamix-puzzlemix": Contestant("LaMix over Puzzle Mix", _half("lamix_puzzlemix", "uniform")),
    "rmix": Contestant("R-Mix, recycled saliency", _half("rmix")),
    "rmix-exact": Contestant("R-Mix, exact saliency", _half("rmix"), "exact"),
    "rmix-all": Contestant("R-Mix, every update (exact)", _all("rmix"), "exact"),
    "rl-mix": Contestant("RL-Mix, every update (exact)", _all("rmix"), "exact", ThresholdChoice()),
    "rl-mix-random": Contestant(
        "RL-Mix's control: random thresholds", _all("rmix"), "exact", ThresholdChoice(learned=False)
    ),
    # The most favourable variant: same network for all images, observed patches are the mixed ones, 8 x the updates.
    "rl-mix-image": Contestant(
        "RL-Mix, per-image agent on the mixing grid",
        _all("rmix"),
        "exact",
        ThresholdChoice(agent=RLMixAgentConfig(extractor="image", n_steps=125, batch_size=25), grid="mixing"),
    ),
    "puzzlemix": Contestant("Puzzle Mix, recycled saliency", _half("puzzlemix")),
    "puzzlemix-no-transport": Contestant("Puzzle Mix without transport, recycled", _half("puzzlemix_no_transport")),
    "puzzlemix-all": Contestant("Puzzle Mix, every update (exact)", _all("puzzlemix"), "exact"),
}
