"""A step compiled for simulated devices: what the compiler says of each, where no GPU is."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.bench.setup import MAX_GRAD_NORM, make_optimizer
from jaxtune.data.batch import Batch
from jaxtune.memory import planned
from jaxtune.models.decoder import CausalLM
from jaxtune.models.placement import batch_specs, devices_of
from jaxtune.plan.wire import bytes_received
from jaxtune.training.step import make_train_step, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated:
    """What the compiler says of one device.

    Attributes:
      held: Bytes of weights, adapter, optimizer states and rows.
      received: Bytes from other devices in a step, by the operation.
    """

    held: int
    received: dict[str, float]


def simulate(
    model: CausalLM, optim: str, *, rows: int, length: int, accumulation: int
) -> Simulated:
    """Compile a step for the devices of a model's mesh.

    The code is a CPU's, which sends 16-bit floats as 32 bits; what it needs beside the arrays that
    it is given is not a GPU's, and left out.

    Args:
      model: Of `spread_over` a mesh of devices.
      optim: Name of the optimizer.
      rows: Of a micro-batch on one device.
      length: Tokens a row.
      accumulation: Micro-batches.

    Returns:
      The device's share.
    """
    mesh = model.carried.mesh
    graphdef, trainable, frozen = split(model)
    tx = make_optimizer(optim)

    def everywhere(array: Any) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    shape = (rows * accumulation * devices_of(mesh), length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Batch(input_ids=ids, labels=ids, layout="causal")
    batch = jax.tree.map(
        lambda a, spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)),
        batch,
        batch_specs(batch, mesh),
    )
    step = make_train_step(graphdef, tx, accumulation=accumulation, max_grad_norm=MAX_GRAD_NORM)
    state = jax.tree.map(everywhere, jax.eval_shape(tx.init, trainable))
    # A jitted function has `lower`; `Step` says only how it is called.
    compiled = cast(Any, step).lower(trainable, state, frozen, batch).compile()
    found = planned(compiled)
    return Simulated(
        held=0 if found is None else found.arguments,
        received=bytes_received(compiled.as_text()),
    )
