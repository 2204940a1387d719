"""What is in a checkpoint's files, read without the code that resumes from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint
from safetensors.numpy import load_file


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: of the model's files and of the Orbax tree."""
    arrays = {}
    for file in folder.glob("*.safetensors"):
        arrays |= load_file(file)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder / "resume").item_metadata
        blank = {name: np.zeros(m.shape, m.dtype) for name, m in metadata.items()}
        tree = checkpointer.restore(folder / "resume", blank)
    return arrays | tree


def state_of(folder: Path) -> dict[str, Any]:
    """`trainer_state.json`."""
    return json.loads((folder / "trainer_state.json").read_text())
