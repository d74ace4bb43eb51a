"""Published settings of `train_classifier.py` by name, each with the result that it aims for.

All of them train on every training image of the data set (validation images included, none set apart for development),
keep the last network and read the test set once. None has been trained to its end by us: no machine of ours has a GPU.
Each recipe's `verified` says what has been checked; `--recipe NAME --dry-run` estimates time and memory on your
machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlmix.experiments.runs.command import spelling
from rlmix.experiments.runs.options import with_options
from rlmix.experiments.training.config import ClassifierConfig


@dataclass(frozen=True)
class Recipe:
    """A published setting.

    Attributes:
        config: configuration of the training.
        aim: published result and its source.
        verified: checks that have been made.
    """

    config: ClassifierConfig
    aim: str
    verified: str = "builds and trains two updates (tests/experiments/test_recipes.py); not trained to its end"


def _published(**options: object) -> ClassifierConfig:
    """Return a setting on every training image, with nothing selected by validation."""
    everything = {"train_on_validation": True, "development_size": 0, "evaluations": 1}
    return with_options(ClassifierConfig(), **everything, **options)


# R-Mix, section 4.1: batch 100, 300 epochs, OneCycle, Nesterov, crops with padding 2.
RMIX_LR = 0.29947526988779305
RMIX_SETTING = {
    "dataset": "cifar100",
    "batch_size": 100,
    "epochs": 300,
    "lr": RMIX_LR,
    "weight_decay": 1e-4,
    "crop_padding": 2,
}
RMIX_RESULTS = {  # top-1 in %: R-Mix, CutMix with OneCycle
    "preact_resnet18": (81.49, 80.6),
    "wrn_16_8": (82.32, 81.79),
    "wrn_28_10": (85.0, 83.97),
    "resnext29_4_24": (83.02, 82.3),
}

# Puzzle Mix: batch 100, plain momentum, mixing every update, saliency by a pass of its own.
PUZZLEMIX_SETTING = {
    "dataset": "cifar100",
    "method": "puzzlemix",
    "clean_share": 0.0,
    "saliency": "exact",
    "batch_size": 100,
    "lr_schedule": "multistep",
    "nesterov": False,
    "weight_decay": 1e-4,
    "crop_padding": 2,
}

# LaMix: the mixup authors' setting, 400 epochs of batches of 128; small grey images at 32 x 32.
LAMIX_SETTING = {
    "model": "preact_resnet18",
    "method": "average",
    "clean_share": 0.5,
    "lam": "uniform",
    "label_beta": 0.5,
    "batch_size": 128,
    "epochs": 400,
    "lr": 0.1,
    "lr_schedule": "multistep",
    "nesterov": False,
    "weight_decay": 1e-4,
    "crop_padding": 4,
}
LAMIX_SIZES = {"mnist": 32, "fashion_mnist": 32, "svhn": None, "cifar10": None, "cifar100": None, "tiny_imagenet": None}

# mixup, section 3.2: 200 epochs of batches of 128, lr 0.1, a tenth at epochs 100 and 150, weight decay 1e-4.
MIXUP_SETTING = {
    "model": "preact_resnet18",
    "method": "mixup",
    "clean_share": 0.0,
    "batch_size": 128,
    "epochs": 200,
    "lr": 0.1,
    "lr_schedule": "multistep",
    "nesterov": False,
    "weight_decay": 1e-4,
    "crop_padding": 4,
}

# ImageNet in three phases over 100 epochs, as R-Mix's and Puzzle Mix's authors: to 15 at 128 pixels, to 40 and to 100
# at 224. Pairs of progress and learning rate, those of the first phase times 448 / 1024.
IMAGENET_PEAK = 0.4375
IMAGENET_RATES = (
    (0.0, 0.21875),
    (0.08, IMAGENET_PEAK),
    (0.15, 0.0546875),
    (0.15, 0.2),
    (0.40, 0.02),
    (0.65, 0.002),
    (0.90, 0.0002),
    (1.0, 0.00002),
)

RECIPES = {
    **{
        f"rmix-cifar100-{model}": Recipe(
            _published(**RMIX_SETTING, model=model, method="rmix", clean_share=0.0, saliency="exact"),
            f"{ours} % top-1 (R-Mix, arXiv 2212.04875)",
        )
        for model, (ours, _) in RMIX_RESULTS.items()
    },
    **{
        f"cutmix-cifar100-{model}": Recipe(
            _published(**RMIX_SETTING, model=model, method="cutmix", clean_share=0.5),
            f"{theirs} % top-1 (CutMix with OneCycle as the authors of R-Mix ran it, arXiv 2212.04875)",
        )
        for model, (_, theirs) in RMIX_RESULTS.items()
    },
    "puzzlemix-cifar100-preact_resnet18": Recipe(
        _published(
            **PUZZLEMIX_SETTING, model="preact_resnet18", epochs=1200, lr=0.1, lr_milestones=(400 / 1200, 800 / 1200)
        ),
        "80.38 % top-1 (Puzzle Mix, arXiv 2009.06962)",
    ),
    "puzzlemix-cifar100-preact_resnet18-600": Recipe(
        _published(
            **PUZZLEMIX_SETTING, model="preact_resnet18", epochs=600, lr=0.2, lr_milestones=(350 / 600, 500 / 600)
        ),
        "the authors' shorter setting; no figure known to us",
    ),
    "puzzlemix-cifar100-wrn_28_10": Recipe(
        _published(**PUZZLEMIX_SETTING, model="wrn_28_10", epochs=400, lr=0.1, lr_milestones=(0.5, 0.75)),
        "84.05 % top-1 (Puzzle Mix, arXiv 2009.06962)",
    ),
    **{
        f"lamix-{dataset}-preact_resnet18": Recipe(
            _published(**LAMIX_SETTING, dataset=dataset, image_size=size),
            "80.62 % top-1 (LaMix, ICLR 2021 submission, mean of five runs)"
            if dataset == "cifar100"
            else "a table of LaMix (ICLR 2021 submission); its figure is not known to us",
        )
        for dataset, size in LAMIX_SIZES.items()
    },
    # Beside Puzzle Mix: its saliency mixing at one half, no global label, 600 epochs.
    "lamix-puzzlemix-cifar100-preact_resnet18": Recipe(
        _published(
            **{**LAMIX_SETTING, "method": "lamix_puzzlemix", "label_beta": 1.0, "epochs": 600, "saliency": "exact"},
            dataset="cifar100",
        ),
        "a table of LaMix (ICLR 2021 submission); its figure is not known to us",
    ),
    "rmix-imagenet-resnet50": Recipe(
        _published(
            dataset="imagenet",
            model="resnet50",
            method="rmix",
            clean_share=0.0,
            saliency="exact",
            lam="beta(0.2)",
            batch_size=448,
            epochs=100,
            lr=IMAGENET_PEAK,
            lr_schedule="piecewise",
            lr_points=tuple((progress, rate / IMAGENET_PEAK) for progress, rate in IMAGENET_RATES),
            image_sizes=((0.15, 128), (1.0, 224)),
            nesterov=False,
            weight_decay=1e-4,
            readers=10,
        ),
        "77.39 % top-1 (R-Mix, arXiv 2212.04875)",
        "streams and trains at changing sizes on a small folder of images "
        "(tests/classifier/test_streamed_training.py); not trained to its end. The first phase was published with "
        "batches of 1024; here all have 448, and its learning rate is scaled with them",
    ),
    **{
        f"mixup-{dataset}-preact_resnet18": Recipe(
            _published(**MIXUP_SETTING, dataset=dataset),
            f"{error} % top-1 error (mixup, arXiv 1710.09412)",
        )
        for dataset, error in (("cifar10", 4.2), ("cifar100", 21.1))
    },
}


def recipe_table() -> str:
    """Return the published settings, one line each."""
    width = max(map(len, RECIPES))
    return "\n".join(
        [
            *(f"{name.ljust(width)}  {recipe.aim}" for name, recipe in RECIPES.items()),
            "",
            f"{spelling('train_classifier')} --recipe NAME [--dry-run]",
        ]
    )
