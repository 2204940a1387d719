"""Going on from a checkpoint: found, checked against the run, and only then taken over."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from convert import CheckpointError, read_json_object
from jaxtune.adapters.peft_form import leaf_from_peft
from jaxtune.data.collate import Place
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.language_model import LanguageModel
from jaxtune.models.loading import load_model
from jaxtune.training.checkpoint import ADAPTER_FILE, STATE_FILE, TREE_FOLDER, checkpoints
from jaxtune.training.log import Losses
from jaxtune.training.manifest import MANIFEST_FILE, Identity, Manifest, read_manifest, shapes_of
from jaxtune.training.named_leaves import named_leaves, with_values
from jaxtune.training.optimizer_places import first_state
from jaxtune.training.saved_adapter import read_matching_adapter
from jaxtune.training.saved_tree import read_tree
from jaxtune.training.snapshot import DROPOUT_KEY, OPTIMIZER, TRAINED
from jaxtune.training.state import TrainerControl, TrainerState
from jaxtune.training.step import split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
      opt_state: The optimizer's state.
      dropout_key: Of the whole run; None: no dropout.
      state: Steps, tokens and records so far.
      place: Where in the data.
      losses: Of the steps so far.
      unfinished: The checkpoint's step was not evaluated yet, and was to be.
      unsaved: Nor was it saved after that.
    """

    opt_state: Any
    dropout_key: jax.Array | None
    state: TrainerState = dataclasses.field(default_factory=TrainerState)
    place: Place = dataclasses.field(default_factory=Place)
    losses: Losses = dataclasses.field(default_factory=Losses)
    unfinished: bool = False
    unsaved: bool = False


def find_checkpoint(asked: Any, output_dir: Any) -> Path | None:
    """The folder that `resume_from_checkpoint` means.

    Args:
      asked: None or False: none; True: the last checkpoint in `output_dir`; or a path.
      output_dir: Of the run; may be None.

    Returns:
      The folder, or None.

    Raises:
      ValueError: There is no such folder.
    """
    if asked is None or asked is False:
        return None
    if asked is not True:
        if not Path(asked).is_dir():
            raise ValueError(
                f"`resume_from_checkpoint` must be a folder; got {str(asked)!r}, which is none. "
                "Pass a checkpoint's path, or True for the last one in output_dir."
            )
        return Path(asked)
    found = [] if output_dir is None else checkpoints(Path(output_dir))
    if not found:
        raise ValueError(
            "resume_from_checkpoint=True needs a folder checkpoint-N in `output_dir`; got none in "
            f"{None if output_dir is None else str(output_dir)!r}. Pass the path of a checkpoint, "
            "or leave it out to begin anew."
        )
    return found[-1]


def start_anew(
    model: LanguageModel, tx: optax.GradientTransformation, seed: int, *, draws: bool
) -> Start:
    """The start of a run that resumes nothing.

    Args:
      model: What is trained in it.
      tx: The optimizer.
      seed: Of dropout and noise.
      draws: Whether there is any.

    Returns:
      Step 0.
    """
    return Start(
        opt_state=first_state(tx, split(model)[1], model.carried.mesh),
        dropout_key=jax.random.key(seed) if draws else None,
    )


