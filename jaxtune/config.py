"""Frozen descriptions of a decoder: what differs between model families, as values.

Shape letters, used in every annotation, einsum and comment of the project:

  B batch            T query positions     S key positions     D model width
  N query heads      K key/value heads     G = N / K           H head width
  F mlp width        V vocabulary          R LoRA rank         L layers
  M = B * T flattened rows                 P layers in a period
"""

import dataclasses
from typing import Literal

Activation = Literal["silu", "gelu_pytorch_tanh"]
PACKING_STRATEGIES = ("bfd", "bfd_split", "wrapped")  # what each does: `jaxtune.data.packing.pack`
BAD_ROWS = ("refuse", "skip")
LONG_ROWS = ("cut", "refuse", "skip")
# From the one that keeps most to the one that keeps least; see `jaxtune.models.run.run_layers`.
Remat = Literal["none", "gate_up", "attention", "full", "offload", "least"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """How the rotary frequencies follow from the head width.

    inv_freq_i = rope_theta^(-2i/H); "linear" divides it by `factor`; "llama3" divides the low
    frequencies, keeps the high ones and interpolates between.

    Attributes:
      rope_type: "default", "linear" or "llama3".
      rope_theta: Base of the geometric series; dimensionless.
      factor: Stretch of the position range; None for "default".
      low_freq_factor: llama3 only; wavelengths over `original / low` tokens are stretched.
      high_freq_factor: llama3 only; wavelengths under `original / high` tokens are kept.
      original_max_position_embeddings: llama3 only; tokens.
    """

    rope_type: Literal["default", "linear", "llama3"]
    rope_theta: float
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        """Reject a scaling without its numbers, and numbers without their scaling."""
        llama3 = (
            self.low_freq_factor,
            self.high_freq_factor,
            self.original_max_position_embeddings,
        )
        wanted = {
            "default": self.factor is None and llama3 == (None, None, None),
            "linear": self.factor is not None and llama3 == (None, None, None),
            "llama3": self.factor is not None and None not in llama3,
        }
        if not wanted.get(self.rope_type, False):
            raise ValueError(
                "a rope specification must give exactly the numbers of its type "
                f"('default': none; 'linear': factor; 'llama3': all four); got {self}"
            )
        _positive("rope_theta", self.rope_theta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSpec:
    """The RMS norms of a model.

    Attributes:
      rms_norm_eps: Added to the mean square; dimensionless, > 0.
      unit_offset: Gemma's form: scale by (1 + weight) in float32, then cast. False is Llama's:
        cast, then scale by weight in the activation's dtype.
      sandwich: Gemma 2's four norms a block: also after attention and after the MLP.
      qk_norm: Queries and keys are normalised head by head, before the rotation.
    """

    rms_norm_eps: float
    unit_offset: bool
    sandwich: bool
    qk_norm: bool

    def __post_init__(self) -> None:
        """Check the range."""
        _positive("rms_norm_eps", self.rms_norm_eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What one layer of a period does differently from its neighbours.

    Attributes:
      window: Attention span in tokens, the query's own included; None is unlimited.
      rope: Its rotary embedding.
    """

    window: int | None
    rope: RopeSpec

    def __post_init__(self) -> None:
        """Check the range."""
        if self.window is not None:
            _positive("window", self.window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer. A value a checkpoint must supply has no default.

    Attributes:
      vocab_size: V, entries.
      hidden_size: D.
      intermediate_size: F.
      num_hidden_layers: L.
      num_attention_heads: N.
      num_key_value_heads: K; divides N.
      head_dim: H; even.
      hidden_activation: Of the gated MLP.
      max_position_embeddings: Longest row in tokens.
      tie_word_embeddings: The output head is the embedding matrix.
      norm: The RMS norms.
      period: Layer l follows `period[l % len(period)]`.
      query_scale: Multiplies q.k; usually H^-1/2.
      embedding_scale: Multiplies the embedding's output, rounded to its dtype first.
      attention_bias: q, k, v and o projections have a bias.
      mlp_bias: gate, up and down projections have a bias.
      attn_logit_softcapping: cap * tanh(score / cap); None is off.
      final_logit_softcapping: The same on the logits; None is off.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_activation: Activation
    max_position_embeddings: int
    tie_word_embeddings: bool
    norm: NormSpec
    period: tuple[LayerSpec, ...]
    query_scale: float
    embedding_scale: float
    attention_bias: bool
    mlp_bias: bool
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None

    def __post_init__(self) -> None:
        """Reject sizes that no model of any family can have."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                _positive(field.name, value)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "`num_attention_heads` must be a multiple of `num_key_value_heads`; got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even for rotary embedding; got {self.head_dim}")
        if self.hidden_activation not in ("silu", "gelu_pytorch_tanh"):
            raise ValueError(
                "`hidden_activation` must be 'silu' or 'gelu_pytorch_tanh'; got "
                f"{self.hidden_activation!r}"
            )
        if not 1 <= len(self.period) <= self.num_hidden_layers:
            raise ValueError(
                "`period` must hold between 1 and `num_hidden_layers` layers; got "
                f"{len(self.period)} for {self.num_hidden_layers}"
            )

    def layer(self, index: int) -> LayerSpec:
        """The specification of layer `index`."""
        return self.period[index % len(self.period)]


def _positive(name: str, value: int | float) -> None:
    if not value > 0:
        raise ValueError(f"`{name}` must be > 0; got {value}")
