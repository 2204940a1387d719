"""Rows of text to ids: TRL's own preparation is the oracle."""

import copy
import itertools
import tempfile
import threading
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from jaxtune.data.row_options import RowOptions
from jaxtune.data.tokenize import tokenize_dataset
from tests.jaxtune.data.words import WORDS, make_tokenizer

# trl 1.16 sets `gradient_checkpointing`, which transformers 5.23 renamed.
trl_oracle = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
TEXTS = ["a b c", "a b c d e f g h", "b </s>", "a\n\nb", "naïve 日本 🙂", "h"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def tokenized(dataset, tokenizer, max_length=100, **options):
    return tokenize_dataset(dataset, tokenizer, RowOptions(max_length=max_length, **options))


def ours(texts, tokenizer, max_length=100, **options):
    return tokenized([{"text": text} for text in texts], tokenizer, max_length, **options)


def ids(result):
    assert all(row.dtype == np.int32 for row in result.rows)
    return [row.tolist() for row in result.rows]


def trl_dataset(columns, tokenizer, max_length, formatting_func=None):
    """What `trl.SFTTrainer` makes of the data set, without its model."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(folder, use_cpu=True, bf16=False, report_to="none", max_length=max_length)
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=False)
    dataset = datasets.Dataset.from_dict(columns)
    return SFTTrainer._prepare_dataset(
        trainer, dataset, tokenizer, args, False, formatting_func, "train"
    )


def trl_rows(texts, tokenizer, max_length):
    return list(trl_dataset({"text": texts}, tokenizer, max_length)["input_ids"])


@pytest.mark.parity
@trl_oracle
@pytest.mark.parametrize("max_length", [100, 4, 1])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_rows_are_those_of_trl(adds_bos, max_length):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    expected = trl_rows(TEXTS, tokenizer, max_length)
    assert ids(ours(TEXTS, tokenizer, max_length)) == expected


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6), st.integers(0, 3), st.booleans()
)
def test_a_row_has_one_bos_and_one_eos(tokenizer, words, spelled_bos, spells_eos):
    text = " ".join(["<s>"] * spelled_bos + words + ["</s>"] * spells_eos)
    result = ours([text], tokenizer)
    assert ids(result) == [[0, *(WORDS.index(w) for w in words), 1]]
    assert result.eos_appended == (not spells_eos)


def test_bos_inside_a_row_stays(tokenizer):
    """Llama-2's and Mistral's templates open each turn by it."""
    assert ids(ours(["<s> a </s> <s> b </s>"], tokenizer)) == [[0, 3, 1, 0, 4, 1]]


def test_bos_is_decided_row_by_row(tokenizer):
    assert ids(ours(["<s> a", "a", "<s> b"], tokenizer)) == [[0, 3, 1], [0, 3, 1], [0, 4, 1]]


def test_bos_is_not_added_where_the_tokenizer_adds_none():
    tokenizer = make_tokenizer(adds_bos=False)
    assert ids(ours(["a b", "<s> a"], tokenizer)) == [[3, 4, 1], [0, 3, 1]]


def test_eos_is_not_doubled_where_the_tokenizer_adds_it():
    result = ours(["a b"], make_tokenizer(adds_eos=True))
    assert (ids(result), result.eos_appended) == ([[0, 3, 4, 1]], 0)


def test_a_tokenizer_without_special_tokens_adds_none():
    result = ours(["a b"], make_tokenizer(adds_bos=False, bos=None, eos=None))
    assert (ids(result), result.eos_appended) == ([[3, 4]], 0)


def test_rows_are_cut_at_their_end_after_eos_and_the_loss_is_counted(tokenizer):
    result = ours(["a", "a b", "a b c d"], tokenizer, 3)
    assert ids(result) == [[0, 3, 1], [0, 3, 4], [0, 3, 4]]
    assert (result.truncated, result.tokens_lost, result.eos_appended) == (2, 1 + 3, 3)


def test_nothing_is_lost_within_the_limit(tokenizer):
    result = ours(["a b"], tokenizer, 4)
    assert (ids(result), result.truncated, result.tokens_lost) == ([[0, 3, 4, 1]], 0, 0)
    assert result.labels is None


def state_of(tokenizer):
    """All that a tokenizer is: its attributes, and the object underneath."""
    attributes = {k: copy.deepcopy(v) for k, v in vars(tokenizer).items() if k != "_tokenizer"}
    backend = tokenizer.backend_tokenizer
    return attributes, backend.to_str(), backend.encode_special_tokens


@pytest.mark.parametrize("threads", [None, 3])
@pytest.mark.parametrize("saved_with_limits", [False, True])
def test_the_tokenizer_is_not_changed(saved_with_limits, threads):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 2
    if saved_with_limits:
        tokenizer.backend_tokenizer.enable_truncation(2, stride=1)
        tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=2, pad_token="<unk>")
        tokenizer.backend_tokenizer.encode_special_tokens = True
    before = state_of(tokenizer)
    result = ours(["a b c", "a </s>"] * 40, tokenizer, threads=threads)
    assert ids(result) == [[0, 3, 4, 5, 1], [0, 3, 1]] * 40
    assert state_of(tokenizer) == before


def test_the_tokenizer_is_not_changed_by_a_failure(tokenizer):
    before = state_of(tokenizer)
    with pytest.raises(ValueError, match="row 1 holds int"):
        tokenized([{"text": "a"}, {"text": 5}], tokenizer, threads=2)
    assert state_of(tokenizer) == before


class Counting:
    """A tokenizer that counts its calls: how many at once, of how many texts."""

    def __init__(self, inner):
        self.inner, self.running, self.most, self.sizes = inner, 0, 0, set()
        self.threads, self.lock, self.together = set(), threading.Lock(), threading.Barrier(3)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, texts, **options):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.sizes.add(len(texts))
            first_call = threading.get_ident() not in self.threads
            self.threads.add(threading.get_ident())
        if first_call and len(texts) == 1:
            self.together.wait(timeout=30)  # Broken unless three threads come.
        try:
            return self.inner(texts, **options)
        finally:
            with self.lock:
                self.running -= 1


def test_threads_are_as_many_as_asked_for_and_give_equal_rows(tokenizer):
    """Each passes one text a call, which the tokenizer does not spread over other cores."""
    texts = [" ".join("abcdefgh"[: n % 8 + 1]) for n in range(2500)]
    counting = Counting(tokenizer)
    result = ours(texts, counting, threads=3)
    assert (counting.most, len(counting.threads), counting.sizes) == (3, 3, {1})
    by_itself = Counting(tokenizer)
    assert ids(ours(texts, by_itself)) == ids(result)
    assert (by_itself.threads, by_itself.sizes) == ({threading.get_ident()}, {1000, 500})


def test_a_tokenizer_in_python_runs_on_one_thread(tokenizer):
    """It has no object underneath, and Python's lock would stop the others."""

    def call(texts, **options):
        assert threading.current_thread() is threading.main_thread()
        return tokenizer(texts, **options)

    class Python:
        bos_token_id, eos_token_id = 0, 1
        __call__ = staticmethod(call)

    assert ids(ours(["a", "b"], Python(), threads=4)) == [[0, 3, 1], [0, 4, 1]]


@pytest.mark.parametrize(("rows", "shown"), [(5000, False), (5001, True)])
def test_progress_is_shown_where_it_takes_long(tokenizer, capfd, rows, shown):
    ours(["a"] * rows, tokenizer)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert ("tokenising" in printed.err and "row/s" in printed.err) == shown


def test_a_long_row_causes_no_warning(caplog, monkeypatch):
    """It is cut later, so "will result in indexing errors" would be wrong."""
    logger = transformers.utils.logging.get_logger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 2
    ours(["a b c"], tokenizer)
    assert caplog.text == ""
    tokenizer(["a b c"])
    assert "indexing errors" in caplog.text  # transformers alone does warn


def test_takes_a_dataset_and_another_column(tokenizer):
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "story": ["c", "d e"]})
    assert ids(tokenized(dataset, tokenizer, text_field="story")) == [[0, 5, 1], [0, 6, 7, 1]]


