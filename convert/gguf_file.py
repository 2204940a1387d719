"""A model as one GGUF file, for llama.cpp and what is built on it; one tensor in memory at a time.

The `gguf` package of llama.cpp writes the file and quantises to q8_0; what goes into it is decided
in `gguf_model`, `gguf_tensors` and `gguf_vocabulary`. A quantised base's k-quants are llama.cpp's.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.disk_space import check_space
from convert.errors import CheckpointError, broken, shown
from convert.gguf_model import architecture_of, parameters, text_config
from convert.gguf_tensors import METHODS, GgufTensor, Tensors, gguf_tensors
from convert.gguf_vocabulary import read_vocabulary
from convert.json_object import read_json_object
from convert.stream import Progress
from convert.tensors import atomic

# Unsloth's other names.
ALIASES = {"fast_quantized": "q8_0", "quantized": "q4_k_m"}
NOT_QUANTIZED = "not_quantized"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_METADATA_BYTES = 64 * 2**20
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def gguf_files(
    folder: Path, model: str, chosen: str | Sequence[str], dtype: np.dtype
) -> dict[str, Path]:
    """The methods that a user names, checked, and the file of each.

    Args:
      folder: Where the files will be.
      model: Its name, a path or a hub id; the last part names the files.
      chosen: One or several of f32, f16, bf16, q8_0, "not_quantized" (f16 or bf16, as the model
        has it) and "fast_quantized" (q8_0); capitals do not count.
      dtype: Of the model, 16 bits.

    Returns:
      {a name of `METHODS`: such as folder/Llama-3.2-1B.Q8_0.gguf}.

    Raises:
      CheckpointError: another name; of one that llama.cpp makes, it says by which command.
    """
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    plain = "f16" if dtype == np.float16 else "bf16"
    aliases = {**ALIASES, NOT_QUANTIZED: plain}
    wanted = [aliases.get(name.lower(), name.lower()) for name in map(str, names)]
    last = Path(model.rstrip("/")).name or "model"
    files = {name: folder / f"{last}.{name.upper()}.gguf" for name in (*wanted, plain)}
    for given, name in zip(names, wanted, strict=True):
        if name not in METHODS:
            raise _unknown(given, name, plain, files)
    if not wanted:
        raise _unknown("nothing", "", plain, files)
    return {name: files[name] for name in wanted}


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    tokenizer: Path | None,
    *,
    method: str,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Write a model as one GGUF file, all of it or nothing.

    Args:
      path: The file to create or replace; its folder is created if it is missing.
      config: config.json, or its transformers form.
      tensors: The model's.
      tokenizer: Folder of the tokenizer's files; None leaves the vocabulary out, and llama.cpp
        takes and gives ids.
      method: One of `METHODS`.
      name: Of the model, as the file says it.
      progress: Called after each tensor with its name and its bytes.

    Raises:
      CheckpointError: what `gguf_tensors`, `parameters` and `read_vocabulary` refuse, no package
        `gguf`, or too little space on the disk; nothing is read or written then.
      OSError: the disk refused. The old file stands.
    """
    gguf = _package()
    kind, values = architecture_of(config), parameters(config)
    architecture = next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == kind.name)
    names = gguf.get_tensor_name_map(architecture, values["block_count"])

    def placed(tensor: str) -> str | None:
        return names.get_name(tensor, try_suffixes=(".weight", ".bias"))

    found = gguf_tensors(config, tensors, method, placed)
    writer = gguf.GGUFWriter(None, kind.name)
    writer.add_type("model")
    writer.add_name(name)
    _add_parameters(gguf, writer, values)
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[method]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(gguf, writer, config, tokenizer)
    for place, tensor in found.items():
        kind_of = getattr(gguf.GGMLQuantizationType, tensor.type)
        # The dtype would only say that a shape is of bytes, which this one is not.
        writer.add_tensor_info(place, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind_of)
    check_space(path, sum(tensor.nbytes for tensor in found.values()) + _METADATA_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        try:
            _write(writer, temporary, found, progress)
        finally:
            writer.close()


def _write(
    writer: Any, path: Path, tensors: Mapping[str, GgufTensor], progress: Progress | None
) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for place, tensor in tensors.items():
        array = tensor.read()
        if array.nbytes != tensor.nbytes:
            raise broken(
                f"The tensor {shown(place)} must be read as it was declared",
                got=f"{array.nbytes} bytes",
                wanted=f"{tensor.nbytes}",
                cure="A file stands behind it that changed meanwhile: load it again.",
            )
        writer.write_tensor_data(array)
        del array
        if progress is not None:
            progress(place, tensor.nbytes)


def _add_parameters(gguf: Any, writer: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key == "rope_scaling_type":
            value = gguf.RopeScalingType(value)
        getattr(writer, f"add_{key}")(value)


def _add_vocabulary(
    gguf: Any, writer: Any, config: Mapping[str, Any], tokenizer: Path | None
) -> None:
    """Add tokens, special ids, merges and the chat template."""
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    text = text_config(config)
    size = text["vocab_size"]
    vocabulary = read_vocabulary(tokenizer, size)
    if (tokenizer / _TOKENIZER_CONFIG).is_file():
        read_json_object(tokenizer / _TOKENIZER_CONFIG)  # refused here, before gguf reads it
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    merges = vocabulary.model == "gpt2"
    special = gguf.SpecialVocab(tokenizer, load_merges=merges, n_vocab=size)
    for name in ("bos", "eos"):
        held = text.get(f"{name}_token_id")
        if isinstance(held, int) and 0 <= held < size:
            special.special_token_ids.setdefault(name, held)
    special.add_to_gguf(writer, quiet=True)


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise broken(
            "Writing GGUF needs the package gguf",
            got="none installed",
            wanted="gguf of llama.cpp",
            cure="pip install 'jaxtune[gguf]'",
        ) from error


def _unknown(given: object, name: str, plain: str, files: Mapping[str, Path]) -> CheckpointError:
    """Build the error for a method that is not written here."""
    rule = "A GGUF file's quantization method must be one that is written here"
    wanted = f"{', '.join(METHODS)}, {NOT_QUANTIZED} or fast_quantized"
    if name[:1] in ("q", "i", "t") and any(letter.isdigit() for letter in name):
        cure = (
            f"{name} is made by llama.cpp: write {plain}, and then run "
            f"`llama-quantize {files[plain]} {files[name]} {name.upper()}`."
        )
    else:
        cure = "Choose one of them."
    return broken(rule, got=shown(given), wanted=wanted, cure=cure)
