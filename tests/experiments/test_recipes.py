"""Published settings by name, and dry runs of them: the papers' numbers, and an estimate that starts no training."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.classifier import compilation
from rlmix.classifier.data import DataError, Dataset, ImageSet, Splits, split
from rlmix.classifier.mixing import LamDistribution, MixPolicy
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments import train_classifier
from rlmix.experiments.runs.command import Call
from rlmix.experiments.runs.options import flatten, with_options
from rlmix.experiments.training import dry_run
from rlmix.experiments.training.config import ClassifierConfig
from rlmix.experiments.training.recipes import RECIPES
from rlmix.experiments.training.resolve import load_data

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

SMALL = ("--dataset", "digits", "--train-size", "100", "--batch-size", "20", "--threads", "1", "--precision", "fp32")
SMALL += ("--validation-size", "50", "--evaluations", "2", "--compile", "off")


# The papers' numbers


@pytest.mark.parametrize(
    ("name", "updates", "peak", "per_epoch"),
    [
        # Images over batch size, times epochs.
        ("rmix-cifar100-preact_resnet18", 150_000, 0.29947526988779305, 500),
        ("cutmix-cifar100-wrn_28_10", 150_000, 0.29947526988779305, 500),
        ("puzzlemix-cifar100-preact_resnet18", 600_000, 0.1, 500),
        ("puzzlemix-cifar100-preact_resnet18-600", 300_000, 0.2, 500),
        ("lamix-cifar100-preact_resnet18", 156_250, 0.1, 390.625),
        ("lamix-puzzlemix-cifar100-preact_resnet18", 234_375, 0.1, 390.625),
        ("mixup-cifar10-preact_resnet18", 78_125, 0.1, 390.625),
    ],
)
def test_length_and_learning_rate_are_the_published_ones(
    name: str, updates: int, peak: float, per_epoch: float
) -> None:
    config = RECIPES[name].config
    assert round(config.epochs * per_epoch) == updates
    assert (config.train.lr, config.train.weight_decay) == (peak, 1e-4)
    assert config.train_on_validation and config.data.development_size == 0 and config.data.train_size is None


def random_data(channels: int, side: int, classes: int) -> Splits:
    """Forty training images without meaning, none of them set apart for validation."""
    generator = np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = generator.integers(0, 256, (count, channels, side, side), dtype=np.uint8)
        return ImageSet(torch.from_numpy(pixels), torch.arange(count) % classes)

    dataset = Dataset(
        name="random",
        pool=images(40),
        test=images(20),
        class_names=tuple(map(str, range(classes))),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        flip=True,
        crop_padding=2,
    )
    return split(dataset, validation_size=10, development_size=0).trained_on_validation()


def asked(arguments: Sequence[str]) -> ClassifierConfig:
    return train_classifier.parse(Call("train_classifier", arguments))


def rates(config: ClassifierConfig, epochs: Sequence[float]) -> list[float]:
    """The learning rate at some epochs, as the trainer's own schedule gives it, ten updates to the epoch."""
    assert config.epochs is not None
    setting = replace(config.train, model="search", updates=int(10 * config.epochs), image_sizes=(), device="cpu")
    trainer = Trainer(replace(setting, precision="fp32"), random_data(1, 8, 2))
    found = []
    for update in range(trainer.config.updates):
        if update / 10 in epochs:
            found.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer._lr_schedule.step()
    return found


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        # Puzzle Mix: a tenth at 400 and 800 of 1200, or at 350 and 500 of 600. LaMix: at 200 and 300 of 400.
        ("puzzlemix-cifar100-preact_resnet18", (0, 399, 401, 799, 801), (0.1, 0.1, 0.01, 0.01, 0.001)),
        ("puzzlemix-cifar100-preact_resnet18-600", (0, 349, 351, 499, 501), (0.2, 0.2, 0.02, 0.02, 0.002)),
        ("lamix-svhn-preact_resnet18", (0, 199, 201, 299, 301), (0.1, 0.1, 0.01, 0.01, 0.001)),
        ("mixup-cifar100-preact_resnet18", (0, 99, 101, 149, 151), (0.1, 0.1, 0.01, 0.01, 0.001)),
        # The authors' table per epoch: 0.5 to 1 to 0.125 at batches of 1024, here of 448; then 0.2 to 0.02 and on.
        (
            "rmix-imagenet-resnet50",
            (0, 8, 15, 40, 65, 90),
            (0.5 * 448 / 1024, 448 / 1024, 0.2, 0.02, 0.002, 0.0002),
        ),
    ],
)
def test_the_learning_rate_moves_as_published(name: str, epochs: Sequence[float], expected: Sequence[float]) -> None:
    assert rates(RECIPES[name].config, epochs) == pytest.approx(expected, rel=1e-6)


