"""What a step costs at least: its arithmetic, and the time of that at the device's rates."""

import dataclasses
import re
from collections.abc import Sequence

from jaxtune.config import DecoderConfig

# Attention reaches this share of the matmul rate: the 19 ms of Llama-3-8B at 2 x 2048 tokens on an
# H200 whose products run at 684 TFLOP/s, by cuDNN.
ATTENTION_SHARE = 0.59
# Bytes moved by the dequantisation of one 4-bit element: 0.5 + 0.016 read, 2 written.
DEQUANTISED_BYTES = 2.516
DEQUANTISATION_PASSES = 2

# Dense 16-bit tensor-core peaks in TFLOP/s by NVIDIA's datasheets; the T4 has float16 only.
DATASHEET = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "RTX 4090": 165,
    "A10": 125,
    "L4": 121,
    "T4": 65,
}
# Boards of the same name with slower clocks, not in the table.
OTHER_BOARDS = re.compile(r"\b(PCIe|NVL|MIG)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a step has to do; recomputation is not counted, since a plan could do without.

    Attributes:
      tokens: T, of the whole step.
      linears: FLOPs of the frozen projections.
      head: FLOPs of the output head.
      attention: FLOPs of scores and weighted sums.
      dequantisation: Bytes moved to dequantise; 0 for 16-bit weights.
    """

    tokens: int
    linears: float
    head: float
    attention: float
    dequantisation: float

    @property
    def flops(self) -> float:
        """All FLOPs of the step; LoRA's own, about a hundredth, are left out."""
        return self.linears + self.head + self.attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What the device reaches.

    Attributes:
      matmul: FLOP/s of a large product.
      copy: Bytes read and written a second by a copy.
    """

    matmul: float
    copy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floor:
    """The least time of a step by part, in ms."""

    linears: float
    head: float
    attention: float
    dequantisation: float

    @property
    def total(self) -> float:
        """Of the whole step, ms."""
        return self.linears + self.head + self.attention + self.dequantisation


def linear_parameters(config: DecoderConfig) -> int:
    """Weights of the projections of all layers: L (2 D N H + 2 D K H + 3 D F)."""
    width = config.hidden_size
    attention = 2 * config.head_dim * (config.num_attention_heads + config.num_key_value_heads)
    return config.num_hidden_layers * width * (attention + 3 * config.intermediate_size)


def attended_pairs(length: int, window: int | None) -> float:
    """Pairs (query, key) of one document: S^2 / 2, with a window W < S: S W - W^2 / 2."""
    span = length if window is None else min(window, length)
    return span * (length - span / 2)


def work(config: DecoderConfig, documents: Sequence[int], *, bits: int, accumulation: int) -> Work:
    """Count the arithmetic of a LoRA step with frozen base weights.

    linears        4 P T: forward and dX, P weights of the projections, T tokens
    head           4 V D T
    attention      3.5 * 4 N H * pairs a layer and document; forward, and 2.5 of it backward;
                   without a window 4 N H * pairs = 2 S^2 N H
    dequantisation 2 passes * 2.516 bytes * P a micro-batch, for 4 bits

    Args:
      config: Of the model.
      documents: Tokens of each document of the step.
      bits: 4 or 16.
      accumulation: Micro-batches a step.

    Returns:
      The counts.

    Source: reference/kernels_and_numerics.md, section 3.7, for attention and dequantisation.
    """
    tokens, parameters = sum(documents), linear_parameters(config)
    pairs = sum(
        attended_pairs(length, config.layer(index).window)
        for index in range(config.num_hidden_layers)
        for length in documents
    )
    passes = DEQUANTISATION_PASSES * accumulation if bits == 4 else 0
    return Work(
        tokens=tokens,
        linears=4.0 * parameters * tokens,
        head=4.0 * config.vocab_size * config.hidden_size * tokens,
        attention=3.5 * 4 * config.num_attention_heads * config.head_dim * pairs,
        dequantisation=passes * DEQUANTISED_BYTES * parameters,
    )


def floor(work: Work, rates: Rates) -> Floor:
    """The least time of a step at measured rates, part by part.

    (linears + head) / matmul + attention / (0.59 matmul) + dequantisation / copy

    Llama-3-8B, 4 bits, 2 x 2048 tokens at 684 TFLOP/s and 4.3 TB/s: 167 + 13 + 19 + 8 = 207 ms.

    Args:
      work: Of the step.
      rates: Of the device.

    Returns:
      Milliseconds.
    """
    return Floor(
        linears=1e3 * work.linears / rates.matmul,
        head=1e3 * work.head / rates.matmul,
        attention=1e3 * work.attention / (ATTENTION_SHARE * rates.matmul),
        dequantisation=1e3 * work.dequantisation / rates.copy,
    )


def datasheet_peak(device_kind: str) -> float | None:
    """FLOP/s of dense 16-bit products by the datasheet; None for a device not in the table."""
    if OTHER_BOARDS.search(device_kind):
        return None
    for name, tera in DATASHEET.items():
        if re.search(rf"\b{name}\b", device_kind):
            return tera * 1e12
    return None