def test_the_format_of_a_dataset_does_not_hide_its_text(tokenizer):
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    dataset.set_format("numpy", columns=["n"])
    assert ids(tokenized(dataset, tokenizer)) == [[0, 3, 1], [0, 4, 1]]
    assert dataset.format["columns"] == ["n"]


def test_text_is_taken_beside_messages(tokenizer):
    rows = [{"text": "a", "messages": [{"role": "user", "content": "b"}]}]
    assert ids(tokenized(rows, tokenizer)) == [[0, 3, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"`train_dataset` must hold at least one row; got none"),
        (
            [{"text": "a"}, {"body": "b", "a": 1}],
            r"must have the text column `text` .*; row 1 has \['a', 'body'\]\. Pass",
        ),
        ([{"prompt": "a"}], r"the text column `text` .*; row 0 has \['prompt'\]\. Pass"),
        (["a"], r"must be a mapping of column names to values; row 0 is str\. Pass rows"),
        ([{"text": "a"}, "b"], r"must be a mapping of column names to values; row 1 is str"),
        ([{"text": "a"}, {"text": 5}], r"column `text` must hold text; row 1 holds int"),
        ([{"text": None}], r"column `text` must hold text; row 0 holds NoneType"),
        ([{"text": ["a"]}], r"column `text` must hold text; row 0 holds list"),
        (
            datasets.Dataset.from_dict({"body": ["a"]}),
            r"must have the text column `text` .*; row 0 has \['body'\]\. Pass",
        ),
        (datasets.Dataset.from_dict({"text": []}), r"must hold at least one row; got none"),
        (datasets.Dataset.from_dict({"text": ["a", None]}), r"row 1 holds NoneType"),
        (
            datasets.Dataset.from_dict({"text": ["a"]}).with_transform(lambda batch: batch),
            r"must not have a transform .* Apply it with dataset\.map",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:30],
)
def test_refuses_rows_without_text(tokenizer, rows, message):
    with pytest.raises(ValueError, match=message):
        tokenized(rows, tokenizer)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})),
            r"must be one data set; got a DatasetDict of \['train'\]\. Pass one split",
        ),
        ({"text": ["a"]}, r"got a dict of \['text'\]\. Pass .*Dataset\.from_dict"),
        (b"data.json", r"must be a datasets\.Dataset or a list of mappings; got bytes\. Pass"),
        (None, r"must be a datasets\.Dataset or a list of mappings; got NoneType"),
        (np.array(["a"]), r"must be a datasets\.Dataset or a list of mappings; got ndarray"),
    ],
    ids=["splits", "columns", "name", "none", "array"],
)
def test_refuses_what_is_no_data_set(tokenizer, dataset, message):
    with pytest.raises(TypeError, match=message):
        tokenized(dataset, tokenizer)


def test_a_generator_is_refused(tokenizer):
    with pytest.raises(TypeError, match=r"without a length must be a datasets.IterableDataset"):
        tokenized(itertools.repeat({"text": "a"}), tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, r"`max_length` must be at least 1; got 0"),
        ({"threads": 0}, r"`dataset_num_proc` must be at least 1; got 0"),
    ],
)
def test_refuses_limits_below_one(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        ours(["a"], tokenizer, **options)
