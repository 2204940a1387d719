"""The linear cross-entropy under jit, scan and vmap; what it computes and keeps; refusals."""

from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from pallas_kernels import linear_cross_entropy, linear_cross_entropy_rows
from pallas_kernels.cross_entropy import chunks
from pallas_kernels.cross_entropy.cases import Case, make_inputs
from pallas_kernels.cross_entropy.reference import linear_cross_entropy_ref
from tests.pallas_kernels.compiled import array_sizes, quick_jit, temporary_bytes
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

CASE = Case(name="small", M=23, D=8, V=37, softcap=2.0, chunk_rows=5)
BIG = Case(name="big", M=1031, D=16, V=4001, chunk_rows=64)
FORWARD = tolerance("float32", "cross_entropy_forward")
GRADIENT = tolerance("float32", "cross_entropy_gradient")


def loss(case, x, head, labels, backend="xla"):
    return linear_cross_entropy(x, head, labels, **asdict(case.options), backend=backend)


small = partial(loss, CASE)
big = partial(loss, BIG)


def gradients(function, argnums=(0, 1)):
    return quick_jit(jax.grad(function, argnums))


@pytest.fixture
def inputs():
    return make_inputs(CASE, "float32", normal(3))


def test_gradient_follows_the_incoming_scalar(inputs):
    x, head, labels = inputs
    one = gradients(small)(x, head, labels)
    scaled = gradients(lambda *a: -3 * small(*a) / 7)(x, head, labels)
    for actual, unit in zip(scaled, one, strict=True):
        assert relative_error(actual, -3 / 7 * unit) <= GRADIENT


def test_one_input_differentiated_alone_has_the_same_gradient(inputs):
    both = gradients(small)(*inputs)
    assert relative_error(gradients(small, 0)(*inputs), both[0]) <= GRADIENT
    assert relative_error(gradients(small, 1)(*inputs), both[1]) <= GRADIENT


def test_scan_over_micro_batches_sums_losses_and_gradients(inputs):
    x, head, labels = inputs
    xs, ys = jnp.stack([x, x[::-1] + 1]), jnp.stack([labels, labels])

    def total(xs, head):
        def step(carry, batch):
            return carry + small(batch[0], head, batch[1]), None

        return lax.scan(step, jnp.zeros(()), (xs, ys))[0]

    value, (dxs, d_head) = quick_jit(jax.value_and_grad(total, (0, 1)))(xs, head)
    one = quick_jit(jax.value_and_grad(small, (0, 1)))
    parts = [one(xs[n], head, ys[n]) for n in range(2)]
    assert relative_error(value, parts[0][0] + parts[1][0]) <= FORWARD
    dx = jnp.stack([part[1][0] for part in parts])
    assert relative_error(dxs, dx) <= GRADIENT
    assert relative_error(d_head, parts[0][1][1] + parts[1][1][1]) <= GRADIENT


@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_vmap_equals_a_loop(inputs, backend):
    x, head, labels = inputs
    xs = jnp.stack([x, x * 2])
    run = partial(loss, CASE, backend=backend)
    values, dxs = quick_jit(jax.vmap(jax.value_and_grad(run), (0, None, None)))(xs, head, labels)
    one = quick_jit(jax.value_and_grad(small))
    for n in range(2):
        value, dx = one(xs[n], head, labels)
        assert relative_error(values[n], value) <= FORWARD
        assert relative_error(dxs[n], dx) <= GRADIENT


def test_checkpoint_leaves_the_gradient_unchanged(inputs):
    expected = gradients(small)(*inputs)
    remat = gradients(jax.checkpoint(small))(*inputs)
    for actual, wanted in zip(remat, expected, strict=True):
        assert relative_error(actual, wanted) <= GRADIENT


def test_never_makes_the_logits_of_all_rows():
    arguments = make_inputs(BIG, "float32", normal(0))
    ours = jax.grad(big, (0, 1))
    assert max(array_sizes(ours, *arguments)) < BIG.M * BIG.V / 4
    assert temporary_bytes(ours, *arguments) < BIG.M * BIG.V
    whole = jax.grad(partial(linear_cross_entropy_ref, BIG.options), (0, 1))
    assert max(array_sizes(whole, *arguments)) >= BIG.M * BIG.V  # the check can see them


# Ways to leave the head frozen: not differentiated, closed over, or stopped.
FROZEN = {
    "not_differentiated": jax.grad(big),
    "closed_over": lambda x, head, labels: jax.grad(lambda x: big(x, head, labels))(x),
    "stopped": jax.grad(lambda x, h, y: big(x, lax.stop_gradient(h), y), (0, 1)),
    "inside_jit": jax.grad(jax.jit(big)),
    "inside_scan": jax.grad(
        lambda x, h, y: lax.scan(lambda c, _: (c + big(x, h, y), None), 0.0, None, length=2)[0]
    ),
}


