"""`jaxtune bench --generate`: greedy answers of a random model, timed from call to array."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxtune.api import FastLanguageModel
from jaxtune.bench.answer_floors import AnswerFloor, answer_floor
from jaxtune.bench.floors import Rates
from jaxtune.bench.measure import COMPILED, WARM_UP, heard
from jaxtune.bench.options import Bench
from jaxtune.bench.subject import Subject
from jaxtune.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What was seen of answers to so many prompts at a time.

    Attributes:
      rows: Prompts at a time.
      for_inference: The model came from `for_inference`.
      first_call_seconds: The first answer, with its compilation.
      first_token_ms: Each timed answer of one token.
      answer_ms: Each timed answer of all tokens.
      compilations: Programs compiled during the timed answers; 0 is right. None: JAX tells not.
      floor: At the device's rates.
    """

    rows: int
    for_inference: bool
    first_call_seconds: float
    first_token_ms: tuple[float, ...]
    answer_ms: tuple[float, ...]
    compilations: int | None
    floor: AnswerFloor


def check_answers(options: Bench, subject: Subject) -> None:
    """Raise if prompt and answer are longer than the model's range."""
    limit = subject.config.max_position_embeddings
    if options.prompt + options.new_tokens > limit:
        raise ValueError(
            f"--prompt and --new-tokens together must be <= {limit}, the range of "
            f"{subject.name}; got {options.prompt} + {options.new_tokens}. Shorten either."
        )


def measure_answers(options: Bench, model: LanguageModel, rates: Rates) -> list[Answers]:
    """Time answers for each number of rows, without and with `for_inference`.

    Args:
      options: Of the command line.
      model: With its adapter.
      rates: Of the device.

    Returns:
      Two for each number of rows.
    """
    found = []
    for rows in options.rows:
        floor = answer_floor(model, rows, options.prompt, options.new_tokens, rates)
        for prepared in (False, True):
            speaker = FastLanguageModel.for_inference(model) if prepared else model
            found.append(_measure(options, speaker, rows, prepared, floor))
    return found


def _measure(
    options: Bench, model: LanguageModel, rows: int, for_inference: bool, floor: AnswerFloor
) -> Answers:
    draw = np.random.default_rng(0)
    prompts = draw.integers(0, model.config.vocab_size, (rows, options.prompt))

    def answer(new_tokens: int) -> np.ndarray:
        # No id ends a row: random weights may choose any, and all answers must be of one length.
        return model.generate(
            prompts, max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )

    with heard() as announced:
        start = time.perf_counter()
        answer(options.new_tokens)
        first_call = time.perf_counter() - start
    for _ in range(WARM_UP):
        answer(options.new_tokens)
        answer(1)
    with heard() as events:
        first = _times(lambda: answer(1), options.steps)
        whole = _times(lambda: answer(options.new_tokens), options.steps)
    return Answers(
        rows=rows,
        for_inference=for_inference,
        first_call_seconds=first_call,
        first_token_ms=first,
        answer_ms=whole,
        compilations=events.count(COMPILED) if COMPILED in announced or for_inference else None,
        floor=floor,
    )


def _times(call: Callable[[], object], times: int) -> tuple[float, ...]:
    """Milliseconds of each call; its result is an array of the host, so that it has ended."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(1e3 * (time.perf_counter() - start))
    return tuple(found)
