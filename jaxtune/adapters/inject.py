"""Giving a model its LoRA branches."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from convert import names_module
from jaxtune.layers.linear import Linear, LoraSpec, kaiming_uniform_bound
from jaxtune.models.build import freeze
from jaxtune.models.decoder import CausalLM

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def projections(model: CausalLM) -> dict[str, Linear]:
    """The stacked linear layers by their path inside a layer, such as "self_attn.q_proj"."""
    block = model.model.layers
    return {
        ".".join(str(part) for part in path): module
        for path, module in nnx.iter_modules(block)
        if isinstance(module, Linear)
    }


def match_projections(model: CausalLM, target_modules: Sequence[str]) -> list[str]:
    """The projections that a list of PEFT target names selects.

    Args:
      model: The model to adapt.
      target_modules: Names; a projection is selected if its full name equals one or ends in
        "." and one, as in PEFT.

    Returns:
      Paths inside a layer, in the model's order.

    Raises:
      ValueError: The list is empty, or a name selects nothing.
    """
    paths = list(projections(model))
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    unmatched = [name for name in names if not any(names_module(name, path) for path in paths)]
    if unmatched or not names:
        raise ValueError(
            "`target_modules` must be a list of projections of this model; got "
            f"{names or 'none'}, of which {unmatched or 'nothing'} matches no module. "
            f"Choose from {[path.rsplit('.', 1)[-1] for path in paths]}."
        )
    return [path for path in paths if any(names_module(name, path) for name in names)]


def inject_lora(model: CausalLM, specs: Mapping[str, LoraSpec], *, seed: int) -> None:
    """Freeze the base and add trainable LoRA branches that change nothing yet.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) and B is zero, as PEFT does, so the adapted model
    equals the base. Rows over a layer's rank are zero in both.

    Args:
      model: Changed in place.
      specs: For each path of `projections`, its ranks, scales and dropout.
      seed: Of A; each projection draws from a key of its own.
    """
    freeze(model)
    linears = projections(model)
    for number, path in enumerate(linears):
        if path not in specs:
            continue
        spec, linear = specs[path], linears[path]
        weight = linear.weight.get_value()
        layers, out_features, in_features = weight.shape
        rank = max(spec.ranks)
        a_shape, b_shape = (layers, rank, in_features), (layers, out_features, rank)
        if isinstance(weight, jax.ShapeDtypeStruct):
            a = jax.ShapeDtypeStruct(a_shape, jnp.float32)
            linear.attach_lora(spec, a, jax.ShapeDtypeStruct(b_shape, jnp.float32))
            continue
        bound = kaiming_uniform_bound(in_features)
        key = jax.random.fold_in(jax.random.key(seed), number)
        a = jax.random.uniform(key, a_shape, jnp.float32, -bound, bound)
        held = jnp.arange(rank)[None, :] < jnp.asarray(spec.ranks)[:, None]  # [L, R]
        linear.attach_lora(spec, jnp.where(held[..., None], a, 0), jnp.zeros(b_shape, jnp.float32))
