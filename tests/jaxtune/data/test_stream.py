"""Streams: read once, in their own order, a little at a time; a run goes on where it stood."""

import itertools

import datasets
import numpy as np
import pytest

from jaxtune.data import stream as stream_module
from jaxtune.data.batch import MicroBatches
from jaxtune.data.collate import Place
from jaxtune.data.plan import Request
from jaxtune.data.row_options import RowOptions
from jaxtune.data.stream import RowStream, ahead, is_stream
from jaxtune.data.stream_plan import make_stream_plan
from jaxtune.data.tokenize import tokenize_dataset
from tests.jaxtune.data.test_chat_rows import CHAT, WORDS
from tests.words import WORDS as VOCABULARY
from tests.words import ragged_rows, word_tokenizer

CHUNK = 5
LAYOUTS = {
    "padded": {"resplit": False},
    "resplit": {},
    "flat": {"resplit": False, "padding_free": True},
    "packed": {"packing": "bfd"},
    "wrapped": {"packing": "wrapped"},
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(stream_module, "BATCH", CHUNK)


def iterable(rows):
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def stream_of(rows, tokenizer=None, **options):
    dataset = rows if is_stream(rows) else iterable(rows)
    options = RowOptions(**{"max_length": 32, **options})
    return RowStream(dataset, tokenizer or word_tokenizer(), options)


def plan_of(stream, **options):
    request = {"batch_size": 2, "accumulation": 2, "max_length": 32, "seed": 0, **options}
    return make_stream_plan(stream, Request(**request))


def documents(window):
    """The documents of a window as lists of ids, in a padded one in order."""
    batch = window.batch
    if not isinstance(batch, MicroBatches):
        return [row[row != -100].tolist() for row in batch.labels if (row != -100).any()]
    found = []
    for stack, used in zip(batch.stacks, batch.used, strict=True):
        ids = stack.labels[: int(used)].reshape(-1, stack.labels.shape[-1])
        segments = stack.segment_ids[: int(used)].reshape(ids.shape)
        for row, its in zip(ids, segments, strict=True):
            found += [row[its == n].tolist() for n in range(1, int(its.max(initial=0)) + 1)]
    return found


def test_rows_come_in_the_order_of_the_stream_and_the_last_window_takes_the_rest():
    rows = ragged_rows(13)
    stream = stream_of(rows)
    found = list(plan_of(stream, resplit=False).windows(stream, Place()))
    whole = tokenize_dataset(rows, word_tokenizer(), RowOptions(max_length=32))
    assert [ids for window in found for ids in documents(window)] == [
        row.tolist() for row in whole.rows
    ]
    assert [window.rows for window in found] == [4, 4, 4, 1]
    assert [window.tokens for window in found] == [
        sum(map(len, whole.rows[n : n + 4])) for n in range(0, 13, 4)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_holds_the_same_documents_whatever_the_layout(layout):
    rows = ragged_rows(23)
    stream = stream_of(rows)
    found = list(plan_of(stream, **LAYOUTS[layout]).windows(stream, Place()))
    tokens = sorted(t for window in found for ids in documents(window) for t in ids)
    whole = tokenize_dataset(rows, word_tokenizer(), RowOptions(max_length=32))
    assert tokens == sorted(np.concatenate(whole.rows).tolist())
    if layout in ("resplit", "flat"):
        padded = list(plan_of(stream, resplit=False).windows(stream, Place()))
        for mine, theirs in zip(found, padded, strict=True):
            assert sorted(documents(mine)) == sorted(documents(theirs))


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_every_place_goes_on_with_the_windows_that_follow(layout):
    """Of a shuffled stream too, in which rows are left out, in a later pass."""
    rows = ragged_rows(23)
    rows[3] = rows[11] = {"text": ""}
    dataset = iterable(rows).shuffle(seed=1, buffer_size=6)
    stream = stream_of(dataset, bad_rows="skip")
    plan = plan_of(stream, **LAYOUTS[layout])
    for epoch in (0, 1):
        whole = list(plan.windows(stream, Place(epoch=epoch)))
        assert len(whole) >= 3
        for number, window in enumerate(whole):
            again = stream_of(dataset, bad_rows="skip")
            rest = list(plan_of(again, **LAYOUTS[layout]).windows(again, window.after))
            assert list(map(documents, rest)) == list(map(documents, whole[number + 1 :]))
            assert [w.after for w in rest] == [w.after for w in whole[number + 1 :]]


def test_passes_over_a_shuffled_stream_differ_as_transformers_would_have_them():
    dataset = iterable(ragged_rows(23)).shuffle(seed=1, buffer_size=6)
    stream = stream_of(dataset)
    orders = []
    for epoch in (0, 1):
        windows = plan_of(stream, resplit=False).windows(stream, Place(epoch=epoch))
        orders.append([ids for window in windows for ids in documents(window)])
        dataset.set_epoch(epoch)
        texts = [row["text"] for row in dataset]
        expected = tokenize_dataset(
            [{"text": text} for text in texts], word_tokenizer(), RowOptions(max_length=32)
        )
        assert orders[-1] == [row.tolist() for row in expected.rows]
    assert orders[0] != orders[1]


def test_a_row_longer_than_any_at_first_has_a_shape_of_its_own():
    rows = [{"text": " ".join(VOCABULARY[:3])}] * 12
    rows[9] = {"text": " ".join(VOCABULARY[:90])}
    stream = stream_of(rows, max_length=100)
    for options in LAYOUTS.values():
        plan = plan_of(stream, max_length=100, **options)
        found = [ids for w in plan.windows(stream, Place()) for ids in documents(w)]
        assert max(map(len, found)) > 64  # what the first rows are rounded to
        assert sum(map(len, found)) == 11 * 5 + 92


def test_no_more_is_read_than_the_chunks_at_hand():
    """An endless stream: its head, and one chunk more than windows were asked for."""
    read = []

    def rows():
        for number in itertools.count():
            read.append(number)
            yield {"text": VOCABULARY[number % 90]}

    stream = stream_of(datasets.IterableDataset.from_generator(rows))
    windows = plan_of(stream, resplit=False).windows(stream, Place())
    for _ in range(10):
        next(windows)
    windows.close()
    assert max(read) < 10 * 4 + 3 * CHUNK


def test_messages_and_functions_are_streamed():
    chats = stream_of([{"messages": CHAT}] * 7, WORDS, assistant_only_loss=True)
    assert chats.head.labels is not None
    assert len(list(chats.chunks(0))) == 2
    made = stream_of(
        [{"body": row["text"]} for row in ragged_rows(7)],
        formatting_func=lambda batch: {"text": [text + "" for text in batch["body"]]},
    )
    assert sum(len(chunk) for chunk in made.chunks(0)) == 7


def test_bad_rows_are_named_by_their_number_in_the_pass():
    rows = [*ragged_rows(8), {"text": None}]
    stream = stream_of(rows)
    with pytest.raises(ValueError, match=r"row 8 holds NoneType"):
        list(plan_of(stream).windows(stream, Place()))
    with pytest.raises(ValueError, match=r"the first 5 rows of a stream .*Skipped: 5 bad"):
        stream_of([{"text": ""}] * 5, bad_rows="skip")
    with pytest.raises(ValueError, match="the stream gave none"):
        stream_of([])


def test_a_pass_without_rows_is_refused():
    rows = iter(ragged_rows(3))
    stream = stream_of(datasets.IterableDataset.from_generator(lambda: rows))
    with pytest.raises(ValueError, match=r"none in pass 1\. A generator that can be read once"):
        list(plan_of(stream).windows(stream, Place()))


def test_reading_ahead_keeps_order_and_errors():
    def items():
        yield from (1, 2)
        raise OSError("gone")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(found)
