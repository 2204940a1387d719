"""From a folder or a hub id to a model: configuration, then weights streamed into the stacks."""

import functools
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from tqdm.auto import tqdm

from convert import Checkpoint, open_checkpoint
from jaxtune.config import DecoderConfig
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.layers.variables import Frozen
from jaxtune.models.build import build
from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import Path as LeafPath
from jaxtune.models.naming import tensor_names

ModelT = TypeVar("ModelT", bound=CausalLM)

WEIGHT_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model"]


def resolve_folder(
    name: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """A local folder as it is; a hub id downloaded (weights, configuration and tokenizer only).

    Args:
      name: Folder, or "owner/name" on the Hugging Face hub.
      token: Hub access token for gated and private repositories.
      revision: Branch, tag or commit.
      local_files_only: Use the hub's cache and no network.

    Returns:
      The folder that holds the files.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            token=token,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=WEIGHT_PATTERNS,
        )
    )


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Read a config.json in transformers' dictionary form, old spellings brought up to date."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"a model folder must hold config.json; {folder} has none. "
            "Check the path, or pass a hub id."
        )
    return AutoConfig.from_pretrained(folder).to_dict()


def load_model(
    folder: Path,
    model_class: type[ModelT],
    config: DecoderConfig,
    *,
    dtype: DTypeLike,
    progress: bool = True,
) -> ModelT:
    """Build a model and stream its weights in, one tensor at a time; every leaf is frozen.

    Args:
      folder: Holds the safetensors files.
      model_class: The family's class, or a subclass of it.
      config: The model's sizes and values.
      dtype: Of the weights on the device.
      progress: Show a progress bar.

    Returns:
      The model.

    Raises:
      IncompatibleCheckpointError: A tensor is missing, unexpected or of the wrong shape.
    """
    model = build(model_class, config, "abstract", dtype=dtype)
    with open_checkpoint(folder) as checkpoint:
        leaves = list(nnx.to_flat_state(nnx.state(model)))
        wanted = {path: list(tensor_names(path, config.num_hidden_layers)) for path, _ in leaves}
        _check_tensors(folder, checkpoint, leaves, wanted)
        with tqdm(
            total=sum(len(names) for names in wanted.values()),
            desc="loading weights",
            unit="tensor",
            disable=not progress,
        ) as bar:
            for path, leaf in leaves:
                value = _read_leaf(checkpoint, leaf.get_value(), wanted[path], bar)
                _set_leaf(model, path, value)
    return model


def _check_tensors(
    folder: Path,
    checkpoint: Checkpoint,
    leaves: list[tuple[LeafPath, nnx.Variable]],
    wanted: dict[LeafPath, list[tuple[int | None, str]]],
) -> None:
    """Compare names and shapes with the headers before any weight is read."""
    held = set(checkpoint.names)
    named = {name for names in wanted.values() for _, name in names}
    missing = sorted(named - held)
    # A tied head may be written a second time, and old checkpoints hold the rotary constants.
    extra = sorted(
        name
        for name in held - named
        if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")
    )
    if missing or extra:
        raise IncompatibleCheckpointError(
            "the checkpoint must hold exactly the tensors of its configuration; "
            f"{folder} lacks {_some(missing)} and has unexpected {_some(extra)}. "
            "Check that config.json and the weights belong together."
        )
    for path, leaf in leaves:
        for layer, name in wanted[path]:
            shape = leaf.get_value().shape if layer is None else leaf.get_value().shape[1:]
            got = checkpoint.info(name).shape
            if tuple(got) != tuple(shape):
                raise IncompatibleCheckpointError(
                    f"tensor `{name}` must have shape {tuple(shape)} by config.json; the file has "
                    f"{tuple(got)}. Check that config.json and the weights belong together."
                )


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _read_leaf(
    checkpoint: Checkpoint,
    leaf: jax.ShapeDtypeStruct,
    names: list[tuple[int | None, str]],
    bar: tqdm,
) -> jax.Array:
    """A leaf on the device; a stack is filled in place, one layer's tensor in host memory."""
    if names[0][0] is None:
        value = jnp.asarray(checkpoint.read(names[0][1])).astype(leaf.dtype)
        bar.update()
        return value
    stack = jnp.zeros(leaf.shape, leaf.dtype)
    for layer, name in names:
        stack = _place(stack, checkpoint.read(name), np.int32(layer or 0))
        bar.update()
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _place(stack: jax.Array, value: jax.Array, layer: jax.Array) -> jax.Array:
    """Write one layer's tensor into its stack, in the stack's memory."""
    return lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), layer, 0)


def _set_leaf(model: CausalLM, path: LeafPath, value: jax.Array) -> None:
    module: Any = model
    for name in path[:-1]:
        module = getattr(module, name)
    setattr(module, path[-1], Frozen(value))
