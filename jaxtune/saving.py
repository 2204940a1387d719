"""Writing a model: the adapter in PEFT's form, or a full checkpoint with the adapter merged in."""

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from convert import (
    FLOAT_DTYPES,
    Checkpoint,
    DequantizedCheckpoint,
    LazyTensor,
    added_name,
    atomic,
    cast,
    companions,
    dtype_of,
    file_name,
    merge_linear,
    merged_config,
    open_checkpoint,
    quantized_infos,
    stored_parts,
    with_quantization,
    write_checkpoint,
)
from jaxtune.adapters.counting import count_parameters
from jaxtune.adapters.modules import Place, places
from jaxtune.adapters.peft_form import save_adapter
from jaxtune.layers.linear import Linear
from jaxtune.layers.variables import weight_of
from jaxtune.merged_4bit import FourBits, counted, four_bits
from jaxtune.models.decoder import CausalLM
from pallas_kernels.nf4 import is_stack, layer_matrix

Read = Callable[[], np.ndarray]
SHARD_BYTES = 5_000_000_000
FOUR_BIT = ("merged_4bit", "merged_4bit_forced", "forced_merged_4bit")
CARD = "README.md"
CARD_MARK = "library_name: peft\ntags:\n- jaxtune\n"


def save_pretrained(model: CausalLM, folder: str | Path) -> None:
    """Write what was trained: the adapter in PEFT's form; after full fine-tuning, the model.

    Args:
      model: With something trained.
      folder: Created if need be.

    Raises:
      ValueError: The model has neither an adapter nor trained weights.
    """
    if model.carried.adapter is None and count_parameters(model)[0]:
        save_merged(model, folder, dtype=np.dtype(model.dtype))
        return
    save_adapter(model, folder)
    _write_card(model, Path(folder))


def save_pretrained_merged(
    model: CausalLM,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    save_method: str = "merged_16bit",
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model under Unsloth's names of methods.

    Args:
      model: With or without an adapter.
      folder: Created, or its checkpoint replaced when the new one is complete.
      tokenizer: Saved beside; None: the one that the model carries.
      save_method: "merged_16bit": a full checkpoint in bfloat16 or float16; "merged_4bit", or
        Unsloth's other names for it: one with the projections in bitsandbytes' 4 bits; "lora":
        the adapter.
      max_shard_bytes: Largest weight file.

    Raises:
      ValueError: Another method, or what `save_merged` refuses.
    """
    tokenizer = tokenizer if tokenizer is not None else model.carried.tokenizer
    if save_method == "lora":
        save_pretrained(model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        return
    if save_method not in ("merged_16bit", *FOUR_BIT):
        raise ValueError(
            "`save_method` must be 'merged_16bit', 'merged_4bit' or 'lora'; got "
            f"{save_method!r}. Choose one of them."
        )
    save_merged(
        model,
        folder,
        tokenizer,
        dtype=half_dtype(model),
        in_4bit=save_method in FOUR_BIT,
        max_shard_bytes=max_shard_bytes,
    )


def half_dtype(model: CausalLM) -> np.dtype:
    """The dtype of merged_16bit: the model's if it has 16 bits, its checkpoint's, or bfloat16."""
    if model.dtype.itemsize == 2:
        return np.dtype(model.dtype)
    config = model.carried.config_json
    return np.dtype(ml_dtypes.bfloat16) if config is None else dtype_of(config)


def save_merged(
    model: CausalLM,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    dtype: np.dtype,
    in_4bit: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a full Hugging Face checkpoint: every tensor is RNE(W + s B A), one in host memory.

    Of a model that was quantised while it was loaded, W is the dense weight of its folder, as
    Unsloth and `python -m convert merged` have it; of a 4-bit folder, the dequantised one. The
    names are those of the folder that the model came from; its vision tensors, generation
    settings and tokenizer go along.

    In 4 bits, the projections of the layers are written as bitsandbytes saves nf4: those without
    an adapter bit for bit as they were loaded, the others quantised again from the 16-bit sum. This
    costs accuracy: the adapter learned beside the old rounding errors, and the new ones are as
    large. Embedding, norms, head, and what a 4-bit base left dense, stay dense.

    Args:
      model: With or without an adapter.
      folder: Created, or its checkpoint replaced when the new one is complete.
      tokenizer: Takes the place of the base's.
      dtype: Of every float tensor; with `in_4bit`, of those that stay dense.
      in_4bit: Write 4-bit projections.
      max_shard_bytes: Largest weight file.

    Raises:
      ValueError: The model has no config.json, `folder` is the base's own, or `in_4bit` with an
        adapter over fp4 weights or with a weight that is not finite.
      CheckpointError: What `write_checkpoint` refuses, such as too little space on the disk.
    """
    folder, carried = Path(folder), model.carried
    if carried.config_json is None:
        raise ValueError(
            "a checkpoint needs a config.json; this model was built without one. Set "
            "model.carried.config_json to the transformers configuration."
        )
    if carried.folder is not None and folder.resolve() == carried.folder.resolve():
        raise ValueError(
            f"a merged model must not replace its own base; got {folder}. Choose another folder."
        )
    tied = model.config.tie_word_embeddings
    untied = not tied and carried.hf_config.get("tie_word_embeddings", True)
    with contextlib.ExitStack() as stack:
        base = None
        if carried.folder is not None:
            base = stack.enter_context(open_checkpoint(carried.folder))
        own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(own))
        config = merged_config(carried.config_json, dtype, untied=untied)
        bits = four_bits(base, dtype) if in_4bit else None
        if bits is None:
            _say_base(model, base)
        else:
            held = frozenset() if base is None else frozenset(base.names)
            tqdm.write(counted(model, bits, functools.partial(_written_name, held)))
            config = with_quantization(config, bits.quantization(model), dtype)
        tensors = _tensors(model, dtype, base, bits)
        total = sum(tensor.nbytes for tensor in tensors.values())
        bar = stack.enter_context(
            tqdm(total=total, desc="writing weights", unit="B", unit_scale=True)
        )
        write_checkpoint(
            folder,
            tensors,
            config,
            max_shard_bytes=max_shard_bytes,
            copied=companions(carried.folder or own, own),
            progress=functools.partial(_advance, bar),
        )


