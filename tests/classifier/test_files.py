"""Files: what is saved comes back, damage is always named, and a failed write leaves what was there."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from rlmix.classifier.files import DamagedFileError, load_state, save_state, write_atomic


def assert_same(loaded: Any, saved: Any) -> None:
    if isinstance(saved, torch.Tensor):
        assert isinstance(loaded, torch.Tensor) and loaded.dtype == saved.dtype and loaded.shape == saved.shape
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t for t in (loaded, saved)]
        assert torch.equal(*as_bytes)  # bit for bit, NaN included
    elif isinstance(saved, dict):
        assert isinstance(loaded, dict) and list(loaded) == list(saved)
        assert [type(key) for key in loaded] == [type(key) for key in saved]
        for key in saved:
            assert_same(loaded[key], saved[key])
    elif isinstance(saved, list | tuple):
        assert isinstance(loaded, list) and len(loaded) == len(saved)
        for one, other in zip(loaded, saved, strict=True):
            assert_same(one, other)
    else:
        assert type(loaded) is type(saved)
        assert loaded == saved or (math.isnan(loaded) and math.isnan(saved))


TENSORS = {
    "float32": torch.tensor([[1.5, math.nan, -0.0], [math.inf, 1e-45, 2.0]]),
    "float64": torch.tensor([math.pi], dtype=torch.float64),
    "bf16": torch.tensor([1.0, 1e30]).bfloat16(),
    "half": torch.tensor([0.1]).half(),
    "bool": torch.tensor([True, False, True]),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "number": torch.tensor(3.25),
    "whole number": torch.tensor(7),
    "empty": torch.empty(0),
    "empty rows": torch.empty(3, 0, 2, dtype=torch.bfloat16),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "a part": torch.arange(10.0)[2:8:2],
    "with gradient": torch.ones(2, requires_grad=True),
}
STATE = {
    "tensors": TENSORS,
    "state": {0: {"momentum_buffer": torch.ones(2, 2)}, 1: {"momentum_buffer": None}},
    "numbers": [0.1 + 0.2, -0.0, math.nan, -math.inf, 2**100, True, False, None, "text \u03bb \U0001f600 \n\"'"],
    "groups": ({"lr": 0.1, "params": (0, 1)}, [], {}, ()),
    "tensor": "a key that the file format uses too",
    "pairs": {"tensor": {"tensor": torch.zeros(1)}},
}


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "state", STATE)
    assert_same(load_state(tmp_path / "state"), STATE)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TENSOR_VALUES = st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
VALUES = st.recursive(
    SCALARS | TENSOR_VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(state=st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    save_state(path, state)
    assert_same(load_state(path), state)


def test_a_tensor_that_stands_twice_is_saved_twice(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"encoder": weight, "decoder": weight, "first row": weight[0]}
    save_state(tmp_path / "state", state)
    assert_same(load_state(tmp_path / "state"), state)


def test_a_state_file_is_plain_safetensors(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"weight": TENSORS["float64"]})
    with safe_open(tmp_path / "state", framework="numpy") as file:
        assert [file.get_tensor(name).tolist() for name in file.keys()] == [[math.pi]]


def test_what_cannot_be_saved_is_named_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a state must be of .*Path"):
        save_state(tmp_path / "state", {"folder": [tmp_path]})
    assert os.listdir(tmp_path) == []


def test_what_was_loaded_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"weight": torch.ones(1000)})
    loaded = load_state(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded["weight"], torch.ones(1000))


def small_file(path: Path) -> bytes:
    # Without a bool tensor: any byte but 0 is true, so that not every flip there changes anything.
    save_state(
        path, {"seed": 3, "model": {"weight": torch.arange(6.0), "step": torch.tensor(3), "e": torch.empty(2, 0)}}
    )
    return path.read_bytes()


def test_a_file_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    whole = small_file(tmp_path / "whole")
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match="cut"):
            load_state(tmp_path / "cut")


def test_a_single_flipped_bit_anywhere_is_damage(tmp_path: Path) -> None:
    whole = small_file(tmp_path / "whole")
    path = tmp_path / "flipped"
    for position in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[position] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(DamagedFileError, match="flipped"):
                load_state(path)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(8), b"\xff" * 64, b"PK\x03\x04" + bytes(100), b"x" * 10_000])
def test_a_file_of_anything_else_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DamagedFileError, match="other"):
        load_state(tmp_path / "other")


def test_missing_files_and_folders_are_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DamagedFileError, match="not a whole checkpoint"):
            load_state(path)


@pytest.mark.parametrize(("old", "new"), [(b'"shape":[2,3]', b'"shape":[3,2]'), (b'"F32"', b'"I32"')])
def test_a_tensor_whose_description_was_altered_is_damaged(tmp_path: Path, old: bytes, new: bytes) -> None:
    save_state(tmp_path / "state", {"weight": torch.arange(6.0).view(2, 3)})
    whole = (tmp_path / "state").read_bytes()
    assert whole.count(old) == 1
    (tmp_path / "state").write_bytes(whole.replace(old, new))
    with pytest.raises(DamagedFileError, match="checksum"):
        load_state(tmp_path / "state")


def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    whole = small_file(tmp_path / "state")
    (tmp_path / "state").write_bytes(whole.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(DamagedFileError, match="expected checkpoint version 1, got 2"):
        load_state(tmp_path / "state")


@pytest.mark.parametrize("step", ["replace", "fsync", "open"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_write_that_fails_leaves_what_was_there_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr("builtins.open" if step == "open" else f"os.{step}", fail)
    with pytest.raises(type(error)):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ([] if before is None else ["file"])
    assert before is None or path.read_bytes() == before


def test_a_file_is_flushed_before_it_takes_the_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The order is what makes it survive a power cut.
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (calls.append("flush"), fsync(handle)))
    monkeypatch.setattr("os.replace", lambda old, new: (calls.append("rename"), replace(old, new)))
    write_atomic(tmp_path / "file", b"new")
    assert calls == ["flush", "rename", "flush"]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_writing_again_replaces(tmp_path: Path) -> None:
    for content in (b"a longer first one", b"", b"third"):
        write_atomic(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
