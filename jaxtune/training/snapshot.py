"""A run at the end of a step, in host memory: what a checkpoint is written from."""

import copy
import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxtune.language_model import LanguageModel
from jaxtune.training.manifest import Manifest, shapes_of
from jaxtune.training.named_leaves import in_host_memory, named_leaves
from jaxtune.training.state import TrainerState
from jaxtune.training.step import merge, split

# How the names of the arrays in a checkpoint's tree begin.
TRAINED, OPTIMIZER, DROPOUT_KEY = "trained.", "optimizer.", "dropout_key"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of a run that does not change as the run goes on.

    Attributes:
      model: The model over copies of its trained arrays; the frozen ones are shared.
      state: Where the run stands.
      arrays: What the adapter's file does not hold exactly: optimizer state, dropout's key, and
        what is trained but no LoRA matrix (in float32; a file of the model may be narrower).
      manifest: What the checkpoint says about itself.
    """

    model: LanguageModel
    state: TrainerState
    arrays: dict[str, np.ndarray]
    manifest: Manifest | None


def take_snapshot(
    model: LanguageModel,
    state: TrainerState,
    opt_state: Any = None,
    dropout_key: jax.Array | None = None,
    manifest: Manifest | None = None,
) -> Snapshot:
    """Copy what the next step will change; waits for the device, not for the disk.

    Args:
      model: Its variables hold the arrays of the last step.
      state: Where the run stands.
      opt_state: The optimizer's state.
      dropout_key: Of the whole run; None: no dropout.
      manifest: Without its `arrays`; None: only the model is wanted.

    Returns:
      The copy.
    """
    graphdef, trainable, frozen = split(model)
    trainable = in_host_memory(trainable)
    arrays = {}
    if manifest is not None:
        arrays |= {
            TRAINED + name: leaf
            for name, leaf in named_leaves(nnx.filter_state(trainable, _not_lora)).items()
        }
        state_arrays = named_leaves(in_host_memory(opt_state))
        arrays |= {OPTIMIZER + name: leaf for name, leaf in state_arrays.items()}
        if dropout_key is not None:
            arrays[DROPOUT_KEY] = np.array(jax.random.key_data(dropout_key))
        manifest = dataclasses.replace(manifest, arrays=shapes_of(arrays))
    whole: Any = merge(graphdef, trainable, frozen)
    numbers = {} if model.carried.training is None else model.carried.training()
    whole.carried = dataclasses.replace(model.carried, training=lambda: numbers)
    kept = dataclasses.replace(
        state,
        log_history=list(state.log_history),
        stateful_callbacks=copy.deepcopy(state.stateful_callbacks),
    )
    return Snapshot(model=whole, state=kept, arrays=arrays, manifest=manifest)


def _not_lora(_: Any, leaf: Any) -> bool:
    return not isinstance(leaf, nnx.LoRAParam)
