"""The picture of the methods, as the README shows it, on a tiny setting."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlmix.experiments.studies import methods_picture


def test_every_method_has_a_row_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("gco")
    path = tmp_path / "new" / "methods.png"
    methods_picture.main(["--dataset", "digits", "--train-size", "100", "--updates", "4", "--out", str(path)])
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    rows = np.array_split(pixels, len(methods_picture.DRAWN))
    height = min(map(len, rows))
    for number, row in enumerate(rows):
        assert row.std() > 20
        assert all(np.abs(row[:height] - other[:height]).mean() > 1 for other in rows[:number])
