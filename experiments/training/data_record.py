"""Record of the images that a training began with: a data set that has changed since is not trained on or measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlmix.classifier.data import Splits
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder

DATA_FILE = "data.json"  # of a run folder; those of older versions have none


def keep_to_data(run: RunFolder, data: Splits) -> None:
    """Record the images of a new training; see to it that a resumed one has the same.

    Raises:
        RunError: they are others.
    """
    if (run.path / DATA_FILE).exists():
        require_same_data(run.path, data)
    else:
        run.write_json(DATA_FILE, _record(data))


def require_same_data(run: Path, data: Splits) -> None:
    """Refuse images with other classes, numbers or labels than those of a training, if it recorded them.

    A class that was added or renamed would give all those behind it another number, and an image that was added would
    move others between the training and the held-out images.

    Raises:
        RunError: they are others, or the record cannot be read.
    """
    path = run / DATA_FILE
    try:
        with reject_incompatible(path):
            before = json.loads(path.read_bytes())
            classes, images, labels = before["class_names"], before["images"], before["labels_sha256"]
    except FileNotFoundError:
        return
    now = _record(data)
    if classes != now["class_names"]:
        new, gone = set(now["class_names"]) - set(classes), set(classes) - set(now["class_names"])
        changed = f"the new classes [{', '.join(sorted(new)):.80}] and without [{', '.join(sorted(gone)):.80}]"
    elif images != now["images"]:
        changed = f"{_count(now['images'])} images, not {_count(images)}"
    elif labels != now["labels_sha256"]:
        changed = "other labels"
    else:
        return
    raise RunError(
        f"{run}: expected the data set as it was when this training began, got {data.name} with {changed}; restore it, "
        "or begin a new training"
    )


def _count(images: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {part}" for part, count in images.items())


def _record(data: Splits) -> dict[str, Any]:
    parts = {"train": data.train, "validation": data.validation, "development": data.development, "test": data.test}
    labels = hashlib.sha256()
    for part in parts.values():
        labels.update(part.labels.cpu().numpy().astype(np.dtype("<i8")).tobytes())
    return {
        "class_names": list(data.class_names),
        "images": {name: len(part) for name, part in parts.items()},
        "labels_sha256": labels.hexdigest(),
    }
