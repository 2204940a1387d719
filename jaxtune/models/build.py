"""Models without files, for tests, plans and benchmarks; and the switch from trained to frozen."""

from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxtune.config import DecoderConfig
from jaxtune.layers.variables import Frozen, TrainedCopy
from jaxtune.models.decoder import CausalLM

ModelT = TypeVar("ModelT", bound=CausalLM)


def build(
    model_class: type[ModelT],
    config: DecoderConfig,
    weights: Literal["abstract", "random"],
    *,
    dtype: DTypeLike = jnp.float32,
    seed: int = 0,
    initializer_range: float = 0.02,
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

    Returns:
      A model whose every leaf is an `nnx.Param`; `freeze` makes it a base for adapters.
    """

    def make() -> ModelT:
        rngs = nnx.Rngs(params=seed)
        return model_class(config, rngs=rngs, dtype=dtype, initializer_range=initializer_range)

    if weights == "abstract":
        return nnx.eval_shape(make)
    if weights == "random":
        return make()
    raise ValueError(f"`weights` must be 'abstract' or 'random'; got {weights!r}")


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
