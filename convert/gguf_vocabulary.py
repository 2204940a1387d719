"""A tokenizer.json as the vocabulary of a GGUF file.

llama.cpp has two tokenizers for these families. "llama" merges SentencePiece's pieces by score,
highest first; "gpt2" merges bytes by rank, after an expression that is built into llama.cpp and
chosen by name has cut the text. tokenizer.json holds merges of both; the scores that order them
alike are minus the place of a piece's first merge.

Source: https://github.com/ggml-org/llama.cpp `convert_hf_to_gguf.py` (`_set_vocab_gpt2`,
  `_set_vocab_sentencepiece`), `src/llama-vocab.cpp`; transformers `convert_slow_tokenizer.py`
  (merges from scores).
"""

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, broken, shown
from convert.json_object import read_json_object

TOKENIZER_FILE = "tokenizer.json"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# The expression that cuts texts -> llama.cpp's name for it.
_CUTS = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Added tokens that some repositories forgot to call special.
_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<unused\d+>", re.DOTALL)
_ADDED_SCORE = -1000.0


class Kind(enum.IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a GGUF file holds of a tokenizer beside its special ids, merges and template.

    Attributes:
      model: "llama" or "gpt2".
      pre: Name of the expression that cuts texts.
      tokens: By id, [V].
      kinds: Of each token.
      scores: Of each token; None for "gpt2".
      add_space_prefix: A space goes before a text; None for "gpt2".
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[Kind]
    scores: list[float] | None
    add_space_prefix: bool | None


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read a tokenizer's vocabulary.

    Args:
      folder: Holds tokenizer.json.
      vocab_size: V, rows of the model's embedding; ids that the tokenizer lacks are unused tokens.

    Returns:
      The vocabulary.

    Raises:
      CheckpointError: no tokenizer.json, or one that llama.cpp could not run.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise _unfit(folder, f"no {TOKENIZER_FILE}")
    try:
        return _vocabulary(folder, read_json_object(file), vocab_size)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        said = f"another form of tokenizer.json ({type(error).__name__}: {shown(str(error))})"
        raise _unfit(folder, said) from error


def _vocabulary(folder: Path, tokenizer: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json; another form than the library's fails in some way."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise _unfit(folder, f"a tokenizer of type {shown(kind)}")
    vocab, added = model.get("vocab"), tokenizer.get("added_tokens") or []
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise _unfit(folder, "a tokenizer.json without a vocabulary")
    pieces = {str(piece): number for piece, number in vocab.items()}
    wrong = [
        number
        for number in [*pieces.values(), *(token["id"] for token in added)]
        if type(number) is not int or not 0 <= number < vocab_size
    ]
    if wrong:
        raise _unfit(folder, f"token {shown(wrong[0])} beside a model of {vocab_size} tokens")
    cuts = _cuts(tokenizer.get("pre_tokenizer"))
    if _is_bytes(cuts):
        return _byte_pairs(folder, cuts, pieces, added, vocab_size)
    if not model.get("byte_fallback"):
        raise _unfit(folder, "merges of characters, without bytes to fall back on")
    return _sentence_pieces(tokenizer, model, pieces, added, vocab_size)


def _byte_pairs(
    folder: Path,
    cuts: Sequence[Mapping[str, Any]],
    pieces: Mapping[str, int],
    added: Sequence[Mapping[str, Any]],
    vocab_size: int,
) -> Vocabulary:
    """The vocabulary of llama.cpp's "gpt2"."""
    patterns = [cut["pattern"].get("Regex") for cut in cuts if cut.get("type") == "Split"]
    pre = "gpt-2" if not patterns else _CUTS.get(str(patterns[0]))
    if pre is None or len(patterns) > 1:
        raise _unfit(folder, f"texts cut by {shown(patterns)}")
    tokens, kinds = _tokens(pieces, added, vocab_size)
    return Vocabulary(
        model="gpt2", pre=pre, tokens=tokens, kinds=kinds, scores=None, add_space_prefix=None
    )


def _sentence_pieces(
    tokenizer: Mapping[str, Any],
    model: Mapping[str, Any],
    pieces: Mapping[str, int],
    added: Sequence[Mapping[str, Any]],
    vocab_size: int,
) -> Vocabulary:
    """The vocabulary of llama.cpp's "llama"."""
    tokens, kinds = _tokens(pieces, added, vocab_size)
    places: dict[str, int] = {}
    for place, merge in enumerate(model.get("merges") or []):
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        places.setdefault("".join(pair), place)
    unknown = pieces.get(str(model.get("unk_token")))
    scores = [-float(places.get(token, len(places))) for token in tokens]
    for token in added:
        scores[token["id"]] = _ADDED_SCORE
    for number, token in enumerate(tokens):
        if kinds[number] is Kind.NORMAL and _BYTE.fullmatch(token):
            kinds[number], scores[number] = Kind.BYTE, 0.0
    if unknown is not None:
        kinds[unknown], scores[unknown] = Kind.UNKNOWN, 0.0
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        add_space_prefix=_prepends(tokenizer),
    )


def _tokens(
    pieces: Mapping[str, int], added: Sequence[Mapping[str, Any]], vocab_size: int
) -> tuple[list[str], list[Kind]]:
    """Tokens by id, and their kinds."""
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [Kind.UNUSED] * vocab_size
    for piece, number in pieces.items():
        tokens[number], kinds[number] = piece, Kind.NORMAL
    for token in added:
        content, number = str(token["content"]), token["id"]
        special = token.get("special") or _SPECIAL.fullmatch(content)
        kinds[number] = Kind.CONTROL if special else Kind.USER_DEFINED
        # llama.cpp looks for these in the text itself, where a space is one.
        tokens[number] = content if special else content.replace("▁", " ")
    return tokens, kinds


def _cuts(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    """The steps that cut a text."""
    if not isinstance(pre_tokenizer, dict):
        return []
    return pre_tokenizer.get("pretokenizers") or [pre_tokenizer]


def _is_bytes(cuts: Sequence[Mapping[str, Any]]) -> bool:
    return any(cut.get("type") == "ByteLevel" for cut in cuts)


def _prepends(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space goes before a text."""
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    cuts = _cuts(tokenizer.get("pre_tokenizer"))
    return any(step.get("type") == "Prepend" for step in steps) or any(
        cut.get("type") == "Metaspace" and cut.get("prepend_scheme", "always") != "never"
        for cut in cuts
    )


def _unfit(folder: Path, got: str) -> CheckpointError:
    """Build the error for a tokenizer that a GGUF file cannot hold."""
    return broken(
        f"The tokenizer of a GGUF file must be one that llama.cpp can run, in {folder}",
        got=got,
        wanted="tokenizer.json with byte-level BPE cut as by Llama 3, Qwen, GPT-2 or Tekken, or "
        "SentencePiece's BPE with bytes",
        cure="Save the base's own tokenizer beside the model, or write the file with llama.cpp.",
    )
