"""Dry run of a training: its resolved setting, and estimates of time and memory from a few timed updates."""

from __future__ import annotations

import json
import resource
import statistics
import time
from dataclasses import asdict, replace

import torch

from rlmix.classifier.data import DataError, Dataset, ImageSet, Splits
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.training.config import ClassifierConfig, FinalConfig
from rlmix.experiments.training.recipes import RECIPES
from rlmix.experiments.training.resolve import draw_data, load_data, resolve

WARM_UP = 2  # updates, an even number so that a clean and a mixed one are among them
ROUND = 4  # updates of a round: saliency passes and Puzzle Mix's number of blocks make single updates unequal
MAX_ROUNDS = 3
MAX_SECONDS = 20.0  # no further round is begun after this
EVALUATED = 500  # images

# Images of the pool and of the test set, side, channels and classes of published data sets, for those not available.
PUBLISHED = {
    "mnist": (60_000, 10_000, 28, 1, 10),
    "fashion_mnist": (60_000, 10_000, 28, 1, 10),
    "svhn": (73_257, 26_032, 32, 3, 10),
    "cifar10": (50_000, 10_000, 32, 3, 10),
    "cifar100": (50_000, 10_000, 32, 3, 100),
    "tiny_imagenet": (100_000, 10_000, 64, 3, 200),
}


def stand_in(name: str, image_size: int | None) -> Dataset | None:
    """Return random images in the shape and number of a published data set, or None where its shape is not known.

    Args:
        name: name of the data set.
        image_size: side that images would be resized to; optional, defaults to their own size.
    """
    if name not in PUBLISHED:
        return None
    pool, test, side, channels, classes = PUBLISHED[name]
    side = image_size or side
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> ImageSet:
        # A few distinct images suffice: time and memory do not depend on what they show.
        few = torch.randint(256, (min(count, 1000), channels, side, side), dtype=torch.uint8, generator=generator)
        return ImageSet(few.repeat(-(-count // len(few)), 1, 1, 1)[:count], torch.arange(count) % classes)

    return Dataset(
        name=f"{name} (random images stand in: the data set is not here)",
        pool=images(pool),
        test=images(test),
        class_names=tuple(str(number) for number in range(classes)),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        flip=True,
        crop_padding=2,
    )


def dry_run(config: FinalConfig, data: Splits, policy: MixPolicy) -> str:
    """Return the setting, the number of updates and images, and estimates of time and memory.

    Args:
        config: configuration with nothing left to `auto` except `compile`, and with epochs converted to updates.
        data: images of the training, or random ones in their place.
        policy: mixing policy.
    """
    trainer = Trainer(replace(config.train, updates=max(config.train.updates, 100)), data, seed=config.seed)
    trainer.train(policy, WARM_UP, probe=False)
    seconds: list[float] = []
    while len(seconds) < MAX_ROUNDS and ROUND * sum(seconds) < MAX_SECONDS:
        seconds.append(trainer.train(policy, ROUND, probe=False).seconds / ROUND)
    update = statistics.median(seconds)
    train = config.train.updates * update
    images = config.train.updates * config.train.batch_size
    limit = min(EVALUATED, len(data.validation))
    started = time.perf_counter()
    trainer.evaluate("validation", limit=limit)
    evaluation = (time.perf_counter() - started) / limit
    held_out = 0 if config.train_on_validation else config.evaluations * len(data.validation)
    evaluations = evaluation * (held_out + len(data.test) + len(data.development))
    omitted = ("resume", "recipes", "dry_run")
    setting = {name: value for name, value in flatten(asdict(config)).items() if name not in omitted}
    lines = [
        f"data        {data.name}: {len(data.train):,} training, {len(data.validation):,} validation, "
        f"{len(data.development):,} development, {len(data.test):,} test images of "
        f"{' x '.join(str(side) for side in data.train.image_shape)}",
        f"network     {config.train.model}: {sum(p.numel() for p in trainer.model.parameters()):,} parameters, "
        "LaMix's second head included",
        f"under       {policy}",
        f"length      {config.train.updates:,} updates of {config.train.batch_size} = {images:,} images, "
        f"{images / len(data.train):.1f} times the training images",
        f"time        about {_duration(train)} of training ({1000 * update:.1f} ms an update, median of "
        f"{len(seconds)} rounds from {1000 * min(seconds):.1f} to {1000 * max(seconds):.1f}) and "
        f"{_duration(evaluations)} of evaluation, on {trainer.device} in {trainer.precision} with "
        f"{torch.get_num_threads()} threads"
        f"{'; less where compiling pays, which the training tries' if config.train.compile == 'auto' else ''}",
        f"memory      {_memory(trainer.device)}",
        f"setting     {json.dumps({**setting, 'policy': policy.to_json()})}",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _memory(device: torch.device) -> str:
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    text = f"{host:.1f} GiB of main memory at most so far, torch itself included"
    if device.type == "cuda":
        text += f"; {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on {device}"
    return text


def what_it_takes(config: ClassifierConfig) -> str:
    """Return the report of a dry run; random images of the published shape replace a data set that is not available.

    Raises:
        DataError: the data set is not available, and its shape is not known.
    """
    try:
        data = load_data(config)
    except DataError:
        dataset = stand_in(config.data.dataset, config.data.image_size)
        if dataset is None:
            raise
        data = draw_data(config, dataset)
    policy = config.policy()
    # Trying whether compiling pays takes minutes, and is left to the training.
    compile = config.train.compile
    tried = replace(config.train, compile="off" if compile == "auto" else compile)
    resolved = resolve(replace(config, train=tried), data, [policy])
    report = dry_run(replace(resolved, train=replace(resolved.train, compile=compile)), data, policy)
    if config.recipe is None:
        return report
    recipe = RECIPES[config.recipe]
    return f"{report}\naims for    {recipe.aim}\nchecked     {recipe.verified}"
