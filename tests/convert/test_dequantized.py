import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from convert.checkpoint import SINGLE_FILE, open_checkpoint
from convert.dequantized import DequantizedCheckpoint, block_scales, dequantize
from convert.errors import CheckpointError
from convert.quantized import quantized_infos, read_quantized
from tests.convert.four_bits import NAME, opened, parts_of

bitsandbytes = pytest.importorskip("bitsandbytes")
DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
}
STORAGES = (torch.uint8, torch.bfloat16, torch.float16, torch.float32)


def quantize(folder, shape, dtype=torch.bfloat16, **options: Any):
    """Save a random weight as bitsandbytes does; return its codes and state."""
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    options = {"quant_type": "nf4", "compress_statistics": True} | options
    codes, state = bitsandbytes.functional.quantize_4bit(weight, **options)
    parts = {f"{NAME}.{name}": part for name, part in state.as_dict(packed=True).items()}
    safetensors.torch.save_file({NAME: codes, **parts}, folder / SINGLE_FILE)
    return codes, state


def read(folder):
    with open_checkpoint(folder) as checkpoint:
        return read_quantized(checkpoint, quantized_infos(checkpoint)[NAME])


def assert_bit_equal(got, wanted):
    """Equal bits, but for fp4's -0, which bitsandbytes' C kernel has and its table has not."""
    wanted = wanted + 0
    assert got.dtype == DTYPES[wanted.dtype]
    assert got.shape == tuple(wanted.shape)
    bits = {2: (np.uint16, torch.int16), 4: (np.uint32, torch.int32)}[got.dtype.itemsize]
    np.testing.assert_array_equal(
        got.view(bits[0]), wanted.contiguous().view(bits[1]).numpy().view(bits[0])
    )


@pytest.mark.parity
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False], ids=["double", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(48, 172), (5, 7), (1100, 1001)], ids=str)
def test_weights_are_those_of_bitsandbytes_bit_for_bit(tmp_path, shape, quant_type, nested, dtype):
    options = {"quant_type": quant_type, "compress_statistics": nested}
    codes, state = quantize(tmp_path, shape, dtype, **options)
    tensor = read(tmp_path)
    assert tensor.info.dtype == DTYPES[dtype]
    for kind in DTYPES:
        state.dtype = kind
        wanted = bitsandbytes.functional.dequantize_4bit(codes, state)
        assert_bit_equal(dequantize(tensor, DTYPES[kind]), wanted)


@pytest.mark.parity
@pytest.mark.parametrize("nested", [True, False], ids=["double", "plain"])
@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 64), (344, 172), (2, 3, 86)], ids=str)
def test_every_block_and_shape_is_that_of_bitsandbytes(tmp_path, shape, block, nested):
    codes, state = quantize(tmp_path, shape, blocksize=block, compress_statistics=nested)
    weight = dequantize(read(tmp_path), DTYPES[torch.bfloat16])
    wanted = bitsandbytes.functional.dequantize_4bit(codes, state)
    assert_bit_equal(weight, wanted.reshape(shape))  # it returns a [1] transposed


@pytest.mark.parity
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_every_storage_holds_the_same_codes(tmp_path, storage):
    codes, state = quantize(tmp_path, (16, 172), quant_storage=storage)
    assert codes.dtype == storage
    weight = dequantize(read(tmp_path), DTYPES[torch.bfloat16])
    assert_bit_equal(weight, bitsandbytes.functional.dequantize_4bit(codes, state))


@pytest.mark.parity
def test_scales_are_those_of_bitsandbytes(tmp_path):
    _, state = quantize(tmp_path, (600, 172))
    wanted = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2)
    assert_bit_equal(block_scales(read(tmp_path)), wanted + state.offset)


def test_a_weight_beyond_float16_becomes_infinite(tmp_path):
    parts = parts_of(nested=False)
    parts[f"{NAME}.absmax"][:] = 1e6
    parts[NAME][:] = 0xF0
    with opened(tmp_path, parts) as checkpoint:
        tensor = read_quantized(checkpoint, quantized_infos(checkpoint)[NAME])
    weight = dequantize(tensor, np.dtype(np.float16))
    np.testing.assert_array_equal(weight.reshape(-1)[:4], np.float16([np.inf, -np.inf] * 2))


def test_a_dequantized_checkpoint_shows_weights_and_hides_their_parts(tmp_path):
    others = {"model.norm.weight": np.ones(3, np.float16)}
    with opened(tmp_path, parts_of() | others) as checkpoint:
        shown = DequantizedCheckpoint(checkpoint)
        info = quantized_infos(checkpoint)[NAME]
        tensor = read_quantized(checkpoint, info)
        assert shown.names == (NAME, "model.norm.weight")
        assert shown.quantized == {NAME: info}
        wanted = dataclasses.replace(
            checkpoint.info(NAME), shape=(5, 172), dtype=DTYPES[torch.float32]
        )
        assert shown.info(NAME) == wanted
        np.testing.assert_array_equal(shown.read(NAME), dequantize(tensor, wanted.dtype))
        assert shown.info("model.norm.weight") == checkpoint.info("model.norm.weight")
        np.testing.assert_array_equal(shown.read("model.norm.weight"), others["model.norm.weight"])
        with pytest.raises(CheckpointError, match="must be in"):
            shown.info("model.none")
