"""The key/value cache: one array a tensor for all layers, a carry of the layer scan."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the positions seen so far.

    Attributes:
      k: Rotated keys, [L, B, S, K, H].
      v: Values, [L, B, S, K, H].
      segment_ids: Document of each slot, [B, S]; 0 is padding or an empty slot.
      length: Slots in use, the same for every row (prompts are padded on the left).
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    segment_ids: Int[Array, "B S"]
    length: Int[Array, ""]

    def write(
        self,
        layer: Int[Array, ""] | int,
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
    ) -> "KVCache":
        """Put the keys and values of T new positions of one layer at slots length .. length+T."""
        zero = jnp.zeros((), jnp.int32)
        start = (jnp.asarray(layer, jnp.int32), zero, self.length, zero, zero)
        return dataclasses.replace(
            self,
            k=lax.dynamic_update_slice(self.k, k[None].astype(self.k.dtype), start),
            v=lax.dynamic_update_slice(self.v, v[None].astype(self.v.dtype), start),
        )

    def layer(
        self, layer: Int[Array, ""] | int
    ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """All slots of one layer's keys and values."""
        k = lax.dynamic_index_in_dim(self.k, layer, keepdims=False)
        return k, lax.dynamic_index_in_dim(self.v, layer, keepdims=False)

    def admit(self, segment_ids: Int[Array, "B T"]) -> "KVCache":
        """Enter the documents of the T positions about to be written (`length` stays)."""
        start = (jnp.zeros((), jnp.int32), self.length)
        written = lax.dynamic_update_slice(self.segment_ids, segment_ids, start)
        return dataclasses.replace(self, segment_ids=written)

    def advance(self, positions: int) -> "KVCache":
        """Count the written positions in."""
        return dataclasses.replace(self, length=self.length + positions)


def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: DTypeLike
) -> KVCache:
    """A cache with room for `slots` positions a row; bytes = 2 L B S K H itemsize."""
    shape = (layers, batch, slots, kv_heads, head_dim)
    return KVCache(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        segment_ids=jnp.zeros((batch, slots), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )
