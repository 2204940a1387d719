"""Reading a Hugging Face configuration strictly: a key that is not understood is an error."""

from typing import Any, get_args

from jaxtune.config import Activation, LayerSpec, RopeSpec
from jaxtune.errors import UnsupportedModelError

# Keys that say nothing about the logits: bookkeeping, generation defaults, labels, initialisation.
NEUTRAL_KEYS = frozenset(
    [
        "_name_or_path",
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

    def rope(self) -> RopeSpec:
        """The rotary embedding from `rope_parameters`."""
        numbers = dict(self.take("rope_parameters"))
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


def every_layer(rope: RopeSpec) -> tuple[LayerSpec, ...]:
    """The period of a model whose layers are all alike and see everything before them."""
    return (LayerSpec(window=None, rope=rope),)
