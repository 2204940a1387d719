"""What an answer costs at least: reading the prompt is arithmetic, each further token is memory."""

import dataclasses

import jax

from jaxtune.bench.floors import (
    ATTENTION_SHARE,
    DEQUANTISED_BYTES,
    Rates,
    attended_pairs,
    linear_parameters,
)
from jaxtune.models.decoder import CausalLM
from jaxtune.training.sizes import nbytes
from jaxtune.training.step import split
from pallas_kernels.nf4 import is_stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerFloor:
    """The least times of an answer, ms.

    Attributes:
      first_token: Reading the prompts.
      token: Each further token of all rows.
    """

    first_token: float
    token: float


def token_bytes(model: CausalLM, rows: int, positions: float) -> float:
    """Bytes that must be read for one more token of each row.

    every frozen weight once (of an untied embedding a row is nothing), the adapter in the compute
    dtype, and 2 L B S K H keys and values

    Args:
      model: With its adapter.
      rows: B.
      positions: S, tokens of a row so far.

    Returns:
      Bytes.
    """
    _, trainable, frozen = split(model)
    config, size = model.config, model.dtype.itemsize
    weights = nbytes(frozen)
    if not config.tie_word_embeddings:
        weights -= nbytes(model.model.embed_tokens.weight.get_value())
    adapter = sum(leaf.size for leaf in jax.tree.leaves(trainable)) * size
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    return weights + adapter + kept * rows * positions


def answer_floor(
    model: CausalLM, rows: int, prompt: int, new_tokens: int, rates: Rates
) -> AnswerFloor:
    """The least times of answers at measured rates.

    first token: (2 P T + 2 V D B) / matmul + 4 N H pairs / (0.59 matmul) + 2.516 P / copy,
    the last for 4 bits alone; not less than a token. Token: its bytes / copy.

    Args:
      model: With its adapter.
      rows: B.
      prompt: Tokens of a prompt.
      new_tokens: Of an answer; keys and values are counted half way.
      rates: Of the device.

    Returns:
      Milliseconds.
    """
    config, parameters = model.config, linear_parameters(model.config)
    layers = range(config.num_hidden_layers)
    pairs = rows * sum(attended_pairs(prompt, config.layer(index).window) for index in layers)
    products = (
        2.0 * parameters * rows * prompt + 2.0 * config.vocab_size * config.hidden_size * rows
    )
    attention = 4.0 * config.num_attention_heads * config.head_dim * pairs
    stacks = jax.tree.leaves(split(model)[2], is_leaf=is_stack)
    dequantised = DEQUANTISED_BYTES * parameters if any(map(is_stack, stacks)) else 0.0
    token = token_bytes(model, rows, prompt + new_tokens / 2) / rates.copy
    first = products / rates.matmul + attention / (ATTENTION_SHARE * rates.matmul)
    return AnswerFloor(
        first_token=1e3 * max(first + dequantised / rates.copy, token), token=1e3 * token
    )
