"""The linear cross-entropy's loss and gradients against torch and our own definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels import linear_cross_entropy
from pallas_kernels.cross_entropy.cases import ODD_CASES, make_inputs
from pallas_kernels.cross_entropy.reference import linear_cross_entropy_ref
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

BY_NAME = {case.name: case for case in ODD_CASES}
over_cases = pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)


def torch_loss(case, x, head, labels):
    """Give the loss, dx and d_head as float64 numpy arrays."""
    leaves = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (x, head)]
    z = torch.nn.functional.linear(*leaves)
    if case.softcap is not None:
        z = case.softcap * torch.tanh(z / case.softcap)
    targets = torch.tensor(np.asarray(labels)).long()
    loss = torch.nn.functional.cross_entropy(z, targets, ignore_index=-100, reduction="sum")
    loss.backward()
    return loss.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


def ours(case, x, head, labels):
    run = partial(linear_cross_entropy, softcap=case.softcap, chunk_rows=case.chunk_rows)
    loss, gradients = quick_jit(jax.value_and_grad(run, argnums=(0, 1)))(x, head, labels)
    return loss, *map(np.asarray, gradients)


def check(case, dtype, wide):
    x, head, labels = make_inputs(case, dtype, normal(1))
    loss, dx, d_head = ours(case, x, head, labels)
    assert (loss.dtype, dx.dtype, d_head.dtype) == (wide, dtype, dtype)
    expected = torch_loss(case, x, head, labels)
    assert relative_error(loss, expected[0]) <= tolerance(dtype, "cross_entropy_forward")
    assert relative_error(dx, expected[1]) <= tolerance(dtype, "cross_entropy_gradient")
    assert relative_error(d_head, expected[2]) <= tolerance(dtype, "cross_entropy_gradient")


@over_cases
def test_equals_torch_in_float64(case):
    with jax.enable_x64(True):
        check(case, "float64", "float64")


@pytest.mark.parametrize("name", ["softcap_chunks", "one_row"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equals_torch_in_training_dtypes(name, dtype):
    check(BY_NAME[name], dtype, "float32")


@pytest.mark.parametrize("name", ["softcap_chunks", "prime_one_chunk"])
def test_equals_the_definition(name):
    case = BY_NAME[name]
    inputs = make_inputs(case, "float32", normal(2))
    run = quick_jit(
        jax.value_and_grad(partial(linear_cross_entropy_ref, case.options), argnums=(0, 1))
    )
    value, gradients = run(*inputs)
    loss, *actual = ours(case, *inputs)
    assert relative_error(loss, value) <= tolerance("float32", "cross_entropy_forward")
    for gradient, wanted in zip(actual, gradients, strict=True):
        assert relative_error(gradient, wanted) <= tolerance("float32", "cross_entropy_gradient")


def test_all_rows_ignored_gives_exact_zeros():
    loss, dx, d_head = ours(*_all_ignored())
    assert loss == 0
    assert (dx == 0).all()
    assert (d_head == 0).all()


def _all_ignored():
    case = BY_NAME["all_ignored"]
    return case, *make_inputs(case, "float32", normal(0))


def test_ignored_rows_have_no_gradient_and_other_rows_do():
    case = BY_NAME["prime_chunks"]
    x, head, labels = make_inputs(case, "float32", normal(0))
    _, dx, _ = ours(case, x, head, labels)
    np.testing.assert_array_equal((dx == 0).all(1), labels == -100)


def test_huge_logits_stay_finite():
    x = jnp.array([[1e4, -1e4], [3e4, 0.0]])
    head = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]])
    loss, dx, d_head = ours(BY_NAME["one_row_chunks"], x, head, jnp.array([1, 0]))
    assert loss == pytest.approx(2e4)
    assert np.isfinite(dx).all()
    assert np.isfinite(d_head).all()


def test_label_outside_the_vocabulary_counts_a_logit_of_zero():
    x, head, _ = make_inputs(BY_NAME["one_row"], "float32", normal(0))
    loss = quick_jit(linear_cross_entropy)(x, head, jnp.array([999]))
    expected = jax.nn.logsumexp(x @ head.T)
    assert relative_error(loss, expected) <= tolerance("float32", "cross_entropy_forward")
