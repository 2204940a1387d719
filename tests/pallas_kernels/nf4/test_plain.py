"""A stack with plain absmax has the very weights of the one with nested absmax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import nf4_matmul
from pallas_kernels.nf4 import NF4, Bank, dequantize_nf4, with_plain_absmax
from pallas_kernels.nf4.cases import ODD_CASES, make_stack
from tests.pallas_kernels.drawing import normal

NESTED = [case for case in ODD_CASES if case.nested]


@pytest.mark.parametrize("case", NESTED, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_bit_equal(case, dtype):
    stack = make_stack(case, dtype, normal(0))
    plain = jax.jit(with_plain_absmax)(stack)
    assert isinstance(plain, NF4)
    assert plain.nested is None
    assert plain.absmax.dtype == jnp.float32
    assert plain.absmax.shape == stack.absmax.shape
    read = jax.jit(lambda weight, layer: dequantize_nf4(weight, layer, dtype, backend="xla"))
    for layer in map(jnp.int32, range(case.L)):
        np.testing.assert_array_equal(read(plain, layer), read(stack, layer))


def test_products_of_the_kernel_are_bit_equal():
    case = next(case for case in NESTED if case.O % 2 == 0 and case.I % case.block == 0)
    stack = make_stack(case, "float32", normal(0))
    x = jnp.asarray(normal(1)((1, case.I)), jnp.float32)
    products = [
        nf4_matmul(x, weight, jnp.int32(case.L - 1), backend="interpret")
        for weight in (stack, with_plain_absmax(stack))
    ]
    np.testing.assert_array_equal(*products)


def test_what_is_plain_stays_and_a_bank_keeps_its_dense_layers():
    case = NESTED[0]
    stack = make_stack(case, "float32", normal(0))
    plain = with_plain_absmax(stack)
    assert with_plain_absmax(plain) is plain
    dense = jnp.zeros((1, case.O, case.I))
    kinds = (False, *(True,) * case.L)
    bank = Bank(dense=dense, quantized=stack, kinds=kinds, slots=(0, *range(case.L)))
    changed = with_plain_absmax(bank)
    assert isinstance(changed, Bank)
    assert changed.dense is dense
    np.testing.assert_array_equal(changed.quantized.absmax, plain.absmax)
    of_plain = dataclasses.replace(bank, quantized=plain)
    assert with_plain_absmax(of_plain) is of_plain
