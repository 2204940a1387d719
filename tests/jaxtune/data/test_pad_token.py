"""The pad token: never EOS, never beyond the model, never set on the caller's tokenizer."""

import copy

import pytest
import transformers

from jaxtune.data.pad_token import with_pad_token
from tests.jaxtune.data.test_tokenize import state_of
from tests.jaxtune.data.words import WORDS, make_tokenizer

SIZE = len(WORDS)


def test_a_good_pad_token_stays_and_so_does_the_object():
    tokenizer = make_tokenizer(words=["<pad>"], pad_token="h")
    assert with_pad_token(tokenizer, 100, [1, 2]) == (tokenizer, None)
    assert with_pad_token(tokenizer, 100, [1, 2])[0] is tokenizer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["<pad>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        (["[PAD]", "<|pad|>"], "<|pad|>"),
        (["<unused9>", "<pad>"], "<pad>"),
        (["[PAD]"], "[PAD]"),
        (["<|PAD_TOKEN|>"], "<|PAD_TOKEN|>"),
        (["<|vision_pad|>", "<|endoftext|>"], "<|vision_pad|>"),
        (["<|endoftext|>"], "<|endoftext|>"),
        (["<|reserved_special_token_9|>", "<|reserved_special_token_250|>"], None),
        (["<unused5>", "<unused98>"], None),
        (["[control_8]", "[control_768]"], None),
        (["<SPECIAL_20>"], None),
        (["a<pad>", "<unusedx>"], "<unk>"),
        ([], "<unk>"),
    ],
)
def test_known_names_come_first_then_reserved_entries_then_unk(words, expected):
    """Of reserved entries the last: the first ones may get a meaning."""
    tokenizer = make_tokenizer(words=words)
    repaired, line = with_pad_token(tokenizer, SIZE + len(words))
    assert repaired.pad_token == (expected or words[-1])
    number = repaired.convert_tokens_to_ids(repaired.pad_token)
    assert repaired.pad_token_id == number < SIZE + len(words)
    assert line == (
        f"the tokenizer has no pad token; its copy pads with `{repaired.pad_token}` "
        f"(id {number}), an entry it had"
    )
    assert (len(repaired), tokenizer.pad_token) == (len(tokenizer), None)


def test_entries_without_a_row_in_the_model_are_not_taken():
    tokenizer = make_tokenizer(words=["<unused1>", "<unused2>", "<pad>"])
    assert with_pad_token(tokenizer, SIZE + 1)[0].pad_token == "<unused1>"
    assert with_pad_token(tokenizer, SIZE)[0].pad_token == "<unk>"


@pytest.mark.parametrize("pad", ["</s>", "d"])
def test_a_pad_token_that_ends_texts_is_replaced(pad):
    """`d` is among the model's ends only, as Llama-3's `<|end_of_text|>` is."""
    tokenizer = make_tokenizer(pad_token=pad)
    repaired, line = with_pad_token(tokenizer, SIZE, [1, WORDS.index("d")])
    assert repaired.pad_token == "<unk>"
    assert f"pad token `{pad}` (id {WORDS.index(pad)}) also ends texts; its copy" in line
    assert tokenizer.pad_token == pad


def test_a_pad_token_beyond_the_model_is_replaced():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # As scripts do, without resizing.
    repaired, line = with_pad_token(tokenizer, SIZE)
    assert repaired.pad_token == "<unk>"
    assert f"`[PAD]` (id {SIZE}) is beyond the model's vocabulary of {SIZE}; its copy" in line


def test_bos_and_every_end_are_left_alone():
    """GPT-2's `<|endoftext|>` is BOS, EOS and unk in one."""
    one = "<|endoftext|>"
    tokenizer = make_tokenizer(words=[one], bos=one, eos=one, unk=one)
    repaired, line = with_pad_token(tokenizer, SIZE + 1)
    assert repaired is tokenizer
    assert tokenizer.pad_token is None
    assert line.startswith("the tokenizer has no pad token, and no entry")
    assert "padding is masked by length" in line
    tokenizer = make_tokenizer(words=["<pad>"])
    assert with_pad_token(tokenizer, SIZE + 1, [SIZE])[0].pad_token == "<unk>"
    tokenizer = make_tokenizer(words=["<pad>"], bos="<pad>")
    assert with_pad_token(tokenizer, SIZE + 1)[0].pad_token == "<unk>"


def test_a_new_entry_takes_a_row_that_the_model_has_to_spare():
    tokenizer = make_tokenizer(unk=None)
    repaired, line = with_pad_token(tokenizer, SIZE + 1)
    assert (repaired.pad_token, repaired.pad_token_id) == ("<|PAD_TOKEN|>", SIZE)
    assert line.endswith(f"`<|PAD_TOKEN|>` (id {SIZE}), a new entry")
    assert len(tokenizer) == SIZE
    full, line = with_pad_token(tokenizer, SIZE)
    assert full is tokenizer
    assert (len(tokenizer), tokenizer.pad_token) == (SIZE, None)
    assert "no entry of its vocabulary can pad" in line


def test_a_pad_token_that_nothing_can_replace_stays():
    tokenizer = make_tokenizer(unk=None, pad_token="</s>")
    repaired, line = with_pad_token(tokenizer, SIZE)
    assert (repaired, repaired.pad_token) == (tokenizer, "</s>")
    assert "also ends texts, and no entry of its vocabulary can pad instead" in line


@pytest.mark.parametrize("unk", ["<unk>", None])
def test_the_copy_keeps_all_else_and_the_original_everything(unk, tmp_path):
    tokenizer = make_tokenizer(
        unk=unk, padding_side="left", truncation_side="left", model_max_length=77
    )
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    before = copy.deepcopy(state_of(tokenizer))
    size = len(tokenizer) + 1
    repaired, _ = with_pad_token(tokenizer, size)
    assert state_of(tokenizer) == before
    repaired.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for kept in (repaired, loaded):
        assert kept.pad_token == (unk or "<|PAD_TOKEN|>")
        assert (kept.padding_side, kept.truncation_side) == ("left", "left")
        assert (kept.model_max_length, kept.chat_template) == (77, "{{ messages }}")
        assert (
            kept("a <tool> <|turn|> b")["input_ids"] == tokenizer("a <tool> <|turn|> b").input_ids
        )
        assert tokenizer.get_added_vocab().items() <= kept.get_added_vocab().items()
        padded = kept(["a", "a b"], padding=True)
        assert padded["input_ids"][0] == [kept.pad_token_id, 0, 3]
