"""A linear layer with an optional LoRA branch."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxtune.layers.context import LayerContext
from jaxtune.layers.dora import stretch
from jaxtune.layers.variables import Frozen, weight_of
from pallas_kernels import frozen_linear, lora_linear
from pallas_kernels.lora_linear import Adapter, Prepared, prepare_adapters


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The LoRA branch of one stacked projection, layer by layer.

    Attributes:
      ranks: Rank of each layer, [L]; 0 where the layer has no adapter. The stacks are padded with
        zero rows to the largest: A = B = 0 is a fixed point of the gradient and of Adam.
      scales: s of each layer, [L]: alpha / r, or alpha / sqrt(r) (rsLoRA).
      dropout: Probability of zeroing an input of A, in [0, 1).
      use_dora: The rows of W + s B A have trained lengths; see `jaxtune.layers.dora`.
    """

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropout: int | float
    use_dora: bool = False


class Linear(nnx.Module):
    """y = x W^T + b + s (drop(x) A^T) B^T, with Hugging Face's layout of W, A and B.

    `weight` is [L, out, in] in a stack and [out, in] outside one; A [L, R, in] and B [L, out, R]
    are float32 and computed in x's dtype. Inside a run the module holds one layer's slices.

    Attributes:
      weight: W, or a stack of quantised W: `NF4` or `Bank`.
      trained_weight: W's trained copy; exists only under `modules_to_save`.
      bias: b, or None.
      lora: Ranks, scales and dropout of the branch; None where there is none.
      lora_A: A; exists only with `lora`.
      lora_B: B; exists only with `lora`.
      lora_magnitude_vector: Lengths of the rows, [L, out]; exists only with DoRA.
    """

    lora_A: nnx.LoRAParam
    lora_B: nnx.LoRAParam
    lora_magnitude_vector: nnx.LoRAParam

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        layers: int | None,
        bias: bool,
        std: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the weight from N(0, std^2)."""
        lead = () if layers is None else (layers,)
        shape = (*lead, out_features, in_features)
        self.weight = nnx.Param((jax.random.normal(rngs.params(), shape) * std).astype(dtype))
        self.bias = nnx.Param(jnp.zeros((*lead, out_features), dtype)) if bias else None
        self.lora: LoraSpec | None = None

    def __call__(
        self, x: Float[Array, "B T I"], context: LayerContext, slot: int
    ) -> Float[Array, "B T O"]:
        """Apply one layer.

        Args:
          x: Input, [B, T, in].
          context: Layer index, adapter switch and dropout key.
          slot: Number of this projection in its block; separates the dropout masks.

        Returns:
          [B, T, out] in x's dtype.
        """
        return project((self,), x, context, slot)[0]

    def base(self, x: Float[Array, "B T I"], context: LayerContext) -> Float[Array, "B T O"]:
        """The product with W alone; W takes a gradient unless it is `Frozen`."""
        weight = weight_of(self, context.adapters)
        copied = context.adapters and getattr(self, "trained_weight", None) is not None
        if copied or not isinstance(self.weight, Frozen):
            return x @ weight.astype(x.dtype).T
        return frozen_linear(x, weight, layer=context.layer, backend=context.kernels)

    def adapter(self, lora: LoraSpec, layer: Int[Array, ""] | int | None) -> Adapter:
        """A, B and this layer's scale, or for None those of all layers."""
        scale = jnp.asarray(lora.scales, jnp.float32)
        scale = scale if layer is None else scale[layer]
        return Adapter(self.lora_A[...], self.lora_B[...], scale)

    def with_bias(self, y: Float[Array, "B T O"]) -> Float[Array, "B T O"]:
        """Add the bias, where there is one."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def project(
    linears: Sequence[Linear], x: Float[Array, "B T I"], context: LayerContext, first_slot: int
) -> list[Float[Array, "B T O"]]:
    """Apply projections to one input, which their LoRA branches read together where they can.

    Args:
      linears: Of the same input width. The base of an adapted one is frozen.
      x: Their input, [B, T, I].
      context: Of the layer.
      first_slot: Number of the first projection in its block; the others follow.

    Returns:
      Their outputs.
    """
    outputs: list[Float[Array, "B T O"]] = []
    for slot, some in _calls(linears, first_slot, context.adapters, context.dropout_key):
        outputs += _project_together(some, x, context, slot)
    return outputs


def prepare(
    linears: Sequence[Linear],
    first_slot: int,
    dtype: DTypeLike,
    *,
    adapters: bool,
    dropout_key: jax.Array | None,
) -> dict[int, Prepared]:
    """Adapters of stacked projections as `project` reads them, by the first slot of each call.

    Args:
      linears: As in `project`, of all layers.
      first_slot: Likewise.
      dtype: Of their input.
      adapters: As in `LayerContext`.
      dropout_key: Likewise; only whether there is one counts.
    """
    calls = _calls(linears, first_slot, adapters, dropout_key)
    prepared = {}
    for slot, some in calls:
        stacks = [m.adapter(m.lora, None) for m in some if m.lora is not None and adapters]
        if stacks:
            prepared[slot] = prepare_adapters(stacks, dtype)
    return prepared


def _calls(
    linears: Sequence[Linear], first_slot: int, adapters: bool, dropout_key: jax.Array | None
) -> list[tuple[int, Sequence[Linear]]]:
    """Which projections share a call, each with its first slot: all of them, or none with another.

    Under dropout, that is, where each projection has a mask of its own, and where some have no
    adapter.
    """
    adapted = [m.lora for m in linears if m.lora is not None and adapters]
    dropping = dropout_key is not None and any(lora.dropout > 0 for lora in adapted)
    if dropping or len(adapted) < len(linears):
        return [(first_slot + number, [linear]) for number, linear in enumerate(linears)]
    return [(first_slot, linears)]


def _project_together(
    linears: Sequence[Linear], x: Float[Array, "B T I"], context: LayerContext, slot: int
) -> list[Float[Array, "B T O"]]:
    """Apply the projections of one call."""
    adapted = [(m, m.lora) for m in linears if m.lora is not None and context.adapters]
    if not adapted:
        return [linear.with_bias(linear.base(x, context)) for linear in linears]
    dropping = context.dropout_key is not None and adapted[0][1].dropout > 0
    use_dora = adapted[0][1].use_dora
    dropped = _dropped(adapted[0][1], x, context, slot) if dropping else None
    lost = None
    if use_dora and dropped is not None:  # its dropout is on the input of W too
        lost, x, dropped = x - dropped, dropped, None
    outputs = lora_linear(
        x,
        [weight_of(linear, context.adapters) for linear in linears],
        [linear.adapter(lora, context.layer) for linear, lora in adapted],
        layer=context.layer,
        dropped=dropped,
        prepared=context.prepared.get(slot),
        backend=context.split_kernels,
        dequantizer=context.kernels,
    )
    if use_dora:
        outputs = [stretch(m, y, context) for m, y in zip(linears, outputs, strict=True)]
    if lost is not None:  # one projection alone: what dropout took away passes W by itself
        outputs = [linears[0].base(lost, context) + outputs[0]]
    return [linear.with_bias(y) for linear, y in zip(linears, outputs, strict=True)]


def _dropped(
    lora: LoraSpec, x: Float[Array, "B T I"], context: LayerContext, slot: int
) -> Float[Array, "B T I"] | None:
    """What A multiplies under dropout: inputs that are kept grow by as much as others are lost."""
    if context.dropout_key is None:
        return None
    mask, keep = _kept(jax.random.fold_in(context.dropout_key, slot), 1 - lora.dropout, x.shape)
    return jnp.where(mask, x / keep, 0).astype(x.dtype)


def _kept(key: jax.Array, share: float, shape: tuple[int, ...]) -> tuple[Bool[Array, "..."], float]:
    """Which inputs stay, and the share of them that is expected: the next 2^-16 to `share`.

    Sixteen bits decide each, two to a number of XLA's own generator: JAX's default one, which does
    not need this, would take half the time of the branch.
    """
    seed = jax.random.key_data(key).reshape(-1)
    fast = jax.random.wrap_key_data(jnp.concatenate([seed, seed])[:4], impl="rbg")
    half = -(-shape[-1] // 2)
    pairs = jax.random.bits(fast, (*shape[:-1], half), jnp.uint32)
    bits = jnp.concatenate([pairs & 0xFFFF, pairs >> 16], axis=-1)[..., : shape[-1]]
    limit = max(round(share * 2**16), 1)
    return bits < limit, limit / 2**16


def kaiming_uniform_bound(in_features: int) -> float:
    """Half-width of PEFT's initial A: kaiming_uniform(a=sqrt(5)) = U(-1/sqrt(in), 1/sqrt(in))."""
    return 1 / math.sqrt(in_features)
