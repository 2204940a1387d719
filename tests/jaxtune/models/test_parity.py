"""Every variant against transformers and peft in float64: logits and LoRA gradients."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtune.adapters.peft_form import peft_names
from jaxtune.data.batch import IGNORE, Batch
from jaxtune.models.decoder import CausalLM
from jaxtune.training.step import loss, split
from tests.families import VARIANTS
from tests.loaded import load_adapted
from tests.oracles import Oracle, make_oracle, oracle_gradients, oracle_logits, random_rows
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity

Pair = tuple[Oracle, CausalLM]


@functools.cache
def make_pair(variant: int, draw: float, folder: Path) -> Pair:
    oracle = make_oracle(VARIANTS[variant], folder, initializer_range=draw)
    return oracle, load_adapted(oracle.adapter_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracles")


# At 0.02 the soft-caps are invisible, at 0.3 the norms' epsilon is: both draws are needed.
@pytest.fixture(params=[0.3, 0.02])
def draw(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(params=range(len(VARIANTS)), ids=[variant.name for variant in VARIANTS])
def pair(request: pytest.FixtureRequest, draw: float, folder: Path) -> Pair:
    return make_pair(request.param, draw, folder / f"{request.param}-{draw}")


def right_padded() -> tuple[np.ndarray, tuple[int, int]]:
    """Two rows of 19 places, the second with 11 tokens; and their lengths.

    The oracle runs each row alone: transformers' eager attention gives NaN where a window holds
    nothing but padding.
    """
    rows = random_rows((2, 19))
    rows[1, 11:] = 0
    return rows, (19, 11)


@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "base"])
def test_logits_match_transformers(pair: Pair, adapters: bool) -> None:
    oracle, model = pair
    rows, lengths = right_padded()
    actual = np.asarray(model(rows.astype(np.int32), adapters=adapters))
    for row, logits, length in zip(rows, actual, lengths, strict=True):
        expected = oracle_logits(oracle, row[None, :length], adapters=adapters)[0]
        assert relative_error(logits[:length], expected) <= tolerance("float32", "logits")


def test_adapters_change_the_logits(pair: Pair) -> None:
    _, model = pair
    rows = random_rows((2, 19)).astype(np.int32)
    with_adapters, base = model(rows), model(rows, adapters=False)
    assert relative_error(with_adapters, base) > 100 * tolerance("float32", "logits")


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(graphdef, trainable, frozen, batch):
    return jax.value_and_grad(loss, argnums=1, has_aux=True)(graphdef, trainable, frozen, batch)


def compare_with_sum(
    model: CausalLM, batch: Batch, parts: list[tuple[float, dict[str, np.ndarray]]]
) -> None:
    """The batch's loss and every LoRA tensor's gradient against the sum of its rows' own."""
    graphdef, trainable, frozen = split(model)
    (total, _), gradient = value_and_gradient(graphdef, trainable, frozen, batch)
    actual = peft_names(gradient)
    expected = {name: sum(part[1][name] for part in parts) for name in parts[0][1]}
    assert set(actual) == set(expected)
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= tolerance("float32", "lora_gradient"), worst
    truth = sum(part[0] for part in parts)
    assert float(total) == pytest.approx(truth, rel=tolerance("float32", "loss"))


def test_right_padded_gradients_match_peft(pair: Pair) -> None:
    oracle, model = pair
    rows, lengths = right_padded()
    labels = rows.copy()
    labels[0, :4] = IGNORE  # a prompt that is not trained
    labels[1, 11:] = IGNORE
    parts = [
        oracle_gradients(oracle, row[None, :length], label[None, :length])
        for row, label, length in zip(rows, labels, lengths, strict=True)
    ]
    batch = Batch(input_ids=rows.astype(np.int32), labels=labels.astype(np.int32), layout="causal")
    compare_with_sum(model, batch, parts)


def packed() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Three documents in one row of 19 places and some padding; ids and segments."""
    documents = [random_rows((1, n), seed=n) for n in (5, 9, 3)]
    ids = np.zeros((1, 19), np.int32)
    segments = np.zeros((1, 19), np.int32)
    start = 0
    for number, document in enumerate(documents, start=1):
        stop = start + document.shape[1]
        ids[0, start:stop], segments[0, start:stop] = document[0], number
        start = stop
    return documents, ids, segments


def test_packed_documents_equal_running_alone(pair: Pair) -> None:
    oracle, model = pair
    documents, ids, segments = packed()
    actual = np.asarray(model(ids, segments))
    start = 0
    for document in documents:
        stop = start + document.shape[1]
        expected = oracle_logits(oracle, document)[0]
        assert relative_error(actual[0, start:stop], expected) <= tolerance("float32", "logits")
        start = stop


def test_packed_gradients_are_the_sum_of_the_documents(pair: Pair) -> None:
    oracle, model = pair
    documents, ids, segments = packed()
    parts = [oracle_gradients(oracle, document, document) for document in documents]
    batch = Batch(input_ids=ids, labels=ids, segment_ids=segments, layout="packed")
    compare_with_sum(model, batch, parts)


def test_perturbing_a_document_changes_nothing_in_another(pair: Pair) -> None:
    _, model = pair
    _, ids, segments = packed()
    changed = ids.copy()
    changed[segments == 2] = (changed[segments == 2] + 7) % 97
    before, after = np.asarray(model(ids, segments)), np.asarray(model(changed, segments))
    others = (segments == 1) | (segments == 3)
    np.testing.assert_array_equal(before[others], after[others])
    assert np.abs(before - after)[segments == 2].max() > 0
