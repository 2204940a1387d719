"""Bytes that a training step takes, from sizes alone: what stays, what a plan keeps, what works.

Three moments can be the worst: the loss (everything kept, logits of a chunk of rows), the backward
pass of a layer (everything kept, gradients, the layer's own arrays), and the optimizer's update.
What is held is exact. The arrays of one layer depend on what the compiler fuses; their counts are
in `Working`, one for a GPU and one for a CPU, whose compiler fuses less.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxtune.config import DecoderConfig, Remat
from jaxtune.layers import residuals
from pallas_kernels.attention.xla import BLOCK
from pallas_kernels.cross_entropy.chunks import rows_per_chunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Working:
    """Arrays that are alive at the worst moment of a layer's backward pass, by their width.

    Attributes:
      inner: Of width F, where gate and up are kept; where they are computed again, one more.
      matrices: Dense copies of a dequantised [F, D] weight, where gate and up are kept.
      matrices_again: Further ones, where they are computed again.
      stream: Of width D.
      heads: Of the width of queries, keys and values together.
      projections: Of width D, where there are norms behind attention and MLP and what they read is
        computed again.
      scores: [B, N, block, block] of attention in plain JAX, while attention is differentiated.
      hoisted: Of these, how many the compiler makes once for all layers.
      forward: Of the width of the queries, which attention in plain JAX leaves out where its
        forward pass is not computed again.
      logits: Of a chunk of rows, float32.
      logit_gradients: Of the same, of the activations' dtype.
      offloaded: Layer inputs on their way to or from the host.
    """

    inner: float
    matrices: float
    matrices_again: float
    stream: float
    heads: float
    projections: float
    scores: float
    hoisted: float
    forward: float
    logits: float
    logit_gradients: float
    offloaded: float


# Fitted to three measured peaks of Llama-3-8B, 4 bits, 2 x 2048 tokens, on an H200 (18.2, 7.9 and
# 7.0 GiB by the plans "none", "full" and "offload"); attention there is a kernel without scores.
ON_GPU = Working(
    inner=4.0,
    matrices=1.0,
    matrices_again=0.0,
    stream=4.0,
    heads=2.0,
    projections=2.0,
    scores=4.25,
    hoisted=2.0,
    forward=4.0,
    logits=1.0,
    logit_gradients=1.0,
    offloaded=3.0,
)
# Counted in the compiler's plans of small models in float32; "offload" moves nothing there.
ON_CPU = Working(
    inner=5.0,
    matrices=3.5,
    matrices_again=1.5,
    stream=6.0,
    heads=2.0,
    projections=4.0,
    scores=4.25,
    hoisted=2.0,
    forward=4.0,
    logits=1.0,
    logit_gradients=0.0,
    offloaded=0.0,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What is trained, and on how much at a time.

    Attributes:
      config: Of the model.
      rows: B of a micro-batch on one device.
      length: T, tokens.
      itemsize: Bytes of an activation.
      stream_itemsize: Bytes of one of the residual stream.
      ranks: Sum of the LoRA ranks of q, k, v; of o; of gate and up; of down.
      four_bits: Whether a layer's projections are dequantised.
      blockwise: Whether attention is plain JAX, which has blocks of scores.
      accumulation: Micro-batches a step.
      working: Of the device's compiler.
    """

    config: DecoderConfig
    rows: int
    length: int
    itemsize: int
    stream_itemsize: int
    ranks: tuple[int, int, int, int]
    four_bits: bool
    blockwise: bool
    accumulation: int
    working: Working

    @property
    def tokens(self) -> int:
        """M of a micro-batch."""
        return self.rows * self.length

    @property
    def query_width(self) -> int:
        """Columns of all query heads."""
        return self.config.num_attention_heads * self.config.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of all key heads; as many as of all value heads."""
        return self.config.num_key_value_heads * self.config.head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """What lies on the device between two steps, bytes.

    Attributes:
      weights: Frozen: layers, embedding, head and norms.
      trained: Adapters, or whatever else is trained.
      optimizer: Its state.
      gradients: Of what is trained, float32 at least.
      prepared: The adapters once more, as the products of a step read them.
      embedding: Of the weights, what "least" keeps in host memory.
    """

    weights: int
    trained: int
    optimizer: int
    gradients: int
    prepared: int
    embedding: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """The bytes of a step under one plan.

    Attributes:
      held: Between steps.
      inputs: Inputs of all layers, on the device.
      kept: What else the forward pass leaves for the backward pass.
      hoisted: Made once for all layers.
      layer: The arrays of one layer's backward pass.
      logits: Of a chunk of rows, with their gradient.
      gradients: Summed over the micro-batches so far, and of this one.
    """

    held: Held
    inputs: float
    kept: float
    hoisted: float
    layer: float
    logits: float
    gradients: float

    @property
    def peak(self) -> float:
        """At the worst moment."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """What the peak is made of: "weights", "LoRA", "states", "activations" and "logits".

        "LoRA" is all that is trained, with its gradients and the copies that products read;
        logits are there only if the loss is the worst moment, for no layer works then.
        """
        held = self.held
        # The sum over micro-batches is there before the first backward pass.
        sums = self.gradients - held.gradients
        across = held.prepared + self.inputs + self.kept + self.hoisted
        loss, layer = sums + self.logits, self.gradients + self.layer
        update = 2.0 * held.gradients
        lora, activations, logits = float(held.trained), across - held.prepared, 0.0
        if update > across + max(loss, layer):
            lora, activations = lora + update, 0.0
        elif loss > layer:
            lora, logits = lora + held.prepared + sums, self.logits
        else:
            lora, activations = lora + held.prepared + self.gradients, activations + self.layer
        return {
            "weights": float(held.weights),
            "LoRA": lora,
            "states": float(held.optimizer),
            "activations": activations,
            "logits": logits,
        }


def footprint(shape: Shape, held: Held, plan: Remat) -> Footprint:
    """The bytes of a step.

    Args:
      shape: What is trained, and on how much.
      held: What lies on the device anyway.
      plan: Of rematerialisation.

    Returns:
      Its parts.
    """
    config = shape.config
    layers, stream = config.num_hidden_layers, shape.tokens * shape.config.hidden_size
    one_input = stream * shape.stream_itemsize
    moved = shape.working.offloaded if plan in residuals.OFFLOADING else 0
    pieces = residuals.MLP_PIECES if plan == "least" else 1
    scores, names = _scores(shape), residuals.PLANS[plan]
    if plan in residuals.EMBEDDING_ON_HOST:
        held = dataclasses.replace(held, weights=held.weights - held.embedding)
    return Footprint(
        held=held,
        inputs=float(one_input * (moved or layers)),
        kept=float(layers * kept_bytes(shape, names)),
        hoisted=shape.working.hoisted * scores,
        layer=_layer(shape, scores, names, pieces),
        logits=_logits(shape),
        gradients=float(held.gradients * (2 if shape.accumulation > 1 else 1)),
    )


def largest(fits: Callable[[int], bool], limit: int = 2**24) -> int:
    """The largest number that fits, of a size that grows with it; 0 if 1 does not.

    Args:
      fits: Of a number >= 1.
      limit: Largest that is looked at.
    """
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def kept_bytes(shape: Shape, names: Sequence[str]) -> int:
    """What a layer leaves behind, beside its input.

    Args:
      shape: Of the step.
      names: Of `jaxtune.layers.residuals`.
    """
    config, size = shape.config, shape.itemsize
    sandwich = config.norm.sandwich
    bytes_a_token = {
        residuals.QUERY: size * shape.query_width,
        residuals.KEY: size * shape.kv_width,
        residuals.VALUE: size * shape.kv_width,
        residuals.OUTPUT_NAME: size * shape.query_width,
        residuals.STATISTICS_NAME: 4 * config.num_attention_heads,
        residuals.ATTENTION_PROJECTION: size * config.hidden_size if sandwich else 0,
        residuals.MIDDLE: shape.stream_itemsize * config.hidden_size,
        residuals.GATE: size * config.intermediate_size,
        residuals.UP: size * config.intermediate_size,
        residuals.MLP_PROJECTION: size * config.hidden_size if sandwich else 0,
        residuals.INNER_NAME: size * sum(shape.ranks),
    }
    return shape.tokens * sum(bytes_a_token[name] for name in names)


def _scores(shape: Shape) -> float:
    """One array of scores of attention in plain JAX; float32 (float64: as wide as activations)."""
    if not shape.blockwise:
        return 0.0
    side = min(shape.length, BLOCK)
    return float(shape.rows * shape.config.num_attention_heads * side * side * 4)


def _layer(shape: Shape, scores: float, kept: Sequence[str], pieces: int) -> float:
    """The larger of what the MLP and attention take while they are differentiated."""
    config, working, size = shape.config, shape.working, shape.itemsize
    D, F = config.hidden_size, config.intermediate_size
    heads = shape.query_width + 2 * shape.kv_width
    again = residuals.GATE not in kept
    common = shape.tokens * working.stream * D * shape.stream_itemsize
    projected = shape.tokens * working.heads * heads * size
    pieces = pieces if shape.length % pieces == 0 else 1
    mlp = (working.inner + again) * shape.tokens / pieces * F * size
    if pieces > 1:  # what they are cut from, and what they give
        mlp += 2 * shape.tokens * D * size
    if again or residuals.QUERY in kept:  # else they are not there yet
        mlp += projected
    if again and config.norm.sandwich:
        mlp += working.projections * shape.tokens * D * size
    if shape.four_bits:
        mlp += (working.matrices + working.matrices_again * again) * F * D * size
    attention = projected + (working.scores - working.hoisted) * scores
    if shape.length > BLOCK:
        attention += scores  # the sums over blocks
    if residuals.OUTPUT_NAME in kept and shape.blockwise:
        attention -= working.forward * shape.tokens * shape.query_width * size
    return common + max(mlp, attention)


def _logits(shape: Shape) -> float:
    """Logits of a chunk, their gradient, and that of the hidden states."""
    config, working = shape.config, shape.working
    wide = max(shape.itemsize, 4)
    rows = rows_per_chunk(shape.tokens, config.vocab_size, wide)
    a_logit = working.logits * wide + working.logit_gradients * shape.itemsize
    hidden = 3 * shape.tokens * config.hidden_size * shape.itemsize
    return float(rows * config.vocab_size * a_logit + hidden)
