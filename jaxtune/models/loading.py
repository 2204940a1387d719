"""From a folder to a model: weights streamed into the stacks, a few pieces in host memory."""

from pathlib import Path
from typing import Any, TypeVar

from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from tqdm.auto import tqdm

from convert import Checkpoint, open_checkpoint, quantized_infos
from jaxtune import processes
from jaxtune.config import DecoderConfig
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.layers.linear import Linear
from jaxtune.layers.variables import Frozen
from jaxtune.models.build import build
from jaxtune.models.decoder import CausalLM
from jaxtune.models.leaves import Leaf
from jaxtune.models.naming import Path as LeafPath
from jaxtune.models.naming import is_stacked
from jaxtune.models.read_ahead import ReadAhead
from jaxtune.models.sharding_rules import check_mesh
from jaxtune.models.upload import Uploads
from jaxtune.notes import tell

ModelT = TypeVar("ModelT", bound=CausalLM)


def load_model(
    folder: Path,
    model_class: type[ModelT],
    config: DecoderConfig,
    *,
    dtype: DTypeLike,
    load_in_4bit: bool = False,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> ModelT:
    """Build a model and stream its weights in, piece by piece; every leaf is frozen.

    Host memory: a buffer for each of a few threads; and the parts of some 4-bit weights, 256 MiB
    together, where the files hold such.

    Args:
      folder: Holds the safetensors files.
      model_class: The family's class, or a subclass of it.
      config: The model's sizes and values.
      dtype: Of the weights on the device.
      load_in_4bit: The layers' projections are 4-bit: those of a 4-bit folder as they are there,
        with the ones it left dense; those of another are quantised on the device.
      mesh: Over whose devices the weights are spread by `jaxtune.models.sharding_rules`: none of
        them, nor the host, ever has more of a weight that is split than one layer; None: JAX's
        default device.
      progress: Show a progress bar, and a line on parts that are skipped.

    Returns:
      The model.

    Raises:
      ValueError: The mesh does not divide the model.
      IncompatibleCheckpointError: A tensor is missing, unexpected or of the wrong shape.
      CheckpointError: The files are damaged.
    """
    check_mesh(config, mesh)
    model = build(model_class, config, "abstract", dtype=dtype)
    model.model.mesh = mesh
    with open_checkpoint(folder) as checkpoint:
        wanted = _leaves(model, checkpoint, load_in_4bit)
        skipped = _check_tensors(folder, checkpoint, wanted, model)
        if skipped and progress:
            tell(
                f"jaxtune: the text part of {model_class.__name__} is loaded; "
                f"{skipped:,} tensors of its other parts are skipped."
            )
        bar = tqdm(
            total=sum(leaf.bytes_in_files for leaf in wanted),
            desc="loading weights",
            unit="B",
            unit_scale=True,
            disable=not (progress and processes.is_first()),
        )
        uploads = Uploads(checkpoint, mesh)
        jobs = [job for leaf in wanted for job in leaf.jobs(uploads)]
        with bar, ReadAhead(jobs) as source:
            for leaf in wanted:
                _set_leaf(model, leaf.path, leaf.fill(source, mesh, bar.update))
    return model


def _leaves(model: CausalLM, checkpoint: Checkpoint, load_in_4bit: bool) -> list[Leaf]:
    """Every leaf of a model, with what is to become of its tensors."""
    infos = quantized_infos(checkpoint)
    leaves = []
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        projection = is_stacked(path) and path[-1] == "weight"
        projection = projection and isinstance(_module(model, path), Linear)
        leaves.append(
            Leaf(
                path,
                leaf.get_value(),
                layers=model.config.num_hidden_layers,
                decoder_name=model.decoder_name,
                checkpoint=checkpoint,
                infos=infos,
                keeps_4bit=load_in_4bit and projection,
                quantizes=load_in_4bit and projection and not infos,
            )
        )
    return leaves


def _check_tensors(
    folder: Path, checkpoint: Checkpoint, leaves: list[Leaf], model: CausalLM
) -> int:
    """Compare names and shapes with the headers before any weight is read.

    Returns:
      Tensors of parts that the family does not compute.
    """
    used = {name for leaf in leaves for name in leaf.parts}
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
            got = leaf.shape_in_files(name)
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


def _set_leaf(model: CausalLM, path: LeafPath, value: Any) -> None:
    setattr(_module(model, path), path[-1], Frozen(value))


def _module(model: CausalLM, path: LeafPath) -> Any:
    """The module that a leaf belongs to."""
    module: Any = model
    for name in path[:-1]:
        module = getattr(module, name)
    return module