def _advance(bar: tqdm, _: str, size: int) -> None:
    bar.update(size)


def _say_base(model: CausalLM, base: Checkpoint | None) -> None:
    """Say what the adapter of a 4-bit model is merged into."""
    if not any(is_stack(weight_of(place.module, True)) for place in places(model)):
        return
    # A 4-bit folder has dense projections too; they are no originals of those that it quantised.
    dense = base is not None and not quantized_infos(base)
    kind = "the original dense" if dense else "its dequantised"
    tqdm.write(f"jaxtune: the model has 4-bit weights; {kind} ones are merged and written.")


def _written_name(held: frozenset[str], name: str) -> str:
    """A tensor's name in the merged checkpoint: the base's for it, of those that it holds."""
    return file_name(name, held) or added_name(name, held)


def _tensors(
    model: CausalLM, dtype: np.dtype, base: Checkpoint | None, bits: FourBits | None
) -> dict[str, LazyTensor]:
    """Every tensor of the merged checkpoint by its name in the files, not yet computed."""
    held = frozenset() if base is None else frozenset(base.names)
    tensors = {}
    for place in places(model):
        for layer, name in enumerate(place.names):
            index = layer if place.stacked else None
            original = _original(place, file_name(f"{name}.weight", held), base)
            for part, value in _parts(place, index, dtype, original):
                written = _written_name(held, f"{name}.{part}")
                if bits is not None and part == "weight" and bits.holds(place, written):
                    merge = functools.partial(
                        _merged_weight, place.module, index, original=original
                    )
                    tensors |= bits.parts(place, layer, written, merge)
                else:
                    tensors[written] = value
    if base is not None:
        tensors |= _others(model, dtype, base, bits)
    return tensors


def _others(
    model: CausalLM, dtype: np.dtype, base: Checkpoint, bits: FourBits | None
) -> dict[str, LazyTensor]:
    """The base's tensors of parts that the model does not compute, such as vision."""
    dense = DequantizedCheckpoint(base)
    tensors = {}
    for name in dense.names:
        if not name.startswith(model.other_parts):
            continue
        if bits is not None and name in bits.infos:
            tensors |= stored_parts(base, bits.infos[name])
            continue
        info = dense.info(name)
        kept = dtype if info.dtype in FLOAT_DTYPES else info.dtype
        read = functools.partial(_read_other, dense, name, kept)
        tensors[name] = LazyTensor(shape=info.shape, dtype=kept, read=read)
    return tensors


