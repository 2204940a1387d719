"""A small adapter as the trainer's tree, and the same tensors one by one, as PEFT has them."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.adapters.peft_form import peft_names

# Layer 1 has no adapter, layer 2 a smaller one: its A and B have 5,120 and 3,072 elements.
RANKS = (16, 0, 8, 16)
INNER, OUTER = 640, 384


def tree(draw, norm=5000, head=700):
    """Stacks of A and B with zeros where a layer has no such row, a norm a layer, and a head."""
    layers, rank = len(RANKS), max(RANKS)
    held = np.arange(rank) < np.asarray(RANKS)[:, None]
    a = draw((layers, rank, INNER)) * held[:, :, None]
    b = draw((layers, OUTER, rank)) * held[:, None, :]
    names = {"ranks": RANKS}
    projection = {
        "lora_A": nnx.LoRAParam(
            jnp.asarray(a, jnp.float32), **names, peft_names=("layers.{}.proj.lora_A",)
        ),
        "lora_B": nnx.LoRAParam(
            jnp.asarray(b, jnp.float32), **names, peft_names=("layers.{}.proj.lora_B",)
        ),
    }
    norms = nnx.Param(jnp.asarray(draw((layers, norm)), jnp.float32))
    return nnx.State(
        {
            "model": {"layers": {"proj": projection, "norm": {"weight": norms}}},
            "head": nnx.Param(jnp.asarray(draw((3, head)), jnp.float32)),
        }
    )


def one_by_one(trainable):
    """{name: tensor} in numpy, without padding."""
    return {name: np.asarray(tensor) for name, tensor in peft_names(trainable).items()}
