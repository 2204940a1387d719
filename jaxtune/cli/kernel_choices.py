"""Which implementation serves each operation on a device, and why: asked of the kernels' own table.

The calls are those of a training step of Llama-3-8B, and of a generated token.
"""

import dataclasses
from typing import Any

from pallas_kernels.adam_8bit.api import BACKENDS as ADAM_8BIT
from pallas_kernels.backends import OPS
from pallas_kernels.dispatch import Backend, Device, Problem, choose

WORDS = {"triton": "Pallas Triton", "cudnn": "cuDNN", "xla": "plain JAX"}
_WIDTH, _ROWS = 4096, 4096
_HEADS = {"B": 2, "T": 2048, "S": 2048, "N": 32, "K": 8, "H": 128}
_NF4 = {"L": 32, "C": _WIDTH * _WIDTH // 2, "O": _WIDTH, "I": _WIDTH, "block": 64}
_ATTENTION = {
    "scale": 128**-0.5,
    "window": None,
    "softcap": None,
    "segments": False,
    "whole": True,
    "traced_window": False,
}
_NORM = {"eps": 1e-5, "unit_offset": False, "adds": True}
_HEAD = {"softcap": None, "logit_scale": 1.0, "label_smoothing": 0.0, "chunk_rows": None}
# (what it is called, the op, sizes, options)
CALLS: tuple[tuple[str, str, dict[str, int], dict[str, Any]], ...] = (
    ("attention", "attention", _HEADS, _ATTENTION),
    ("attention of packed rows", "attention", _HEADS, {**_ATTENTION, "segments": True}),
    ("LoRA", "lora_linear", {"I": _WIDTH, "R": 16}, {}),
    ("4-bit weights in training", "dequantize_nf4", {**_NF4, "E": 0}, {"nested": True}),
    ("4-bit weights in generation", "nf4_matmul", {**_NF4, "M": 1}, {"nested": True}),
    ("norms", "rms_norm", {"M": _ROWS, "D": _WIDTH}, _NORM),
    ("gated activation", "glu", {"N": _ROWS * 14336}, {"activation": "silu"}),
    ("loss", "linear_cross_entropy", {"M": _ROWS, "D": _WIDTH, "V": 128256}, _HEAD),
    ("8-bit AdamW", "adam_8bit", {"L": 32, "N": 16 * _WIDTH}, {}),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What serves one operation.

    Attributes:
      label: What it is called.
      backend: Its name, in words.
      why: What the next better one said; "" if the best serves.
    """

    label: str
    backend: str
    why: str


def choices(device: Device, dtype: str) -> list[Choice]:
    """The implementation of each operation.

    Args:
      device: Where it will run.
      dtype: Of the model.

    Returns:
      One for each of `CALLS`.

    Raises:
      Unsupported: Nothing serves an operation.
    """
    return [_choice(call, device, dtype) for call in CALLS]


def _choice(call: tuple[str, str, dict, dict], device: Device, dtype: str) -> Choice:
    label, op, sizes, options = call
    backends: tuple[Backend, ...] = ADAM_8BIT if op == "adam_8bit" else OPS[op]
    # The optimizer's states belong to float32 parameters, whatever the model's dtype is.
    kind = "float32" if op == "adam_8bit" else dtype
    problem = Problem(op=op, device=device, dtype=kind, sizes=sizes, options=options)
    chosen = choose("auto", backends, problem)
    better = backends[: backends.index(chosen)]
    # The nearest one says enough; on a device without kernels all of them say the same.
    why = f"{WORDS[better[-1].name]}: {better[-1].refuse(problem)}" if better else ""
    return Choice(label=label, backend=WORDS[chosen.name], why=why)
