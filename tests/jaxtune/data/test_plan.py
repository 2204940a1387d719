"""Layouts of a run: the same rows in each window, in fewer tokens."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxtune.data.collate import Place
from jaxtune.data.plan import Request, describe, make_plan
from jaxtune.data.row_options import RowOptions
from jaxtune.data.rows import TokenizedRows
from jaxtune.data.tokenize import tokenize_dataset

LAYOUTS = {
    "padded": {"resplit": False},
    "flat": {"resplit": False, "padding_free": True},
    "resplit": {},
}
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    "{output}"
)


def marked(lengths):
    """Rows that can be told apart: row i is filled with i + 1."""
    return TokenizedRows(rows=[np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)])


def ragged(count=45):
    return np.random.default_rng(0).integers(1, 300, count)


def plan_of(lengths, batch_size=4, accumulation=2, max_length=300, **options):
    request = Request(
        batch_size=batch_size,
        accumulation=accumulation,
        max_length=max_length,
        **{"seed": 3, **options},
    )
    return make_plan(np.asarray(lengths), request)


def arrays_of(window):
    """The micro-batches that are run."""
    batch = window.batch
    if not hasattr(batch, "stacks"):
        return [batch.labels]
    stacks = zip(batch.stacks, batch.used, strict=True)
    return [stack.labels[: int(used)] for stack, used in stacks if used]


def tokens_in(window):
    """How often each token stands in the window."""
    found = np.concatenate([labels.ravel() for labels in arrays_of(window)])
    return dict(zip(*np.unique(found[found > 0], return_counts=True), strict=True))


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("kind", ["flat", "resplit"])
def test_a_window_has_the_rows_of_the_padded_one(kind, devices, epoch):
    lengths = ragged()
    rows = marked(lengths)
    padded = plan_of(lengths, **LAYOUTS["padded"]).windows(rows, Place(epoch=epoch))
    plan = plan_of(lengths, devices=devices, **LAYOUTS[kind])
    assert plan.kind == kind
    for mine, theirs in zip(plan.windows(rows, Place(epoch=epoch)), padded, strict=True):
        assert tokens_in(mine) == tokens_in(theirs)
        assert (mine.tokens, mine.rows) == (theirs.tokens, theirs.rows)
        assert all(array.shape[1] == devices for array in arrays_of(mine))


@pytest.mark.parametrize("kind", ["flat", "resplit"])
def test_every_window_has_one_shape(kind):
    lengths = ragged()
    shapes = {
        tuple(stack.labels.shape for stack in window.batch.stacks)
        for epoch in (0, 1)
        for window in plan_of(lengths, **LAYOUTS[kind]).windows(marked(lengths), Place(epoch=epoch))
    }
    assert len(shapes) == 1
    assert len(next(iter(shapes))) <= 2


def test_packed_rows_are_the_examples_of_an_epoch():
    lengths = ragged()
    plan = plan_of(lengths, packing="bfd", max_length=512)
    found = list(plan.windows(marked(lengths), Place()))
    assert sum(window.rows for window in found) == len(plan.bins) < len(lengths) / 2
    counts = [tokens_in(window) for window in found]
    assert {row: n for count in counts for row, n in count.items()} == {
        row + 1: n for row, n in enumerate(lengths)
    }
    assert [int(window.batch.used[0]) for window in found] == [
        -(-window.rows // 4) for window in found
    ]


def test_flat_micro_batches_keep_their_rows():
    """Each of the window's micro-batches in the order of the padded run, rows in one row."""
    lengths = ragged(16)
    rows = marked(lengths)
    flat = next(plan_of(lengths, **LAYOUTS["flat"]).windows(rows, Place()))
    padded = next(plan_of(lengths, **LAYOUTS["padded"]).windows(rows, Place())).batch.labels
    groups = [sorted(set(padded[start : start + 4].ravel()) - {-100}) for start in (0, 4)]
    found = [
        sorted(set(micro.ravel()) - {-100})
        for micro in np.concatenate(
            [np.pad(a, ((0, 0), (0, 0), (0, 1200 - a.shape[2]))) for a in arrays_of(flat)]
        )
    ]
    assert sorted([n for n in group if n] for group in found) == sorted(groups)


