"""The targets of `python -m convert`: one row each, with its options and its function."""

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.companions import tokenizer_files
from convert.errors import broken, shown
from convert.gguf_file import gguf_files, write_gguf
from convert.gguf_model import window_note
from convert.merged import plan_merge
from convert.model_config import dtype_of
from convert.peft import CONFIG_FILE, open_adapter, read_adapter, write_adapter
from convert.rounding import WEIGHT_DTYPES
from convert.stream import LazyTensor
from convert.tensors import copy_file, write_json
from convert.writer import MODEL_CONFIG_FILE

# Called after each tensor with the bytes written so far and those of the whole.
Meter = Callable[[int, int], None]
_DTYPES = {str(dtype): dtype for dtype in WEIGHT_DTYPES}


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """One target.

    Attributes:
      summary: What it writes, in a line.
      example: A command that shows it.
      add_options: Adds the options that it takes beside SRC and OUT.
      export: Writes OUT from the parsed options, tells the meter, and returns a line that says
        what was written and how to load it.
    """

    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    export: Callable[[argparse.Namespace, Meter], str]


def _export_peft(options: argparse.Namespace, meter: Meter) -> str:
    """Rewrite an adapter in the plain form."""
    adapter, tokenizer = read_adapter(options.src), tokenizer_files(options.src)
    write_adapter(options.out, adapter.tensors, adapter.config)
    for name, file in tokenizer.items():
        copy_file(file, options.out / name)
    size = sum(array.nbytes for array in adapter.tensors.values())
    meter(size, size)
    return (
        f"Wrote {options.out}: {len(adapter.tensors)} tensors, {size / 1e6:.1f} MB. Load it with "
        f"peft.PeftModel.from_pretrained(base_model, {str(options.out)!r})."
    )


def _add_base_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="the base model's folder; by default the one that adapter_config.json names",
    )


def _add_merged_options(parser: argparse.ArgumentParser) -> None:
    _add_base_option(parser)
    parser.add_argument(
        "--dtype",
        choices=sorted(_DTYPES),
        help="of the merged weights; by default the base's if that has 16 bits, else bfloat16",
    )


def _export_merged(options: argparse.Namespace, meter: Meter, *, four_bits: bool = False) -> str:
    """Merge an adapter into its base; with `four_bits` a full model will do too."""
    if four_bits:
        base, adapter = _sources(options)
    else:
        base, adapter = options.base or _base_of(options.src), options.src
    dtype = _DTYPES.get(options.dtype)
    done = 0

    with plan_merge(base, adapter, dtype=dtype, four_bits=four_bits) as plan:

        def count(_: str, size: int) -> None:
            nonlocal done
            done += size
            meter(done, plan.nbytes)

        plan.write(options.out, progress=count)
        kind = f"4 bits and {plan.config['dtype']}" if four_bits else plan.config["dtype"]
        needs = ", with bitsandbytes installed," if four_bits else ""
        return (
            f"Wrote {options.out}: {len(plan.tensors)} tensors, {plan.nbytes / 1e6:.1f} MB, "
            f"{kind}. Load it{needs} with "
            f"transformers.AutoModelForCausalLM.from_pretrained({str(options.out)!r})."
        )


def _add_gguf_options(parser: argparse.ArgumentParser) -> None:
    _add_base_option(parser)
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help="f32, f16, bf16 or q8_0 (the default); may stand several times",
    )


def _export_gguf(options: argparse.Namespace, meter: Meter) -> str:
    """Write an adapter merged into its base, or a full model, as GGUF files."""
    base, adapter = _sources(options)
    name = options.src.resolve().name
    with contextlib.ExitStack() as stack:

        def tensors(dtype: np.dtype) -> Mapping[str, LazyTensor]:
            return stack.enter_context(plan_merge(base, adapter, dtype=dtype)).tensors

        plan = stack.enter_context(plan_merge(base, adapter))
        dtype = dtype_of(plan.config)
        files = gguf_files(options.out, name, options.method or ["q8_0"], dtype)
        own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for file in plan.copied:
            copy_file(file, own / file.name)
        write_json(own / MODEL_CONFIG_FILE, plan.config)
        done = 0

        def count(_: str, size: int) -> None:
            nonlocal done
            done += size
            meter(done, plan.nbytes * len(files))

        for method, file in files.items():
            write_gguf(file, plan.config, tensors, own, method=method, name=name, progress=count)
    note = window_note(plan.config)
    lines = [f"Note: {note}."] if note else []
    lines += [f"Wrote {file}. Run it with llama-cli -m {file}." for file in files.values()]
    return "\n".join(lines)


def _sources(options: argparse.Namespace) -> tuple[Path, Path | None]:
    """The base's folder and the adapter's; of a full model its own, and None."""
    held = {name for name in (CONFIG_FILE, MODEL_CONFIG_FILE) if (options.src / name).is_file()}
    if held == {MODEL_CONFIG_FILE}:
        return options.src, None
    return options.base or _base_of(options.src), options.src


def _base_of(adapter: Path) -> Path:
    """The local folder that an adapter's configuration names as its base."""
    config, tensors = open_adapter(adapter)
    tensors.close()
    name = config.base_model_name_or_path
    if not name or not Path(name).is_dir():
        raise broken(
            f"The base model of {adapter} must be a local folder",
            got=f"base_model_name_or_path {shown(name)} in adapter_config.json",
            wanted="a folder with config.json and safetensors",
            cure="Download the model and pass its folder: --base FOLDER.",
        )
    return Path(name)


EXPORTERS: dict[str, Exporter] = {
    "peft": Exporter(
        summary="a LoRA adapter of any PEFT, in the plain form that old and new PEFT read",
        example="python -m convert peft outputs/checkpoint-60 my-adapter",
        add_options=lambda _: None,
        export=_export_peft,
    ),
    "merged": Exporter(
        summary="a full Hugging Face model: the adapter merged into its base",
        example="python -m convert merged my-adapter my-model --base Llama-3.2-1B",
        add_options=_add_merged_options,
        export=_export_merged,
    ),
    "merged-4bit": Exporter(
        summary="an adapter merged into its base, or a full model, in bitsandbytes' 4 bits",
        example="python -m convert merged-4bit my-adapter my-model --base Llama-3.2-1B",
        add_options=_add_merged_options,
        export=functools.partial(_export_merged, four_bits=True),
    ),
    "gguf": Exporter(
        summary="GGUF files for llama.cpp: an adapter merged into its base, or a full model",
        example="python -m convert gguf my-adapter my-gguf --base Llama-3.2-1B --method q8_0",
        add_options=_add_gguf_options,
        export=_export_gguf,
    ),
}
