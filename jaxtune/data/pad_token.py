"""A pad token that is not an end-of-text token: `fix_tokenizer` of `from_pretrained`.

This library masks padding by length and needs none. Trainers that mask it by its value do: where
pad is EOS, a model trained there never learns to stop. So what is saved beside a model has one.
"""

import copy
import re
from collections.abc import Collection
from typing import Any

# Entries that families have for the purpose, best first: Llama 3.1 and later, Phi and OLMo, many,
# BERT's heirs, older Unsloth exports, Qwen-VL, GPT-2's heirs (where it is not EOS, as in Phi-3).
_NAMES = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|PAD_TOKEN|>",
    "<|vision_pad|>",
    "<|endoftext|>",
)
# Entries that no text and no template uses: Llama 3, Gemma, BERT, Mistral v3, Tekken, Phi-3. The
# last of them is taken: later releases of a family give the first ones a meaning.
_SPARE = re.compile(
    r"<\|reserved_special_token_\d+\|>|<unused\d+>|\[unused\d+\]|\[control_\d+\]|<SPECIAL_\d+>"
    r"|<\|placeholder\d+\|>"
)
_NEW = "<|PAD_TOKEN|>"


def with_pad_token(
    tokenizer: Any, vocab_size: int, eos_token_ids: Collection[int] = ()
) -> tuple[Any, str | None]:
    """The tokenizer with a pad token that is not EOS; a copy, where one had to be chosen.

    A pad token that is fine stays. Else the first of: a known pad entry, a reserved entry, the
    unknown token, a new entry if the model has a row to spare. Only entries that the model has a
    row for, and neither BOS nor EOS. If there is none, the tokenizer stays as it is.

    Args:
      tokenizer: A transformers tokenizer; not changed.
      vocab_size: Rows of the model's embedding.
      eos_token_ids: Ids that end a text besides the tokenizer's own (generation_config.json).

    Returns:
      The tokenizer, and a line that says what was done, or why nothing could be; None: all was
      well, and the tokenizer is the object that was passed.
    """
    ends = {tokenizer.eos_token_id, *eos_token_ids}
    present = tokenizer.pad_token_id
    if present is not None and present < vocab_size and present not in ends:
        return tokenizer, None
    problem = _problem(tokenizer, vocab_size)
    taken = {*ends, tokenizer.bos_token_id}
    vocabulary = {
        name: number
        for name, number in tokenizer.get_vocab().items()
        if number < vocab_size and number not in taken
    }
    spare = [name for name in vocabulary if _SPARE.fullmatch(name)]
    spare.sort(key=vocabulary.__getitem__, reverse=True)
    candidates = [name for name in _NAMES if name in vocabulary] + spare[:1]
    if tokenizer.unk_token in vocabulary:
        candidates.append(tokenizer.unk_token)
    if candidates:
        repaired = copy.deepcopy(tokenizer)
        repaired.pad_token = candidates[0]
        return repaired, f"{problem}; its copy pads with {_shown(repaired)}, an entry it had"
    repaired = copy.deepcopy(tokenizer)
    repaired.add_special_tokens({"pad_token": _NEW})
    if repaired.pad_token_id < vocab_size and repaired.pad_token_id not in taken:
        return repaired, f"{problem}; its copy pads with {_shown(repaired)}, a new entry"
    return tokenizer, (
        f"{problem}, and no entry of its vocabulary can pad instead; it stays as it is. Training "
        "here is not affected (padding is masked by length); a trainer that masks the pad token "
        "by its value needs another"
    )


def _problem(tokenizer: Any, vocab_size: int) -> str:
    if tokenizer.pad_token_id is None:
        return "the tokenizer has no pad token"
    if tokenizer.pad_token_id >= vocab_size:
        return (
            f"the tokenizer's pad token {_shown(tokenizer)} is beyond the model's vocabulary of "
            f"{vocab_size}"
        )
    return f"the tokenizer's pad token {_shown(tokenizer)} also ends texts"


def _shown(tokenizer: Any) -> str:
    return f"`{tokenizer.pad_token}` (id {tokenizer.pad_token_id})"
