"""Configurations of the commands that train one classifier or measure it; importing them takes no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from tyro.conf import Suppress

from rlmix.agent.config import MOST_TRAININGS, RLMixAgentConfig
from rlmix.classifier.errors import InputError, require_at_least, require_below_2_32, require_numpy_seed
from rlmix.classifier.training.config import TrainConfig
from rlmix.experiments.runs.options import UNPREFIXED, DataConfig, TrainingRunConfig

if TYPE_CHECKING:
    from rlmix.classifier.mixing import MixPolicy

# Kinds of runs, as their config.json names them.
CLASSIFIER = "classifier"
REPLAY = "replay"
RL_MIX = "rl-mix"

AUTO_TRAININGS = 8.0  # that --budget auto spends at most
WORTH = 0.2  # points that a further one must add

Final = TypeVar("Final", bound="FinalConfig")


@dataclass(frozen=True)
class FinalConfig(TrainingRunConfig):
    """Options of the commands that train one classifier to be kept."""

    epochs: float | None = None
    """Length of the training in passes over the training images, instead of --updates."""
    evaluations: int = 10
    """Number of evaluations on all validation images; the best network is kept."""
    train_on_validation: bool = False
    """Train on the validation images too, select nothing, and keep the last network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, evaluations=1)


@dataclass(frozen=True)
class ClassifierConfig(FinalConfig):
    """Train a classifier under one fixed mixing policy."""

    recipe: str | None = None
    """Published setting that the other options change; --recipes lists them."""
    recipes: bool = False
    """List the published settings, with the result that each aims for, and exit."""
    dry_run: bool = False
    """Print the resolved setting, and estimates of time and memory from a few timed updates, and exit."""
    method: str = "cutmix"
    """Mixing method, such as cutmix, mixup, rmix or fmix; an unknown name lists all."""
    clean_share: float = 0.5
    """Share of the updates that is not mixed, in [0, 1]."""
    lam: str = "beta(1)"
    """Distribution of the mixing ratio: beta(A), uniform or fixed(V)."""
    threshold: float | None = None
    """Saliency quantile of R-Mix in [0, 1); optional, defaults to one drawn for each image."""
    label_beta: float = 1.0
    """Weight β in [0, 1] of LaMix's local label, the mixed targets; 1 - β is that of its global label, which the
    network's second head predicts. 1 leaves the global label out."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes, in [0, 1]."""
    label_detach: bool = False
    """Send no gradient through LaMix's global label."""
    method_options: tuple[str, ...] = ()
    """Options of the method's own, each NAME=VALUE; an unknown name lists them."""

    def policy(self) -> MixPolicy:
        """Return the policy that the options describe.

        Raises:
            PolicyError: an option is out of range.
        """
        from rlmix.classifier.mixing import METHODS, LamDistribution, MixPolicy, PolicyError

        if self.method not in METHODS:
            raise PolicyError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.clean_share <= 1:
            raise PolicyError(f"--clean-share must be in [0, 1], got {self.clean_share:g}")
        shares = {"clean": 1.0}
        if self.method != "clean":
            shares = {"clean": self.clean_share, self.method: 1 - self.clean_share}
        return MixPolicy(
            shares,
            lam=LamDistribution.parse(self.lam),
            threshold=self.threshold,
            label_beta=self.label_beta,
            label_smoothing=self.label_smoothing,
            label_detach=self.label_detach,
            options={self.method: dict(map(_option, self.method_options))} if self.method_options else {},
        )


def _option(text: str) -> tuple[str, float]:
    """Parse NAME=VALUE."""
    from rlmix.classifier.mixing import PolicyError

    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise PolicyError(f"--method-options must be NAME=VALUE with a number, got {text!r:.80}") from None


