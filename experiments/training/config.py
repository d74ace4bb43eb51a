"""What the commands that train one classifier can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from rlmix.classifier.mixing import METHODS, LamDistribution, MixPolicy, PolicyError
from rlmix.classifier.training.config import TrainConfig

Final = TypeVar("Final", bound="FinalConfig")


@dataclass(frozen=True)
class FinalConfig:
    """What every command that trains one classifier can be asked."""

    dataset: str = "fashion_mnist"
    """Data set by name, or package.module:function that returns a rlmix.classifier.data.Dataset."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    model: str = "search"
    """Network by name, or package.module:function for your own function(num_classes, in_channels)."""
    embedding: str | None = None
    """Name of your network's last linear layer; none finds it."""
    train_size: int | None = None
    """Training images, drawn by data_seed; none takes all."""
    label_noise: float = 0.0
    """Share of training labels that is made wrong, in [0, 1)."""
    data_seed: int = 0
    """Of the training images and wrong labels."""
    updates: int = 2000
    """Length of the training."""
    epochs: float | None = None
    """Length of the training in passes over the training images, instead of --updates."""
    batch_size: int = 100
    """Images per update."""
    lr: float = 0.2
    """Highest learning rate."""
    lr_schedule: Literal["onecycle", "multistep", "piecewise"] = "onecycle"
    """How the learning rate moves."""
    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Progress in (0, 1) at which multistep takes a tenth of the learning rate."""
    lr_points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    """Corners of piecewise: progress, rising from 0 to 1, and share of --lr, with straight lines between."""
    nesterov: bool = True
    """Nesterov momentum rather than plain momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on the parameters."""
    augmentation: bool = True
    """Random crops and flips, as far as the data set allows them."""
    crop_padding: int | None = None
    """Pixels of border that crops are taken from; none takes the data set's own."""
    image_size: int | None = None
    """Side that images are resized to; none leaves them as they are."""
    image_sizes: tuple[tuple[float, int], ...] = ()
    """Progress until which crops of streamed images have a side, and that side; none takes the data set's own."""
    readers: int = 4
    """Processes that read images of a data set that does not fit in memory."""
    saliency: Literal["recycled", "exact"] = "recycled"
    """Where a saliency method's saliency comes from: the clean update before, or a pass of its own."""
    validation_size: int | None = None
    """Validation images; none takes the data set's default."""
    development_size: int | None = None
    """Development images, that comparisons report; none takes the data set's default, 0 leaves more to train on."""
    evaluations: int = 10
    """How often the network is measured on all validation images; the best one is kept."""
    train_on_validation: bool = False
    """Train on the validation images too: nothing is selected then, the last network is kept."""
    seed: int = 0
    """Of weights, data order and mixing."""
    threads: int = 0
    """Threads on a CPU; 0 takes one for each core."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; auto takes bf16 where it is native and agrees with fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether the training step is compiled; auto measures whether it pays."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints."""
    out: str | None = None
    """Run folder; none makes one under runs/."""
    resume: str | None = None
    """Run folder of a training to go on with; all other options are then read from it."""
    trust: bool = False
    """The run folder is your own: code that it names (package.module:function) or holds (Ray's files) may run."""

    def training(self) -> TrainConfig:
        """The Trainer's setting.

        Raises:
            ValueError: an option is out of range.
        """
        return TrainConfig(
            model=self.model,
            embedding=self.embedding,
            updates=self.updates,
            batch_size=self.batch_size,
            lr=self.lr,
            lr_schedule=self.lr_schedule,
            lr_milestones=self.lr_milestones,
            lr_points=self.lr_points,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            augmentation=self.augmentation,
            crop_padding=self.crop_padding,
            image_sizes=self.image_sizes,
            readers=self.readers,
            saliency=self.saliency,
            device=self.device,
            precision=self.precision,
            compile=self.compile == "on",
        )


@dataclass(frozen=True)
class ClassifierConfig(FinalConfig):
    """Train a classifier under one fixed mixing policy."""

    recipe: str | None = None
    """A published setting that the other options change; --recipes lists them."""
    recipes: bool = False
    """List the published settings, with what each aims for, and stop."""
    dry_run: bool = False
    """Print the resolved setting, and the time and memory that a few timed updates let expect, and stop."""
    method: str = "cutmix"
    """Mixing method: a name of classifier.mixing.METHODS, which its documentation and an unknown name list."""
    clean_share: float = 0.5
    """Share of the updates that is not mixed, in [0, 1]."""
    lam: str = "beta(1)"
    """Distribution of the mixing ratio: beta(A), uniform or fixed(V)."""
    threshold: float | None = None
    """R-Mix's saliency quantile in [0, 1); none draws one for each image."""
    label_beta: float = 1.0
    """LaMix's weight of the local label in [0, 1]; 1 is no global label."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes, in [0, 1]."""
    label_detach: bool = False
    """Make LaMix's global label a constant for the gradient."""

    def policy(self) -> MixPolicy:
        """The policy that the options describe.

        Raises:
            PolicyError: an option is out of range.
        """
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
        )


REPLAY = "replay"


@dataclass(frozen=True)
class ReplayConfig(FinalConfig):
    """Train a classifier under a learned policy."""

    policy: str | None = None
    """Policy schedule, a JSON file that train_agent.py wrote."""
    agent: str | None = None
    """An agent that is asked at every segment, instead of a schedule: shipped, or a run folder of train_agent.py."""
    num_workers: int = 1
    """Processes that train together through Ray Train, on a CPU with --threads each; batches are parted among them."""
    address: str | None = None
    """Of a Ray cluster for several processes, auto for this machine's; none starts Ray on this machine, on loopback."""


CLASSIFIER = "classifier"
