"""Dequantised values against bitsandbytes on the CPU, bit for bit; -0 equals 0."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels import Unsupported
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLE, midpoints
from pallas_kernels.nf4 import (
    NF4,
    Beside,
    NestedAbsmax,
    dequantize_group,
    dequantize_nf4,
    from_pairs,
    to_pairs,
)
from pallas_kernels.nf4.cases import ODD_CASES
from pallas_kernels.nf4.reference import dequantize_nf4_ref
from pallas_kernels.nf4.tables import NF4_TABLE
from tests.pallas_kernels.drawing import FLOAT16
from tests.pallas_kernels.nf4.stacks import COMPILED, four_bits, functional

BY_NAME = {case.name: case for case in ODD_CASES}
DTYPES = ("float32", "bfloat16", FLOAT16)


def of_whole_halves(case):
    """True where a kernel serves the case."""
    return -(-case.O * case.I // 2) % case.block == 0


def read(backend, stack, dtype):
    """All layers by one program, which reads them by a traced index, as float32."""

    @jax.jit
    def run(stack, layer):
        return dequantize_nf4(stack, layer, dtype, backend=backend)

    layers = [run(stack, jnp.int32(layer)) for layer in range(stack.shape[0])]
    assert run._cache_size() == 1
    assert {layer.dtype for layer in layers} == {jnp.dtype(dtype)}
    return np.stack([np.asarray(layer, np.float32) for layer in layers])


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_bitsandbytes(dtype, nested, backend):
    stack, wanted = four_bits(replace(BY_NAME["rows_of_172"], nested=nested), dtype)
    np.testing.assert_array_equal(read(backend, stack, dtype), wanted)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_bitsandbytes_by_the_table_of_fp4(dtype, backend):
    stack, wanted = four_bits(BY_NAME["wide_blocks"], dtype, "fp4")
    np.testing.assert_array_equal(read(backend, stack, dtype), wanted)


@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_every_shape_and_block_equals_bitsandbytes(case):
    stack, wanted = four_bits(case)
    for backend in ("xla", "interpret") if of_whole_halves(case) else ("xla",):
        np.testing.assert_array_equal(read(backend, stack, "float32"), wanted, err_msg=backend)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("width", "columns"), [(0, ()), (48, (0, 5)), (48, (40, 0)), (6, (0, 2))])
@pytest.mark.parametrize("name", ["one_tile", "odd_rows"])
def test_weights_stand_below_each_other_and_columns_beside(name, width, columns, backend):
    stack, wanted = four_bits(BY_NAME[name])
    rows, first, below = stack.shape[1], 2, 3
    own = np.random.default_rng(0).normal(size=(3, first + 2 * rows, 8)).astype(np.float32)
    for layer in range(stack.shape[0]):
        place = layer % 3
        beside = Beside(jnp.asarray(own), jnp.int32(place), first, columns, width)
        both = dequantize_group(
            [stack, stack],
            layer,
            "float32",
            beside=beside if width else None,
            below=below,
            backend=backend,
        )
        expected = np.zeros((2 * rows, stack.shape[2] + width), np.float32)
        expected[:, : stack.shape[2]] = np.concatenate([wanted[layer]] * 2)
        for number, column in enumerate(columns):
            here = slice(number * rows, (number + 1) * rows)
            start = stack.shape[2] + column
            values = own[place, first:][here, : width - column]
            expected[here, start : start + 8] = values
        assert both.shape == (2 * rows + below, expected.shape[1])
        np.testing.assert_array_equal(both[: 2 * rows], expected)


def test_columns_beside_rows_that_are_no_whole_blocks_are_plain_jaxs():
    stack, wanted = four_bits(BY_NAME["rows_of_172"])
    beside = Beside(jnp.ones((1, stack.shape[1], 3), "float32"), jnp.int32(0), 0, (0,), 3)
    wide = dequantize_group([stack], 0, "float32", beside=beside)
    np.testing.assert_array_equal(wide, np.concatenate([wanted[0], beside.stack[0]], axis=1))
    with pytest.raises(Unsupported, match="a row must be whole blocks; got rows of 172"):
        dequantize_group([stack], 0, "float32", beside=beside, backend="interpret")


@pytest.mark.parametrize(
    ("name", "kind"), [("odd_plain", "nf4"), ("rows_of_172", "nf4"), ("rows_of_172", "fp4")]
)
def test_the_definition_equals_bitsandbytes(name, kind):
    stack, wanted = four_bits(BY_NAME[name], "bfloat16", kind)
    for layer in range(stack.shape[0]):
        values = dequantize_nf4_ref(stack, layer, "bfloat16")
        np.testing.assert_array_equal(np.asarray(values, np.float32), wanted[layer])


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("stored", "result"), [("bfloat16", "float32"), ("float16", "bfloat16")])
def test_values_are_rounded_to_the_weights_dtype_first(stored, result, backend):
    stack, wanted = four_bits(BY_NAME["one_tile"], stored)
    wanted = torch.tensor(wanted).to(getattr(torch, result)).float().numpy()
    np.testing.assert_array_equal(read(backend, stack, result), wanted)
    np.testing.assert_array_equal(dequantize_nf4_ref(stack, 0, result), wanted[0])
    directly = read("xla", replace(stack, dtype=result), result)
    assert (directly != wanted).any()  # the case tells the two apart


def absmax_that_tells_roundings_apart():
    """A scale and an offset that a fused multiply-add reads otherwise, and the right absmax."""
    table = np.asarray(DYNAMIC_TABLE, np.float32)
    rng = np.random.default_rng(0)
    for _ in range(100):
        scale, offset = rng.uniform(0.01, 0.1, 2).astype(np.float32)
        apart = table * scale + offset
        # The product of two float32 is exact in float64.
        fused = (table.astype(np.float64) * np.float64(scale) + np.float64(offset)).astype("f4")
        if (apart != fused).sum() > 64:
            return scale, offset, apart, fused
    raise AssertionError("no scale and offset found")


@pytest.mark.parametrize("backend", COMPILED)
def test_product_and_sum_of_a_nested_absmax_are_rounded_apart(backend):
    scale, offset, apart, fused = absmax_that_tells_roundings_apart()
    assert 64 < (apart != fused).sum() < 256
    stack = NF4(
        codes=jnp.full((1, 256 * 32), 0xFF, jnp.uint8),  # ones: a weight is its block's absmax
        absmax=jnp.arange(256, dtype=jnp.uint8)[None],
        table=jnp.asarray(NF4_TABLE, jnp.float32),
        nested=NestedAbsmax(
            absmax=jnp.asarray([[scale]]),
            table=jnp.asarray(DYNAMIC_TABLE, jnp.float32),
            offset=jnp.asarray([offset]),
        ),
        matrix=(256, 64),
        dtype="float32",
    )

    def run(stack):
        return dequantize_nf4(stack, 0, "float32", backend=backend)

    # Unoptimised code, in which the other tests run, fuses nothing on a CPU.
    options = {"xla_backend_optimization_level": 3}
    values = jax.jit(run, compiler_options=options)(stack)
    np.testing.assert_array_equal(values, np.repeat(apart[:, None], 64, axis=1))


def test_tables_are_those_of_bitsandbytes():
    dynamic = functional.create_dynamic_map().numpy()
    np.testing.assert_array_equal(np.asarray(DYNAMIC_TABLE, np.float32), dynamic)
    table = functional.get_4bit_type("nf4", device="cpu").numpy()
    np.testing.assert_array_equal(np.asarray(NF4_TABLE, np.float32), table)
    middles = (table[1:] + table[:-1]) * np.float32(0.5)
    np.testing.assert_array_equal(np.asarray(midpoints(NF4_TABLE), np.float32), middles)


def test_pairs_become_halves():
    pairs = jnp.asarray([0x01, 0x23, 0x45], jnp.uint8)  # elements 0 1 2 3 4 5
    assert [int(byte) for byte in from_pairs(pairs)] == [0x03, 0x14, 0x25]


@pytest.mark.parametrize("size", [1, 2, 3, 256])
def test_halves_become_pairs_again(size):
    assert [int(byte) for byte in to_pairs(jnp.asarray([0x03, 0x14, 0x25], jnp.uint8))] == [
        0x01,
        0x23,
        0x45,
    ]
    pairs = jnp.asarray(np.random.default_rng(0).integers(0, 256, size), jnp.uint8)
    np.testing.assert_array_equal(to_pairs(from_pairs(pairs)), pairs)
