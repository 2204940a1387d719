"""The options of `jaxtune export`; imports no jax."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

Target = Literal["peft", "merged", "merged-4bit", "gguf"]
# Which options each target reads, beside the folders.
READS = {
    "peft": (),
    "merged": ("base", "dtype"),
    "merged-4bit": ("base", "dtype"),
    "gguf": ("base", "method"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write an adapter or a checkpoint in a form that others load; needs no GPU.

    It may be any PEFT LoRA, whoever trained it. The targets:
      peft         the adapter, in the form that old and new PEFT read
      merged       a full model in 16 bits, for transformers and vLLM
      merged-4bit  the same in bitsandbytes' 4 bits
      gguf         one file for llama.cpp, Ollama or LM Studio

    For example:
      jaxtune export merged outputs my-model
      jaxtune export gguf outputs my-gguf --method q8_0

    Attributes:
      target: peft, merged, merged-4bit or gguf.
      source: Folder of an adapter or of a checkpoint of a run; for gguf and
        merged-4bit also of a full model.
      out: Folder to write; nothing is left half-written there.
      base: Folder or hub id of the adapter's base; by default the one that the adapter names.
      dtype: Of the merged weights (merged-4bit: of those that stay dense): bfloat16, float16 or
        float32; by default as the base's.
      method: For gguf: f32, f16, bf16 or q8_0; several make several files. By default q8_0.
    """

    target: Annotated[Positional[Target], arg(metavar="TARGET")]
    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    base: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        arg(metavar="{bfloat16,float16,float32}", help_behavior_hint=""),
    ] = None
    method: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()

    def __post_init__(self) -> None:
        """Refuse options that the target would not read."""
        for name in ("base", "dtype", "method"):
            if getattr(self, name) and name not in READS[self.target]:
                readers = [target for target, names in READS.items() if name in names]
                raise ValueError(
                    f"--{name} goes with {' or '.join(readers)}; got it with {self.target}. "
                    "Leave it out."
                )