def test_one_cycle_starts_at_a_hundredth_and_peaks_at_three_tenths() -> None:
    config = RECIPES["rmix-cifar100-wrn_16_8"].config
    start, peak = rates(config, (0, 89.9))
    assert (start, peak) == pytest.approx((config.train.lr / 100, config.train.lr), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "policy", "saliency"),
    [
        ("rmix-cifar100-resnext29_4_24", MixPolicy({"rmix": 1.0}), "exact"),
        ("cutmix-cifar100-preact_resnet18", MixPolicy({"clean": 0.5, "cutmix": 0.5}), "recycled"),
        ("puzzlemix-cifar100-wrn_28_10", MixPolicy({"puzzlemix": 1.0}), "exact"),
        (
            "lamix-fashion_mnist-preact_resnet18",
            MixPolicy({"clean": 0.5, "average": 0.5}, lam=LamDistribution("uniform", None), label_beta=0.5),
            "recycled",
        ),
        (
            "lamix-puzzlemix-cifar100-preact_resnet18",
            MixPolicy({"clean": 0.5, "lamix_puzzlemix": 0.5}, lam=LamDistribution("uniform", None)),
            "exact",
        ),
        ("rmix-imagenet-resnet50", MixPolicy({"rmix": 1.0}, lam=LamDistribution("beta", 0.2)), "exact"),
        ("mixup-cifar10-preact_resnet18", MixPolicy({"mixup": 1.0}), "recycled"),
    ],
)
def test_methods_mix_as_published(name: str, policy: MixPolicy, saliency: str) -> None:
    config = RECIPES[name].config
    assert config.policy() == policy
    assert config.train.saliency == saliency


def test_every_published_setting_has_a_recipe() -> None:
    cifar100 = ("preact_resnet18", "wrn_16_8", "wrn_28_10", "resnext29_4_24")
    assert {f"{method}-cifar100-{model}" for method in ("rmix", "cutmix") for model in cifar100} <= set(RECIPES)
    data = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet")
    assert {f"lamix-{name}-preact_resnet18" for name in data} <= set(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipes_setting_trains(name: str) -> None:
    """Two updates, on few and small batches of random images in the data set's shape."""
    config = RECIPES[name].config
    # ImageNet's own side would take minutes.
    _, _, side, channels, _ = dry_run.PUBLISHED.get(config.data.dataset, (0, 0, 64, 3, 0))
    data = random_data(channels, config.data.image_size or side, 10)
    setting = replace(config.train, updates=2, batch_size=2, device="cpu", precision="fp32", compile="off")
    stats = Trainer(setting, data).train(config.policy(), 2, probe=False)
    assert not stats.diverged and stats.images == 4


# The command


def test_options_change_a_recipe() -> None:
    config = asked(["--epochs", "2", "--recipe=rmix-cifar100-wrn_16_8", "--lr", "0.1"])
    expected = with_options(
        RECIPES["rmix-cifar100-wrn_16_8"].config, epochs=2.0, lr=0.1, recipe="rmix-cifar100-wrn_16_8"
    )
    assert config == expected


def test_recipes_are_listed_with_what_they_aim_for(capsys: pytest.CaptureFixture[str]) -> None:
    train_classifier.main(["--recipes"])
    lines = capsys.readouterr().out.splitlines()
    for name, recipe in RECIPES.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(recipe.aim)]


def test_an_unknown_recipe_is_refused(refused: Refused) -> None:
    assert "--recipe must be one of those that --recipes lists, got 'nope'" in refused(
        train_classifier.main, ["--recipe", "nope"]
    )


# Dry runs


