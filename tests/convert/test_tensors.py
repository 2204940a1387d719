import errno
import json
import os
import tempfile
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

from convert.errors import CheckpointError
from convert.header import DTYPES
from convert.tensors import atomic, read_safetensors, write_json, write_safetensors

ARRAYS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_torch_reads_what_was_written(tmp_path):
    tensors = {
        "f32": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        "bf16": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
        "f16": np.float16([[1.5]]),
        "u8": np.arange(7, dtype=np.uint8),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    got = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(got) == set(tensors)
    assert got["bf16"].dtype == torch.bfloat16
    for name, array in tensors.items():
        np.testing.assert_array_equal(got[name].double().numpy(), array.astype(np.float64))


def test_metadata_is_written(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", ARRAYS, {"format": "pt"})
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as handle:
        assert handle.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(12, dtype=np.float32)[::-2],
        np.broadcast_to(np.float32(3), (2, 2)),
        np.arange(6, dtype=">f4"),
        np.asfortranarray(np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)),
    ],
    ids=["transposed", "reversed", "broadcast", "big-endian", "fortran-bf16"],
)
def test_arrays_of_any_layout_keep_their_values(tmp_path, array):
    write_safetensors(tmp_path / "a.safetensors", {"x": array}, {})
    got = safetensors.torch.load_file(tmp_path / "a.safetensors")["x"]
    np.testing.assert_array_equal(got.float().numpy(), array.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.complex64, "M8[s]", object, ml_dtypes.float8_e4m3fn], ids=str)
def test_rejects_dtype_that_the_format_cannot_hold(tmp_path, dtype):
    with pytest.raises(CheckpointError, match=r"'x'.*safetensors can hold"):
        write_safetensors(tmp_path / "a.safetensors", {"x": np.zeros(2, dtype)}, {})
    assert list(tmp_path.iterdir()) == []


def test_rejects_the_reserved_name(tmp_path):
    with pytest.raises(CheckpointError, match="__metadata__"):
        write_safetensors(tmp_path / "a.safetensors", {"__metadata__": ARRAYS["x"]}, {})


@hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
@hypothesis.given(data=st.data())
def test_reading_returns_what_was_written_for_any_shapes_and_dtypes(data):
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    kinds = st.sampled_from(sorted(DTYPES.values(), key=str))
    spec = data.draw(st.dictionaries(st.text(min_size=1), st.tuples(shapes, kinds), max_size=5))
    spec.pop("__metadata__", None)
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    tensors = {
        name: rng.integers(0, 256, (*shape, kind.itemsize), np.uint8).view(kind)[..., 0]
        for name, (shape, kind) in spec.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder) / "a.safetensors", tensors, {})
        got = read_safetensors(Path(folder) / "a.safetensors")
    assert {n: (a.shape, a.dtype) for n, a in got.items()} == spec
    assert all(got[name].tobytes() == array.tobytes() for name, array in tensors.items())


def test_json_is_sorted_indented_and_ends_in_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1], "a": None})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": null,\n  "b": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_json_does_not_have(tmp_path, value):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def write_both(folder):
    """One JSON and one safetensors file, new contents."""
    write_json(folder / "a.json", {"new": 1})
    write_safetensors(folder / "a.safetensors", ARRAYS, {})


WRITERS = {
    "a.json": lambda path: write_json(path, {"newer": 2}),
    "a.safetensors": lambda path: write_safetensors(path, {"y": np.zeros(3, np.float32)}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_dies_midway_keeps_the_old_file_and_leaves_nothing(
    tmp_path, monkeypatch, call, name
):
    def die(*_):
        raise OSError(errno.ENOSPC, "no space left")

    write_both(tmp_path)
    old = (tmp_path / name).read_bytes()
    monkeypatch.setattr(os, call, die)
    with pytest.raises(OSError, match="no space left"):
        WRITERS[name](tmp_path / name)
    monkeypatch.undo()
    assert (tmp_path / name).read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def write_half_and_interrupt(path):
    with atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_an_interrupt_inside_the_body_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_half_and_interrupt(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_file_and_then_its_folder_are_synced(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def record(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_json(tmp_path / "a.json", {})
    assert [path.name.endswith(".tmp") for path in synced] == [True, False]
    assert synced[1] == tmp_path.resolve()


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_only_a_mount_that_cannot_sync_folders_is_excused(tmp_path, monkeypatch, code, fails):
    sync, calls = os.fsync, []

    def fail_on_folder(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(code, "folder")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folder)
    if fails:
        with pytest.raises(OSError, match="folder"):
            write_json(tmp_path / "a.json", {"a": 1})
    else:
        write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_new_files_have_the_permissions_of_any_new_file(tmp_path):
    write_both(tmp_path)
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "blob").write_text("shared")
    (tmp_path / "a.json").symlink_to("blob")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "blob").read_text() == "shared"
    assert not (tmp_path / "a.json").is_symlink()
