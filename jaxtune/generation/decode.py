"""The two compiled programs: reading the prompts, and one token after another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.generation.warp import Warp, choose
from jaxtune.layers.cache import KVCache, empty_cache
from jaxtune.models.per_device import everywhere
from jaxtune.models.shards import with_whole_ends
from pallas_kernels.pytree import pytree

# Steps between two looks at what a streamer is given.
CHUNK = 8


@pytree(data=("warp", "stops", "pad", "stop_table"), meta=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How tokens are chosen and when a row ends.

    Attributes:
      warp: What is done to the logits.
      stops: Ids that end a row, [E]; -1 is none.
      pad: What follows in a row that has ended.
      stop_table: Of `stop_strings.StopTable`, [states, V]; None: no texts end a row.
    """

    warp: Warp
    stops: jax.Array | np.ndarray
    pad: jax.Array | np.integer
    stop_table: jax.Array | np.ndarray | None


@pytree(
    data=("step", "token", "position", "cache", "finished", "out", "seen", "stop_state"), meta=()
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """A generation between two steps; R rows, S slots.

    Attributes:
      step: New tokens so far.
      token: The newest, [R]; not yet read by the model.
      position: Of that token in its row, [R].
      cache: Keys and values of what the model has read.
      finished: Rows that have ended, [R].
      out: New tokens, then padding, [R, S].
      seen: Tokens that a row holds, [R, V]; None: nobody asks.
      stop_state: Of the automaton of stop texts, [R]; None: no such texts.
    """

    step: jax.Array
    token: jax.Array
    position: jax.Array
    cache: KVCache
    finished: jax.Array
    out: jax.Array
    seen: jax.Array | None
    stop_state: jax.Array | None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def prefill(
    graphdef: nnx.GraphDef,
    slots: int,
    copies: int,
    state: nnx.State,
    prompts: tuple[jax.Array | np.ndarray, ...],
    stop_state: jax.Array | np.ndarray | None,
    rules: Rules,
) -> tuple[Decoding, jax.Array]:
    """Read the prompts once, and choose the first new token of each copy of each row.

    Args:
      graphdef: Of the model.
      slots: S, room for the prompts' width and the new tokens.
      copies: Rows made of each prompt, side by side.
      state: The model's arrays.
      prompts: Ids, segment ids and positions of prompts padded on the left, [B, W] each.
      stop_state: Of the automaton after each prompt, [B].
      rules: The rules.

    Returns:
      The state after one new token, R = B * copies, and that token, [R].
    """
    read = functools.partial(_prefilled, slots, copies)
    return everywhere(read, graphdef, state, prompts, stop_state, rules)


def _prefilled(
    slots: int,
    copies: int,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: tuple[jax.Array, ...],
    stop_state: jax.Array | None,
    rules: Rules,
) -> tuple[Decoding, jax.Array]:
    """`prefill` on one device."""
    model = nnx.merge(graphdef, with_whole_ends(state))
    config = model.config
    input_ids, segment_ids, positions = map(jnp.asarray, prompts)
    rows, _ = input_ids.shape
    cache = empty_cache(
        config.num_hidden_layers,
        rows,
        slots,
        config.num_key_value_heads,
        config.head_dim,
        model.dtype,
    )
    hidden, cache = model.model(
        input_ids, segment_ids=segment_ids, positions=positions, cache=cache
    )
    logits = model.logits(hidden[:, -1:])[:, 0]
    seen = None
    if rules.warp.repetition_penalty is not None:
        seen = jnp.zeros((rows, config.vocab_size), bool)
        seen = seen.at[jnp.arange(rows)[:, None], input_ids].max(segment_ids > 0)
    copied = functools.partial(jnp.repeat, repeats=copies, axis=0)
    logits, position, seen, stop_state = jax.tree.map(
        copied, (logits, positions[:, -1] + 1, seen, stop_state)
    )
    rows *= copies
    begun = Decoding(
        step=jnp.int32(0),
        token=jnp.zeros(rows, jnp.int32),
        position=position,
        cache=_copied_rows(cache, copies),
        finished=jnp.zeros(rows, bool),
        out=jnp.full((rows, slots), rules.pad, jnp.int32),
        seen=seen,
        stop_state=stop_state,
    )
    begun = _append(begun, logits, rules)
    return begun, begun.token


@functools.partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def decode(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    so_far: Decoding,
    until: jax.Array | np.integer,
    rules: Rules,
) -> tuple[Decoding, jax.Array, jax.Array]:
    """One token an iteration until there are `until`, or every row has ended; on the device.

    Args:
      graphdef: Of the model.
      state: The model's arrays.
      so_far: Where to go on; its arrays are consumed.
      until: New tokens to stop at.
      rules: The rules.

    Returns:
      The new state; the first `CHUNK` tokens of this call, [R, CHUNK]; how many it made.
    """
    return everywhere(_decoded, graphdef, state, so_far, until, rules)


def _decoded(
    graphdef: nnx.GraphDef, state: nnx.State, so_far: Decoding, until: jax.Array, rules: Rules
) -> tuple[Decoding, jax.Array, jax.Array]:
    """`decode` on one device."""
    model = nnx.merge(graphdef, with_whole_ends(state))
    rows = so_far.token.shape[0]
    prepared = model.model.layers.prepare(model.dtype, adapters=True, dropout_key=None)

    def unfinished(now: Decoding) -> jax.Array:
        return (now.step < until) & ~jnp.all(now.finished)

    def advance(now: Decoding) -> Decoding:
        hidden, cache = model.model(
            now.token[:, None],
            segment_ids=jnp.ones((rows, 1), jnp.int32),
            positions=now.position[:, None],
            cache=now.cache,
            prepared=prepared,
        )
        read = dataclasses.replace(now, cache=cache, position=now.position + 1)
        return _append(read, model.logits(hidden)[:, 0], rules)

    after = jax.lax.while_loop(unfinished, advance, so_far)
    # A copy: the state is consumed by the next call, while the host still reads these.
    made = jax.lax.dynamic_slice(after.out, (0, so_far.step), (rows, CHUNK))
    return after, made, after.step - so_far.step


def _append(now: Decoding, logits: jax.Array, rules: Rules) -> Decoding:
    """Choose the next token of each row and enter it; rows that have ended get padding."""
    token = choose(logits, now.seen, rules.warp, now.step)
    token = jnp.where(now.finished, rules.pad, token)
    finished = now.finished | jnp.isin(token, rules.stops)
    seen, stop_state = now.seen, now.stop_state
    if seen is not None:
        seen = seen.at[jnp.arange(seen.shape[0]), token].set(True)
    if stop_state is not None and rules.stop_table is not None:
        stop_state = jnp.asarray(rules.stop_table)[stop_state, token].astype(jnp.int32)
        finished = finished | (stop_state < 0)
        stop_state = jnp.where(stop_state < 0, -1 - stop_state, stop_state)
    return dataclasses.replace(
        now,
        step=now.step + 1,
        token=token,
        out=jax.lax.dynamic_update_slice(now.out, token[:, None], (0, now.step)),
        finished=finished,
        seen=seen,
        stop_state=stop_state,
    )


def _copied_rows(cache: KVCache, copies: int) -> KVCache:
    """The cache of `copies` rows for each row."""
    if copies == 1:
        return cache
    return dataclasses.replace(
        cache,
        k=jnp.repeat(cache.k, copies, axis=1),
        v=jnp.repeat(cache.v, copies, axis=1),
        segment_ids=jnp.repeat(cache.segment_ids, copies, axis=0),
    )
