"""A tiny word tokenizer and ragged rows for it, without files or assets."""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(93)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """97 entries: pad 0, <s> 1, </s> 2, unk 3, then the words; adds <s>."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {word: 4 + number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def ragged_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of 2 to 17 words."""
    draw = np.random.default_rng(seed)
    return [{"text": " ".join(draw.choice(WORDS, int(draw.integers(2, 18))))} for _ in range(count)]
