"""Which axes of the mesh each parameter is split over, by its name: the one place that says so.

A matrix [O, I] that stands in `RULES` is split, and what is trained of it and its optimizer states
with it. Everything else (norms, biases, LoRA) is copied to every device: a few hundredths of a
per cent. To have another parameter split, add its module here.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxtune.config import DecoderConfig
from jaxtune.models.placement import FSDP, TENSOR, AnyMesh
from pallas_kernels import NF4
from pallas_kernels.nf4 import Bank

ROWS, COLUMNS, VOCABULARY = "rows", "columns", "vocabulary"
# What "tensor" splits: the outputs, so that each device makes some columns of y; or the inputs, so
# that each makes a part of the sum.
RULES = {
    "q_proj": ROWS,
    "k_proj": ROWS,
    "v_proj": ROWS,
    "gate_proj": ROWS,
    "up_proj": ROWS,
    "o_proj": COLUMNS,
    "down_proj": COLUMNS,
    "embed_tokens": VOCABULARY,
    "lm_head": VOCABULARY,
}
WEIGHTS = ("weight", "trained_weight")

Axes = tuple[str, ...]


def specs_of(path: Sequence[Any], value: Any, mesh: AnyMesh) -> Any:
    """The split of a leaf.

    Args:
      path: Of the leaf in the model, such as ("model", "layers", "mlp", "up_proj", "weight").
      value: An array, `NF4` or `Bank`; abstract ones too.
      mesh: Of `jaxtune.models.placement.mesh_of`.

    Returns:
      `PartitionSpec`s, a pytree like `value`.
    """
    rule = RULES.get(str(path[-2])) if len(path) > 1 and path[-1] in WEIGHTS else None
    if rule is None:
        return jax.tree.map(lambda _: PartitionSpec(), value)
    if isinstance(value, NF4):
        return _flat(value, mesh)
    if isinstance(value, Bank):
        dense = _matrix(value.dense.shape, rule, mesh)
        return Bank(
            dense=dense,  # pyrefly: ignore[bad-argument-type]
            quantized=_flat(value.quantized, mesh),
            kinds=value.kinds,
            slots=value.slots,
        )
    return _matrix(value.shape, rule, mesh)


def _matrix(shape: tuple[int, ...], rule: str, mesh: AnyMesh) -> PartitionSpec:
    """Of [O, I], stacked or not. Where "tensor" has the rows, "fsdp" takes the columns."""
    if rule == VOCABULARY:
        # A vocabulary may be of any size; the width divides, or the mesh is refused.
        both = ((FSDP, TENSOR), ())
        splits = [both, both[::-1]]
    elif rule == ROWS and mesh.shape[TENSOR] > 1:
        splits = [((TENSOR,), (FSDP,))]
    else:
        splits = [((FSDP,), (TENSOR,))]
    for split in splits:
        if all(_divides(size, axes, mesh) for size, axes in zip(shape[-2:], split, strict=True)):
            return split_over([()] * (len(shape) - 2) + list(split), mesh)
    return PartitionSpec()


def _flat(stack: NF4, mesh: AnyMesh) -> NF4:
    """Of a 4-bit stack: all that counts elements, in even parts of the flat weight.

    A part holds no whole rows (two halves of the weight share a byte, and a nested block has
    16,384 weights), nor need it: parts are only ever joined again, which gives every array as it
    was, and with it the places of all blocks. What does not divide is copied.
    """
    # The tables, and the offsets, one a layer, have a single axis.
    return jax.tree.map(lambda array: second_axis(array.shape, mesh), stack)


def second_axis(shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """A split of [.., N] over all devices of a copy of the weights, if N divides; else none."""
    if len(shape) == 2 and _divides(shape[1], (FSDP, TENSOR), mesh):
        return split_over([(), (FSDP, TENSOR)], mesh)
    return PartitionSpec()


def _divides(size: int, axes: Axes, mesh: AnyMesh) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def split_over(axes: Sequence[Axes], mesh: AnyMesh) -> PartitionSpec:
    """The split of an array's axes over axes of the mesh, in the form that JAX gives it itself.

    It takes two forms of one split for two, and compiles for both.
    """
    real = [tuple(name for name in names if mesh.shape[name] > 1) for names in axes]
    while real and not real[-1]:
        real.pop()
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in real))


def names_at(spec: PartitionSpec) -> list[Axes]:
    """The mesh axes that each axis of an array is split over."""
    return [(one,) if isinstance(one, str) else tuple(one or ()) for one in spec]


def is_spec(value: object) -> bool:
    """Whether a node is a `PartitionSpec`: a leaf here, whatever JAX takes it for."""
    return isinstance(value, PartitionSpec)


def check_mesh(config: DecoderConfig, mesh: AnyMesh | None) -> None:
    """Refuse a mesh that does not divide a model, before any weight is read.

    Args:
      config: The model's sizes.
      mesh: Of `jaxtune.models.placement.mesh_of`, or None.

    Raises:
      ValueError: Says which sizes would do.
    """
    if mesh is None:
        return
    for axis in (FSDP, TENSOR):
        sizes = _divided(config, axis)
        for name, size in sizes.items():
            if size % mesh.shape[axis]:
                good = ", ".join(map(str, _dividers(config, axis, mesh.size)))
                raise ValueError(
                    f"the size of the mesh's axis \"{axis}\" must divide the model's {name}; got "
                    f"{mesh.shape[axis]} for {size}. Pass one of {good}, and the other devices "
                    'as "data".'
                )


def largest_fsdp(config: DecoderConfig, devices: int) -> int:
    """The largest size of "fsdp" that divides a model, and a number of devices."""
    return max(size for size in _dividers(config, FSDP, devices) if devices % size == 0)


def _divided(config: DecoderConfig, axis: str) -> dict[str, int]:
    """The numbers that an axis must divide."""
    heads, head = config.num_attention_heads, config.head_dim
    widths = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads * head_dim": heads * head,
        "num_key_value_heads * head_dim": config.num_key_value_heads * head,
    }
    return widths | ({"num_attention_heads": heads} if axis == TENSOR else {})


def _dividers(config: DecoderConfig, axis: str, most: int) -> list[int]:
    common = math.gcd(*_divided(config, axis).values())
    return [size for size in range(1, most + 1) if common % size == 0]
