"""What a layer needs besides its weights and its input."""

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int

from jaxtune.config import LayerSpec
from jaxtune.layers.cache import KVCache
from pallas_kernels.lora_linear import Prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerContext:
    """The surroundings of one layer's call.

    Attributes:
      layer: Index of the layer in the stack; traced inside a run.
      spec: Its static specification.
      cos: Cosines of the rotary embedding, [B or 1, T, H], in the activation's dtype.
      sin: Sines, likewise.
      segment_ids: Document of each query, [B, T]; None when each row is one document padded on
        the right (layout "causal").
      cache: Keys and values of earlier positions, or None.
      adapters: Add the LoRA branch where there is one.
      dropout_key: Of this layer; None turns dropout off.
      kernels: Backend request of the ops that read a weight, and of attention.
      row_kernels: That of the ops on activations alone: norms and the gated activation.
      split_kernels: That of the LoRA products: rows may be split over devices.
      prepared: Adapters of all layers as their products read them, by the number of the first
        projection of each group in its block; see `jaxtune.layers.linear.prepare`. A layer
        prepares what is missing itself.
      middle_kept: The backward pass finds the stream between attention and MLP (plan "none").
      mlp_pieces: Of a row that the MLP takes one after the other.
    """

    layer: Int[Array, ""] | int
    spec: LayerSpec
    cos: Float[Array, "_ T H"]
    sin: Float[Array, "_ T H"]
    segment_ids: Int[Array, "B T"] | None
    cache: KVCache | None
    adapters: bool
    dropout_key: jax.Array | None
    kernels: str
    row_kernels: str
    split_kernels: str
    prepared: Mapping[int, Prepared]
    middle_kept: bool
    mlp_pieces: int
