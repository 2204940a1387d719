"""Texts that end a row, found on the device: an automaton over tokens."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

# Makes a decoder treat the next token as one inside a text.
CONTEXT = "abcdef"


@dataclasses.dataclass(frozen=True)
class StopTable:
    """Where each token leads from each state; a state is how much of a stop text was just read.

    Attributes:
      table: [states, V], int16: the next state s; -1 - s where a stop text ended inside the token.
    """

    table: np.ndarray

    def after(self, tokens: Sequence[int] | np.ndarray) -> int:
        """The state after a prompt; a stop text that ended inside it does not count."""
        state = 0
        for token in tokens:
            state = int(self.table[state, token])
            state = -1 - state if state < 0 else state
        return state


def stop_table(tokenizer: Any, stop_strings: Sequence[str], vocab_size: int) -> StopTable:
    """Compile texts to a table over tokens.

    A row ends with the first token in which one of the texts is complete, wherever in the token,
    and whether or not it began in the prompt: transformers' rule.

    Args:
      tokenizer: Of the model.
      stop_strings: Texts, none empty.
      vocab_size: V of the model; its ids beyond the tokenizer's match nothing.

    Returns:
      The table.

    Raises:
      ValueError: A text is empty.
      TypeError: No tokenizer, or not texts.
    """
    texts = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"`stop_strings` must be a text or a list of texts; got {stop_strings!r}.")
    if not texts or "" in texts:
        raise ValueError(
            "`stop_strings` must be texts of at least one character; got "
            f"{stop_strings!r}. Leave it out to stop at EOS alone."
        )
    if tokenizer is None:
        raise TypeError(
            "`stop_strings` needs the tokenizer, to know what text a token is; got none, and the "
            "model was loaded without one. Pass tokenizer=."
        )
    return _compiled(tokenizer, len(tokenizer), texts, vocab_size)


@functools.lru_cache(maxsize=4)  # reading a large vocabulary takes about a second
def _compiled(tokenizer: Any, known: int, texts: tuple[str, ...], vocab_size: int) -> StopTable:
    """`known` tells a tokenizer from itself before a token was added."""
    steps, ends, symbols = _automaton(texts)
    states = len(steps)
    table = np.zeros((states, vocab_size), np.int16)
    read = _token_texts(tokenizer, min(known, vocab_size))
    longest = max(map(len, read), default=0)
    letters = np.full((len(read), longest), -1)  # -1: the token is over
    for row, text in enumerate(read):
        letters[row, : len(text)] = [symbols.get(letter, len(symbols)) for letter in text]
    for start in range(states):
        state = np.full(len(read), start)
        ended = np.zeros(len(read), bool)
        for column in letters.T:
            on = column >= 0
            state[on] = steps[state[on], column[on]]
            ended |= on & ends[state]
        table[start, : len(read)] = np.where(ended, -1 - state, state)
    return StopTable(table)


def _token_texts(tokenizer: Any, known: int) -> list[str]:
    """What each token adds to a text that it stands inside of."""
    context = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    rows = tokenizer.batch_decode(
        [[*context, token] for token in range(known)], clean_up_tokenization_spaces=False
    )
    return [row[row.index(CONTEXT) + len(CONTEXT) :] for row in rows]


def _automaton(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Aho and Corasick's: next state of state and letter, states that end a text, the letters.

    A state is a prefix of a text: the longest that what was read ends with. The last column is
    that of all other letters.
    """
    prefixes = sorted({text[:end] for text in texts for end in range(len(text) + 1)}, key=len)
    number = {prefix: place for place, prefix in enumerate(prefixes)}
    symbols = {letter: place for place, letter in enumerate(sorted(set("".join(texts))))}
    steps = np.zeros((len(prefixes), len(symbols) + 1), np.int64)
    for prefix, place in number.items():
        for letter, column in symbols.items():
            read = prefix + letter
            tails = (read[begin:] for begin in range(len(read) + 1))
            steps[place, column] = next(number[tail] for tail in tails if tail in number)
    ends = np.array([prefix.endswith(texts) for prefix in prefixes])
    return steps, ends, symbols
