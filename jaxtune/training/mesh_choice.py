"""The devices of a run: what the options ask for, where the model lies, and what fits."""

from collections.abc import Callable
from typing import Any

import optax
from jax.sharding import Mesh

from jaxtune.language_model import LanguageModel
from jaxtune.models.auto_mesh import copied, device_limit, split
from jaxtune.models.placement import AUTO, DATA, mesh_of
from jaxtune.models.sharding import place_model
from jaxtune.models.sharding_rules import check_mesh
from jaxtune.optim.registry import create_optimizer
from jaxtune.training.agreement import check_all_take_part
from jaxtune.training.config import SFTConfig
from jaxtune.training.memory_plan import fits_copied


def settle_mesh(
    model: LanguageModel,
    args: SFTConfig,
    tx: optax.GradientTransformation | None,
    longest: Callable[[], int],
) -> None:
    """Bring a model and its adapter to the devices of the run.

    "auto" is a copy of the weights on each device while the plan of the least memory fits there,
    else all devices share them.

    Args:
      model: Placed anew.
      args: The options.
      tx: The optimizer, whose states need room; None: that of the options.
      longest: Gives the length of the longest row, tokens; called only if need be.

    Raises:
      ValueError: The options ask for another mesh than the model was loaded onto, or for one that
        does not divide it or leaves a process out.
    """
    mesh, auto = _asked(args.mesh, model)
    if auto and mesh is not None and mesh.shape[DATA] == mesh.size > 1:
        limit = device_limit()
        tx = create_optimizer(args.optim, optax.constant_schedule(0.0)) if tx is None else tx
        if limit is not None and not fits_copied(model, args, tx, longest(), limit):
            mesh = split(model.config)
    check_mesh(model.config, mesh)
    check_all_take_part(mesh)
    place_model(model, mesh)
    model.carried.auto_mesh = auto


def _asked(asked: Any, model: LanguageModel) -> tuple[Mesh | None, bool]:
    """The mesh of the options and the model, and whether another may be taken."""
    carried = model.carried
    if asked is None:
        return carried.mesh, carried.auto_mesh
    if asked == AUTO:
        return (copied(), True) if carried.mesh is None else (carried.mesh, carried.auto_mesh)
    mesh = mesh_of(asked)
    if carried.mesh is not None and carried.mesh != mesh and not carried.auto_mesh:
        raise ValueError(
            "the options and the model must have one mesh; got "
            f"{_sizes(mesh)} in `args` and a model loaded onto {_sizes(carried.mesh)}. Leave "
            "`mesh` out of one of the two."
        )
    return mesh, False


def _sizes(mesh: Mesh | None) -> dict[str, int] | None:
    return None if mesh is None else dict(mesh.shape)
