"""The string tasks of the packaged model, and the new one that quickstart teaches it."""

from collections.abc import Callable
from string import ascii_lowercase

import numpy as np

SHORTEST, LONGEST = 3, 8  # letters of a word
VOWELS = "aeiou"
FOLLOWING = str.maketrans(ascii_lowercase, ascii_lowercase[1:] + ascii_lowercase[0])

TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "upper": str.upper,
    "double": lambda word: "".join(letter * 2 for letter in word),
    "drop": lambda word: "".join(letter for letter in word if letter not in VOWELS),
    "rotate": lambda word: word[1:] + word[0],
    "next": lambda word: word.translate(FOLLOWING),
    "ends": lambda word: word[0] + word[-1],
    "sort": lambda word: "".join(sorted(word)),
}

# Never seen in pretraining; its two halves were.
NEW_TASK = "reverse upper"


def solve(task: str, word: str) -> str:
    """The right answer: each task of the name applied to the word, from left to right.

    Args:
      task: A key of `TASKS`, or several with spaces between.
      word: Lower-case letters.

    Returns:
      The answer.
    """
    for name in task.split():
        word = TASKS[name](word)
    return word


def prompt(task: str, word: str) -> str:
    """What the model is asked: `upper: llama =`."""
    return f"{task}: {word} ="


def text(task: str, word: str) -> str:
    """A row to train on, without its special tokens: `upper: llama = LLAMA`."""
    return f"{prompt(task, word)} {solve(task, word)}"


def draw_word(draw: np.random.Generator) -> str:
    """Random letters, a quarter of them vowels on purpose."""
    length = int(draw.integers(SHORTEST, LONGEST + 1))
    letters, vowels = draw.integers(0, 26, length), draw.integers(0, len(VOWELS), length)
    return "".join(
        VOWELS[vowel] if share < 0.25 else ascii_lowercase[letter]
        for letter, vowel, share in zip(letters, vowels, draw.random(length), strict=True)
    )


def draw_words(draw: np.random.Generator, count: int) -> list[str]:
    """Different words, as many as asked for."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[draw_word(draw)] = None
    return list(words)
