"""Checkpoints with 4-bit weights: made by numpy, for what is broken, and by bitsandbytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from convert.checkpoint import SINGLE_FILE, Checkpoint, open_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


def packed(values: dict[str, Any]) -> np.ndarray:
    """JSON as a tensor of bytes."""
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def state_of(shape: tuple[int, ...], /, *, nested: bool, **changes: Any) -> dict[str, Any]:
    """The JSON of a weight; a change to None takes the key out."""
    values = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
    if nested:
        values |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
    return {key: value for key, value in (values | changes).items() if value is not None}


def parts_of(shape: tuple[int, ...] = (5, 172), *, nested: bool = True) -> dict[str, np.ndarray]:
    """Random tensors of one nf4 weight by their names."""
    rng = np.random.default_rng(0)
    count = int(np.prod(shape))
    blocks = -(-count // 64)
    parts: dict[str, np.ndarray] = {
        NAME: rng.integers(0, 256, (-(-count // 2), 1), np.uint8),
        f"{NAME}.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        f"{NAME}.absmax": rng.random(blocks, np.float32),
        STATE: packed(state_of(shape, nested=nested)),
    }
    if nested:
        parts[f"{NAME}.absmax"] = rng.integers(0, 256, blocks, np.uint8)
        parts[f"{NAME}.nested_absmax"] = rng.random(-(-blocks // 256), np.float32)
        parts[f"{NAME}.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
    return parts


def opened(folder: Path, tensors: dict[str, np.ndarray]) -> Checkpoint:
    """A folder's checkpoint of these tensors."""
    safetensors.numpy.save_file(tensors, folder / SINGLE_FILE)
    return open_checkpoint(folder)
