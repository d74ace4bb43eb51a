"""The benchmark of mixing operations on tiny settings: what it compares does the same, and ratios are each round's."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.classifier.mixing.puzzlemix import transported
from rlmix.experiments.benchmarks import mixing_speed

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]

TINY = ("--batch-size", "4", "--side", "8", "--seconds", "0.001", "--rounds", "3")


def test_ratios_are_those_of_each_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("gco")
    path = tmp_path / "new" / "report.json"
    mixing_speed.main([*TINY, "--out", str(path)])
    report = json.loads(path.read_text())
    text = capsys.readouterr().out
    seconds = {name: np.array(row["rounds"]) for name, row in report["seconds"].items()}
    assert len(seconds) == 8 and len(report["of_library"]) == 8
    for name, row in report["of_library"].items():
        ours, _, library = name.partition(" / ")
        theirs = f"{ours.split()[0]} {library}"
        np.testing.assert_allclose(row["rounds"], seconds[ours] / seconds[theirs])
        assert name in text
    assert set(report["puzzlemix"]) == {"2", "4", "8"}
    for parts in report["puzzlemix"].values():
        taken = {name: np.array(row["rounds"]) for name, row in parts["seconds"].items()}
        np.testing.assert_allclose(taken["whole"], taken["costs"] + taken["cut"] + taken["transport"])
        np.testing.assert_allclose(parts["transport_of_cut"]["rounds"], taken["transport"] / taken["cut"])
        dense = taken["costs"] + taken["cut"] + taken["transport by dense plans"]
        np.testing.assert_allclose(parts["dense_of_whole"]["rounds"], dense / taken["whole"])


@pytest.mark.parametrize("blocks", [4, 8])
def test_dense_plans_move_what_ours_moves(blocks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 16, 16, generator=generator)
    mask = torch.randint(3, (5, blocks, blocks), generator=generator) / 2
    worth = torch.rand(5, blocks, blocks, generator=generator) ** 6
    worth /= worth.sum(dim=(1, 2), keepdim=True)
    ours, dense = (
        move(images, mask=mask, saliency=worth, t_eps=0.05) for move in (transported, mixing_speed.transported_densely)
    )
    size = 16 // blocks
    shown = (mask > 0).repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)[:, None]
    torch.testing.assert_close(ours * shown, dense * shown)
    assert not torch.equal(ours, images)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*TINY, "--rounds", "0"), "rounds must be at least 1"),
        ((*TINY, "--batch-size", "1"), "batch_size must be at least 2"),
        ((*TINY, "--seconds", "0"), "seconds must be"),
        ((*TINY, "--side", "17"), "17 x 17 pixels"),
        ((*TINY, "--out", "."), "--out ."),
    ],
)
def test_the_benchmark_refuses(arguments: Sequence[str], named: str, refused: Refused) -> None:
    assert named in refused(mixing_speed.main, arguments)
