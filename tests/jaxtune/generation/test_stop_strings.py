"""Where texts end a row, against transformers' criterion on the same tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.generation.stopping_criteria import StopStringCriteria

from jaxtune.generation.stop_strings import stop_table
from jaxtune.language_model import LanguageModel
from tests.loaded import load_base

pytestmark = pytest.mark.parity
VOCABULARY = 512
PROMPT = "Once upon a time, there"
SETS = (["e"], ["as a"], [" t", "the", "th"], ["aab", "ab"], ["ll. S", "\n"], ["not there"])


@pytest.fixture(scope="module")
def folder(assets: Path) -> Path:
    return assets / "stories260K"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def text_rows(tokenizer: Any) -> list[list[int]]:
    """Tokens in sensible and in arbitrary order."""
    text = "Once there was a small cat. She saw all the toys, as aaab said.\nThe end of that"
    random = np.random.default_rng(0)
    usual = tokenizer(text)["input_ids"]
    return [usual, *(random.permutation(usual).tolist() for _ in range(8))]


@pytest.mark.parametrize("texts", SETS, ids=str)
def test_rows_end_where_transformers_ends_them(tokenizer: Any, texts: list[str]) -> None:
    criterion = StopStringCriteria(tokenizer, texts)
    table = stop_table(tokenizer, texts, VOCABULARY).table
    ended = 0
    for row in text_rows(tokenizer):
        state = 0
        for end, token in enumerate(row, 1):
            expected = bool(criterion(torch.tensor([row[:end]]), None)[0])
            state = int(table[state, token])
            assert (state < 0) == expected, (texts, tokenizer.decode(row[:end]))
            state = -1 - state if state < 0 else state
            ended += expected
    assert (ended > 0) == (texts != ["not there"])


@pytest.mark.slow
def test_generation_stops_as_in_transformers(folder: Path, tokenizer: Any) -> None:
    model = load_base(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The last of them begins in the prompt.
    prompts = [tokenizer(text)["input_ids"] for text in (PROMPT, "A dog", "She had a r")]
    texts = ["park", "red", ". On"]
    ours = model.generate(prompts, max_new_tokens=40, stop_strings=texts, tokenizer=tokenizer)
    width = max(map(len, prompts))
    lengths = set()
    for prompt, row in zip(prompts, ours[:, width:], strict=True):
        ids = torch.tensor([prompt])
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            stop_strings=texts,
            tokenizer=tokenizer,
            pad_token_id=2,
        )[0, len(prompt) :].numpy()
        np.testing.assert_array_equal(row[: len(out)], out)
        assert (row[len(out) :] == 2).all()
        lengths.add(len(out))
    assert min(lengths) < 40
    assert len(lengths) > 1


def test_ids_beyond_the_tokenizer_match_nothing(tokenizer: Any) -> None:
    table = stop_table(tokenizer, "the", VOCABULARY + 5).table
    assert (table[:, VOCABULARY:] == 0).all()


def test_bad_texts_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"texts of at least one character; got \['a', ''\]"):
        stop_table(tokenizer, ["a", ""], VOCABULARY)
    with pytest.raises(ValueError, match=r"texts of at least one character; got \[\]"):
        stop_table(tokenizer, [], VOCABULARY)
    with pytest.raises(TypeError, match=r"needs the tokenizer"):
        stop_table(None, "a", VOCABULARY)


def test_the_models_tokenizer_is_the_default(folder: Path, tokenizer: Any) -> None:
    model: LanguageModel = load_base(folder)
    model.carried.tokenizer = tokenizer
    out = model.generate([tokenizer(PROMPT)["input_ids"]], max_new_tokens=40, stop_strings="little")
    assert tokenizer.decode(out[0]).endswith("little")
