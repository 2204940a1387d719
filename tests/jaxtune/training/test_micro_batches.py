"""Packed, padding-free and re-split windows against padded ones: the same gradient."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxtune.data.batch import IGNORE
from jaxtune.data.collate import Place
from jaxtune.data.packed import micro_batches
from jaxtune.data.plan import Request, make_plan
from jaxtune.data.rows import TokenizedRows
from jaxtune.training.step import loss, make_train_step, window_gradient
from tests.jaxtune.training.test_step import documents, fresh, padded, parts, worst
from tests.tolerances import relative_error, tolerance

gradient_of = jax.jit(window_gradient, static_argnums=(0, 4))
loss_of = jax.jit(loss, static_argnums=0)
LAYOUTS = {
    "flat": {"padding_free": True, "resplit": False},
    "resplit": {"padding_free": True},
    "bfd": {"packing": "bfd"},
}


def window_of(rows, lengths=None, max_length=16, **options):
    """The only window of an epoch of at most eight rows, at 2 x 4."""
    data = TokenizedRows(rows=rows)
    request = Request(batch_size=2, accumulation=4, max_length=max_length, seed=0, **options)
    plan = make_plan(np.array([len(row) for row in rows]), request)
    if lengths is not None:
        plan = dataclasses.replace(plan, lengths=lengths, slots=(8,) * len(lengths))
    (window,) = plan.windows(data, Place())
    return window.batch


@pytest.fixture(scope="module")
def whole():
    """Gradient, loss and tokens of the padded window."""
    return gradient_of(*parts(), padded(documents()), 4)


def check_equal(found, whole):
    assert worst(found[0], whole[0]) <= tolerance("float32", "window_gradient")
    assert relative_error(found[1], whole[1]) <= tolerance("float32", "window_loss")
    assert found[2] == whole[2]


@pytest.mark.parametrize("layout", [pytest.param("flat", marks=pytest.mark.slow), "resplit", "bfd"])
def test_every_layout_has_the_gradient_of_the_padded_rows(layout, whole):
    window = window_of(documents(), **LAYOUTS[layout])
    assert sum(int(used) for used in window.used) < 8
    check_equal(gradient_of(*parts(), window, 1), whole)


def test_micro_batches_of_two_lengths_add_up_and_unused_slots_are_not_run(whole):
    window = window_of(documents(), lengths=(7, 13), **LAYOUTS["resplit"])
    for stack, used in zip(window.stacks, window.used, strict=True):
        assert 0 < used < len(stack.labels)
        stack.labels[used:] = 1
        stack.segment_ids[used:] = 1
    check_equal(gradient_of(*parts(), window, 1), whole)


@pytest.mark.slow
def test_windows_of_any_number_of_micro_batches_compile_once():
    tx = optax.sgd(0.1)
    step = make_train_step(parts()[0], tx)
    for rows in (documents(), documents()[:3]):
        trainable = fresh(parts()[1])
        window = window_of(rows, lengths=(26,), **LAYOUTS["resplit"])
        step(trainable, tx.init(trainable), parts()[2], window)
    assert step._cache_size() == 1


def test_no_document_of_a_packed_row_sees_another():
    """The loss of the one in the middle, as its neighbours change in every token; exactly."""

    def losses(rows):
        learned = [np.full(5, IGNORE, np.int32), rows[1], np.full(5, IGNORE, np.int32)]
        data = TokenizedRows(rows=rows, labels=learned)
        bins = [[[(0, 0, 5), (1, 0, 5), (2, 0, 5)]]]
        window = micro_batches(data, bins, size=1, shapes=[(1, 20)])
        return loss_of(*parts(), window.first())

    draw = np.random.default_rng(0)
    rows = [draw.integers(1, 24, 5).astype(np.int32) for _ in range(3)]
    alone, count = losses(rows)
    assert count == 4
    assert losses([rows[0] + 24, rows[1], rows[2] + 24])[0] == alone
    assert losses([rows[0], rows[1] + 24, rows[2]])[0] != alone
    whole = padded([rows[1]])
    assert relative_error(loss_of(*parts(), whole)[0], alone) <= tolerance("float32", "window_loss")


@pytest.mark.slow
def test_dropout_follows_the_windows_key_and_differs_between_micro_batches():
    """The same row in two micro-batches, and in one of either length."""
    row = documents()[1]

    def mean(bins, seed):
        window = micro_batches(TokenizedRows(rows=[row]), bins, size=1, shapes=[(2, 12), (2, 12)])
        window = dataclasses.replace(window, dropout_key=jax.random.key(seed))
        return float(gradient_of(*parts(0.5), window, 1)[1])

    piece = [(0, 0, 12)]
    first = mean([[piece], []], 0)
    assert mean([[piece], []], 0) == first
    second = 2 * mean([[piece, piece], []], 0) - first
    others = [mean([[piece], []], 1), mean([[], [piece]], 0), second]
    assert min(abs(other - first) for other in others) > 1e-4
