"""The ways to train that are compared and timed, by name.

All of them mix half of the updates, as LaMix and CutMix do, unless the title says otherwise: R-Mix, Puzzle Mix,
Manifold Mixup and mixup were published mixing every update, which costs short trainings most. λ's distribution is the
published one for CIFAR; label smoothing's factor is the one that LaMix's authors found best.
"""

from dataclasses import dataclass, field
from typing import Any

from rlmix.agent.config import RLMixAgentConfig
from rlmix.classifier.mixing import LamDistribution, MixPolicy, PolicySchedule


@dataclass(frozen=True)
class PerBatch:
    """R-Mix's thresholds chosen batch by batch while the classifier trains, in an `RLMixEnv`.

    Attributes:
        learned: by an agent; else they are drawn at random, its control.
        agent: how the agent sees and learns.
        grid: `published` or `mixing`: the patches that it sees and is rewarded on.
    """

    learned: bool = True
    agent: RLMixAgentConfig = field(default_factory=RLMixAgentConfig)
    grid: str = "published"


@dataclass(frozen=True)
class Contestant:
    """What is trained under.

    Attributes:
        title: name in tables.
        schedule: how it mixes, from start to end.
        saliency: where the input gradient of saliency methods comes from, `recycled` or `exact`.
        per_batch: who chooses R-Mix's thresholds; none = the Trainer draws them as the policy says.
    """

    title: str
    schedule: PolicySchedule
    saliency: str = "recycled"
    per_batch: PerBatch | None = None


def only_policy(contestant: Contestant) -> MixPolicy:
    """What one that mixes alike from start to end mixes by."""
    ((_, policy),) = contestant.schedule.segments
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
    "rl-mix": Contestant("RL-Mix, every update (exact)", _all("rmix"), "exact", PerBatch()),
    "rl-mix-random": Contestant("RL-Mix's control: random thresholds", _all("rmix"), "exact", PerBatch(learned=False)),
    # What should help it most: images treated alike, patches that are those it decides on, eight times the updates.
    "rl-mix-image": Contestant(
        "RL-Mix, per-image agent on the mixing grid",
        _all("rmix"),
        "exact",
        PerBatch(agent=RLMixAgentConfig(extractor="image", n_steps=125, batch_size=25), grid="mixing"),
    ),
    "puzzlemix": Contestant("Puzzle Mix, recycled saliency", _half("puzzlemix")),
    "puzzlemix-no-transport": Contestant("Puzzle Mix without transport, recycled", _half("puzzlemix_no_transport")),
    "puzzlemix-all": Contestant("Puzzle Mix, every update (exact)", _all("puzzlemix"), "exact"),
}
