"""Generation: transformers' `generate` on the training forward, with a key/value cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxtune.generation.arguments import INSTEAD, NEUTRAL
from jaxtune.generation.decode import CHUNK, Rules, decode, prefill
from jaxtune.generation.prompts import Prompts, bucket, prepare_prompts
from jaxtune.generation.settings import (
    check_cache,
    check_counts,
    pad_id,
    settle,
    stop_ids,
)
from jaxtune.generation.stop_strings import stop_table
from jaxtune.generation.streamers import Streamer, check_streamer
from jaxtune.layers.host_memory import on_device
from jaxtune.models.decoder import CausalLM
from jaxtune.script_calls import explained

STOPS = 8  # ids that end a row are padded to a multiple, so that their number compiles nothing


@explained(INSTEAD, NEUTRAL)
def generate(  # noqa: PLR0913  transformers' face: scripts written for it pass these names.
    model: CausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    num_return_sequences: int = 1,
    eos_token_id: int | Sequence[int] | np.ndarray | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    use_cache: bool = True,
    seed: int | None = None,
) -> np.ndarray:
    """Continue each prompt; adapters are applied as they are, and nothing of the model changes.

    What is None is taken from the model's generation_config.json, else from transformers'
    defaults (greedy; of a draw: temperature 1, top_k 50). Programs are compiled for buckets of
    lengths; all steps run on the device.

    Args:
      model: With or without adapters, at any moment of a training run.
      input_ids: Prompts, [B, P], in any array type or nested lists; padded on either side with
        `attention_mask`, or lists of unequal length; or what a tokenizer returned, with both.
      attention_mask: 1 for tokens, 0 for padding, [B, P]; None: all are tokens.
      max_new_tokens: Upper bound, tokens.
      do_sample: Draw tokens; False takes the likeliest.
      temperature: Divides the logits, > 0.
      top_k: Likeliest tokens kept; 0: all.
      top_p: Probability kept, 0 to 1.
      min_p: Least probability kept, as a fraction of the largest, 0 to 1.
      repetition_penalty: Over 1 makes tokens of the prompt and the answer less likely.
      num_return_sequences: Answers a prompt, side by side; more than 1 needs `do_sample`.
      eos_token_id: A row ends after any of these; [-1]: after none.
      pad_token_id: Fills rows that ended early; None: the model's, else its first EOS.
      stop_strings: A row also ends with the token that completes one of these.
      tokenizer: Reads `stop_strings`; None: the one that the model was loaded with.
      streamer: Is given the prompt, then the tokens, by eight while the device goes on.
      use_cache: True.
      seed: Of the draws, >= 0; None: the model's `random_state`. A call's draws follow from its
        arguments alone: another answer takes another seed.

    Returns:
      int32 [B * num_return_sequences, P + n]: prompts as given, then n <= `max_new_tokens` tokens.

    Raises:
      TypeError: An unknown argument, or a value of the wrong kind.
      ValueError: A prompt is empty or too long, or a value is out of range.
      NotBuiltYetError: `use_cache=False`.
    """
    check_cache(use_cache)
    if streamer is not None:
        check_streamer(streamer)
    carried, vocab_size = model.carried, model.config.vocab_size
    given = {
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    settings = settle(given, carried.generation_config)
    check_counts(max_new_tokens, num_return_sequences, do_sample=settings.do_sample)
    says = (carried.generation_config, carried.hf_config)
    stops = stop_ids(eos_token_id, *says)
    pad = pad_id(pad_token_id, stops, vocab_size, *says)
    prompts = prepare_prompts(input_ids, attention_mask, pad_token_id=pad, vocab_size=vocab_size)
    _check_range(prompts, max_new_tokens, model.config.max_position_embeddings)
    table, stop_state = None, None
    if stop_strings is not None:
        reader = tokenizer if tokenizer is not None else carried.tokenizer
        texts = stop_table(reader, stop_strings, vocab_size)
        table = texts.table
        rows = zip(prompts.input_ids, prompts.segment_ids, strict=True)
        stop_state = np.array([texts.after(ids[kept > 0]) for ids, kept in rows], np.int32)
    rules = Rules(
        warp=settings.warp(carried.random_state if seed is None else seed),
        stops=np.array(stops + [-1] * (-len(stops) % STOPS or STOPS), np.int32),
        pad=np.int32(pad),
        stop_table=table,
    )
    given_ids = np.repeat(prompts.given, num_return_sequences, axis=0)
    new = _run(model, prompts, stop_state, rules, (max_new_tokens, num_return_sequences), streamer)
    return np.concatenate([given_ids, new], axis=1)


def _run(
    model: CausalLM,
    prompts: Prompts,
    stop_state: np.ndarray | None,
    rules: Rules,
    counts: tuple[int, int],
    streamer: Streamer | None,
) -> np.ndarray:
    """The new tokens, [B * copies, n]; `counts` are the most of them, and copies."""
    most, copies = counts
    graphdef, state = nnx.split(model)
    state = on_device(state)  # a lookup by the host would stop the device at every token
    block = (prompts.input_ids, prompts.segment_ids, prompts.positions)
    slots = bucket(prompts.input_ids.shape[1] + most)
    if streamer is not None:
        streamer.put(np.repeat(prompts.given, copies, axis=0))
    now, first = prefill(graphdef, slots, copies, state, block, stop_state, rules)
    if streamer is None:
        now, _, _ = decode(graphdef, state, now, np.int32(most), rules)
        return np.asarray(now.out)[:, : int(now.step)]
    parts, last = [np.asarray(first)[:, None]], 1
    now, made, count = decode(graphdef, state, now, np.int32(min(last + CHUNK, most)), rules)
    streamer.put(parts[0][:, 0])
    while True:
        last += CHUNK
        # Dispatched before the previous chunk is read: the device has work while the host decodes.
        ahead = decode(graphdef, state, now, np.int32(min(last + CHUNK, most)), rules)
        tokens = np.asarray(made)[:, : int(count)]
        parts.append(tokens)
        for column in tokens.T:
            streamer.put(column)
        if tokens.shape[1] < CHUNK:
            streamer.end()
            return np.concatenate(parts, axis=1)
        now, made, count = ahead


def _check_range(prompts: Prompts, max_new_tokens: int, limit: int) -> None:
    """Refuse rows that would outgrow the model's range."""
    longest = int(prompts.segment_ids.sum(axis=1).max())
    if longest + max_new_tokens <= limit:
        return
    cure = "Shorten the prompt, or load the model with a larger max_seq_length"
    cure += f", or pass max_new_tokens <= {limit - longest}." if longest < limit else "."
    raise ValueError(
        "a prompt and its new tokens must fit the model's range of "
        f"{limit} tokens; got {longest} + {max_new_tokens}. {cure}"
    )
