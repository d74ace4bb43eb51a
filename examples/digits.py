"""Parts that the examples share: scikit-learn's digits, an order of images that can be resumed, and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, TensorDataset

TRAINING = 1000  # images; the others are for validation


def load(channels: int = 1) -> tuple[TensorDataset, TensorDataset]:
    """Return training and validation images `[N, channels, 8, 8]`, normalised, with labels."""
    # The file alone: scikit-learn takes almost as long to import as torch, and needs SciPy.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = torch.from_numpy(np.loadtxt(str(file), delimiter=","))
    images, labels = (table[:, :64].float().view(-1, 1, 8, 8) - 4.9) / 6.0, table[:, 64].long()
    images = images.expand(-1, channels, -1, -1).contiguous()
    return TensorDataset(images[:TRAINING], labels[:TRAINING]), TensorDataset(images[TRAINING:], labels[TRAINING:])


class EpochOrder(Sampler[int]):
    """A new order in each epoch that depends on its number alone, so that a resumed training sees the same."""

    def __init__(self, size: int) -> None:
        self._size, self._epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch; Lightning calls it itself."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self._size, generator=torch.Generator().manual_seed(self._epoch)).tolist())

    def __len__(self) -> int:
        return self._size


def options(description: str | None, name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of an example: epochs, policy, out, stop_after and resume."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--policy", default="shipped", help="shipped, an agent's folder, a policy.json or a method")
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("--stop-after", type=int, help="stop after this epoch, as if interrupted")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    found = parser.parse_args(arguments)
    found.out.mkdir(parents=True, exist_ok=True)
    found.last = found.stop_after or found.epochs
    return found


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers."""
    return (logits.argmax(1) == labels).float().mean().item()
