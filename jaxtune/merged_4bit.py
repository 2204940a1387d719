"""A merged model in 4 bits: which weights have them, and how each comes by its own."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from convert import (
    Checkpoint,
    LazyTensor,
    Quantization,
    QuantizedInfo,
    QuantizedTensor,
    computed_parts,
    new_info,
    quantization_of,
    quantized_infos,
    read_json_object,
    stored_parts,
)
from jaxtune.adapters.modules import Place, linear_places
from jaxtune.layers.linear import Linear
from jaxtune.layers.variables import Frozen
from jaxtune.models.decoder import CausalLM
from jaxtune.models.quantized import is_finite, to_file
from pallas_kernels import NF4, quantize_nf4
from pallas_kernels.nf4 import Bank, Stack, is_stack

# Gives W + s B A of one weight, rounded to a dtype.
Merge = Callable[[np.dtype], np.ndarray]
NESTED_BLOCK = 256
CONFIG_FILE, HEAD = "config.json", "lm_head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourBits:
    """The 4-bit weights of a merged checkpoint.

    Those of a 4-bit base stay 4-bit, and its dense ones dense. Of another base it is every
    projection of the layers, as in transformers: every linear layer but the head.

    Attributes:
      base: The folder that the model came from, open; None for a model without files.
      infos: Its 4-bit weights.
      dtype: Of the weights that stay dense, and of a weight before it is quantised where neither
        the base nor the model says another.
    """

    base: Checkpoint | None
    infos: Mapping[str, QuantizedInfo]
    dtype: np.dtype

    def holds(self, place: Place, name: str) -> bool:
        """Whether a weight has 4 bits in the checkpoint.

        Args:
          place: Its module.
          name: The weight's in the files.
        """
        if self.infos:
            return name in self.infos
        return place.stacked and isinstance(place.module, Linear)

    def parts(self, place: Place, layer: int, name: str, merge: Merge) -> dict[str, LazyTensor]:
        """List the tensors of one weight, not yet computed.

        A weight that nothing was added to is written as it is: the base's bytes, or those that the
        model holds. Any other is merged, rounded to the dtype that it had before it was quantised,
        and quantised again.

        Args:
          place: Its module.
          layer: Its index in the stack.
          name: The weight's in the files.
          merge: Its merged values.

        Returns:
          {name: tensor}, as bitsandbytes saves them.

        Raises:
          ValueError: An fp4 weight with an adapter.
        """
        held = self.infos.get(name)
        if held is not None and self.base is not None and is_kept(place, layer):
            return stored_parts(self.base, held)
        if held is not None and held.quant_type != "nf4":
            raise ValueError(
                "a merged weight is quantised to nf4, and the layers of one projection must be "
                f"quantised alike; `{name}` of the base is {held.quant_type}. Pass "
                "save_method='merged_16bit'."
            )
        stack = _quantized(place, layer)
        info = _info(name, place, held, None if stack is None else stack[0], self.dtype)
        if stack is not None and is_kept(place, layer):
            return computed_parts(info, functools.partial(to_file, *stack, info))
        return computed_parts(info, functools.partial(_quantize, info, merge))

    def quantization(self, model: CausalLM) -> Quantization:
        """Say how the weights are quantised, for config.json.

        Args:
          model: Whose checkpoint it is.

        Returns:
          The base's own values where it has 4 bits, else nf4 with double quantisation. The head,
          and parts that the model does not compute, are among the modules to skip.
        """
        folder = model.carried.folder
        if self.infos and folder is not None:
            found = quantization_of(read_json_object(folder / CONFIG_FILE))
            if found is not None:
                skipped = tuple(dict.fromkeys((*found.skip_modules, HEAD)))
                return dataclasses.replace(found, skip_modules=skipped)
        # By the files' names and by the modules': which one is asked for hangs on the version.
        skipped = (HEAD, *(part.removesuffix(".") for part in model.other_parts))
        return Quantization(quant_type="nf4", double_quant=True, skip_modules=skipped)


def four_bits(base: Checkpoint | None, dtype: np.dtype) -> FourBits:
    """Find the 4-bit weights of a base.

    Args:
      base: The folder that a model came from, open.
      dtype: As in `FourBits`.

    Returns:
      What a merged checkpoint does with it.
    """
    infos = {} if base is None else quantized_infos(base)
    return FourBits(base=base, infos=infos, dtype=dtype)


def is_kept(place: Place, layer: int) -> bool:
    """Whether one layer of a projection is what was loaded: no adapter, no training."""
    module = place.module
    lora = getattr(module, "lora", None)
    adapted = lora is not None and lora.ranks[layer] > 0
    trained = getattr(module, "trained_weight", None) is not None
    return not adapted and not trained and isinstance(module.weight, Frozen)


def counted(model: CausalLM, bits: FourBits, name_of: Callable[[str], str]) -> str:
    """Say how many weights are written as they are, and how many are quantised.

    Args:
      model: Whose checkpoint it is.
      bits: Its 4-bit weights.
      name_of: From a tensor's name to that in the files.
    """
    kept = total = 0
    for place in linear_places(model):
        for layer, module in enumerate(place.names):
            name = name_of(f"{module}.weight")
            if bits.holds(place, name):
                held = name in bits.infos or _quantized(place, layer) is not None
                kept, total = kept + (held and is_kept(place, layer)), total + 1
    return (
        f"jaxtune: of {total} projections {kept} keep their 4 bits as they were loaded, and "
        f"{total - kept} are quantised from their 16-bit or merged values."
    )


def _quantized(place: Place, layer: int) -> tuple[NF4, int] | None:
    """The 4-bit stack of the model that holds a layer's weight, and where; None if it is dense."""
    stack: Stack | None = place.module.weight.get_value()
    if not is_stack(stack):
        return None
    if isinstance(stack, Bank):
        return (stack.quantized, stack.slots[layer]) if stack.kinds[layer] else None
    return stack, layer


def _info(
    name: str, place: Place, held: QuantizedInfo | None, stack: NF4 | None, dtype: np.dtype
) -> QuantizedInfo:
    """What the file will say: as the base has it, else as the model, else the usual."""
    if held is not None:
        describe = functools.partial(new_info, block=held.block, nested_block=held.nested_block)
        return describe(name, held.shape, held.dtype)
    if stack is None:
        shape = tuple(place.module.weight.get_value().shape[1:])
        return new_info(name, shape, dtype, block=64, nested_block=NESTED_BLOCK)
    nested = None if stack.nested is None else stack.nested.block
    kind = np.dtype(jnp.dtype(stack.dtype))
    return new_info(name, stack.matrix, kind, block=stack.block, nested_block=nested)


def _quantize(info: QuantizedInfo, merge: Merge) -> QuantizedTensor:
    """Merge one weight, and quantise it on the device."""
    nested = info.nested_block is not None
    one = quantize_nf4(jnp.asarray(merge(info.dtype)), block=info.block, nested=nested)
    if not is_finite(one).all():
        raise ValueError(
            f"a weight must be finite to be quantised; the merged `{info.name}` holds NaN or "
            f"infinity in {info.dtype}. The training diverged, or the dtype's range is too small."
        )
    return to_file(one, 0, info)
