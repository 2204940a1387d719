"""What attention refuses, and which blocks it visits."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import attention
from pallas_kernels.attention import api, xla
from pallas_kernels.attention.cases import Case, make_inputs
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import normal

Q = jnp.ones((2, 5, 4, 8))
KV = jnp.ones((2, 7, 2, 8))


def test_rejects_one_side_of_segment_ids():
    with pytest.raises(ValueError, match="got no `kv_segment_ids`"):
        attention(Q, KV, KV, scale=1.0, q_segment_ids=jnp.zeros((2, 5), int))
    with pytest.raises(ValueError, match="got no `q_segment_ids`"):
        attention(Q, KV, KV, scale=1.0, kv_segment_ids=jnp.zeros((2, 7), int))


@pytest.mark.parametrize("option", [{"window": 0}, {"softcap": 0.0}, {"softcap": -1.0}])
def test_rejects_options_that_are_not_positive(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        attention(Q, KV, KV, scale=1.0, **option)


def test_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="4 query heads for 3 key heads"):
        attention(Q, jnp.ones((2, 7, 3, 8)), jnp.ones((2, 7, 3, 8)), scale=1.0)


def test_rejects_an_empty_axis():
    with pytest.raises(ValueError, match="no axis empty"):
        attention(Q[:, :0], KV, KV, scale=1.0)


def test_rejects_mixed_dtypes():
    with pytest.raises(TypeError, match="one dtype; got float32, bfloat16, float32"):
        attention(Q, KV.astype(jnp.bfloat16), KV, scale=1.0)


def test_forced_xla_runs():
    y = quick_jit(partial(attention, scale=1.0, backend="xla"))(Q, KV, KV)
    assert (np.asarray(y) == 1).all()


sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    sizes, sizes, st.integers(1, 12), st.integers(1, 12), st.none() | sizes, st.integers(-45, 45)
)
def test_visits_exactly_the_blocks_with_a_visible_pair(T, S, block_q, block_k, window, offset):
    case = Case(name="drawn", B=1, T=T, S=S, N=1, K=1, H=1, window=window, q_offset=offset)
    inputs = make_inputs(case, "float32", normal(0))
    grid_q, grid_k = xla.grids(T, S, block_q, block_k)
    t = np.arange(grid_q.count * grid_q.size)[:, None] + offset
    s = np.arange(grid_k.count * grid_k.size)[None, :]
    visible = (s <= t) & (t - s < (window or np.inf))
    visible = visible.reshape(grid_q.count, grid_q.size, grid_k.count, grid_k.size).any((1, 3))
    by_query, by_key = np.zeros_like(visible), np.zeros_like(visible)
    common = (case.options, inputs, grid_q, grid_k)
    for i in range(grid_q.count):
        first, last = xla._key_range(*common, jnp.int32(i))
        by_query[i, int(first) : int(last)] = True
    for j in range(grid_k.count):
        first, last = xla._query_range(*common, jnp.int32(j))
        by_key[int(first) : int(last), j] = True
    np.testing.assert_array_equal(by_query, visible)
    np.testing.assert_array_equal(by_key, visible)


@given(st.integers(1, 10_000), st.integers(1, 100_000))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_chosen_blocks_cover_both_axes_within_the_budget(T, S):
    q, k = xla.grids(T, S, None, None)
    assert q.count * q.size >= T
    assert k.count * k.size >= S
    assert q.size * k.size <= xla.BLOCK**2
    assert (q.count - 1) * q.size < T  # no block of padding alone
    assert (k.count - 1) * k.size < S


def test_backends_are_named_once():
    names = [backend.name for backend in api.BACKENDS]
    assert len(names) == len(set(names))
