import math
import tempfile
import weakref
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import strategies as st

from convert.errors import CheckpointError
from convert.header import DTYPES
from convert.stream import LazyTensor, safetensors_bytes, write_lazy_safetensors

PT = {"format": "pt"}


def lazy(array):
    return LazyTensor(shape=array.shape, dtype=array.dtype, read=lambda: array)


def random_array(shape, kind, seed):
    """Random bytes of a dtype; bools are 0 or 1."""
    top = 2 if kind == np.bool_ else 256
    raw = np.random.default_rng(seed).integers(0, top, (*shape, kind.itemsize), np.uint8)
    return raw.view(kind)[..., 0]


@hypothesis.given(data=st.data())
def test_the_bytes_are_those_that_safetensors_writes(data):
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    kinds = st.sampled_from(sorted(DTYPES.values(), key=str))
    spec = data.draw(st.dictionaries(st.text(min_size=1), st.tuples(shapes, kinds), max_size=6))
    spec.pop("__metadata__", None)
    tensors = {
        name: random_array(shape, kind, seed)
        for seed, (name, (shape, kind)) in enumerate(spec.items())
    }
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        declared = {name: lazy(array) for name, array in tensors.items()}
        write_lazy_safetensors(ours, declared, PT)
        safetensors.numpy.save_file(tensors, theirs, metadata=PT)
        assert ours.read_bytes() == theirs.read_bytes()
        assert ours.stat().st_size == safetensors_bytes(declared, PT)


def test_torch_reads_bfloat16_back(tmp_path):
    array = np.linspace(-1, 1, 15).astype(ml_dtypes.bfloat16).reshape(3, 5)
    write_lazy_safetensors(tmp_path / "a.safetensors", {"x": lazy(array)}, {})
    got = safetensors.torch.load_file(tmp_path / "a.safetensors")["x"]
    assert got.dtype == torch.bfloat16
    np.testing.assert_array_equal(got.float().numpy(), array.astype(np.float32))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(12, dtype=np.float32)[::-2],
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["transposed", "reversed", "broadcast"],
)
def test_arrays_of_any_layout_keep_their_values(tmp_path, array):
    write_lazy_safetensors(tmp_path / "a.safetensors", {"x": lazy(array)}, PT)
    got = safetensors.numpy.load_file(tmp_path / "a.safetensors")["x"]
    np.testing.assert_array_equal(got, array)


def test_one_tensor_is_alive_at_a_time_and_each_is_read_once_in_the_given_order(tmp_path):
    alive, most, reads = [], [], []

    def tensor(name):
        def read():
            array = np.zeros(1000, np.float32)
            alive.append(weakref.ref(array))
            most.append(sum(ref() is not None for ref in alive))
            reads.append(name)
            return array

        return LazyTensor(shape=(1000,), dtype=np.dtype(np.float32), read=read)

    told = []
    write_lazy_safetensors(
        tmp_path / "a.safetensors",
        {name: tensor(name) for name in "cab"},
        PT,
        progress=lambda name, size: told.append((name, size)),
    )
    assert most == [1, 1, 1]
    assert reads == ["c", "a", "b"]
    assert told == [("c", 4000), ("a", 4000), ("b", 4000)]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float16)], ids=["shape", "dtype"]
)
def test_a_tensor_that_is_not_as_declared_leaves_the_old_file_and_nothing_else(tmp_path, array):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    liar = LazyTensor(shape=(3, 2), dtype=np.dtype(np.float32), read=lambda: array)
    with pytest.raises(CheckpointError, match=r"'liar' must be read as it was declared"):
        write_lazy_safetensors(path, {"a": lazy(np.ones(3)), "liar": liar}, PT)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "dtype"), [("x", np.complex64), ("x", ">f4"), ("__metadata__", np.float32)]
)
def test_what_the_format_cannot_hold_is_refused_before_a_read(tmp_path, name, dtype):
    def read():
        raise AssertionError("a tensor was read")

    tensor = LazyTensor(shape=(2,), dtype=np.dtype(dtype), read=read)
    with pytest.raises(CheckpointError, match=f"'{name}'.*safetensors can hold"):
        write_lazy_safetensors(tmp_path / "a.safetensors", {name: tensor}, PT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7, 5)])
def test_bytes_are_known_before_the_read(shape):
    tensor = lazy(np.zeros(shape, ml_dtypes.bfloat16))
    assert tensor.nbytes == 2 * math.prod(shape)
