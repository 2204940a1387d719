"""The one decoder: every family's forward pass, for training, evaluation and generation."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxtune.config import DecoderConfig
from jaxtune.layers.attention import Attention
from jaxtune.layers.cache import KVCache
from jaxtune.layers.context import LayerContext
from jaxtune.layers.embedding import Embedding, with_noise
from jaxtune.layers.linear import Linear
from jaxtune.layers.mlp import MLP, in_pieces
from jaxtune.layers.norm import RMSNorm
from jaxtune.layers.residuals import (
    ATTENTION_PROJECTION,
    MIDDLE,
    MLP_PIECES,
    MLP_PROJECTION,
    PLANS,
    named,
)
from jaxtune.layers.rope import rope_tables
from jaxtune.layers.variables import weight_of
from jaxtune.models.carried import Carried
from jaxtune.models.placement import splits_weights
from jaxtune.models.run import Layer, Remat, finite_layers, run_layers
from pallas_kernels.lora_linear import Prepared


class Block(nnx.Module):
    """One transformer layer; its parameters are the stacks of all L layers."""

    def __init__(
        self, config: DecoderConfig, *, std: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Stack the parameters of every layer."""
        layers = config.num_hidden_layers

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.norm, layers=layers, dtype=dtype)

        self.self_attn = Attention(config, layers=layers, std=std, dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, layers=layers, std=std, dtype=dtype, rngs=rngs)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.sandwich = config.norm.sandwich
        if self.sandwich:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()

    def prepare(
        self, dtype: DTypeLike, *, adapters: bool, dropout_key: jax.Array | None
    ) -> dict[int, Prepared]:
        """The adapters of all layers as `LayerContext.prepared` holds them."""
        return self.self_attn.prepare(
            dtype, adapters=adapters, dropout_key=dropout_key
        ) | self.mlp.prepare(dtype, adapters=adapters, dropout_key=dropout_key)

    def __call__(
        self, x: Float[Array, "B T D"], context: LayerContext
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Apply one layer (the module holds that layer's slices).

        Without `sandwich`, `post_attention_layernorm` is Llama's norm before the MLP; with it,
        the norm of attention's output, and the one before the MLP has a name of its own.
        """
        on, kernels = context.adapters, context.row_kernels
        dtype = context.cos.dtype  # of all but the stream, which is wider in float16
        normed, x = self.input_layernorm.of_stream(1 * x, None, adapters=on, kernels=kernels)
        y, cache = self.self_attn(normed.astype(dtype), context)
        before_mlp = self.post_attention_layernorm
        if self.sandwich:
            y = named(y, ATTENTION_PROJECTION)
            y = self.post_attention_layernorm(y, adapters=on, kernels=kernels)
            before_mlp = self.pre_feedforward_layernorm
        y = y.astype(x.dtype)
        if context.middle_kept:
            # Added outside the norm: the backward pass then redoes the norm from the kept sum, and
            # not from attention's projection, which it would have to redo first.
            x, y = named(x + y, MIDDLE), None
        normed, x = before_mlp.of_stream(x, y, adapters=on, kernels=kernels)
        y = in_pieces(self.mlp, normed.astype(dtype), context)
        if self.sandwich:
            y = named(y, MLP_PROJECTION)
            y = self.post_feedforward_layernorm(y, adapters=on, kernels=kernels)
        return x + y.astype(x.dtype), cache


class Decoder(nnx.Module):
    """Embedding, the stack of layers, and the final norm.

    Attributes:
      dtype: Of the activations; trained weights may be wider.
      remat: Which intermediate results the backward pass finds; see `jaxtune.models.run`.
      kernels: Backend request handed to every op.
      mesh: Over which the compiler spreads rows and weights. It would gather them for a kernel, so
        ops on what is spread are plain JAX unless `kernels` forces them. None: one device, or each
        device by itself, as in a training step.
    """

    def __init__(
        self, config: DecoderConfig, *, std: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Build the stacks; `dtype` is that of weights and activations."""
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            scale=config.embedding_scale,
            std=std,
            dtype=dtype,
            rngs=rngs,
        )
        self.layers = Block(config, std=std, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(config.hidden_size, config.norm, layers=None, dtype=dtype)
        self.remat: Remat = "full"
        self.kernels = "auto"
        self.mesh: Mesh | None = None

    def __call__(  # noqa: PLR0913  What may surround one forward pass.
        self,
        input_ids: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        adapters: bool = True,
        dropout_key: jax.Array | None = None,
        inputs_embeds: Float[Array, "B T D"] | None = None,
        neftune_noise_alpha: int | float | None = None,
        prepared: Mapping[int, Prepared] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm, and the cache with these positions in it.

        Args:
          input_ids: Token ids, [B, T].
          segment_ids: Document of each token, [B, T]; a token sees its own document only. None
            promises one document a row, padded on the right.
          positions: Of each token inside its document, [B, T]; None: from `segment_ids`, else
            0 .. T-1.
          cache: Earlier positions to attend to as well; needs `segment_ids` and `positions`.
          adapters: False gives the base model's output.
          dropout_key: Turns on the adapters' dropout, and the noise.
          inputs_embeds: Takes the place of the embedding's (scaled) output.
          neftune_noise_alpha: Strength of the noise on the embedding; None or 0: none.
          prepared: Of `Block.prepare` with the same adapters, where several calls share it.

        Returns:
          Hidden states [B, T, D], and the cache (None if none was given).
        """
        self._check_call(input_ids.shape[1], segment_ids, positions, cache)
        x, layer = self._begin(
            input_ids,
            segment_ids,
            positions,
            adapters=adapters,
            dropout_key=dropout_key,
            inputs_embeds=inputs_embeds,
            neftune_noise_alpha=neftune_noise_alpha,
            prepared=prepared,
        )
        if cache is not None and segment_ids is not None:
            cache = cache.admit(segment_ids)
        config, dtype = self.config, x.dtype
        x, cache = run_layers(
            self.layers,
            layer,
            x.astype(stream_dtype(dtype)),
            cache,
            config.num_hidden_layers,
            len(config.period),
            self.remat,
        )
        x = self.norm(x, adapters=adapters, kernels=self.row_kernels).astype(dtype)
        return x, cache if cache is None else cache.advance(input_ids.shape[1])

    def finite_parts(
        self,
        input_ids: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None,
        positions: Int[Array, "B T"] | None,
        dropout_key: jax.Array | None,
        neftune_noise_alpha: int | float | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Bool[Array, ""], Bool[Array, " L"], Bool[Array, ""]]]:
        """A training step's forward pass, and which parts of it are finite; compiles slowly.

        Args:
          input_ids: As in the call, like all that follows.
          segment_ids: Likewise.
          positions: Likewise.
          dropout_key: Likewise.
          neftune_noise_alpha: Likewise.

        Returns:
          Hidden states; whether the embedding, each layer's output and the final norm are finite.
        """
        x, layer = self._begin(
            input_ids,
            segment_ids,
            positions,
            adapters=True,
            dropout_key=dropout_key,
            inputs_embeds=None,
            neftune_noise_alpha=neftune_noise_alpha,
            prepared=None,
        )
        dtype, embedded = x.dtype, jnp.isfinite(x).all()
        config = self.config
        x, layers = finite_layers(
            self.layers,
            layer,
            x.astype(stream_dtype(dtype)),
            config.num_hidden_layers,
            len(config.period),
        )
        x = self.norm(x, adapters=True, kernels=self.row_kernels).astype(dtype)
        return x, (embedded, layers, jnp.isfinite(x).all())

    def _begin(
        self,
        input_ids: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None,
        positions: Int[Array, "B T"] | None,
        *,
        adapters: bool,
        dropout_key: jax.Array | None,
        inputs_embeds: Float[Array, "B T D"] | None,
        neftune_noise_alpha: int | float | None,
        prepared: Mapping[int, Prepared] | None,
    ) -> tuple[Float[Array, "B T D"], Layer]:
        """The input of the first layer, in the compute dtype, and what applies a layer."""
        config = self.config
        x = self.embed_tokens(input_ids, adapters=adapters)
        x = x if inputs_embeds is None else inputs_embeds
        if dropout_key is not None and neftune_noise_alpha:
            # The layers fold in their index, 0 to L - 1.
            key = jax.random.fold_in(dropout_key, config.num_hidden_layers)
            x = with_noise(x, key, neftune_noise_alpha, segment_ids)
        if positions is None:
            positions = default_positions(input_ids.shape[1], segment_ids)
        ropes = {
            spec.rope: rope_tables(spec.rope, config.head_dim, positions, x.dtype)
            for spec in config.period
        }

        # Once for all layers: what a layer does itself, every layer of both passes does.
        ready = prepared
        if ready is None:
            ready = self.layers.prepare(x.dtype, adapters=adapters, dropout_key=dropout_key)

        def layer(
            block: Block, x: jax.Array, cache: KVCache | None, index: jax.Array, place: int
        ) -> tuple[jax.Array, KVCache | None]:
            spec = config.period[place]
            cos, sin = ropes[spec.rope]
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            context = LayerContext(
                layer=index,
                spec=spec,
                cos=cos,
                sin=sin,
                segment_ids=segment_ids,
                cache=cache,
                adapters=adapters,
                dropout_key=key,
                kernels=self.weight_kernels,
                row_kernels=self.row_kernels,
                split_kernels=self.split_kernels,
                prepared=ready,
                middle_kept=MIDDLE in PLANS[self.remat],
                mlp_pieces=MLP_PIECES if self.remat == "least" else 1,
            )
            return block(x, context)

        return x, layer

    @property
    def row_kernels(self) -> str:
        """Backend request of the ops on activations alone.

        By itself, not "auto": plain JAX fuses with the slices of what the scan has kept, of which a
        kernel would have copies (the whole 8B step: 5 ms more).
        """
        return "xla" if self.kernels == "auto" else self.kernels

    @property
    def split_kernels(self) -> str:
        """Backend request of the ops over which the compiler must be able to split rows."""
        spread = self.mesh is not None and self.mesh.size > 1
        return "xla" if spread and self.kernels == "auto" else self.kernels

    @property
    def weight_kernels(self) -> str:
        """Backend request of the ops over which the compiler must be able to split weights."""
        return "xla" if splits_weights(self.mesh) and self.kernels == "auto" else self.kernels

    def _check_call(
        self,
        length: int,
        segment_ids: jax.Array | None,
        positions: jax.Array | None,
        cache: KVCache | None,
    ) -> None:
        """Refuse rows that are too long, and a cache without what it needs."""
        limit = self.config.max_position_embeddings
        # A packed row may be longer: its documents count their positions from 0.
        if segment_ids is None and length > limit:
            raise ValueError(
                "a row must not be longer than the model's range; got "
                f"{length} tokens, wanted <= {limit}. "
                "Shorten the rows (max_seq_length)."
            )
        if cache is not None and (segment_ids is None or positions is None):
            raise ValueError(
                "a cache needs `segment_ids` and `positions` of the new tokens, since rows are "
                "padded on the left; got None. Pass both."
            )


class CausalLM(nnx.Module):
    """A decoder and its output head; the families are named subclasses without code of their own.

    Attributes:
      family: The `model_type` of its config.json.
      decoder_name: Name of the decoder inside transformers' module of this family.
      other_parts: First names of tensors that belong to parts not computed here, such as vision.
      model: The decoder.
      lm_head: The output head; exists only where the embedding is not tied.
      carried: What the model carries for its user; no part of the maths.
    """

    family: ClassVar[str] = ""
    decoder_name: ClassVar[str] = "model"
    other_parts: ClassVar[tuple[str, ...]] = ()
    lm_head: Linear

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        initializer_range: float = 0.02,
    ) -> None:
        """Draw every matrix from N(0, initializer_range^2)."""
        self.config = config
        self.model = Decoder(config, std=initializer_range, dtype=dtype, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size,
                config.vocab_size,
                layers=None,
                bias=False,
                std=initializer_range,
                dtype=dtype,
                rngs=rngs,
            )
        self.carried = Carried()

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """The decoder's configuration from transformers' dictionary form."""
        raise NotImplementedError(f"a family reads its own configuration; got {sorted(hf)}")

    def head_weight(self, *, adapters: bool = True) -> Float[Array, "V D"]:
        """Matrix of the output head, the embedding where it is tied."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return weight_of(head, adapters)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the activations, and of the weights that are not trained."""
        return self.model.dtype

    @property
    def has_dropout(self) -> bool:
        """Whether any adapter has dropout."""
        linears = (m for _, m in nnx.iter_modules(self) if isinstance(m, Linear))
        return any(m.lora is not None and m.lora.dropout > 0 for m in linears)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "B T"],
        segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
        positions: Int[Array | np.ndarray, "B T"] | None = None,
        *,
        adapters: bool = True,
    ) -> Float[Array, "B T V"]:
        """Logits of every position, float32, after the final soft-cap.

        Args:
          input_ids: Token ids, [B, T].
          segment_ids: Document of each token; None: one document a row, padded on the right.
          positions: Inside the document; None: counted.
          adapters: False gives the base model.

        Returns:
          [B, T, V]; large: training and generation never call this.
        """
        graphdef, state = nnx.split(self)
        ids, segments, places = (
            None if given is None else jnp.asarray(given)
            for given in (input_ids, segment_ids, positions)
        )
        return _logits(graphdef, adapters, state, ids, segments, places)

    def logits(
        self, hidden: Float[Array, "B T D"], *, adapters: bool = True
    ) -> Float[Array, "B T V"]:
        """cap(hidden E^T), accumulated and returned in float32."""
        head = self.head_weight(adapters=adapters).astype(hidden.dtype)
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        z = jnp.einsum("BTD,VD->BTV", hidden, head, preferred_element_type=wide)
        cap = self.config.final_logit_softcapping
        return z if cap is None else cap * jnp.tanh(z / cap)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(
    graphdef: nnx.GraphDef,
    adapters: bool,
    state: nnx.State,
    input_ids: jax.Array,
    segment_ids: jax.Array | None,
    positions: jax.Array | None,
) -> jax.Array:
    """The forward pass of a call, compiled once for a structure and a shape."""
    model = nnx.merge(graphdef, state)
    hidden, _ = model.model(
        input_ids, segment_ids=segment_ids, positions=positions, adapters=adapters
    )
    return model.logits(hidden, adapters=adapters)


def stream_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Of the residual stream: float32 in place of float16, whose range it may leave."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


def default_positions(length: int, segment_ids: Int[Array, "B T"] | None) -> Int[Array, "_ T"]:
    """Positions that restart where the document changes; 0 .. T-1 for one document a row."""
    index = jnp.arange(length, dtype=jnp.int32)[None]
    if segment_ids is None:
        return index
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.where(jnp.pad(changed, ((0, 0), (1, 0))), index, 0)
    return index - jax.lax.cummax(starts, axis=1)