def _original(place: Place, name: str | None, base: Checkpoint | None) -> Read | None:
    """How to read the dense weight that a 4-bit one was made from; None if the base has none."""
    stack = weight_of(place.module, True)
    if base is None or name is None or not is_stack(stack):
        return None
    return functools.partial(base.read, name) if base.info(name).shape == stack.shape[1:] else None


def _parts(
    place: Place, layer: int | None, dtype: np.dtype, original: Read | None
) -> Iterator[tuple[str, LazyTensor]]:
    """A module's weight and bias, of one layer of it."""
    module: Any = place.module
    shape = weight_of(module, True).shape
    shape = shape if layer is None else shape[1:]
    read = functools.partial(_merged_weight, module, layer, dtype, original)
    yield "weight", LazyTensor(shape=shape, dtype=dtype, read=read)
    if getattr(module, "bias", None) is not None:
        read = functools.partial(_slice, module.bias.get_value(), layer, dtype)
        yield "bias", LazyTensor(shape=shape[:1], dtype=dtype, read=read)


def _dense(stack: Any, layer: int | None) -> np.ndarray:
    """A weight, of one layer of a stack; of 4 bits, the values that training computes with."""
    if layer is None:
        return np.asarray(stack)
    if is_stack(stack):
        return np.asarray(layer_matrix(stack, layer, jnp.float32, "auto"))
    return np.asarray(stack[layer])


def _slice(stack: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    return cast(np.asarray(stack if layer is None else stack[layer]), dtype)


def _merged_weight(
    module: nnx.Module, layer: int | None, dtype: np.dtype, original: Read | None
) -> np.ndarray:
    """One layer's merged weight, rounded once; of a 4-bit W the original's, where there is one."""
    weight = _dense(weight_of(module, True), layer) if original is None else original()
    if not isinstance(module, Linear) or module.lora is None or layer is None:
        return cast(weight, dtype)
    rank, scale = module.lora.ranks[layer], module.lora.scales[layer]
    if not rank:
        return cast(weight, dtype)
    a = np.asarray(module.lora_A[...][layer, :rank])
    b = np.asarray(module.lora_B[...][layer, :, :rank])
    magnitude = None
    if module.lora.use_dora:
        magnitude = np.asarray(module.lora_magnitude_vector[...][layer])
    return merge_linear(weight, a, b, scale, dtype, magnitude=magnitude)


def _read_other(base: DequantizedCheckpoint, name: str, dtype: np.dtype) -> np.ndarray:
    array = base.read(name)
    return array if array.dtype == dtype else cast(array, dtype)


def _write_card(model: CausalLM, folder: Path) -> None:
    """Say in the adapter's README how to load it; a README that is not ours stays."""
    path = folder / CARD
    if path.is_file() and CARD_MARK not in path.read_text(encoding="utf-8"):
        return
    with atomic(path) as temporary:
        temporary.write_text(_card(model.carried.name_or_path, model.carried.base_changes), "utf-8")


def _card(base: str, changes: Mapping[str, Any]) -> str:
    loading = f'base = AutoModelForCausalLM.from_pretrained("{base}")'
    imported, note = "AutoModelForCausalLM", ""
    if changes:
        imported = "AutoConfig, AutoModelForCausalLM"
        loading = "\n".join(
            [
                f'config = AutoConfig.from_pretrained("{base}")',
                *(f"config.get_text_config().{key} = {value!r}" for key, value in changes.items()),
                f'base = AutoModelForCausalLM.from_pretrained("{base}", config=config)',
            ]
        )
        note = (
            "\nThe base's position range was stretched for this adapter. Load the base with the\n"
            "values above, or its logits are not those of the training.\n"
        )
    return f"""---
base_model: {json.dumps(base)}
{CARD_MARK}---

# LoRA adapter for {base}

Trained with jaxtune.

```python
from peft import PeftModel
from transformers import {imported}

{loading}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
{note}"""
