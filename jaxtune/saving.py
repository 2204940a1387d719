"""Writing a model: the adapter in PEFT's form, or a full checkpoint with the adapter merged in."""

import contextlib
import functools
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm.auto import tqdm

from convert import (
    Checkpoint,
    companions,
    dtype_of,
    merged_config,
    open_checkpoint,
    quantized_infos,
    with_quantization,
    write_checkpoint,
)
from jaxtune.adapters.counting import count_parameters
from jaxtune.adapters.modules import places
from jaxtune.adapters.peft_form import save_adapter
from jaxtune.console import say_above_bars
from jaxtune.layers.variables import weight_of
from jaxtune.merged_4bit import counted, four_bits
from jaxtune.merged_tensors import merged_tensors, written_name
from jaxtune.model_card import CARD, is_ours, write_card, write_merged_card
from jaxtune.models.decoder import CausalLM
from pallas_kernels.nf4 import is_stack

SHARD_BYTES = 5_000_000_000
FOUR_BIT = ("merged_4bit", "merged_4bit_forced", "forced_merged_4bit")


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
    write_card(model, Path(folder))


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
            say_above_bars(counted(model, bits, functools.partial(written_name, held)))
            config = with_quantization(config, bits.quantization(model), dtype)
        tensors = merged_tensors(model, dtype, base, bits)
        own_card = (folder / CARD).is_file() and not is_ours(folder / CARD)
        if not own_card:
            write_merged_card(model, own, config)
        cards = [] if own_card else [own / CARD]
        total = sum(tensor.nbytes for tensor in tensors.values())
        bar = stack.enter_context(
            tqdm(total=total, desc="writing weights", unit="B", unit_scale=True)
        )
        write_checkpoint(
            folder,
            tensors,
            config,
            max_shard_bytes=max_shard_bytes,
            copied=[*companions(carried.folder or own, own), *cards],
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
    say_above_bars(f"jaxtune: the model has 4-bit weights; {kind} ones are merged and written.")
