"""Optimizers with states in 8 bits: what they share, apart from their arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxtune.optim.tensors import Tensors, tensors_of

SMALLEST_8BIT = 4096  # elements; a smaller tensor's state stays in 32 bits, as in bitsandbytes

Mask = Callable[[Any], Any]


class Context(NamedTuple):
    """The numbers of one step of one leaf."""

    learning_rate: Float[Array, ""]
    step: Int[Array, ""]
    weight_decay: int | float


class Held(NamedTuple):
    """The state of a leaf: its large tensors' in 8 bits, its small ones' in 32; None: no such."""

    blocks: Any
    plain: Any


class BlockwiseState(NamedTuple):
    """Steps made, and the state of each leaf by its name."""

    count: Int[Array, ""]
    held: dict[str, Held]


Start = Callable[[int, int], Any]
Step = Callable[[Array, Array, Any, Context], tuple[Array, Any]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The arithmetic of one optimizer.

    Attributes:
      start_8bit: (L, N) to the state of L tensors of N elements before the first step.
      start_32bit: The same in 32 bits.
      step_8bit: (p, g, state, context) to (the change of p in float32, the new state), p [L, N].
      step_32bit: The same in 32 bits.
    """

    start_8bit: Start
    start_32bit: Start
    step_8bit: Step
    step_32bit: Step


def blockwise(
    rule: Rule,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: int | float,
    mask: Mask | None,
) -> optax.GradientTransformation:
    """An optax transformation by a rule.

    State is held tensor by tensor, as PEFT has them: blocks of 256 begin anew with each layer, and
    each tensor by its own size is in 8 bits or in 32. Updates are float32.

    Args:
      rule: The arithmetic.
      learning_rate: Or a schedule of it by the updates made, 1/step.
      weight_decay: 1/step.
      mask: From the parameters to a tree that is True where a leaf decays; None: everywhere.

    Returns:
      The transformation; its `update` raises a ValueError for a state of other parameters.
    """

    def init(params: Any) -> BlockwiseState:
        return _start(rule, tensors_of(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, BlockwiseState]:
        if params is None:
            raise ValueError("8-bit optimizers need the parameters; got None. Pass `params`.")
        cuts = tensors_of(params)
        _check(state, jax.eval_shape(lambda: _start(rule, cuts)))
        leaves, structure = jax.tree.flatten(params)
        gradients = structure.flatten_up_to(updates)
        decayed = [True] * len(leaves) if mask is None else structure.flatten_up_to(mask(params))
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = jnp.asarray(optax.safe_increment(state.count))
        changes, held = [], {}
        for (name, cut), p, g, decays in zip(cuts.items(), leaves, gradients, decayed, strict=True):
            context = Context(
                learning_rate=jnp.asarray(rate, jnp.float32),
                step=count,
                weight_decay=weight_decay if decays else 0,
            )
            rows, held[name] = _step(
                rule, cut, (cut.rows(p), cut.rows(g)), state.held[name], context
            )
            changes.append(cut.leaf(rows))
        return structure.unflatten(changes), BlockwiseState(count=count, held=held)

    return optax.GradientTransformation(init, update)


def _groups(cut: Tensors) -> tuple[list[int], list[int]]:
    """The layers whose tensors are held in 8 bits, and those in 32; without an adapter neither."""
    large = [row for row, size in enumerate(cut.sizes) if size >= SMALLEST_8BIT]
    small = [row for row, size in enumerate(cut.sizes) if 0 < size < SMALLEST_8BIT]
    return large, small


def _start(rule: Rule, cuts: dict[str, Tensors]) -> BlockwiseState:
    held = {}
    for name, cut in cuts.items():
        large, small = _groups(cut)
        held[name] = Held(
            blocks=rule.start_8bit(len(large), max(cut.sizes)) if large else None,
            plain=rule.start_32bit(len(small), max(cut.sizes[row] for row in small))
            if small
            else None,
        )
    return BlockwiseState(count=jnp.zeros((), jnp.int32), held=held)


def _step(
    rule: Rule, cut: Tensors, arrays: tuple[Array, Array], held: Held, context: Context
) -> tuple[Float[Array, "L N"], Held]:
    """The changes of a leaf's tensors, and its state."""
    p, g = arrays
    large, small = _groups(cut)
    if not small and len(large) == len(cut.sizes) and max(cut.sizes) == p.shape[1]:
        changed, blocks = rule.step_8bit(p, g, held.blocks, context)
        return changed, Held(blocks=blocks, plain=None)
    changes, after = jnp.zeros(p.shape, jnp.float32), {}
    for field, rows, step in (
        ("blocks", large, rule.step_8bit),
        ("plain", small, rule.step_32bit),
    ):
        after[field] = None
        if rows:
            index, size = jnp.asarray(rows), max(cut.sizes[row] for row in rows)
            part = (p[index, :size], g[index, :size])
            changed, after[field] = step(*part, getattr(held, field), context)
            changes = changes.at[index, :size].set(changed)
    return changes, Held(**after)


def _check(state: BlockwiseState, expected: BlockwiseState) -> None:
    """Raise unless a state is one of these parameters."""
    if state.held.keys() != expected.held.keys():
        apart = sorted(state.held.keys() ^ expected.held.keys())
        raise _other(f"only one of the two has {', '.join(apart[:3])}")
    for name, wanted in expected.held.items():
        described = [_described(held) for held in (state.held[name], wanted)]
        if described[0] != described[1]:
            has, needs = (text or "none" for text in described)
            raise _other(f"`{name}` needs {needs} and has {has}")


def _described(held: Held) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(held)
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='.')} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    )


def _other(difference: str) -> ValueError:
    return ValueError(
        f"an optimizer's state must be that of the parameters; {difference}. Resume with the "
        "adapter that the state was saved with, or start with a new state."
    )
