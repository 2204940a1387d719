"""Rows of text to ids: TRL's own preparation is the oracle, real tokenizers the cases."""

import copy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from jaxtune.data.tokenize import tokenize_text

# trl 1.16 sets `gradient_checkpointing`, which transformers 5.23 renamed.
trl_oracle = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
WORDS = ["<s>", "</s>", "<unk>", *"abcdefgh"]
ASSETS = [
    "tokenizers/llama2",
    "tokenizers/llama3.2",
    "tokenizers/mistral_v3",
    "tokenizers/gemma",
    "stories260K",
]
TEXTS = ["a b c", "", "a b c d e f g h", "b </s>", "a\n\nb", "naïve 日本 🙂", "h"]


def make_tokenizer(*, adds_bos=True, adds_eos=False, bos="<s>", eos="</s>"):
    """Words split at spaces: a tokenizer whose every id is plain to see."""
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> " * adds_bos + "$A" + " </s>" * adds_eos,
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module", params=ASSETS)
def real(assets, request):
    return transformers.AutoTokenizer.from_pretrained(assets / request.param)


def ours(texts, tokenizer, max_length=100):
    rows = [{"text": text} for text in texts]
    return tokenize_text(rows, tokenizer, text_field="text", max_length=max_length)


def ids(result):
    assert all(row.dtype == np.int32 for row in result.rows)
    return [row.tolist() for row in result.rows]


def trl_rows(texts, tokenizer, max_length):
    """The rows that `trl.SFTTrainer` makes of the texts, without its model."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(folder, use_cpu=True, bf16=False, report_to="none", max_length=max_length)
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=False)
    dataset = datasets.Dataset.from_dict({"text": texts})
    prepared = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, args, False, None, "train")
    return list(prepared["input_ids"])


@pytest.mark.parity
@trl_oracle
@pytest.mark.parametrize("max_length", [100, 4, 1])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_rows_are_those_of_trl(adds_bos, max_length):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    expected = trl_rows(TEXTS, tokenizer, max_length)
    assert ids(ours(TEXTS, tokenizer, max_length)) == expected


@pytest.mark.parity
@trl_oracle
def test_real_tokenizers_give_the_rows_of_trl(real):
    texts = [*TEXTS, f"hello{real.eos_token}"]
    result = ours(texts, real, 12)
    assert ids(result) == trl_rows(texts, real, 12)
    assert result.rows[1].tolist() == [real.bos_token_id, real.eos_token_id]
    assert result.rows[-1].tolist().count(real.eos_token_id) == 1


def test_a_real_row_that_spells_bos_has_one(real):
    bos = real.bos_token
    result = ours(["one two", f"{bos}one two", bos], real)
    assert [row.tolist().count(real.bos_token_id) for row in result.rows] == [1] * 3
    assert result.rows[1].tolist() == [*real.encode(f"{bos}one two")[1:], real.eos_token_id]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=6), st.booleans(), st.booleans())
def test_a_row_has_one_bos_and_one_eos(tokenizer, words, spells_bos, spells_eos):
    text = " ".join(["<s>"] * spells_bos + words + ["</s>"] * spells_eos)
    result = ours([text], tokenizer)
    assert ids(result) == [[0, *(WORDS.index(w) for w in words), 1]]
    assert result.eos_appended == (not spells_eos)


def test_bos_is_not_added_where_the_tokenizer_adds_none():
    tokenizer = make_tokenizer(adds_bos=False)
    assert ids(ours(["a b", "<s> a"], tokenizer)) == [[3, 4, 1], [0, 3, 1]]


def test_eos_is_not_doubled_where_the_tokenizer_adds_it():
    result = ours(["a b"], make_tokenizer(adds_eos=True))
    assert (ids(result), result.eos_appended) == ([[0, 3, 4, 1]], 0)


def test_a_tokenizer_without_special_tokens_adds_none():
    tokenizer = make_tokenizer(adds_bos=False, bos=None, eos=None)
    assert ids(ours(["a b", ""], tokenizer)) == [[3, 4], []]


def test_rows_are_cut_at_their_end_after_eos_and_the_loss_is_counted(tokenizer):
    result = ours(["a", "a b", "a b c d"], tokenizer, 3)
    assert ids(result) == [[0, 3, 1], [0, 3, 4], [0, 3, 4]]
    assert (result.truncated, result.tokens_lost, result.eos_appended) == (2, 1 + 3, 3)


def test_nothing_is_lost_within_the_limit(tokenizer):
    result = ours(["a b"], tokenizer, 4)
    assert (ids(result), result.truncated, result.tokens_lost) == ([[0, 3, 4, 1]], 0, 0)


def state_of(tokenizer):
    """All that a tokenizer is: its attributes, and the object underneath as JSON."""
    attributes = {k: copy.deepcopy(v) for k, v in vars(tokenizer).items() if k != "_tokenizer"}
    return attributes, tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("saved_with_limits", [False, True])
def test_the_tokenizer_is_not_changed(saved_with_limits):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 2
    if saved_with_limits:
        tokenizer.backend_tokenizer.enable_truncation(2, stride=1)
        tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=2, pad_token="<unk>")
    before = state_of(tokenizer)
    assert ids(ours(["a b c", "a"], tokenizer)) == [[0, 3, 4, 5, 1], [0, 3, 1]]
    assert state_of(tokenizer) == before


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
    result = tokenize_text(dataset, tokenizer, text_field="story", max_length=9)
    assert ids(result) == [[0, 5, 1], [0, 6, 7, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"`train_dataset` must hold at least one row; got none"),
        (
            [{"text": "a"}, {"body": "b", "a": 1}],
            r"must have the text column `text` .*; row 1 has \['a', 'body'\]\. Pass",
        ),
        (iter(["a"]), r"must have the text column `text` .*; row 0 has str\. Pass"),
        ([{"text": "a"}, {"text": 5}], r"column `text` must hold text; row 1 holds int"),
        ([{"text": None}], r"column `text` must hold text; row 0 holds NoneType"),
        ([{"text": ["a"]}], r"column `text` must hold text; row 0 holds list"),
    ],
    ids=["none", "no column", "not a mapping", "number", "missing", "list"],
)
def test_refuses_rows_without_text(tokenizer, rows, message):
    with pytest.raises(ValueError, match=message):
        tokenize_text(rows, tokenizer, text_field="text", max_length=9)


def test_stories_tokenizer_reads_the_story_it_was_trained_on(assets: Path):
    """The golden ids were made by the model's own program."""
    from safetensors.numpy import load_file

    golden = load_file(assets / "stories260K" / "golden_logits.safetensors")["input_ids"][0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets / "stories260K")
    text = tokenizer.decode(golden, skip_special_tokens=True)
    assert ours([text], tokenizer, len(golden)).rows[0].tolist() == golden.tolist()