def head_gradients(function, arguments):
    """Count the products that make a [V, D] array, before any dead code is removed."""
    text = str(jax.make_jaxpr(function)(*arguments))
    return text.count(f"f32[{BIG.V},{BIG.D}] = dot_general")


@pytest.mark.parametrize("way", FROZEN)
def test_frozen_head_gets_no_gradient_array(way):
    arguments = make_inputs(BIG, "float32", normal(0))
    assert head_gradients(FROZEN[way], arguments) == 0


def test_trained_head_gets_one_gradient_array():
    arguments = make_inputs(BIG, "float32", normal(0))
    assert head_gradients(jax.grad(big, (0, 1)), arguments) == 1


def test_frozen_head_needs_no_memory_of_its_size():
    case = Case(name="wide", M=64, D=256, V=4001, chunk_rows=16)
    arguments = make_inputs(case, "float32", normal(0))
    head_bytes = case.V * case.D * 4
    assert temporary_bytes(jax.grad(partial(loss, case)), *arguments) < head_bytes / 2


@pytest.mark.parametrize("trained", [(0,), (0, 1)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("M", [4096, 5000, 65536])
@pytest.mark.parametrize("V", [128_256, 256_000])
def test_real_vocabularies_need_at_most_600_mb(V, M, dtype, trained):
    # A narrow head, so that what is left is of the logits' size.
    shapes = (((M, 64), dtype), ((V, 64), dtype), ((M,), "int32"))
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    run = jax.value_and_grad(partial(linear_cross_entropy, backend="xla"), trained)
    assert temporary_bytes(run, *arguments) <= 600e6


def test_memory_does_not_grow_with_the_rows():
    def needed(M):
        shapes = (((M, 64), "float32"), ((4001, 64), "float32"), ((M,), "int32"))
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        run = jax.value_and_grad(partial(linear_cross_entropy, chunk_rows=64, backend="xla"))
        return temporary_bytes(run, *arguments)

    # Beside losses and labels: neither x nor dx is padded or copied.
    assert needed(65_537) - needed(1025) <= 16 * (65_537 - 1025)


def test_losses_of_rows_never_make_the_logits_of_all_rows():
    arguments = make_inputs(BIG, "float32", normal(0))
    run = partial(linear_cross_entropy_rows, chunk_rows=BIG.chunk_rows, backend="xla")
    assert max(array_sizes(run, *arguments)) < BIG.M * BIG.V / 4
    text = jax.jit(run).lower(*arguments).compile().as_text()
    assert text.count(" dot(") == 1


def test_losses_of_rows_have_no_gradient(inputs):
    with pytest.raises(NotImplementedError, match="Differentiate `linear_cross_entropy`"):
        jax.grad(lambda *a: linear_cross_entropy_rows(*a).sum())(*inputs)


def test_loss_alone_makes_one_product():
    arguments = make_inputs(BIG, "float32", normal(0))

    def products(function):
        text = jax.jit(function).lower(*arguments).compile().as_text()
        return text.count(" dot(")

    assert products(big) == 1
    assert products(jax.grad(big)) == 2
    assert products(jax.grad(big, (0, 1))) == 3


@pytest.mark.parametrize(("M", "V"), [(1, 7), (4096, 128_256), (4096, 256_000), (3, 10**9)])
def test_chunks_fit_the_budget(M, V):
    rows = chunks.rows_per_chunk(M, V, 4)
    assert 1 <= rows <= M
    assert rows * V * 4 <= chunks.LOGITS_BYTES or rows <= chunks.ROW_MULTIPLE


def test_chosen_chunks_are_equal_to_a_forced_one(inputs):
    chosen = quick_jit(partial(linear_cross_entropy, softcap=CASE.softcap))(*inputs)
    assert relative_error(quick_jit(small)(*inputs), chosen) <= FORWARD


BAD = [
    {"softcap": 0.0},
    {"chunk_rows": 0},
    {"logit_scale": 0.0},
    {"label_smoothing": -0.1},
    {"label_smoothing": 1.1},
]


@pytest.mark.parametrize("function", [linear_cross_entropy, linear_cross_entropy_rows])
@pytest.mark.parametrize("option", BAD)
def test_rejects_options_out_of_range(inputs, option, function):
    (name,) = option
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        function(*inputs, **option)


def test_rejects_mixed_dtypes(inputs):
    x, head, labels = inputs
    with pytest.raises(TypeError, match="one dtype; got float32, bfloat16"):
        linear_cross_entropy(x, head.astype(jnp.bfloat16), labels)


def test_rejects_an_empty_axis(inputs):
    x, head, labels = inputs
    with pytest.raises(ValueError, match="no axis empty"):
        linear_cross_entropy(x[:0], head, labels[:0])
