"""The time of a step by a simple model: arithmetic, dequantisation, and everything else as bytes.

Calibrated on one H200, Llama-3-8B with 4 bits, rank 16, 2 x 2048 tokens: 255 ms with "none", 332
with "full", 357 with "offload". Another card has its rates in place of the H200's, and its times
are estimates.
"""

from jaxtune.bench.floors import ATTENTION_SHARE, linear_parameters, work
from jaxtune.config import DecoderConfig, Remat
from jaxtune.layers import residuals
from jaxtune.plan.cards import Card

# Norms, activations, LoRA, copies and the optimizer move so many times a layer's activations: what
# is left of 255 ms when the floor of 207 is taken off, at 4.3 TB/s.
PASSES = 6.4
# Of the same, what a forward pass moves that is done again.
PASSES_AGAIN = 1.0
# Of the time of moving layer inputs out and in, what does not hide behind the arithmetic.
EXPOSED = 0.58


def milliseconds(
    config: DecoderConfig,
    card: Card,
    plan: Remat,
    *,
    rows: int,
    length: int,
    bits: int,
    accumulation: int,
) -> float | None:
    """Predict a step's time.

    floor + 2 P' T / matmul + A' / (0.59 matmul) + 2.516 P' / copy + passes * activations / copy
    + (exposed * 2 inputs + rows of an embedding in host memory) / link, with P' the weights whose
    product the plan does again, A' the attention that it does again

    Args:
      config: Of the model.
      card: Its rates.
      plan: Of rematerialisation.
      rows: Of a micro-batch.
      length: Tokens a row.
      bits: Of the weights.
      accumulation: Micro-batches a step.

    Returns:
      Milliseconds; None for a card without rates.
    """
    if card.flops is None or card.bandwidth is None or card.link is None:
        return None
    done = work(config, [length] * rows * accumulation, bits=bits, accumulation=accumulation)
    share, attention_again = _again(config, plan)
    linears = done.linears * (1 + share / 2)
    attention = done.attention * (1 + attention_again / 3.5)
    dequantised = done.dequantisation * (1 + share / 2)
    if plan == "least":  # each piece of a row dequantises the MLP's weights, in three passes
        mlp = 3 * config.hidden_size * config.intermediate_size * config.num_hidden_layers
        further = 3 * (residuals.MLP_PIECES - 1) / 2
        dequantised += further * done.dequantisation * mlp / linear_parameters(config)
    moved = (PASSES + PASSES_AGAIN * share) * _activations(config) * done.tokens
    seconds = (linears + done.head) / card.flops
    seconds += attention / (ATTENTION_SHARE * card.flops)
    seconds += (dequantised + moved) / card.bandwidth
    if plan in residuals.OFFLOADING:
        inputs = 2 * config.hidden_size * config.num_hidden_layers * done.tokens
        seconds += EXPOSED * 2 * inputs / card.link
    if plan in residuals.EMBEDDING_ON_HOST and not config.tie_word_embeddings:
        seconds += 2 * config.hidden_size * done.tokens / card.link
    return 1e3 * seconds


def _again(config: DecoderConfig, plan: Remat) -> tuple[float, float]:
    """The share of the projections that is computed again, and of attention's forward passes."""
    kept = residuals.PLANS[plan]
    D, F = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    widths = {
        residuals.QUERY: query * D,
        residuals.KEY: kv * D,
        residuals.VALUE: kv * D,
        residuals.MIDDLE: query * D,  # by the projection behind attention
        residuals.GATE: F * D,
        residuals.UP: F * D,
        residuals.MLP_PROJECTION: F * D if config.norm.sandwich else 0,
    }
    again = sum(size for name, size in widths.items() if name not in kept)
    whole = linear_parameters(config) / config.num_hidden_layers
    return again / whole, 0.0 if residuals.OUTPUT_NAME in kept else 1.0


def _activations(config: DecoderConfig) -> float:
    """Bytes that all layers' arrays take for a token, 16 bits each."""
    heads = config.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    widths = 6 * config.hidden_size + 2 * heads + 6 * config.intermediate_size
    return 2.0 * config.num_hidden_layers * widths
