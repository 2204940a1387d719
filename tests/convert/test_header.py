import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from convert.errors import CheckpointError
from convert.header import read_header

TORCH_DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint64: np.uint64,
    torch.uint32: np.uint32,
    torch.uint16: np.uint16,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def file_with(tmp_path, header, data=b"", length=None):
    """Write a safetensors file by hand, with a header length that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refusal(path):
    """The message of the refusal, which always names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_header_gives_shape_and_dtype_that_torch_saved(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.zeros(3, 2).to(dtype), "scalar": torch.zeros(()).to(dtype)}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    infos = read_header(path)
    assert set(infos) == {"x", "scalar"}
    assert infos["x"].shape == (3, 2)
    assert infos["scalar"].shape == ()
    assert infos["x"].dtype == TORCH_DTYPES[dtype]
    assert infos["x"].file == path


def test_accepts_a_well_formed_file_made_by_hand(tmp_path):
    assert read_header(file_with(tmp_path, {"x": entry()}, b"8 bytes."))["x"].shape == (2,)


def test_rejects_missing_file(tmp_path):
    assert "got no such file" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("size", [0, 1, 7])
def test_rejects_file_shorter_than_its_length_field(tmp_path, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * size)
    assert f"in a file of {size} bytes" in refusal(path)


@pytest.mark.parametrize("length", [1000, 2**40, 2**64 - 1])
def test_rejects_header_longer_than_the_file(tmp_path, length):
    path = file_with(tmp_path, {"x": entry()}, b"8 bytes.", length=length)
    assert f"a header of {length} bytes" in refusal(path)


def test_rejects_header_over_the_library_limit_without_reading_it(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:  # sparse: 200 MB that take no room
        stream.write(struct.pack("<Q", 150_000_000))
        stream.truncate(200_000_000)
    assert "at most 100000000 bytes" in refusal(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "a list"),
        (b"not JSON", "must be JSON"),
        (b'{"x": \xff}', "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"x": 1, "x": 2}', "twice"),
        (b"", "must be JSON"),
    ],
)
def test_rejects_header_that_is_no_json_object(tmp_path, text, said):
    assert said in refusal(file_with(tmp_path, text))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (7, "must be an object"),
        (entry(dtype="F8_E4M3"), "unquantised"),
        (entry(dtype=["F32"]), "dtype"),
        ({"shape": [2], "data_offsets": [0, 8]}, "dtype"),
        (entry(shape=(-2,)), "must have a shape"),
        (entry(shape=(True, 2)), "must have a shape"),
        (entry(shape=(2.0,)), "must have a shape"),
        (entry(shape=(0, 2**63), offsets=(0, 0)), "must have a shape"),
        (entry(shape=(1,) * 33), "must have a shape"),
        ({"dtype": "F32", "data_offsets": [0, 8]}, "must have a shape"),
        (entry(offsets=(8, 0)), "must have data_offsets"),
        (entry(offsets=(-8, 0)), "must have data_offsets"),
        (entry(offsets=(0, 4, 8)), "must have data_offsets"),
        ({"dtype": "F32", "shape": [2]}, "must have data_offsets"),
        (entry(shape=(3,)), "wanted 12 bytes"),
        (entry(shape=(2**40, 2**40)), "wanted"),
        (entry(shape=(2**38,), offsets=(0, 2**40)), "must fill the file"),
        (entry(shape=(1,), offsets=(4, 8)), "wanted byte 0"),
    ],
)
def test_rejects_entry_that_does_not_fit_the_file(tmp_path, bad, said):
    assert said in refusal(file_with(tmp_path, {"x": bad}, b"8 bytes."))


def test_rejects_overlapping_tensors(tmp_path):
    header = {"x": entry(), "y": entry(offsets=(4, 12))}
    assert "wanted byte 8" in refusal(file_with(tmp_path, header, b"twelve bytes"))


@pytest.mark.parametrize("data", [b"8 bytes", b"8 bytes.."])
def test_rejects_file_cut_off_or_with_a_tail(tmp_path, data):
    assert "must fill the file" in refusal(file_with(tmp_path, {"x": entry()}, data))
