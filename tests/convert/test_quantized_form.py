import dataclasses
import gc
import weakref

import numpy as np
import pytest
import safetensors.numpy

from convert.checkpoint import SINGLE_FILE, open_checkpoint
from convert.quantized import quantized_infos, read_quantized
from convert.quantized_form import computed_parts, new_info, stored_parts
from convert.stream import write_lazy_safetensors
from tests.convert.four_bits import NAME, STATE, opened, parts_of


def write(folder, tensors):
    """A folder of one file, opened."""
    folder.mkdir()
    write_lazy_safetensors(folder / SINGLE_FILE, tensors, {"format": "pt"})
    return open_checkpoint(folder)


def read_all(checkpoint):
    return {name: checkpoint.read(name) for name in checkpoint.names}


@pytest.mark.parametrize("shape", [(5, 172), (1, 3), (40, 428)], ids=str)
@pytest.mark.parametrize("nested", [True, False])
def test_what_is_computed_is_read_as_it_was(tmp_path, shape, nested):
    with opened(tmp_path, parts_of(shape, nested=nested)) as checkpoint:
        info = quantized_infos(checkpoint)[NAME]
        tensor, parts = read_quantized(checkpoint, info), read_all(checkpoint)
    described = new_info(NAME, info.shape, info.dtype, block=64, nested_block=info.nested_block)
    with write(tmp_path / "out", computed_parts(described, lambda: tensor)) as checkpoint:
        assert quantized_infos(checkpoint) == {NAME: described}
        again = read_quantized(checkpoint, described)
        written = read_all(checkpoint)
    for field in dataclasses.fields(again):
        if field.name != "info":
            ours, theirs = getattr(again, field.name), getattr(tensor, field.name)
            np.testing.assert_array_equal(ours, theirs, field.name)
    assert written.keys() == parts.keys()
    for name in parts.keys() - {STATE}:
        np.testing.assert_array_equal(written[name], parts[name], name)
        assert written[name].dtype == parts[name].dtype


def test_a_weight_is_computed_once_and_let_go_before_the_next(tmp_path):
    with opened(tmp_path, parts_of()) as checkpoint:
        info = quantized_infos(checkpoint)[NAME]
        held = read_quantized(checkpoint, info)
    alive, most = [], []

    def compute():
        gc.collect()
        most.append(sum(codes() is not None for codes in alive))
        codes = held.codes.copy()
        alive.append(weakref.ref(codes))
        return dataclasses.replace(held, codes=codes)

    def tensors(name):
        return computed_parts(
            new_info(name, info.shape, info.dtype, block=64, nested_block=256),
            lambda: dataclasses.replace(compute(), info=dataclasses.replace(info, name=name)),
        )

    with write(tmp_path / "out", tensors("a") | tensors("b") | tensors("c")):
        assert most == [0, 0, 0]


def test_stored_parts_are_written_byte_for_byte_and_codes_of_another_dtype_as_uint8(tmp_path):
    parts = parts_of()
    parts[NAME] = parts[NAME].reshape(-1).view(np.float16)[:, None]
    with opened(tmp_path, parts) as source:
        tensors = stored_parts(source, quantized_infos(source)[NAME])
        assert next(iter(tensors)) == NAME
        with write(tmp_path / "out", tensors) as checkpoint:
            written = read_all(checkpoint)
    wanted = safetensors.numpy.load_file(tmp_path / SINGLE_FILE)
    wanted[NAME] = wanted[NAME].view(np.uint8).reshape(-1, 1)
    assert written.keys() == wanted.keys()
    for name, array in wanted.items():
        assert written[name].dtype == array.dtype
        np.testing.assert_array_equal(written[name], array, name)
