"""Reading a Hugging Face configuration strictly: a key that is not understood is an error."""

from collections.abc import Sequence
from typing import Any, get_args

from jaxtune.config import Activation, LayerSpec, RopeSpec
from jaxtune.errors import UnsupportedModelError

# Keys that say nothing about the logits: bookkeeping, generation defaults, labels, initialisation;
# and `sliding_window_pattern`, which transformers has turned into `layer_types`.
NEUTRAL_KEYS = frozenset(
    [
        "_name_or_path",
        "_sliding_window_pattern",
        "architectures",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "sliding_window_pattern",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    ]
)


class ConfigReader:
    """Hands out values and remembers which; `finish` refuses what nobody asked for."""

    def __init__(self, hf: dict[str, Any]) -> None:
        """Read from transformers' dictionary form (`PretrainedConfig.to_dict()`)."""
        self.hf = hf
        self.name = hf.get("_name_or_path") or hf.get("model_type")
        self.read: set[str] = set()

    def take(self, key: str) -> Any:
        """The value of a key that the checkpoint must supply."""
        self.read.add(key)
        if self.hf.get(key) is None:
            raise UnsupportedModelError(
                f"the configuration of a model must supply `{key}`; {self.name} does not. "
                "Check its config.json."
            )
        return self.hf[key]

    def optional(self, key: str) -> Any:
        """The value of a key that may be absent or null."""
        self.read.add(key)
        return self.hf.get(key)

    def require(self, key: str, *allowed: Any) -> None:
        """Accept a key at the values whose maths is computed here, and at no other."""
        value = self.optional(key)
        if value is not None and value not in allowed:
            raise UnsupportedModelError(
                f"`{key}` must be one of {list(allowed)} for this model type; "
                f"{self.name} has {value!r}, which this library does not compute."
            )

    def sizes(self) -> dict[str, Any]:
        """The fields of `DecoderConfig` that every family spells alike."""
        names = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "tie_word_embeddings",
        )
        return {name: self.take(name) for name in names}

    def head_dim(self) -> int:
        """Width of a head, which older configurations leave to D / N."""
        width, heads = self.take("hidden_size"), self.take("num_attention_heads")
        return self.optional("head_dim") or width // heads

    def activation(self, key: str) -> Activation:
        """The MLP's activation under the key that its family uses."""
        value = self.take(key)
        for known in get_args(Activation):
            if value == known:
                return known
        raise UnsupportedModelError(
            f"`{key}` must be one of {list(get_args(Activation))}; {self.name} has {value!r}, "
            "which this library does not compute."
        )

    def rope(self, layer_type: str | None = None) -> RopeSpec:
        """The rotary embedding from `rope_parameters`; from its entry of a layer type, if given."""
        numbers = self.take("rope_parameters")
        numbers = dict(numbers if layer_type is None else numbers[layer_type])
        kind = numbers.pop("rope_type", "default")
        fields = {
            "default": {"rope_theta"},
            "linear": {"rope_theta", "factor"},
            "llama3": {
                "rope_theta",
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            },
        }
        if kind not in fields:
            raise UnsupportedModelError(
                f"the rope type must be one of {sorted(fields)}; {self.name} has {kind!r}."
            )
        numbers = {key: value for key, value in numbers.items() if value is not None}
        if set(numbers) != fields[kind]:
            raise UnsupportedModelError(
                f"rope type {kind!r} needs exactly {sorted(fields[kind])}; "
                f"{self.name} has {sorted(numbers)}."
            )
        whole = numbers.pop("original_max_position_embeddings", None)
        return RopeSpec(
            rope_type=kind,
            original_max_position_embeddings=whole,
            **{key: float(value) for key, value in numbers.items()},
        )

    def finish(self) -> None:
        """Raise if the configuration holds a key that was neither read nor neutral."""
        unknown = sorted(
            key
            for key, value in self.hf.items()
            if key not in self.read and key not in NEUTRAL_KEYS and value is not None
        )
        if unknown:
            raise UnsupportedModelError(
                "every key of a model's configuration must be understood, since it may change the "
                f"maths; {self.name} has {unknown}. Remove them from config.json if they are "
                "bookkeeping, or open an issue."
            )


def every_layer(rope: RopeSpec, window: int | None = None) -> tuple[LayerSpec, ...]:
    """The period of a model whose layers are all alike."""
    return (LayerSpec(window=window, rope=rope),)


def layer_types(
    reader: ConfigReader, *, sliding: LayerSpec, full: LayerSpec
) -> tuple[LayerSpec, ...]:
    """The shortest pattern that `layer_types` repeats.

    Args:
      reader: Of the configuration.
      sliding: What its "sliding_attention" layers are.
      full: What its "full_attention" layers are.

    Returns:
      A period for `DecoderConfig`.

    Raises:
      UnsupportedModelError: Another type of layer, or not one type a layer.
    """
    kinds: Sequence[str] = reader.take("layer_types")
    layers = reader.take("num_hidden_layers")
    known = {"sliding_attention": sliding, "full_attention": full}
    if len(kinds) != layers or not known.keys() >= set(kinds):
        raise UnsupportedModelError(
            f"`layer_types` must name {layers} layers out of {sorted(known)}; got {kinds}."
        )
    specs = tuple(known[kind] for kind in kinds)
    return next(
        specs[:size]
        for size in range(1, layers + 1)
        if all(spec == specs[i % size] for i, spec in enumerate(specs))
    )
