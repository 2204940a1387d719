"""From a folder to a model: weights streamed into the stacks, one tensor in host memory."""

import functools
import math
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from tqdm.auto import tqdm

from convert import Checkpoint, file_name, open_checkpoint
from jaxtune.config import DecoderConfig
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.layers.variables import Frozen
from jaxtune.models.build import build
from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import Path as LeafPath
from jaxtune.models.naming import tensor_names
from jaxtune.models.placement import replicated

ModelT = TypeVar("ModelT", bound=CausalLM)


def load_model(
    folder: Path,
    model_class: type[ModelT],
    config: DecoderConfig,
    *,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> ModelT:
    """Build a model and stream its weights in, one tensor at a time; every leaf is frozen.

    Host memory: one tensor, and the pages of the mapped files that the system lends.

    Args:
      folder: Holds the safetensors files.
      model_class: The family's class, or a subclass of it.
      config: The model's sizes and values.
      dtype: Of the weights on the device.
      mesh: Devices that each get a copy; None: JAX's default device.
      progress: Show a progress bar, and a line on parts that are skipped.

    Returns:
      The model.

    Raises:
      IncompatibleCheckpointError: A tensor is missing, unexpected or of the wrong shape.
    """
    model = build(model_class, config, "abstract", dtype=dtype)
    with open_checkpoint(folder) as checkpoint:
        leaves = list(nnx.to_flat_state(nnx.state(model)))
        wanted = [_Leaf(path, leaf.get_value(), model, checkpoint) for path, leaf in leaves]
        skipped = _check_tensors(folder, checkpoint, wanted, model)
        if skipped and progress:
            tqdm.write(
                f"jaxtune: the text part of {model_class.__name__} is loaded; "
                f"{skipped:,} tensors of its other parts are skipped."
            )
        with tqdm(
            total=sum(leaf.bytes_in_files for leaf in wanted),
            desc="loading weights",
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            for leaf in wanted:
                _set_leaf(model, leaf.path, leaf.read(replicated(mesh), bar))
    return model


class _Leaf:
    """One leaf of the model and the tensors of the files that fill it."""

    def __init__(
        self, path: LeafPath, value: jax.ShapeDtypeStruct, model: CausalLM, checkpoint: Checkpoint
    ) -> None:
        self.path = path
        self.value = value
        self.checkpoint = checkpoint
        names = tensor_names(path, model.config.num_hidden_layers, model.decoder_name)
        self.tensors = [(layer, name, file_name(name, checkpoint.names)) for layer, name in names]

    @property
    def missing(self) -> list[str]:
        """Names that the files lack."""
        return [name for _, name, held in self.tensors if held is None]

    @property
    def held(self) -> list[tuple[int | None, str]]:
        """(layer, name in the files) of each tensor."""
        return [(layer, held) for layer, _, held in self.tensors if held is not None]

    @property
    def bytes_in_files(self) -> int:
        """Bytes to read."""
        infos = [self.checkpoint.info(name) for _, name in self.held]
        return sum(math.prod(info.shape) * info.dtype.itemsize for info in infos)

    def read(self, place: NamedSharding | None, bar: tqdm) -> jax.Array:
        """The leaf on the device; a stack is filled in place, one layer's tensor in host memory."""
        stack = jnp.zeros(self.value.shape, self.value.dtype, device=place)
        for layer, name in self.held:
            tensor = self.checkpoint.read(name)
            value = jax.device_put(tensor, place)
            if layer is None:
                stack = value.astype(self.value.dtype)
            else:
                stack = _place(stack, value, np.int32(layer))
            # The host's copy may go only when the device has its own.
            stack.block_until_ready()
            bar.update(tensor.nbytes)
        return stack


def _check_tensors(
    folder: Path, checkpoint: Checkpoint, leaves: list[_Leaf], model: CausalLM
) -> int:
    """Compare names and shapes with the headers before any weight is read.

    Returns:
      Tensors of parts that the family does not compute.
    """
    used = {name for leaf in leaves for _, name in leaf.held}
    missing = sorted(name for leaf in leaves for name in leaf.missing)
    left = {name for name in checkpoint.names if name not in used}
    others = {name for name in left if name.startswith(model.other_parts)}
    # A tied head may be written a second time, and old checkpoints hold the rotary constants.
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    extra = sorted(name for name in left - others if not name.endswith((*tied, ".inv_freq")))
    if missing or extra:
        raise IncompatibleCheckpointError(
            "the checkpoint must hold exactly the tensors of its configuration; "
            f"{folder} lacks {_some(missing)} and has unexpected {_some(extra)}. "
            "Check that config.json and the weights belong together."
        )
    for leaf in leaves:
        for layer, name in leaf.held:
            shape = leaf.value.shape if layer is None else leaf.value.shape[1:]
            got = checkpoint.info(name).shape
            if tuple(got) != tuple(shape):
                raise IncompatibleCheckpointError(
                    f"tensor `{name}` must have shape {tuple(shape)} by config.json; the file has "
                    f"{tuple(got)}. Check that config.json and the weights belong together."
                )
    return len(others)


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@functools.partial(jax.jit, donate_argnums=0)
def _place(stack: jax.Array, value: jax.Array, layer: jax.Array) -> jax.Array:
    """Write one layer's tensor into its stack, in the stack's memory."""
    return lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), layer, 0)


def _set_leaf(model: CausalLM, path: LeafPath, value: jax.Array) -> None:
    module: Any = model
    for name in path[:-1]:
        module = getattr(module, name)
    setattr(module, path[-1], Frozen(value))
