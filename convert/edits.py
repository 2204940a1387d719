"""Which of a base model's tensors an adapter changes, and how; checked before any is read."""

from dataclasses import dataclass

from convert.adapter_config import AdapterConfig
from convert.checkpoint import Checkpoint
from convert.dequantized import DequantizedCheckpoint
from convert.errors import CheckpointError, broken, shown
from convert.names import file_name
from convert.peft import MAGNITUDE, PREFIX, is_magnitude, lora_side
from convert.rounding import FLOAT_DTYPES

HEAD = "lm_head.weight"
_BASE_LAYER = ".base_layer."
_UNSERVED = ("embed_tokens", "lm_head")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A tensor of the adapter that stands in place of the base's.

    Attributes:
      tensor: Its name in the adapter.
    """

    tensor: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A LoRA pair that is merged into the base's weight, W + s B A.

    Attributes:
      lora_a: Name of A [R, in] in the adapter.
      lora_b: Name of B [out, R].
      scale: s, dimensionless.
      magnitude: Name of DoRA's lengths of the merged rows [out]; None without DoRA.
    """

    lora_a: str
    lora_b: str
    scale: float
    magnitude: str | None = None


Edit = Whole | Pair


def plan_edits(
    config: AdapterConfig, adapter: Checkpoint, base: DequantizedCheckpoint
) -> dict[str, Edit]:
    """Find the place in the base model of each tensor of an adapter.

    Args:
      config: The adapter's configuration.
      adapter: Its tensors.
      base: The model's, 4-bit weights in their own shapes.

    Returns:
      {name in the base's files: what happens to it}. A whole `lm_head.weight` that the base does
      not have, being tied, stands under that name.

    Raises:
      CheckpointError: a tensor has no place or another shape, two have the same place, LoRA on the
        embedding or the head, a scale that hangs on a regular expression.
    """
    held = frozenset(base.names)
    edits: dict[str, Edit] = {}
    lost: list[str] = []
    for name in adapter.names:
        module, side = lora_side(name)
        if side == "B" or is_magnitude(name):  # they go with their A
            continue
        plain = f"{module}.weight" if module else _plain(name)
        edit = _pair(config, adapter, module) if module else Whole(tensor=name)
        place = HEAD if plain == HEAD and not module else None
        place = file_name(plain, held) or place
        if place is None:
            lost.append(name)
        elif place in edits:
            raise _misfit(f"{shown(name)} and another for {shown(place)}", "one for each weight")
        else:
            edits[place] = edit
    if lost:
        raise _misfit(f"{len(lost)} without one, such as {shown(sorted(lost)[:3])}", "none left")
    for place, edit in edits.items():
        if place in held:
            _check_shape(place, edit, adapter, base)
    return edits


def _plain(name: str) -> str:
    """A whole tensor's name in the base: without PEFT's prefix and its wrapper around a layer."""
    return name.removeprefix(PREFIX).replace(_BASE_LAYER, ".")


def _pair(config: AdapterConfig, adapter: Checkpoint, module: str) -> Pair:
    """The edit of one module's LoRA pair."""
    if module.rpartition(".")[2] in _UNSERVED:
        raise broken(
            "LoRA on the embedding or the head is not served by a merge",
            got=f"a LoRA pair of {module}",
            wanted="LoRA on projections, or embed_tokens and lm_head in modules_to_save",
            cure="Merge this adapter with PEFT (merge_and_unload) instead.",
        )
    lora_a, lora_b = (f"{PREFIX}{module}.lora_{side}.weight" for side in "AB")
    scale = config.scale_for(module, adapter.info(lora_a).shape[0])
    if scale is None:
        raise broken(
            f"The alpha of {module} must be plain to read",
            got=f"a regular expression in alpha_pattern {shown(dict(config.alpha_pattern))}",
            wanted="modules' names or the ends of names",
            cure="Write the names out in adapter_config.json.",
        )
    magnitude = f"{PREFIX}{module}.{MAGNITUDE}" if config.use_dora else None
    return Pair(lora_a=lora_a, lora_b=lora_b, scale=scale, magnitude=magnitude)


def _check_shape(place: str, edit: Edit, adapter: Checkpoint, base: DequantizedCheckpoint) -> None:
    """Check that what the adapter brings has the base's shape, and can be added to it."""
    wanted, kind = base.info(place).shape, base.info(place).dtype
    if isinstance(edit, Whole):
        got = adapter.info(edit.tensor).shape
        if _has_more_tokens(place, got, wanted):
            return
    else:
        if kind not in FLOAT_DTYPES:
            raise _misfit(f"a LoRA pair for {shown(place)} of {kind}", "a weight of floats")
        got = (adapter.info(edit.lora_b).shape[0], adapter.info(edit.lora_a).shape[1])
    if got != wanted:
        raise _misfit(f"{got} for {shown(place)}", f"its shape {wanted}")


def _has_more_tokens(place: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an embedding or a head has rows for tokens that were added to the base's."""
    vocabulary = place.endswith(("embed_tokens.weight", HEAD))
    return vocabulary and len(got) == 2 and got[1:] == wanted[1:] and got[0] > wanted[0]


def _misfit(got: str, wanted: str) -> CheckpointError:
    """Build the error for an adapter that does not belong to the base."""
    return broken(
        "Every tensor of the adapter must have a place in the base model",
        got=got,
        wanted=wanted,
        cure="Check that the adapter was trained on this base model.",
    )