def test_no_micro_batch_is_larger_than_a_padded_one_may_be():
    lengths = ragged()
    for kind in ("flat", "resplit"):
        assert max(plan_of(lengths, **LAYOUTS[kind]).lengths) <= 4 * 300


def test_rows_of_one_length_stay_as_they_are():
    plan = plan_of([128] * 40, max_length=128)
    assert (plan.kind, plan.lengths) == ("padded", (128,))
    assert describe(plan) is None
    assert plan_of([128] * 40, max_length=128, padding_free=True).kind == "resplit"


@pytest.fixture(scope="module")
def alpaca(assets):
    """200 rows as they are trained on."""
    lines = (assets / "data/alpaca/alpaca_en_1000.jsonl").read_text().splitlines()[:200]
    rows = [{"text": PROMPT.format(**json.loads(line))} for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(assets / "tokenizers/llama3.2")
    return tokenize_dataset(rows, tokenizer, RowOptions(max_length=2048))


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, "the rows of a step are re-split into micro-batches of 1 x "),
        ({"packing": "bfd"}, "200 rows packed into "),
    ],
)
def test_alpaca_takes_two_shapes_and_a_tenth_of_padding_at_most(alpaca, options, start):
    lengths = np.array([len(row) for row in alpaca.rows])
    plan = plan_of(lengths, 2, 4, 2048, **{"seed": 3407, **options})
    run, micro, shapes = 0, 0, set()
    for epoch in (0, 1, 2):
        for window in plan.windows(alpaca, Place(epoch=epoch)):
            arrays = arrays_of(window)
            run += sum(array.size for array in arrays)
            micro += sum(len(array) for array in arrays)
            shapes |= {stack.labels.shape for stack in window.batch.stacks}
    assert len(shapes) <= 2
    assert 1 - 3 * lengths.sum() / run <= 0.1
    assert describe(plan).startswith(start)
    if not options:
        assert micro / (3 * 25) < 2.5  # of 4


@pytest.mark.parametrize("kind", [*LAYOUTS, "packed"])
def test_what_does_not_fill_a_micro_batch_can_be_left_out(kind):
    """As torch's DataLoader does with drop_last; the last window may be short."""
    options = LAYOUTS.get(kind, {"packing": "bfd"})
    whole, cut = (plan_of(ragged(), **options, drop_last=drop) for drop in (False, True))
    rows = len(whole.bins)
    assert rows % 4
    assert cut.micro_batches_per_epoch == rows // 4 == whole.micro_batches_per_epoch - 1
    windows = list(cut.windows(marked(ragged()), Place()))
    assert len(windows) == cut.windows_per_epoch == -(-(rows // 4) // 2)
    assert sum(window.rows for window in windows) == rows // 4 * 4
    assert sum(window.rows for window in whole.windows(marked(ragged()), Place())) == rows


def test_rows_that_fill_no_micro_batch_are_not_all_left_out():
    with pytest.raises(ValueError, match=r"got 3 rows for 4\. Leave dataloader_drop_last out"):
        plan_of([5, 6, 7], drop_last=True)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_can_come_in_their_own_order(kind):
    plan = plan_of([5] * 9, **LAYOUTS[kind], sampling="sequential")
    windows = plan.windows(marked([5] * 9), Place(epoch=1))
    assert [sorted(tokens_in(window)) for window in windows] == [[*range(1, 9)], [9]]


def test_rows_of_like_lengths_are_padded_less():
    lengths = np.random.default_rng(1).integers(1, 300, 400)
    shares = {
        sampling: plan_of(lengths, **LAYOUTS["padded"], sampling=sampling).measure()[1]
        for sampling in ("random", "group_by_length")
    }
    assert shares["group_by_length"] < 0.6 * shares["random"]
