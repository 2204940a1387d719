"""Models without files, for tests, plans and benchmarks; and the switch from trained to frozen."""

from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxtune.config import DecoderConfig
from jaxtune.layers.linear import Linear
from jaxtune.layers.variables import Frozen, TrainedCopy
from jaxtune.models.decoder import CausalLM
from jaxtune.models.quantized import random_stack

ModelT = TypeVar("ModelT", bound=CausalLM)


def build(
    model_class: type[ModelT],
    config: DecoderConfig,
    weights: Literal["abstract", "random"],
    *,
    dtype: DTypeLike = jnp.float32,
    seed: int = 0,
    initializer_range: float = 0.02,
    bits: int = 16,
) -> ModelT:
    """Make a model from its configuration alone.

    Args:
      model_class: The family.
      config: Its sizes and values.
      weights: "abstract": `jax.ShapeDtypeStruct` leaves, no memory; "random": drawn from
        N(0, initializer_range^2) on the default device.
      dtype: Of the weights.
      seed: Of the random weights.
      initializer_range: Standard deviation of the random weights.
      bits: 16 (any dtype), or 4: the layers' projections are quantised, and never were dense.

    Returns:
      A model whose every leaf is an `nnx.Param`; `freeze` makes it a base for adapters.
    """

    def make() -> ModelT:
        rngs = nnx.Rngs(params=seed)
        model = model_class(config, rngs=rngs, dtype=dtype, initializer_range=initializer_range)
        if bits == 4:
            _set_random_4bit(model, seed, initializer_range)
        return model

    if bits not in (4, 16):
        raise ValueError(f"`bits` must be 4 or 16; got {bits}.")

    if weights == "abstract":
        return nnx.eval_shape(make)
    if weights == "random":
        # Compiled, the dense weights that the 4-bit ones replace are never drawn.
        return nnx.jit(make)() if bits == 4 else make()
    raise ValueError(f"`weights` must be 'abstract' or 'random'; got {weights!r}")


def _set_random_4bit(model: CausalLM, seed: int, std: float) -> None:
    """Replace the layers' projections by random 4-bit stacks."""
    for number, (_, module) in enumerate(nnx.iter_modules(model.model.layers)):
        if isinstance(module, Linear):
            layers, rows, columns = module.weight.get_value().shape
            key = jax.random.fold_in(jax.random.key(seed), number)
            stack = random_stack(key, layers, (rows, columns), model.dtype, std)
            module.weight = Frozen(stack)  # pyrefly: ignore[bad-assignment]


def freeze(model: nnx.Module) -> None:
    """Turn every trained leaf but the adapters' into a frozen one; no array is copied."""
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param) and not isinstance(value, (nnx.LoRAParam, TrainedCopy)):
                setattr(module, name, Frozen(value.get_value()))


def train_all(model: nnx.Module) -> None:
    """Turn every frozen leaf into a trained one with a float32 master; the logits stay.

    Full fine-tuning: the activations keep the model's dtype, the weights that AdamW changes do not
    lose the small steps that 16 bits cannot hold.
    """
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, Frozen):
                setattr(module, name, nnx.Param(master(value.get_value())))


def master(value: Any) -> Any:
    """A float32 copy of a weight that is to be trained; abstract leaves stay abstract."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape, jnp.float32)
    # A copy even from float32: a training step consumes the arrays that it trains.
    return jnp.array(value, jnp.float32)
