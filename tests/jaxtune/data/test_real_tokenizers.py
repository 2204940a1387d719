"""Tokenizers of real models: rows of text against TRL, chats against their own templates."""

from pathlib import Path

import pytest
import transformers
from safetensors.numpy import load_file

from jaxtune.data.pad_token import with_pad_token
from tests.jaxtune.data.test_tokenize import TEXTS, ids, ours, trl_oracle, trl_rows

# Family: rows of its models' embeddings, the pad token chosen.
FAMILIES = {
    "llama3.2": (128256, "<|finetune_right_pad_id|>"),
    "llama2": (32000, "<unk>"),
    "mistral_v3": (32768, "[control_748]"),
    "gemma": (256000, "<pad>"),
}
CHATS = [
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "It is **4**.\n\nnaïve 日本 🙂"},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long"},
    ],
]


@pytest.fixture(scope="module")
def real(assets: Path):
    """The tokenizers of the families, by name."""
    return {
        name: transformers.AutoTokenizer.from_pretrained(assets / "tokenizers" / name)
        for name in FAMILIES
    }


def check_rows(tokenizer):
    """Rows are TRL's, and one that spells BOS has it once."""
    texts = [*TEXTS, f"hello{tokenizer.eos_token}"]
    result = ours(texts, tokenizer, 12)
    assert ids(result) == trl_rows(texts, tokenizer, 12)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert result.rows[-1].tolist().count(eos) == 1
    spelled = f"{tokenizer.bos_token}one two"
    result = ours(["one two", spelled, tokenizer.bos_token], tokenizer)
    assert [row.tolist().count(bos) for row in result.rows] == [1] * 3
    assert result.rows[1].tolist() == [*tokenizer.encode(spelled)[1:], eos]


@pytest.mark.parity
@trl_oracle
def test_texts_give_the_rows_of_trl(real, assets):
    for tokenizer in real.values():
        check_rows(tokenizer)
    stories = transformers.AutoTokenizer.from_pretrained(assets / "stories260K")
    check_rows(stories)
    # The golden ids were made by the model's own program.
    golden = load_file(assets / "stories260K" / "golden_logits.safetensors")["input_ids"][0]
    text = stories.decode(golden, skip_special_tokens=True)
    assert ids(ours([text], stories, len(golden))) == [golden.tolist()]


def check_chats(tokenizer):
    """Rendered chats give the template's own ids, and EOS where they do not end with it."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        expected = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert text.startswith(tokenizer.bos_token)
        assert expected[:1] == [bos] != expected[1:2]
        [row] = ids(ours([text], tokenizer, 1000))
        assert row == (expected if expected[-1] == eos else [*expected, eos])
        # Without BOS in the text the tokenizer adds it: the same row.
        assert ids(ours([text.removeprefix(tokenizer.bos_token)], tokenizer, 1000)) == [row]
        if chat is CHATS[0]:
            assert row.count(bos) == 1


@pytest.mark.parity
def test_pad_tokens_are_repaired_and_chats_have_one_bos(real):
    for name, (vocab_size, pad) in FAMILIES.items():
        original = real[name]
        padded_with = original.pad_token
        tokenizer, line = with_pad_token(original, vocab_size)
        assert tokenizer.pad_token == pad
        assert tokenizer.pad_token_id == original.get_vocab()[pad] < vocab_size
        assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
        assert (line is None) == (tokenizer is original) == (name == "gemma")
        assert len(tokenizer) == len(original)
        assert original.pad_token == padded_with
        check_chats(tokenizer)
