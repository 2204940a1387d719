"""The gated MLP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxtune.config import DecoderConfig
from jaxtune.layers.context import LayerContext
from jaxtune.layers.linear import Linear, prepare, project
from jaxtune.layers.residuals import GATE, UP, named
from pallas_kernels import glu
from pallas_kernels.lora_linear import Prepared

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # the op's names


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(
        self, config: DecoderConfig, *, layers: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Stack the three projections of `layers` layers."""
        linear = functools.partial(
            Linear, layers=layers, bias=config.mlp_bias, std=std, dtype=dtype, rngs=rngs
        )
        self.hidden_activation = config.hidden_activation
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def prepare(
        self, dtype: DTypeLike, *, adapters: bool, dropout_key: jax.Array | None
    ) -> dict[int, Prepared]:
        """The adapters of all layers; see `jaxtune.layers.linear.prepare`."""
        ready = functools.partial(prepare, dtype=dtype, adapters=adapters, dropout_key=dropout_key)
        return ready((self.gate_proj, self.up_proj), 4) | ready((self.down_proj,), 6)

    def __call__(self, x: Float[Array, "B T D"], context: LayerContext) -> Float[Array, "B T D"]:
        """Apply one layer's MLP."""
        gate, up = project((self.gate_proj, self.up_proj), x, context, 4)
        gate, up = named(gate, GATE), named(up, UP)
        activation = ACTIVATIONS[self.hidden_activation]
        hidden = glu(gate, up, activation=activation, backend=context.row_kernels)
        return self.down_proj(hidden, context, 6)


def in_pieces(mlp: MLP, x: Float[Array, "B T D"], context: LayerContext) -> Float[Array, "B T D"]:
    """Apply an MLP to pieces of the rows, one after the other, so that one has its wide arrays.

    The backward pass computes each piece again. Weights are dequantised once a piece.

    Args:
      mlp: Of one layer.
      x: Its input, [B, T, D].
      context: Of the layer. Rows that do not divide into its `mlp_pieces` are taken whole.

    Returns:
      [B, T, D]; under dropout each piece has masks of its own.
    """
    pieces, (rows, length, width) = context.mlp_pieces, x.shape
    if pieces == 1 or length % pieces:
        return mlp(x, context)

    @jax.checkpoint
    def apply(piece: jax.Array, number: jax.Array) -> jax.Array:
        key = context.dropout_key
        key = None if key is None else jax.random.fold_in(key, number)
        return mlp(piece, dataclasses.replace(context, dropout_key=key))

    cut = jnp.moveaxis(x.reshape(rows, pieces, length // pieces, width), 1, 0)
    y = jax.lax.map(lambda given: apply(*given), (cut, jnp.arange(pieces)))
    return jnp.moveaxis(y, 0, 1).reshape(x.shape)