@dataclass(frozen=True)
class ReplayConfig(FinalConfig):
    """Train a classifier under a learned policy."""

    policy: str | None = None
    """Policy schedule: a JSON file that train_agent.py wrote."""
    agent: str | None = None
    """Agent that chooses at every segment, instead of a schedule: shipped, rule (three questions in words), surrogate
    (learned by PPO in the surrogate), a run folder of train_agent.py, or a rule's JSON file."""
    budget: float | Literal["auto"] = 1.0
    """Updates to spend, in whole trainings, from 1 to 64. With more than 1 several candidates train, one led by the
    agent, the others under policies of a portfolio; validation decides and the best network is kept. auto: at least 3,
    at most 8, and of these only what is expected to be --worth its cost."""
    worth: float = WORTH
    """Points of accuracy that a further training must be expected to add, with --budget auto."""
    workers: int = 1
    """Number of candidates of a budget that are trained at the same time, each with --threads; results are the same."""
    backend: Literal["local", "ray"] = "local"
    """Place of these workers. local: processes of this machine; ray: actors of a Ray cluster."""
    gpus_per_worker: float = 1.0
    """Share of a GPU that each of them takes on Ray, where they train on GPUs; with 0.25 four share one."""
    num_workers: int = 1
    """Number of distributed processes of one training, run by Ray Train, each with --threads on a CPU; batches are
    divided among them."""
    address: str | None = None
    """Address of a Ray cluster, auto for this machine's; optional, defaults to Ray started on this machine, on
    loopback."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, workers=1, num_workers=1)
        if not 1 <= self.trainings <= MOST_TRAININGS:
            raise InputError(f"budget must be from 1 to {MOST_TRAININGS} trainings, or auto, got {self.trainings:g}")
        if not 0 <= self.worth <= 100:
            raise InputError(f"worth must be from 0 to 100 points, got {self.worth:g}")
        if self.trainings == 1 and self.run.resume is None and (self.workers > 1 or self.backend == "ray"):
            raise InputError("--workers and --backend are for the candidates of a --budget above 1; see --num-workers")
        if not 0 < self.gpus_per_worker <= 1:
            raise InputError(f"gpus_per_worker must be above 0 and at most 1, got {self.gpus_per_worker:g}")
        if self.run.resume is None and self.backend == "local" and self.gpus_per_worker != 1:
            raise InputError("--gpus-per-worker is for the workers of a --budget on Ray: add --backend ray")
        if self.trainings > 1 and self.num_workers > 1:
            raise InputError("--num-workers is for one training: use --workers with --budget")
        if self.train_on_validation and (self.agent is not None or self.trainings > 1):
            raise InputError("an agent, a rule and a budget look at validation: leave out --train-on-validation")
        if self.worth != WORTH and self.budget != "auto":
            raise InputError("--worth is for --budget auto, which stops where a further training is not worth its cost")

    @property
    def trainings(self) -> float:
        """Trainings whose updates are spent at most."""
        return AUTO_TRAININGS if self.budget == "auto" else self.budget


@dataclass(frozen=True)
class RLMixTrainConfig(TrainConfig):
    """Setting of a training by RL-Mix, whose agent needs every batch's own saliency."""

    saliency: Suppress[Literal["recycled", "exact"]] = "exact"


@dataclass(frozen=True)
class RLMixConfig(TrainingRunConfig):
    """Train a classifier while the per-batch agent of RL-Mix chooses each image's threshold."""

    data: Annotated[DataConfig, UNPREFIXED] = field(default_factory=lambda: DataConfig(train_size=1000))
    train: Annotated[RLMixTrainConfig, UNPREFIXED] = field(default_factory=lambda: RLMixTrainConfig(updates=3000))
    thresholds: Literal["learned", "random", "frozen"] = "learned"
    """Source of the thresholds. learned: the agent, which learns as the classifier trains; random: drawn at random, for
    comparison; frozen: an agent of an earlier run, which does not learn."""
    agent: str | None = None
    """Run folder of train_rl_mix.py whose agent chooses frozen thresholds."""
    reward: Literal["saliency", "validation"] = "saliency"
    """Reward. saliency: similarity of clean and mixed saliency, as published; validation: change of validation
    accuracy."""
    grid: Literal["published", "mixing"] = "published"
    """Patches that the agent sees and is rewarded on. published: 8 x 8; mixing: those that the batch is mixed by."""
    ppo: RLMixAgentConfig = field(default_factory=RLMixAgentConfig)
    """Hyperparameters of the agent."""
    lam: str = "beta(1)"
    """Distribution of the mixing ratio: beta(A), uniform or fixed(V); beta(0.2) as published for ImageNet."""
    validation_limit: int = 1000
    """Number of validation images read during the training, for the reward validation and for the curve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, validation_limit=1)
        require_numpy_seed(self.seed)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained network."""

    run: str
    """Run folder of train_classifier.py or replay_policy.py."""
    measures: tuple[str, ...] = ()
    """Measures: accuracy, attacks, ...; optional, defaults to all that are available. An unknown name lists them."""
    boxes: str | None = None
    """Folder of images with boxes in the layout of CUB-200-2011; optional, defaults to the images themselves, placed on
    larger canvases."""
    test_set: bool = False
    """Read the test set instead of the development images; every reading is recorded."""
    images: int | None = None
    """Number of images measured on, from the start of the split; optional, defaults to all."""
    seed: int = 0
    """RNG seed for PGD's random start, noise, and the places of occlusions and of items."""
    batch_size: int = 500
    """Number of images at a time."""
    data_root: str | None = None
    """Folder of the data set; optional, defaults to the training's own."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """Number of threads on a CPU; 0 takes one for each core."""
    trust: bool = False
    """The folder is your own: code that it names (package.module:function) may run."""

    def __post_init__(self) -> None:
        require_at_least(self, images=2, seed=0, batch_size=1, threads=0)
        require_below_2_32(self.seed, where="where attacks start at random")
