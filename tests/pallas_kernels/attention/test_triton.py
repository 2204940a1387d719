"""The Triton kernels' output and gradients: interpreted everywhere, compiled on a GPU."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention
from pallas_kernels.attention import api, triton, xla
from pallas_kernels.attention.block_sizes import Blocks, Sizes
from pallas_kernels.attention.cases import ODD_CASES, Case, make_inputs
from tests.pallas_kernels.attention.checks import check, draw, with_gradients
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import FLOAT16, normal, slow
from tests.tolerances import relative_error, tolerance

# Several blocks on each axis of some forty positions.
SMALL = Sizes(
    forward=Blocks(q=32, k=16, warps=4, stages=1),
    dkv=Blocks(q=16, k=32, warps=4, stages=1),
    dq=Blocks(q=16, k=16, warps=4, stages=1),
)
_, INTERPRETED = triton.with_sizes(SMALL)
WHOLE_ROWS = [case for case in ODD_CASES if case.T == case.S and case.q_offset == 0]
BY_NAME = {case.name: case for case in ODD_CASES}
PACKED = BY_NAME["packed_all_options"]
PLAIN = Case(name="plain", B=2, T=41, S=41, N=4, K=2, H=8)
# 16 and 32 are where blocks begin.
SEGMENTS = {
    "crossing_blocks": [1] * 15 + [2] * 3 + [3] * 20 + [4] * 3,
    "on_block_edges": [1] * 16 + [2] * 16 + [3] * 9,
    "padded_by_0": [1] * 18 + [2] * 10 + [0] * 13,
    "padded_by_-1": [5] * 18 + [6] * 10 + [-1] * 13,
    "not_ascending": [3] * 10 + [1] * 12 + [2] * 7 + [1] * 12,
    "alternating": [0, 1] * 20 + [0],
}


def ids(name):
    return jnp.asarray([SEGMENTS[name], SEGMENTS["crossing_blocks"]], jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16")])
@pytest.mark.parametrize("case", WHOLE_ROWS, ids=lambda case: case.name)
def test_interpreted_equals_torch(case, dtype):
    check(case, dtype, INTERPRETED)


def test_interpreted_equals_torch_in_float16():
    check(PACKED, "float16", INTERPRETED)


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_equal_torch(name):
    check(PLAIN, "float32", INTERPRETED, q_segment_ids=ids(name), kv_segment_ids=ids(name))


def test_segments_with_a_window_and_softcap_equal_torch():
    case = replace(PLAIN, window=12, softcap=2.0)
    padded = ids("padded_by_0")
    check(case, "float32", INTERPRETED, q_segment_ids=padded, kv_segment_ids=padded)


@pytest.mark.parametrize("H", [64, 96, *slow(32, 128, 256)])
def test_head_widths_equal_torch(H):
    check(replace(PLAIN, B=1, N=2, K=1, H=H), "float32", INTERPRETED)


def test_many_query_heads_of_one_key_head_equal_torch():
    check(replace(PLAIN, B=1, N=8, K=1, softcap=3.0), "float32", INTERPRETED)


@pytest.mark.parametrize("window", [17, *slow(1, 16, 41, 2**31 - 1)])
def test_windows_equal_torch(window):
    check(replace(PLAIN, B=1, N=1, K=1, window=window), "float32", INTERPRETED)


def test_queries_of_unknown_segments_give_zero_and_zero_gradients():
    inputs, dy = draw(PLAIN, "float32")
    q_ids = jnp.asarray([[1] * 20 + [9] * 21] * 2)
    inputs = inputs._replace(q_segment_ids=q_ids, kv_segment_ids=jnp.ones((2, 41), int))
    run = partial(api.differentiable, INTERPRETED, PLAIN.options)
    y, dq, dk, dv = map(np.asarray, with_gradients(run, inputs, dy))
    assert (y[:, 20:] == 0).all()
    assert (dq[:, 20:] == 0).all()
    assert (dk[:, 20:] == 0).all()
    assert (dv[:, 20:] == 0).all()
    assert (y[:, :20] != 0).all()


def test_residuals_are_those_of_plain_jax():
    inputs, _ = draw(PLAIN, "float32")
    q_ids = jnp.asarray([[1] * 20 + [9] * 21] * 2)
    inputs = inputs._replace(q_segment_ids=q_ids, kv_segment_ids=jnp.ones((2, 41), int))
    ours, theirs = (
        quick_jit(partial(backend.forward, PLAIN.options))(inputs)[1]
        for backend in (INTERPRETED, xla.BACKEND)
    )
    assert (theirs.lse[..., 20:] == xla.MASKED).all()
    np.testing.assert_array_equal(ours.lse[..., 20:], theirs.lse[..., 20:])
    seen = ours.lse[..., :20], theirs.lse[..., :20]
    assert relative_error(*seen) <= tolerance("float32", "attention_forward")


@pytest.mark.parametrize("dtype", [*slow("float32"), "bfloat16"])
def test_packed_documents_neither_see_each_other_nor_send_gradients(dtype):
    inputs, dy = draw(PLAIN, dtype)
    inputs = inputs._replace(
        q_segment_ids=ids("not_ascending"), kv_segment_ids=ids("not_ascending")
    )
    inside = np.asarray(ids("not_ascending") == 1)[..., None, None]

    def changed(x):
        return jnp.asarray(np.where(inside, np.asarray(x, np.float32) + 3, x), dtype)

    other = inputs._replace(q=changed(inputs.q), k=changed(inputs.k), v=changed(inputs.v))
    run = partial(api.differentiable, INTERPRETED, PLAIN.options)
    before, after = (
        [np.asarray(x, np.float32) for x in with_gradients(run, arrays, d)]
        for arrays, d in ((inputs, dy), (other, changed(dy)))
    )
    for one, two in zip(before, after, strict=True):
        assert (np.where(inside, 0, one - two) == 0).all()
        assert (np.where(inside, one - two, 0) != 0).any()


def test_hidden_blocks_are_not_visited():
    # NaN in every array where the first document is; a visited block would spread it.
    inputs, dy = draw(replace(PLAIN, B=1), "float32")
    documents = jnp.asarray([[1] * 32 + [2] * 9])
    q, k, v, dy = (x.at[:, :32].set(jnp.nan) for x in (*inputs[:3], dy))
    inputs = inputs._replace(q=q, k=k, v=v, q_segment_ids=documents, kv_segment_ids=documents)
    run = partial(api.differentiable, INTERPRETED, PLAIN.options)
    for x in with_gradients(run, inputs, dy):
        assert np.isfinite(x[:, 32:]).all()
        assert np.isnan(x[:, :32]).any()


def test_blocks_behind_the_window_are_not_visited():
    case = replace(PLAIN, B=1, T=64, S=64, window=8)
    inputs, dy = draw(case, "float32")
    run = partial(api.differentiable, INTERPRETED, case.options)
    k, v = (x.at[:, :16].set(jnp.nan) for x in inputs[1:3])
    y, dq, _, _ = with_gradients(run, inputs._replace(k=k, v=v), dy)
    assert np.isfinite(y[:, 32:]).all()
    assert np.isfinite(dq[:, 32:]).all()
    q, dy = (x.at[:, 48:].set(jnp.nan) for x in (inputs.q, dy))
    _, _, dk, dv = with_gradients(run, inputs._replace(q=q), dy)
    assert np.isfinite(dk[:, :32]).all()
    assert np.isfinite(dv[:, :32]).all()


@pytest.mark.parametrize("backend", ["interpret", "xla"])
@pytest.mark.parametrize("window", [7, *slow(1, 2**31 - 1)])
def test_traced_window_equals_the_static_one(window, backend):
    inputs, dy = draw(PLAIN, "float32")

    def run(window):
        call = partial(attention, scale=1.0, window=window, backend=backend)
        return with_gradients(lambda i: call(*i[:3]), inputs, dy)

    for traced, static in zip(run(jnp.int32(window)), run(window), strict=True):
        np.testing.assert_array_equal(traced, static)


def test_layers_of_one_scan_may_differ_in_their_window():
    inputs, _ = draw(PLAIN, "float32")
    call = partial(attention, scale=1.0, backend="interpret")

    def layer(x, window):
        return call(x, *inputs[1:3], window=window), None

    y, _ = quick_jit(partial(jax.lax.scan, layer))(inputs.q, jnp.array([3, 41]))
    expected = quick_jit(lambda q: call(call(q, *inputs[1:3], window=3), *inputs[1:3]))(inputs.q)
    assert relative_error(y, expected) <= tolerance("float32", "attention_forward")


def test_vmap_equals_plain_jax_one_by_one():
    case = replace(PACKED, B=1, N=2, K=1)
    inputs, _ = draw(case, "float32")
    q, k, v = (jnp.stack([x, x + 1]) for x in inputs[:3])
    segments = jnp.stack([inputs.q_segment_ids, inputs.q_segment_ids // 2])

    def loss(backend, q, k, v, segments):
        arrays = inputs._replace(q=q, k=k, v=v, q_segment_ids=segments, kv_segment_ids=segments)
        return (api.differentiable(backend, case.options, arrays) ** 2).sum()

    ours, one = (
        jax.grad(partial(loss, backend), argnums=(0, 1, 2))
        for backend in (INTERPRETED, xla.BACKEND)
    )
    batched, one = quick_jit(jax.vmap(ours))(q, k, v, segments), quick_jit(one)
    for n in range(2):
        for actual, wanted in zip(batched, one(q[n], k[n], v[n], segments[n]), strict=True):
            error = relative_error(actual[n], wanted)
            assert error <= tolerance("float32", "attention_gradient")


GPU_CASES = [
    *WHOLE_ROWS,
    Case(name="blocks", B=2, T=512, S=512, N=4, K=2, H=128),
    Case(name="ragged", B=1, T=397, S=397, N=4, K=1, H=64, window=100),
    Case(name="packed", B=2, T=640, S=640, N=4, K=2, H=128, document=100),
    Case(name="gemma", B=1, T=300, S=300, N=2, K=1, H=256, softcap=50.0),
    Case(name="odd_width", B=1, T=300, S=300, N=2, K=1, H=80),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.name)
def test_compiled_equals_torch(case, dtype):
    check(case, dtype, triton.BACKEND)


@pytest.mark.gpu
def test_compiled_gradients_have_the_same_bits_each_time():
    case = Case(name="again", B=2, T=1024, S=1024, N=8, K=2, H=128, document=300)
    inputs = make_inputs(case, "bfloat16", normal(0))
    dy = jnp.asarray(normal(1)(inputs.q.shape), "bfloat16")
    run = partial(api.differentiable, triton.BACKEND, case.options)
    first = with_gradients(run, inputs, dy)
    for _ in range(3):
        for again, once in zip(with_gradients(run, inputs, dy), first, strict=True):
            np.testing.assert_array_equal(again, once)
