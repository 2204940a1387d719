"""A model of random weights as files: of any size, with one weight in host memory at a time."""

import functools
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert import (
    LazyTensor,
    Quantization,
    QuantizedInfo,
    QuantizedTensor,
    companions,
    computed_parts,
    new_info,
    with_quantization,
    write_checkpoint,
)
from jaxtune.adapters.modules import Place, linear_places, places
from jaxtune.bench.subject import Subject
from jaxtune.layers.norm import RMSNorm
from jaxtune.models.build import build
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLE
from pallas_kernels.nf4.tables import NF4_TABLE

DTYPE = np.dtype(ml_dtypes.bfloat16)
STD = 0.02
BLOCK, NESTED_BLOCK = 64, 256
POOL = 2**22


class Draws:
    """Random numbers for tensors of any size: a pool of them, read from another place each time.

    Drawn afresh, 8 G numbers would take minutes; what is measured does not depend on them.
    """

    def __init__(self, seed: int) -> None:
        """Draw the pool."""
        draw = np.random.default_rng(seed)
        self._places = draw
        self._normal = (draw.standard_normal(POOL, np.float32) * STD).astype(DTYPE)
        self._bytes = draw.integers(0, 256, POOL, np.uint8)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """N(0, 0.02^2), bfloat16."""
        return self._taken(self._normal, math.prod(shape)).reshape(shape)

    def codes(self, size: int) -> np.ndarray:
        """Bytes."""
        return self._taken(self._bytes, size)

    def _taken(self, pool: np.ndarray, size: int) -> np.ndarray:
        start = int(self._places.integers(POOL))
        return np.resize(np.roll(pool, -start), size)


def write_random_files(
    folder: Path, subject: Subject, config_json: dict[str, Any], tokenizer: Path, *, bits: int
) -> None:
    """Write a model that `from_pretrained` loads.

    Args:
      folder: Made; all of it is written or nothing.
      subject: Family and configuration.
      config_json: The same as config.json has it.
      tokenizer: A folder whose tokenizer's files are copied.
      bits: 4: projections of the layers as bitsandbytes saves them, doubly quantised; else 16.

    Raises:
      ValueError: `tokenizer` holds none.
      CheckpointError: What `write_checkpoint` refuses, such as too little space on the disk.
    """
    copied = companions(tokenizer, tokenizer)
    if not any(file.name.startswith("tokenizer") for file in copied):
        raise ValueError(f"--tokenizer must hold a tokenizer's files; got {tokenizer}.")
    model = build(subject.family, subject.config, "abstract", dtype="bfloat16")
    draws = Draws(0)
    quantized = {place.path for place in linear_places(model)} if bits == 4 else set()
    tensors: dict[str, LazyTensor] = {}
    for place in places(model):
        for name in place.names:
            tensors |= _tensors(place, name, draws, in_4_bits=place.path in quantized)
    if bits == 4:
        kind = Quantization(quant_type="nf4", double_quant=True, skip_modules=("lm_head",))
        config_json = with_quantization(config_json, kind, DTYPE)
    write_checkpoint(folder, tensors, {**config_json, "dtype": str(DTYPE)}, copied=copied)


def _tensors(place: Place, name: str, draws: Draws, *, in_4_bits: bool) -> dict[str, LazyTensor]:
    """Weight and bias of one layer of a module."""
    found: dict[str, LazyTensor] = {}
    for part in ("weight", "bias"):
        value = getattr(place.module, part, None)
        if value is None:
            continue
        shape = tuple(value.shape[1:] if place.stacked else value.shape)
        full = f"{name}.{part}"
        if in_4_bits and part == "weight":
            info = new_info(full, shape, DTYPE, block=BLOCK, nested_block=NESTED_BLOCK)
            found |= computed_parts(info, functools.partial(_four_bits, info, draws))
            continue
        read = functools.partial(draws.normal, shape)
        if isinstance(place.module, RMSNorm) or part == "bias":
            read = functools.partial(_constant, place.module, shape)
        found[full] = LazyTensor(shape=shape, dtype=DTYPE, read=read)
    return found


def _constant(module: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a new norm or bias holds: a factor of one, or nothing added."""
    one = isinstance(module, RMSNorm) and not module.spec.unit_offset
    return np.full(shape, float(one), DTYPE)


def _four_bits(info: QuantizedInfo, draws: Draws) -> QuantizedTensor:
    """Random codes; the largest of a block is about 3 standard deviations."""
    size = math.prod(info.shape)
    blocks = -(-size // BLOCK)
    return QuantizedTensor(
        info=info,
        codes=draws.codes(-(-size // 2)),
        absmax=draws.codes(blocks),
        table=np.asarray(NF4_TABLE, np.float32),
        nested_absmax=np.full(-(-blocks // NESTED_BLOCK), STD, np.float32),
        nested_table=np.asarray(DYNAMIC_TABLE, np.float32),
        offset=np.float32(3 * STD),
    )
