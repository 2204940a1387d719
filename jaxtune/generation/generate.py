"""Greedy decoding, batched, with a key/value cache, on the training forward."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.generation.prompts import prepare_prompts
from jaxtune.layers.cache import empty_cache
from jaxtune.models.decoder import CausalLM

# Prompt widths and new-token counts are rounded up to these, so that near sizes share a program.
PROMPT_MULTIPLE = 32
NEW_MULTIPLE = 32


def generate(
    model: CausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int = 20,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
) -> np.ndarray:
    """Continue each prompt with its most likely tokens.

    Args:
      model: With or without adapters.
      input_ids: Prompts, [B, P], in any array type or nested lists; padded on either side with
        `attention_mask`, or lists of unequal length.
      attention_mask: 1 for tokens, 0 for padding; None: all are tokens.
      max_new_tokens: Upper bound, tokens.
      eos_token_id: A row stops after any of these; None: the model's.
      pad_token_id: Fills the rows that stopped early; None: the model's, else its first EOS.

    Returns:
      int32 [B, P + n]: the prompts as given, then n new tokens, n <= `max_new_tokens`.

    Raises:
      ValueError: A prompt is empty, or prompt and new tokens exceed the model's range.
    """
    if max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be >= 1; got {max_new_tokens}.")
    hf = model.carried.hf_config
    stops = _as_list(eos_token_id if eos_token_id is not None else hf.get("eos_token_id"))
    pad = pad_token_id if pad_token_id is not None else hf.get("pad_token_id")
    pad = pad if pad is not None else (stops[0] if stops else 0)
    prompts = prepare_prompts(
        input_ids,
        attention_mask,
        pad_token_id=pad,
        vocab_size=model.config.vocab_size,
        multiple=PROMPT_MULTIPLE,
    )
    longest = int(prompts.segment_ids.sum(axis=1).max())
    if longest + max_new_tokens > model.config.max_position_embeddings:
        raise ValueError(
            "a prompt and its new tokens must fit the model's range of "
            f"{model.config.max_position_embeddings} tokens; got {longest} + {max_new_tokens}. "
            "Shorten the prompt, or lower max_new_tokens."
        )
    graphdef, state = nnx.split(model)
    room = -(-max_new_tokens // NEW_MULTIPLE) * NEW_MULTIPLE
    tokens, made = _greedy(
        graphdef,
        room,
        state,
        (prompts.input_ids, prompts.segment_ids, prompts.positions),
        np.int32(max_new_tokens),
        np.asarray(stops or [-1], np.int32),
        np.int32(pad),
    )
    return np.concatenate([prompts.given, np.asarray(tokens)[:, : int(made)]], axis=1)


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _greedy(
    graphdef: nnx.GraphDef,
    room: int,
    state: nnx.State,
    prompts: tuple[jax.Array | np.ndarray, ...],
    max_new_tokens: jax.Array | np.integer,
    stops: jax.Array | np.ndarray,
    pad: jax.Array | np.integer,
) -> tuple[jax.Array, jax.Array]:
    """Prefill, then one token an iteration until every row has stopped; all on the device."""
    model = nnx.merge(graphdef, state)
    config = model.config
    input_ids, segment_ids, positions = map(jnp.asarray, prompts)
    rows, width = input_ids.shape
    cache = empty_cache(
        config.num_hidden_layers,
        rows,
        width + room,
        config.num_key_value_heads,
        config.head_dim,
        model.dtype,
    )
    hidden, cache = model.model(
        input_ids, segment_ids=segment_ids, positions=positions, cache=cache
    )
    token = jnp.argmax(model.logits(hidden[:, -1:])[:, 0], axis=-1).astype(jnp.int32)

    def unfinished(carry: tuple) -> jax.Array:
        step, _, _, _, finished, _ = carry
        return (step < max_new_tokens) & ~jnp.all(finished)

    def advance(carry: tuple) -> tuple:
        step, token, position, cache, finished, out = carry
        token = jnp.where(finished, pad, token)
        out = jax.lax.dynamic_update_slice(out, token[:, None], (0, step))
        finished = finished | jnp.isin(token, stops)
        hidden, cache = model.model(
            token[:, None],
            segment_ids=jnp.ones((rows, 1), jnp.int32),
            positions=position[:, None],
            cache=cache,
        )
        following = jnp.argmax(model.logits(hidden)[:, 0], axis=-1).astype(jnp.int32)
        return step + 1, following, position + 1, cache, finished, out

    start = (
        jnp.int32(0),
        token,
        positions[:, -1] + 1,
        cache,
        jnp.zeros(rows, bool),
        jnp.full((rows, room), pad, jnp.int32),
    )
    step, _, _, _, _, out = jax.lax.while_loop(unfinished, advance, start)
    return out, step
