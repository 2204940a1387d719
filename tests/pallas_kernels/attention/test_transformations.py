"""Attention under jit, scan, vmap and checkpoint; decoding; memory."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from pallas_kernels import attention
from pallas_kernels.attention import api, xla
from pallas_kernels.attention.cases import Case, make_inputs
from pallas_kernels.attention.reference import attention_ref
from tests.pallas_kernels.compiled import array_sizes, quick_jit, temporary_bytes
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

CASE = Case(name="small", B=2, T=29, S=29, N=4, K=2, H=8, window=11, softcap=2.0)
MANY_BLOCKS = xla.with_blocks(8, 16)
FORWARD = tolerance("float32", "attention_forward")
GRADIENT = tolerance("float32", "attention_gradient")


@pytest.fixture
def inputs():
    return make_inputs(CASE, "float32", normal(3))


def blocks(q, k, v, q_offset=0):
    return api.differentiable(
        MANY_BLOCKS, CASE.options, api.Inputs(q, k, v, None, None, jnp.asarray(q_offset))
    )


@pytest.mark.parametrize("run", [blocks, partial(attention, scale=CASE.options.scale)])
def test_decoding_step_equals_the_training_row(inputs, run):
    q, k, v = inputs[:3]

    def step(carry, t):
        row = run(lax.dynamic_slice_in_dim(q, t, 1, 1), k, v, q_offset=t)
        return carry, row[:, 0]

    _, rows = quick_jit(lambda: lax.scan(step, 0, jnp.arange(CASE.T)))()
    expected = quick_jit(run)(q, k, v)
    assert relative_error(rows.transpose(1, 0, 2, 3), expected) <= FORWARD


def test_offset_as_python_int_equals_traced_offset(inputs):
    q, k, v = inputs[:3]
    rows = q[:, 7:12]
    traced = quick_jit(lambda offset: attention(rows, k, v, scale=1.0, q_offset=offset))
    fixed = quick_jit(lambda: attention(rows, k, v, scale=1.0, q_offset=7))()
    whole = quick_jit(lambda: attention(q, k, v, scale=1.0))()
    assert relative_error(fixed, whole[:, 7:12]) <= FORWARD
    assert relative_error(traced(jnp.int32(7)), fixed) <= FORWARD
    assert relative_error(traced(jnp.int32(3)), fixed) > 0.01


def test_vmap_equals_a_loop(inputs):
    q, k, v = (jnp.stack([x, x + 1]) for x in inputs[:3])
    offsets = jnp.array([-4, 9])

    def loss(q, k, v, offset):
        return (blocks(q, k, v, offset) ** 2).sum()

    function = jax.value_and_grad(loss, argnums=(0, 1, 2))
    batched, gradients = quick_jit(jax.vmap(function))(q, k, v, offsets)
    one = quick_jit(function)
    for n in range(2):
        value, expected = one(q[n], k[n], v[n], offsets[n])
        assert relative_error(batched[n], value) <= FORWARD
        for actual, wanted in zip(gradients, expected, strict=True):
            assert relative_error(actual[n], wanted) <= GRADIENT


def test_checkpoint_inside_scan_leaves_gradients_unchanged(inputs):
    q, k, v = inputs[:3]

    def loss(wrap, q, k, v):
        def layer(x, _):
            return x + blocks(x, k, v), None

        y, _ = lax.scan(wrap(layer), q, None, length=3)
        return (y**2).sum()

    plain = quick_jit(jax.grad(partial(loss, lambda f: f), (0, 1, 2)))(q, k, v)
    remat = quick_jit(jax.grad(partial(loss, jax.checkpoint), (0, 1, 2)))(q, k, v)
    for actual, wanted in zip(remat, plain, strict=True):
        assert relative_error(actual, wanted) <= GRADIENT


def test_named_residuals_spare_the_second_forward(inputs):
    saved = jax.checkpoint_policies.save_only_these_names(api.OUTPUT_NAME, api.STATISTICS_NAME)

    def forwards_and_backward(policy):
        layer = jax.checkpoint(lambda q, k, v: blocks(2 * q, k, v).sum(), policy=policy)
        return str(jax.make_jaxpr(jax.grad(layer))(*inputs[:3])).count(" tanh ")

    assert forwards_and_backward(None) == 3
    assert forwards_and_backward(saved) == 2


def big(T):
    return make_inputs(Case(name="big", B=1, T=T, S=2048, N=2, K=1, H=16), "float32", normal(0))


def gradient_of(run):
    return jax.grad(lambda q, k, v: run(q, k, v).sum(), (0, 1, 2))


def test_never_makes_the_score_matrix_at_training_lengths():
    q, k, v = big(2048)[:3]
    ours = gradient_of(partial(attention, scale=1.0))
    assert max(array_sizes(ours, q, k, v)) < 2048 * 2048
    assert temporary_bytes(ours, q, k, v) < 2048 * 2048 * 4
    whole = gradient_of(
        lambda q, k, v: attention_ref(CASE.options, api.Inputs(q, k, v, None, None, jnp.int32(0)))
    )
    assert max(array_sizes(whole, q, k, v)) >= 2048 * 2048  # the check can see one


def test_one_decoding_position_needs_no_loop_and_no_padding():
    q, k, v = big(1)[:3]
    step = jax.jit(lambda q, k, v, t: attention(q, k, v, scale=1.0, q_offset=t))
    lowered = step.lower(q, k, v, jnp.int32(9)).as_text()
    assert "while" not in lowered
    assert "pad" not in lowered


def test_window_skips_hidden_blocks():
    # q, k, v are NaN where the window hides them; a visited block would spread them.
    case = Case(name="skip", B=1, T=64, S=64, N=1, K=1, H=8, window=8)
    inputs = make_inputs(case, "float32", normal(0))
    k, v = (x.at[:, :32].set(jnp.nan) for x in (inputs.k, inputs.v))
    run = partial(api.differentiable, xla.with_blocks(16, 16), case.options)
    y = quick_jit(run)(inputs._replace(k=k, v=v))
    assert jnp.isfinite(y[:, 48:]).all()