def resume(
    folder: Path,
    model: LanguageModel,
    tx: optax.GradientTransformation,
    *,
    optim: str,
    total: int,
    identity: Identity,
    draws: bool,
) -> Start:
    """Take a checkpoint over: its weights into the model, the rest into the start of the run.

    A folder with weights alone (an adapter, or a checkpoint of `save_only_model`) gives those; the
    run begins anew with them, and a warning says what is lost.

    Args:
      folder: The checkpoint.
      model: Changed in place, after every check has passed.
      tx: The optimizer of the run.
      optim: Its name in the options, for messages.
      total: Steps of the run.
      identity: Of the run.
      draws: Whether the run has dropout or noise.

    Returns:
      Where the run goes on.

    Raises:
      CheckpointError: A file is missing or damaged.
      IncompatibleCheckpointError: The checkpoint is one of another adapter, optimizer, data order
        or data set.
      ValueError: It is beyond the end of the run.
    """
    held = (folder / MANIFEST_FILE).is_file()
    manifest = read_manifest(folder) if held else None
    _, trainable, _ = split(model)
    wanted = named_leaves(trainable)
    tensors = _adapter_tensors(folder, model, trainable)
    if manifest is None:
        return _from_weights_alone(folder, model, tx, tensors, seed=identity.seed, draws=draws)
    _check_identity(manifest.identity, identity)
    lora = {name for name, leaf in _variables(trainable).items() if isinstance(leaf, nnx.LoRAParam)}
    arrays = {TRAINED + name: leaf for name, leaf in wanted.items() if name not in lora}
    _check_arrays(manifest, TRAINED, arrays, "what is trained, beside LoRA, must be the same")
    states = named_leaves(jax.eval_shape(tx.init, trainable))
    arrays = {OPTIMIZER + name: leaf for name, leaf in states.items()}
    rule = f"the optimizer's state must fit the run's optim={optim!r}, saved by {manifest.optim!r}"
    _check_arrays(manifest, OPTIMIZER, arrays, rule)
    key = jax.random.key_data(jax.random.key(identity.seed)) if draws else None
    arrays = {} if key is None else {DROPOUT_KEY: key}
    _check_arrays(
        manifest,
        DROPOUT_KEY,
        arrays,
        "both runs must have dropout or noise (neftune_noise_alpha), or neither",
    )
    state = _read_state(folder)
    best = state.best_model_checkpoint
    if best is not None and not Path(best).is_dir():
        warnings.warn(
            f"{best} was the best checkpoint and is gone; until a better one this run has none.",
            stacklevel=3,
        )
        state.best_model_checkpoint = None
    _check_steps_left(state.global_step, total)
    tree = read_tree(folder / TREE_FOLDER, {name: manifest.blank(name) for name in manifest.arrays})
    _set_weights(model, tensors, _below(tree, TRAINED))
    _, trainable, _ = split(model)
    control = state.stateful_callbacks.get(TrainerControl.__name__, {}).get("args", {})
    return Start(
        opt_state=with_values(
            first_state(tx, trainable, model.carried.mesh), _below(tree, OPTIMIZER)
        ),
        dropout_key=None if key is None else _key(tree[DROPOUT_KEY]),
        state=state,
        place=manifest.place,
        losses=Losses(total=manifest.loss_total, unlogged=tuple(manifest.unlogged)),
        unfinished=control.get("should_evaluate", False),
        unsaved=control.get("should_save", False),
    )


def load_weights(folder: Path, model: LanguageModel) -> None:
    """Give the model the weights of a checkpoint of its run, and nothing else of it.

    Args:
      folder: The checkpoint.
      model: Changed in place, after every check has passed.

    Raises:
      CheckpointError: A file is missing or damaged.
      IncompatibleCheckpointError: It is one of another adapter.
    """
    _, trainable, _ = split(model)
    tensors = _adapter_tensors(folder, model, trainable)
    if not (folder / MANIFEST_FILE).is_file():
        _set_weights(model, tensors, _whole_weights(folder, model))
        return
    manifest = read_manifest(folder)
    tree: dict[str, np.ndarray] = {}
    if any(name.startswith(TRAINED) for name in manifest.arrays):
        blank = {name: manifest.blank(name) for name in manifest.arrays}
        tree = read_tree(folder / TREE_FOLDER, blank)
    _set_weights(model, tensors, _below(tree, TRAINED))


def _adapter_tensors(
    folder: Path, model: LanguageModel, trainable: nnx.State
) -> dict[str, np.ndarray]:
    """The adapter's tensors, if the model has one; it must be of the same form."""
    if model.carried.adapter is not None:
        return read_matching_adapter(folder, model, trainable)
    if (folder / ADAPTER_FILE).is_file():
        raise IncompatibleCheckpointError(
            "a run must resume from a checkpoint of what it trains; got an adapter's in "
            f"{folder}, and a model without one. Load the model with that adapter, or call "
            "get_peft_model first."
        )
    return {}


