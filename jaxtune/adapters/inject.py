"""Giving a model its LoRA branches, as PEFT initialises them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.adapters.modules import Place, linear_places
from jaxtune.layers.dora import first_magnitudes
from jaxtune.layers.linear import LoraSpec, kaiming_uniform_bound
from jaxtune.models.build import freeze
from jaxtune.models.decoder import CausalLM

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"


def inject_lora(
    model: CausalLM,
    specs: Mapping[str, LoraSpec],
    *,
    seed: int,
    init_lora_weights: bool | str = True,
) -> None:
    """Freeze the base and add trainable LoRA branches to its projections.

    True: A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, so the adapted model equals the base;
    "gaussian": A ~ N(0, 1/r^2), B = 0; False: A as under True, B ~ U(-1/sqrt(r), 1/sqrt(r)).
    Rows over a layer's rank are zero in both. DoRA's magnitudes are the lengths that rows have.

    Args:
      model: Changed in place.
      specs: For each path of `projections` to adapt, its ranks, scales and dropout.
      seed: Each projection draws from keys of its own.
      init_lora_weights: One of the three above.

    Source: peft `tuners/lora/layer.py` `reset_lora_parameters`; torch's `nn.Linear` for False.
    """
    freeze(model)
    for number, place in enumerate(linear_places(model)):
        if place.in_layer not in specs:
            continue
        spec = specs[place.in_layer]
        weight = place.module.weight.get_value()
        layers, out_features, in_features = weight.shape
        rank = max(spec.ranks)
        a_shape, b_shape = (layers, rank, in_features), (layers, out_features, rank)
        if isinstance(jax.tree.leaves(weight)[0], jax.ShapeDtypeStruct):
            a = jax.ShapeDtypeStruct(a_shape, jnp.float32)
            m = jax.ShapeDtypeStruct((layers, out_features), jnp.float32)
            attach_lora(place, spec, a, jax.ShapeDtypeStruct(b_shape, jnp.float32), m)
            continue
        key = jax.random.fold_in(jax.random.key(seed), number)
        ranks = jnp.asarray(spec.ranks)[:, None, None]  # [L, 1, 1]
        a, b = _draw(key, a_shape, b_shape, ranks, init_lora_weights)
        held = jnp.arange(rank) < ranks  # [L, 1, R]
        a, b, m = jnp.where(held.mT, a, 0), jnp.where(held, b, 0), None
        if spec.use_dora:
            kernels = model.model.weight_kernels
            lengths = first_magnitudes(weight, a, b, spec.scales, spec.ranks, kernels)
            # By way of the host: bound to no device, as A and B are.
            m = jnp.array(np.asarray(lengths, np.float32))
        attach_lora(place, spec, a, b, m)


def _draw(
    key: jax.Array,
    a_shape: tuple[int, int, int],
    b_shape: tuple[int, int, int],
    ranks: jax.Array,
    init: bool | str,
) -> tuple[Float[Array, "L R I"], Float[Array, "L O R"]]:
    b = jnp.zeros(b_shape, jnp.float32)
    if init == "gaussian":
        return jax.random.normal(key, a_shape) / jnp.maximum(ranks, 1), b
    bound = kaiming_uniform_bound(a_shape[-1])
    if init is False:
        b = jax.random.uniform(jax.random.fold_in(key, 1), b_shape, jnp.float32, -1, 1)
        b = b * jnp.maximum(ranks, 1) ** -0.5
    return jax.random.uniform(key, a_shape, jnp.float32, -bound, bound), b


def attach_lora(
    place: Place,
    spec: LoraSpec,
    a: Float[Array, "L R I"] | jax.ShapeDtypeStruct,
    b: Float[Array, "L O R"] | jax.ShapeDtypeStruct,
    magnitude: Float[Array, "L O"] | jax.ShapeDtypeStruct | None = None,
) -> None:
    """Give a projection its adapter stacks, under PEFT's names.

    Args:
      place: The projection.
      spec: Its ranks and scales.
      a: A, zero over each layer's rank.
      b: B, likewise.
      magnitude: Of DoRA, zero in layers without an adapter; unused without `spec.use_dora`.
    """
    place.module.lora = spec
    for side, value in (("lora_A", a), ("lora_B", b)):
        names = (f"{PREFIX}{place.pattern}.{side}.weight",)
        setattr(place.module, side, nnx.LoRAParam(value, ranks=spec.ranks, peft_names=names))
    if spec.use_dora and magnitude is not None:
        # Counted like ranks: all rows of an adapted layer are in its tensor, and none of another's.
        rows = tuple(magnitude.shape[1] if rank else 0 for rank in spec.ranks)
        names = (f"{PREFIX}{place.pattern}.{MAGNITUDE}",)
        held = nnx.LoRAParam(magnitude, ranks=rows, peft_names=names)
        place.module.lora_magnitude_vector = held
