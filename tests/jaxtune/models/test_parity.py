"""Every variant against transformers and peft in float64: logits, and gradients of all it trains.

One compiled program a variant and layout gives the logits, the loss and the gradients with respect
to the scaled embedding's output and to every LoRA tensor; both draws share it.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtune.adapters.peft_form import peft_names
from jaxtune.data.batch import IGNORE, Batch
from jaxtune.models.decoder import CausalLM
from jaxtune.training.step import merge, split, token_losses
from tests.families import VARIANTS
from tests.loaded import load_adapted
from tests.oracles import (
    EMBEDDING,
    Oracle,
    make_oracle,
    oracle_gradients,
    oracle_logits,
    random_rows,
)
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity

Pair = tuple[Oracle, CausalLM]


@functools.cache
def make_pair(variant: int, draw: float, folder: Path) -> Pair:
    oracle = make_oracle(VARIANTS[variant], folder, initializer_range=draw)
    model = load_adapted(oracle.adapter_folder)
    model.model.remat = "none"  # half the program; what it changes is tested with the decoder
    return oracle, model


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


@dataclasses.dataclass(frozen=True)
class Ours:
    """What one program gives of a batch."""

    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]


@functools.partial(jax.jit, static_argnums=0)
def evaluate(graphdef, trainable, frozen, batch):
    def loss(trainable, embeds):
        model = merge(graphdef, trainable, frozen)
        hidden, _ = model.model(
            batch.input_ids, segment_ids=batch.segment_ids, inputs_embeds=embeds
        )
        return token_losses(model, hidden, batch)[0], model.logits(hidden)

    embeds = merge(graphdef, trainable, frozen).model.embed_tokens(batch.input_ids, adapters=True)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(trainable, embeds)


def ours(model: CausalLM, batch: Batch) -> Ours:
    (loss, logits), (trainable, embeds) = evaluate(*split(model), batch)
    gradients = {name: np.asarray(value) for name, value in peft_names(trainable).items()}
    return Ours(np.asarray(logits), float(loss), {**gradients, EMBEDDING: np.asarray(embeds)})


def right_padded() -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Two rows of 19 places, the second with 11 tokens; their labels, and their lengths.

    The oracle runs each row alone: transformers' eager attention gives NaN where a window holds
    nothing but padding.
    """
    rows = random_rows((2, 19))
    rows[1, 11:] = 0
    labels = rows.copy()
    labels[0, :4] = IGNORE  # a prompt that is not trained
    labels[1, 11:] = IGNORE
    return rows, labels, (19, 11)


def check_gradients(actual: Ours, parts: list[tuple[float, dict[str, np.ndarray]]]) -> None:
    """The loss and each LoRA tensor's gradient against the sum of the rows' own."""
    names = set(parts[0][1])
    assert set(actual.gradients) == names
    errors = {
        name: relative_error(actual.gradients[name], sum(part[1][name] for part in parts))
        for name in names - {EMBEDDING}
    }
    assert max(errors.values()) <= tolerance("float32", "lora_gradient"), errors
    total = sum(part[0] for part in parts)
    assert relative_error(actual.loss, total) <= tolerance("float32", "loss")


def test_right_padded_rows_match_transformers_and_peft(pair: Pair) -> None:
    oracle, model = pair
    rows, labels, lengths = right_padded()
    batch = Batch(input_ids=rows.astype(np.int32), labels=labels.astype(np.int32), layout="causal")
    actual, parts = ours(model, batch), []
    for place, length in enumerate(lengths):
        row, label = rows[place, None, :length], labels[place, None, :length]
        expected = oracle_logits(oracle, row)[0]
        limit = tolerance("float32", "logits")
        assert relative_error(actual.logits[place, :length], expected) <= limit
        loss, gradients = oracle_gradients(oracle, row, label)
        embeds = actual.gradients[EMBEDDING][place]
        limit = tolerance("float32", "embedding_gradient")
        assert relative_error(embeds[:length], gradients[EMBEDDING][0]) <= limit
        assert not embeds[length:].any()
        parts.append((loss, gradients))
    check_gradients(actual, parts)


def test_without_adapters_it_is_the_base(pair: Pair) -> None:
    oracle, model = pair
    rows = random_rows((2, 19))
    actual = np.asarray(model(rows.astype(np.int32), adapters=False))
    expected = oracle_logits(oracle, rows, adapters=False)
    assert relative_error(actual, expected) <= tolerance("float32", "logits")
    adapted = oracle_logits(oracle, rows)
    assert relative_error(adapted, expected) > 100 * tolerance("float32", "logits")


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


def packed_batch(ids: np.ndarray, segments: np.ndarray) -> Batch:
    return Batch(input_ids=ids, labels=ids, segment_ids=segments, layout="packed")


def test_packed_documents_equal_running_alone(pair: Pair) -> None:
    oracle, model = pair
    documents, ids, segments = packed()
    actual, parts, start = ours(model, packed_batch(ids, segments)), [], 0
    for document in documents:
        stop = start + document.shape[1]
        expected = oracle_logits(oracle, document)[0]
        limit = tolerance("float32", "logits")
        assert relative_error(actual.logits[0, start:stop], expected) <= limit
        loss, gradients = oracle_gradients(oracle, document, document)
        embeds = actual.gradients[EMBEDDING][0, start:stop]
        limit = tolerance("float32", "embedding_gradient")
        assert relative_error(embeds, gradients[EMBEDDING][0]) <= limit
        parts.append((loss, gradients))
        start = stop
    check_gradients(actual, parts)


def test_perturbing_a_document_changes_nothing_in_another(pair: Pair) -> None:
    _, model = pair
    _, ids, segments = packed()
    changed = ids.copy()
    changed[segments == 2] = (changed[segments == 2] + 7) % 97
    before = ours(model, packed_batch(ids, segments)).logits
    after = ours(model, packed_batch(changed, segments)).logits
    others = (segments == 1) | (segments == 3)
    np.testing.assert_array_equal(before[others], after[others])
    assert np.abs(before - after)[segments == 2].max() > 0
