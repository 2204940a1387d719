"""A model as GGUF files, for llama.cpp and what is built on it."""

import contextlib
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from convert import LazyTensor, gguf_files, open_checkpoint, window_note, write_gguf
from jaxtune.console import say_above_bars
from jaxtune.merged_tensors import merged_tensors
from jaxtune.models.configuration import hf_form
from jaxtune.models.decoder import CausalLM
from jaxtune.saving import half_dtype


def save_pretrained_gguf(
    model: CausalLM,
    folder: str | Path,
    tokenizer: Any = None,
    quantization_method: str | Sequence[str] = "fast_quantized",
) -> list[Path]:
    """Write the model, its adapter merged in, as one GGUF file for each method.

    Args:
      model: With or without an adapter.
      folder: Created if need be; each file replaces an old one at once, or not at all.
      tokenizer: Goes into the file; None: the one that the model carries.
      quantization_method: Of f32, f16, bf16, q8_0, "not_quantized" (16 bits, as the model has
        them) and "fast_quantized" (q8_0); or a list of them.

    Returns:
      The files.

    Raises:
      CheckpointError: Another method, a model or tokenizer that llama.cpp cannot run, no package
        gguf, or too little space on the disk. A method that llama.cpp makes, such as q4_k_m, is
        answered by the command that makes it.
      ValueError: The model has no configuration.
    """
    folder, carried = Path(folder), model.carried
    files = gguf_files(folder, carried.name_or_path, quantization_method, half_dtype(model))
    if carried.config_json is None:
        raise ValueError(
            "a GGUF file needs the model's configuration; this model was built without one. Set "
            "model.carried.config_json to the transformers configuration."
        )
    config = carried.hf_config or hf_form(carried.config_json)
    tokenizer = tokenizer if tokenizer is not None else carried.tokenizer
    note = window_note(config)
    if note is not None:
        say_above_bars(f"jaxtune: {note}.")
    with contextlib.ExitStack() as stack:
        base = None
        if carried.folder is not None:
            base = stack.enter_context(open_checkpoint(carried.folder))
        own = None
        if tokenizer is None:
            say_above_bars(
                "jaxtune: the model has no tokenizer; the files will have no vocabulary."
            )
        else:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tokenizer.save_pretrained(str(own))
        for method, file in files.items():
            with tqdm(desc=file.name, unit="B", unit_scale=True) as bar:
                write_gguf(
                    file,
                    config,
                    functools.partial(_tensors, model, base),
                    own,
                    method=method,
                    name=Path(carried.name_or_path).name,
                    progress=functools.partial(_advance, bar),
                )
    return list(files.values())


def _tensors(model: CausalLM, base: Any, dtype: np.dtype) -> Mapping[str, LazyTensor]:
    return merged_tensors(model, dtype, base)


def _advance(bar: tqdm, _: str, size: int) -> None:
    bar.update(size)
