"""The linear cross-entropy's loss and gradients against torch and our own definition."""

from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels import linear_cross_entropy, linear_cross_entropy_rows
from pallas_kernels.cross_entropy import triton
from pallas_kernels.cross_entropy.cases import ODD_CASES, make_inputs
from pallas_kernels.cross_entropy.reference import linear_cross_entropy_ref
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import FLOAT16, normal
from tests.tolerances import relative_error, tolerance

BY_NAME = {case.name: case for case in ODD_CASES}
over_cases = pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)


def torch_loss(case, x, head, labels):
    """Give the loss, dx and d_head as float64 numpy arrays."""
    leaves = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (x, head)]
    z = case.logit_scale * torch.nn.functional.linear(*leaves)
    if case.softcap is not None:
        z = case.softcap * torch.tanh(z / case.softcap)
    targets = torch.tensor(np.asarray(labels)).long()
    losses = torch.nn.functional.cross_entropy(
        z, targets, ignore_index=-100, label_smoothing=case.label_smoothing, reduction="none"
    )
    losses.sum().backward()
    return losses.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


def ours(case, x, head, labels, backend="xla"):
    run = partial(linear_cross_entropy, **asdict(case.options), backend=backend)
    loss, gradients = quick_jit(jax.value_and_grad(run, argnums=(0, 1)))(x, head, labels)
    return loss, *map(np.asarray, gradients)


def check(case, dtype, wide, function):
    """Compare a function that gives (loss, dx, d_head) with torch."""
    inputs = make_inputs(case, dtype, normal(1))
    loss, dx, d_head = function(*inputs)
    assert (loss.dtype, dx.dtype, d_head.dtype) == (wide, dtype, dtype)
    losses, *expected = torch_loss(case, *inputs)
    assert relative_error(loss, losses.sum()) <= tolerance(dtype, "cross_entropy_forward")
    for gradient, wanted in zip((dx, d_head), expected, strict=True):
        assert relative_error(gradient, wanted) <= tolerance(dtype, "cross_entropy_gradient")


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles a row, the last of them ragged or not."""
    monkeypatch.setattr(triton, "TILE", 16)


@over_cases
def test_equals_torch_in_float64(case):
    with jax.enable_x64(True):
        check(case, "float64", "float64", partial(ours, case))


@over_cases
def test_definition_equals_torch_in_float64(case):
    with jax.enable_x64(True):
        run = jax.value_and_grad(partial(linear_cross_entropy_ref, case.options), (0, 1))

        def flat(*inputs):
            loss, gradients = quick_jit(run)(*inputs)
            return loss, *gradients

        check(case, "float64", "float64", flat)


@pytest.mark.parametrize("name", ["all_options", "softcap_chunks", "one_row"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
def test_equals_torch_in_training_dtypes(name, dtype):
    check(BY_NAME[name], dtype, "float32", partial(ours, BY_NAME[name]))


@pytest.mark.usefixtures("small_tiles")
@over_cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernel_equals_torch(case, dtype):
    check(case, dtype, "float32", partial(ours, case, backend="interpret"))


@pytest.mark.parametrize("backend", ["xla", "interpret"])
@pytest.mark.parametrize("name", ["all_options", "softcap_chunks", "prime_one_chunk"])
def test_equals_the_definition(name, backend):
    case = BY_NAME[name]
    inputs = make_inputs(case, "float32", normal(2))
    run = quick_jit(
        jax.value_and_grad(partial(linear_cross_entropy_ref, case.options), argnums=(0, 1))
    )
    value, gradients = run(*inputs)
    loss, *actual = ours(case, *inputs, backend)
    assert relative_error(loss, value) <= tolerance("float32", "cross_entropy_forward")
    for gradient, wanted in zip(actual, gradients, strict=True):
        assert relative_error(gradient, wanted) <= tolerance("float32", "cross_entropy_gradient")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("backend", ["xla", "interpret"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@over_cases
def test_losses_of_rows_equal_torch(case, dtype, backend):
    inputs = make_inputs(case, dtype, normal(1))
    run = partial(linear_cross_entropy_rows, **asdict(case.options), backend=backend)
    losses = quick_jit(run)(*inputs)
    assert losses.dtype == "float32"
    expected = torch_loss(case, *inputs)[0]
    assert relative_error(losses, expected) <= tolerance(dtype, "cross_entropy_rows")
    np.testing.assert_array_equal(losses == 0, inputs[2] == -100)


@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_all_rows_ignored_gives_exact_zeros(backend):
    loss, dx, d_head = ours(*_all_ignored(), backend)
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


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_huge_logits_stay_finite(backend, softcap):
    x = jnp.array([[1e4, -1e4], [3e4, 0.0]])
    head = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]])
    case = replace(BY_NAME["one_row_chunks"], softcap=softcap)
    loss, dx, d_head = ours(case, x, head, jnp.array([1, 0]), backend)
    wanted = torch_loss(case, x, head, [1, 0])[0].sum()
    assert relative_error(loss, wanted) <= tolerance("float32", "cross_entropy_forward")
    assert np.isfinite(dx).all()
    assert np.isfinite(d_head).all()


@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_label_outside_the_vocabulary_counts_a_logit_of_zero(backend):
    x, head, _ = make_inputs(BY_NAME["one_row"], "float32", normal(0))
    run = partial(linear_cross_entropy, backend=backend)
    loss = quick_jit(run)(x, head, jnp.array([999]))
    expected = jax.nn.logsumexp(x @ head.T)
    assert relative_error(loss, expected) <= tolerance("float32", "cross_entropy_forward")


def test_an_ignored_row_of_nan_spreads_to_no_other():
    x = jnp.array([[jnp.nan, 1.0], [1.0, 2.0]])
    head = jnp.ones((5, 2))
    loss, dx, _ = ours(BY_NAME["prime_one_chunk"], x, head, jnp.array([-100, 1]), "interpret")
    assert np.isfinite(loss)
    np.testing.assert_array_equal(dx[0], 0)
