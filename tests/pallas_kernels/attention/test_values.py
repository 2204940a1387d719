"""Attention's output and gradients against torch, HF and our own definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels import attention
from pallas_kernels.attention import api, xla
from pallas_kernels.attention.cases import ODD_CASES, Case
from pallas_kernels.attention.reference import attention_ref
from tests.pallas_kernels.attention.checks import check, check_gradients, draw, with_gradients
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import FLOAT16
from tests.tolerances import relative_error, tolerance

BACKENDS = {
    "one_block": xla.with_blocks(None, None),
    "many_blocks": xla.with_blocks(16, 12),
    "long_queries": xla.with_blocks(32, 8),
}
BY_NAME = {case.name: case for case in ODD_CASES}


@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_many_blocks_equal_torch_in_float64(case):
    with jax.enable_x64(True):
        check(case, "float64", BACKENDS["many_blocks"])


@pytest.mark.parametrize("backend", ["one_block", "long_queries"])
def test_other_blocks_equal_torch_in_float64(backend):
    with jax.enable_x64(True):
        check(BY_NAME["packed_all_options"], "float64", BACKENDS[backend])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
def test_equals_torch_in_training_dtypes(dtype):
    check(BY_NAME["packed_all_options"], dtype, BACKENDS["many_blocks"])


@pytest.mark.parametrize("name", ["packed_all_options", "decode"])
def test_equals_the_definition(name):
    case = BY_NAME[name]
    inputs, dy = draw(case, "float32")
    ours = with_gradients(partial(api.differentiable, xla.BACKEND, case.options), inputs, dy)
    expected = with_gradients(partial(attention_ref, case.options), inputs, dy)
    assert relative_error(ours[0], expected[0]) <= tolerance("float32", "attention_forward")
    check_gradients(ours[1:], expected[1:], "float32")


@pytest.mark.parity
@pytest.mark.parametrize("window", [None, 7])
def test_equals_gemma2_eager_attention(window):
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    case = Case(name="gemma2", B=2, T=23, S=23, N=4, K=2, H=8, softcap=2.0, window=window)
    inputs, _ = draw(case, "float32")
    t = torch.arange(case.T)
    hidden = t[None, :] > t[:, None]
    if window is not None:
        hidden |= t[None, :] <= t[:, None] - window
    bias = torch.zeros(case.T, case.T).masked_fill(hidden, torch.finfo(torch.float32).min)
    module = torch.nn.Module()
    module.num_key_value_groups = case.N // case.K
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in inputs[:3])
    scale = case.options.scale
    expected, _ = eager_attention_forward(
        module, q, k, v, bias[None, None], scaling=scale, softcap=case.softcap
    )
    run = partial(attention, scale=scale, window=window, softcap=case.softcap)
    y = quick_jit(run)(*inputs[:3])
    assert relative_error(y, expected) <= tolerance("float32", "attention_forward")


def test_scale_and_softcap_change_the_output():
    inputs, _ = draw(BY_NAME["prime_gqa"], "float32")

    def run(scale, softcap=None):
        return quick_jit(partial(attention, scale=scale, softcap=softcap))(*inputs[:3])

    plain = run(0.5)
    assert relative_error(run(0.25), plain) > 0.01
    assert relative_error(run(0.5, softcap=1.0), plain) > 0.01


@pytest.mark.parametrize("backend", ["one_block", "many_blocks"])
def test_query_without_keys_gives_zero_and_zero_gradients(backend):
    case = BY_NAME["rows_without_keys"]
    inputs, dy = draw(case, "float32")
    run = partial(api.differentiable, BACKENDS[backend], case.options)
    y, dq, _, _ = map(np.asarray, with_gradients(run, inputs, dy))
    assert (y[:, :20] == 0).all()
    assert (dq[:, :20] == 0).all()
    assert (y[:, 20:] != 0).any(axis=(2, 3)).all()


def test_only_unseen_rows_leave_no_gradient_in_keys_and_values():
    inputs, dy = draw(Case(name="unseen", B=1, T=5, S=7, N=2, K=1, H=8, q_offset=-5), "float32")
    run = partial(attention, scale=1.0, q_offset=-5)
    y, *gradients = with_gradients(lambda i: run(i.q, i.k, i.v), inputs, dy)
    assert all((np.asarray(x) == 0).all() for x in (y, *gradients))


@pytest.mark.parametrize("backend", ["one_block", "many_blocks"])
def test_packed_documents_do_not_see_each_other(backend):
    case = BY_NAME["packed_all_options"]
    inputs, _ = draw(case, "float32")
    run = quick_jit(partial(api.differentiable, BACKENDS[backend], case.options))
    inside = np.asarray(inputs.q_segment_ids == 1)[..., None, None]

    def changed(x):
        return jnp.asarray(np.where(inside, np.asarray(x) + 3, x))

    other = inputs._replace(q=changed(inputs.q), k=changed(inputs.k), v=changed(inputs.v))
    before, after = np.asarray(run(inputs)), np.asarray(run(other))
    assert (np.where(inside, 0, before - after) == 0).all()
    assert (np.where(inside, before - after, 1) != 0).all()


def test_packed_documents_send_each_other_no_gradient():
    case = BY_NAME["packed_all_options"]
    inputs, dy = draw(case, "float32")
    inside = np.asarray(inputs.q_segment_ids == 1)[..., None, None]
    run = partial(api.differentiable, BACKENDS["many_blocks"], case.options)
    _, *gradients = with_gradients(run, inputs, jnp.asarray(np.where(inside, 0, dy)))
    for gradient in gradients:
        assert (np.where(inside, gradient, 0) == 0).all()
        assert (np.where(inside, 1, gradient) != 0).any()
