"""Which label a position predicts, against the collators of transformers and TRL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from jaxtune.data.batch import IGNORE, Batch, shift_labels

DOCUMENTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=4)


WIDTH = 24  # over 4 documents of 5 tokens; one shape, so that one program is compiled


def packed(documents):
    """Documents one after the other in one row, then padding: ids and segments, [1, WIDTH]."""
    ids = [token for document in documents for token in document]
    segments = [n for n, d in enumerate(documents, 1) for _ in d]
    padding = [0] * (WIDTH - len(ids))
    return np.array([ids + padding], np.int32), np.array([segments + padding], np.int32)


def targets(documents):
    return jax.jit(shift_labels)(*packed(documents))[0].tolist()


def targets_of(labels):
    """What a transformers model predicts at each position: the next label of the row."""
    following = np.asarray(labels)[0, 1:].tolist()
    return following + [IGNORE] * (WIDTH - len(following))


@pytest.mark.parity
@given(DOCUMENTS)
def test_equals_transformers_flattening(documents):
    flat = DataCollatorWithFlattening(return_tensors="np")([{"input_ids": d} for d in documents])
    assert targets(documents) == targets_of(flat["labels"])


@pytest.mark.parity
@given(DOCUMENTS)
def test_equals_trls_packed_labels(documents):
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    theirs = collator([{"input_ids": d} for d in documents])
    assert targets(documents) == targets_of(theirs["labels"])


@pytest.mark.parity
def test_equals_trls_packed_rows():
    """A packer's row: `seq_lengths` tells the documents apart."""
    documents = [[4, 5, 6], [7], [8, 9]]
    row = {"input_ids": [4, 5, 6, 7, 8, 9], "seq_lengths": [3, 1, 2]}
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([row])
    assert targets(documents) == targets_of(theirs["labels"])


def test_padding_before_a_document_predicts_nothing():
    labels = jnp.array([[7, 7, 5, 6]])
    shifted = shift_labels(labels, jnp.array([[0, 0, 1, 1]]))
    assert shifted.tolist() == [[IGNORE, IGNORE, 6, IGNORE]]


def test_one_document_a_row_is_shifted_by_one():
    labels = jnp.array([[1, 2, IGNORE], [IGNORE, 5, 6]])
    assert shift_labels(labels, None).tolist() == [[2, IGNORE, IGNORE], [5, 6, IGNORE]]


def test_ignored_labels_stay_ignored():
    labels, segments = jnp.array([[1, IGNORE, 3, 4, 5]]), jnp.array([[1, 1, 1, 2, 2]])
    assert shift_labels(labels, segments).tolist() == [[IGNORE, 3, IGNORE, 5, IGNORE]]


IDS = np.zeros((1, 2), np.int32)


@pytest.mark.parametrize("layout", ["packed", None])
def test_packed_needs_segments_and_is_the_default(layout):
    batch = Batch(input_ids=IDS, labels=IDS, **({"layout": layout} if layout else {}))
    with pytest.raises(ValueError, match=r"must have `segment_ids`; got None\. Pass them"):
        batch.check()


def test_causal_refuses_segments():
    batch = Batch(input_ids=IDS, labels=IDS, segment_ids=IDS, layout="causal")
    with pytest.raises(ValueError, match=r"must not have `segment_ids`; got some\. Leave them"):
        batch.check()


def test_right_layouts_pass():
    Batch(input_ids=IDS, labels=IDS, segment_ids=IDS).check()
    Batch(input_ids=IDS, labels=IDS, layout="causal").check()


def test_layout_is_static():
    """It selects the compiled program, so it is part of the tree's structure."""
    causal = Batch(input_ids=IDS, labels=IDS, layout="causal")
    packed_ = Batch(input_ids=IDS, labels=IDS, layout="packed")
    assert jax.tree.structure(causal) != jax.tree.structure(packed_)
    assert len(jax.tree.leaves(causal)) == 2
