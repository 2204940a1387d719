"""The batch that a step takes, and which of its labels count."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

IGNORE = -100
Layout = Literal["causal", "packed"]

# Integers of JAX or NumPy. JAX rebuilds a pytree's nodes around placeholders of its own (shapes,
# argument records), so a node's fields cannot promise more; the functions that take them do.
Tokens = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one static shape; the micro-batches of a window are stacked on a leading axis.

    Attributes:
      input_ids: Token ids, [B, T].
      labels: Aligned with `input_ids`, [B, T]; -100 is ignored. Shifted inside the loss.
      segment_ids: Document of each token, [B, T]; 0 is padding. None if the layout is "causal".
      positions: Of each token in its document, [B, T]; None: counted from `segment_ids`.
      dropout_key: PRNG key of the adapters' dropout; None turns it off.
      layout: "causal" promises one document a row, padded on the right; anything else is
        "packed". Static: it selects the compiled program.
    """

    input_ids: Tokens
    labels: Tokens
    segment_ids: Tokens | None = None
    positions: Tokens | None = None
    dropout_key: Any = None
    layout: Layout = dataclasses.field(default="packed", metadata={"static": True})

    def check(self) -> None:
        """Raise if the layout and the segments contradict each other."""
        if self.layout == "packed" and self.segment_ids is None:
            raise ValueError(
                "a batch of layout 'packed' must have `segment_ids`; got None. Pass them, or "
                "layout='causal' if each row is one document padded on the right."
            )
        if self.layout == "causal" and self.segment_ids is not None:
            raise ValueError(
                "a batch of layout 'causal' must not have `segment_ids`; got some. Leave them "
                "out, or use layout='packed'."
            )
        if self.layout not in ("causal", "packed"):
            raise ValueError(f"`layout` must be 'causal' or 'packed'; got {self.layout!r}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """The micro-batches of a window, of one or a few static shapes; how many run is no shape.

    Attributes:
      stacks: One of each shape: the arrays of a packed `Batch`, [slots, B, T].
      used: Slots of each stack that hold tokens, int32; those after them are not run.
      dropout_key: PRNG key of the window's dropout; None turns it off.
    """

    stacks: tuple[Batch, ...]
    used: tuple[Any, ...]
    dropout_key: Any = None

    def first(self) -> Batch:
        """The first micro-batch that holds tokens."""
        for stack, used in zip(self.stacks, self.used, strict=True):
            if used:
                micro = jax.tree.map(lambda array: array[0], stack)
                return dataclasses.replace(micro, dropout_key=self.dropout_key)
        raise ValueError("a window must hold a micro-batch; got none. Leave empty windows out.")


def shift_labels(
    labels: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None
) -> Int[Array, "B T"]:
    """The label that each position predicts: its right neighbour's, inside the same document.

    Args:
      labels: Aligned with the input, -100 ignored.
      segment_ids: Documents; None: one a row. Padding (segment 0) predicts nothing.

    Returns:
      [B, T], -100 at the end of each document.
    """
    shifted = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    if segment_ids is None:
        return shifted
    following = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)))
    inside = (following == segment_ids) & (segment_ids != 0)
    return jnp.where(inside, shifted, IGNORE)