def report_of(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved setting, and the lines below by their first word."""
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    return json.loads(lines.pop("setting").removeprefix("setting")), lines


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--method", "rmix", "--clean-share", "0.25", "--epochs", "30"]
    train_classifier.main([*options, "--dry-run"])
    setting, lines = report_of(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    given = json.loads(json.dumps(flatten(asdict(asked(options)))))
    changed = {name for name in setting if name != "policy" and setting[name] != given[name]}
    # Nothing is left to "auto" or to another option.
    assert changed == {"updates", "epochs", "device"}
    assert setting["updates"] == 150 and setting["epochs"] is None and setting["device"] == "cpu"
    assert MixPolicy.from_json(setting["policy"]) == MixPolicy({"clean": 0.25, "rmix": 0.75})
    assert "150 updates of 20 = 3,000 images, 30.0 times the training images" in lines["length"]
    assert "digits: 100 training, 50 validation" in lines["data"]
    assert "359 test images of 1 x 8 x 8" in lines["data"]
    assert "compiling" not in lines["time"]
    assert float(re.search(r"([0-9.]+) GiB", lines["memory"])[1]) > 0.1  # type: ignore[index]


def test_a_dry_run_leaves_trying_to_compile_to_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tried(*_: Any, **__: Any) -> bool:
        raise AssertionError("compiling takes minutes")

    monkeypatch.setattr(compilation, "compiling_pays", tried)
    train_classifier.main([*SMALL[:-1], "auto", "--updates", "1000000", "--dry-run"])
    setting, lines = report_of(capsys.readouterr().out)
    assert setting["compile"] == "auto"
    assert lines["time"].endswith("; less where compiling pays, which the training tries")


def test_slow_updates_are_timed_for_less_long(monkeypatch: pytest.MonkeyPatch) -> None:
    config = asked([*SMALL, "--device", "cpu"])
    train, stretches = Trainer.train, []

    def trained(self: Trainer, policy: MixPolicy, updates: int, **keywords: Any) -> Any:
        stretches.append(updates)
        return replace(train(self, policy, updates, **keywords), seconds=3.0 * updates)

    monkeypatch.setattr(Trainer, "train", trained)
    _, lines = report_of(dry_run.dry_run(config, load_data(config), config.policy()))
    assert stretches == [2, 4, 4]  # 12 seconds, then 24
    assert "3000.0 ms an update, median of 2 rounds" in lines["time"]


def test_the_estimate_is_updates_times_what_the_timed_ones_took(monkeypatch: pytest.MonkeyPatch) -> None:
    config = asked([*SMALL, "--updates", "36000", "--evaluations", "4", "--device", "cpu"])
    data = load_data(config)
    train, evaluate, clock = Trainer.train, Trainer.evaluate, [0.0]

    def trained(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
        stats = train(self, *arguments, **keywords)
        return replace(stats, seconds=0.1 * stats.updates)

    def evaluated(self: Trainer, part: str, *, limit: int | None = None) -> Any:
        result = evaluate(self, part, limit=limit)
        clock[0] += 2.0 * result.images
        return result

    monkeypatch.setattr(Trainer, "train", trained)
    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: clock[0])
    _, lines = report_of(dry_run.dry_run(config, data, config.policy()))
    seconds = 2.0 * (4 * len(data.validation) + len(data.test) + len(data.development))
    assert "about 60.0 minutes of training (100.0 ms an update" in lines["time"]
    assert f"{seconds / 60:.1f} minutes of evaluation" in lines["time"]


def test_random_images_stand_in_for_a_data_set_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(config: Any) -> Any:
        raise DataError("not here")

    monkeypatch.setattr(dry_run, "load_data", missing)
    recipe = ["--recipe", "cutmix-cifar100-preact_resnet18", "--dry-run"]
    train_classifier.main([*recipe, "--model", "search", "--batch-size", "50", "--compile", "off", "--threads", "1"])
    setting, lines = report_of(capsys.readouterr().out)
    assert "random images stand in" in lines["data"] and "50,000 training" in lines["data"]
    assert "10,000 test images of 3 x 32 x 32" in lines["data"]
    assert setting["updates"] == 300 * 50_000 // 50
    assert lines["aims"].endswith(RECIPES["cutmix-cifar100-preact_resnet18"].aim)
    assert "not trained to its end" in lines["checked"]


def test_a_data_set_of_unknown_shape_that_is_not_here_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "pictures" in refused(train_classifier.main, ["--dataset", tmp_path / "pictures", "--dry-run"])


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 seconds"), (119, "119 seconds"), (150, "2.5 minutes")])
def test_durations(seconds: float, text: str) -> None:
    assert dry_run._duration(seconds) == text