def _from_weights_alone(
    folder: Path,
    model: LanguageModel,
    tx: optax.GradientTransformation,
    tensors: dict[str, np.ndarray],
    *,
    seed: int,
    draws: bool,
) -> Start:
    """Step 0 with the weights of a folder that holds nothing else."""
    _set_weights(model, tensors, _whole_weights(folder, model))
    warnings.warn(
        f"{folder} holds weights alone: the optimizer's state, the step and the place in the data "
        "are lost, and the run begins at step 0 with these weights (those that are trained whole "
        "as they were rounded for the file). Checkpoints of save_only_model=False hold all.",
        stacklevel=4,
    )
    return start_anew(model, tx, seed, draws=draws)


def _whole_weights(folder: Path, model: LanguageModel) -> dict[str, Any]:
    """The weights of a fully fine-tuned model, as they were rounded for the file."""
    if model.carried.adapter is not None:
        return {}
    loaded = load_model(folder, type(model), model.config, dtype=jnp.float32, progress=False)
    return named_leaves(nnx.state(loaded))


def _set_weights(
    model: LanguageModel, tensors: dict[str, np.ndarray], trained: dict[str, Any]
) -> None:
    """Give the model's trained leaves their values: by their own names, else by PEFT's."""
    _, trainable, _ = split(model)
    values = {
        name: np.asarray(trained[name])
        if name in trained
        else leaf_from_peft(tuple(name.split(".")), leaf, tensors)
        for name, leaf in _variables(trainable).items()
    }
    nnx.update(model, with_values(trainable, values))


def _key(data: np.ndarray) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(data))


def _variables(trainable: nnx.State) -> dict[str, Any]:
    """The trained variables by the names of `named_leaves`."""
    flat = nnx.to_flat_state(trainable)
    return {".".join(str(part) for part in path): leaf for path, leaf in flat}


def _below(arrays: dict[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
    return {name[len(start) :]: leaf for name, leaf in arrays.items() if name.startswith(start)}


def _check_identity(saved: Identity, mine: Identity) -> None:
    """Raise where the run would see other rows than the one that it resumes."""
    before, now = dataclasses.asdict(saved), dataclasses.asdict(mine)
    apart = [name for name in now if before[name] != now[name]]
    if apart:
        got, wanted = (
            ", ".join(f"{name}={values[name]}" for name in apart) for values in (now, before)
        )
        raise IncompatibleCheckpointError(
            f"a resumed run must see the rows that the saved one would have seen; got {got}; "
            f"wanted {wanted}. Pass the same data and options, or load the adapter of the "
            "checkpoint and begin a new run."
        )


def _check_steps_left(done: int, total: int) -> None:
    """Raise if a checkpoint is beyond the end of the run that would resume it."""
    if done > total:
        raise ValueError(
            f"a run must end after the checkpoint that it resumes from; got {total} steps and a "
            f"checkpoint of step {done}. Raise max_steps or num_train_epochs, or pass an earlier "
            "checkpoint."
        )


def _check_arrays(manifest: Manifest, start: str, arrays: dict[str, Any], rule: str) -> None:
    """Raise unless the saved arrays whose names start so are those of the run."""
    wanted = shapes_of(arrays)
    saved = {name: form for name, form in manifest.arrays.items() if name.startswith(start)}
    if saved == wanted:
        return
    name = next(n for n in [*wanted, *saved] if saved.get(n) != wanted.get(n))
    got, needed = (_form(forms.get(name)) for forms in (saved, wanted))
    raise IncompatibleCheckpointError(
        f"{rule}; got {got} for `{name}` in the checkpoint; wanted {needed}. Resume with the "
        "adapter and the options that the checkpoint was saved with, or load its weights and "
        "begin a new run."
    )


def _form(form: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if form is None else f"{form[1]}{list(form[0])}"


def _read_state(folder: Path) -> TrainerState:
    """`trainer_state.json`; the null that stands for a number in a record is NaN."""
    values: dict[str, Any] = read_json_object(folder / STATE_FILE)
    names = {field.name for field in dataclasses.fields(TrainerState)}
    if set(values) != names or not isinstance(values["log_history"], list):
        raise CheckpointError(
            f"{folder / STATE_FILE} must hold the fields of a run's state; got "
            f"{sorted(set(values) ^ names)} too many or missing. Resume from another checkpoint."
        )
    values["log_history"] = [
        {key: math.nan if value is None else value for key, value in record.items()}
        for record in values["log_history"]
    ]
    return TrainerState(**values)
