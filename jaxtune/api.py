"""`FastLanguageModel`: loading and adapting a model in two calls; composes, computes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from convert import AdapterConfig
from jaxtune.adapters.create import create_adapter
from jaxtune.adapters.targets import PROJECTIONS
from jaxtune.console import say_above_bars
from jaxtune.errors import NotBuiltYetError
from jaxtune.language_model import LanguageModel
from jaxtune.models.placement import data_mesh
from jaxtune.models.run import Remat
from jaxtune.pretrained import Range, Source, load_pretrained
from pallas_kernels import check_backend

REMAT: dict[bool | str, Remat] = {
    "auto": "full",
    True: "full",
    False: "none",
    "unsloth": "offload",
    **{plan: plan for plan in get_args(Remat)},
}

# What scripts pass at a value that changes nothing: accepted at these values, refused at others.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "load_in_8bit": (False,),
    "load_in_fp8": (False,),
    "device_map": (None, "auto", "sequential"),
    "trust_remote_code": (False,),
    "resize_model_vocab": (None,),
    "use_exact_model_name": (False, True),
    "offload_embedding": (False,),
    "float32_mixed_precision": (None,),
    "fast_inference": (False,),
    "gpu_memory_utilization": (0.5,),
    "float8_kv_cache": (False,),
    "max_lora_rank": (64,),
    "disable_log_stats": (True,),
    "qat_scheme": (None,),
    "unsloth_tiled_mlp": (False,),
    "text_only": (False, True),
    "loftq_config": (None, {}),
    "target_parameters": (None,),
    "ensure_weight_tying": (False, True),
    "temporary_location": ("_unsloth_temporary_saved_buffers",),
}


class FastLanguageModel:
    """Unsloth's entry points."""

    @staticmethod
    def from_pretrained(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these names.
        model_name: str,
        max_seq_length: int | None = 2048,
        dtype: Any = None,
        load_in_4bit: bool = True,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: Any = "sequential",
        rope_scaling: Mapping[str, Any] | None = None,
        fix_tokenizer: bool = True,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str = "auto",
        resize_model_vocab: int | None = None,
        revision: str | None = None,
        use_exact_model_name: bool = False,
        offload_embedding: bool = False,
        float32_mixed_precision: bool | None = None,
        fast_inference: bool = False,
        gpu_memory_utilization: float = 0.5,
        float8_kv_cache: bool = False,
        random_state: int = 3407,
        max_lora_rank: int = 64,
        disable_log_stats: bool = True,
        qat_scheme: str | None = None,
        load_in_fp8: bool | str = False,
        unsloth_tiled_mlp: bool | str = False,
        text_only: bool = False,
        *,
        kernels: str = "auto",
        mesh: Any = None,
        local_files_only: bool = False,
    ) -> tuple[LanguageModel, Any]:
        """Load a model and its tokenizer from a folder or a hub id.

        Args:
          model_name: Local folder, hub id, or the folder or hub id of a PEFT adapter (its base is
            loaded and the adapter attached, trainable).
          max_seq_length: Longest row in tokens; None: the model's range. Beyond the range, RoPE is
            scaled, and a line says so.
          dtype: Of weights and activations; None: bfloat16 where the device has it, float16 on
            older GPUs, float32 on a CPU.
          load_in_4bit: The layers' projections are held in 4 bits (NF4, double quantisation):
            quantised while they are loaded, or as a bitsandbytes folder holds them. False
            dequantises such a folder.
          load_in_8bit: False.
          load_in_16bit: Overrides `load_in_4bit`: the weights keep `dtype`.
          full_finetuning: Overrides `load_in_4bit`: every weight is trained, with a float32 master.
          token: Hub access token.
          device_map: None, "auto" or "sequential": JAX's default device.
          rope_scaling: Replaces the checkpoint's, in config.json's terms.
          fix_tokenizer: Give the tokenizer a pad token of its own, never EOS, where it has none.
          trust_remote_code: False.
          use_gradient_checkpointing: "auto" leaves the choice to the trainer, which takes the
            fastest of the plans below that fits the device; where the device's memory has no
            known limit, as on a CPU, it is True. True computes each layer again in the backward
            pass ("full"); "unsloth" does so from inputs kept in pinned host memory ("offload"),
            tried on the first batch before it is used; False keeps the results of every product
            and of attention ("none"), never a dequantised weight; "gate_up" keeps of these what
            attention and the MLP's two wide products give, "attention" the former alone. "least" is
            "unsloth" with the MLP in pieces of a row; the frozen embedding stays on the device.
          resize_model_vocab: None.
          revision: Hub branch, tag or commit.
          use_exact_model_name: Either; a name is never swapped for another repository's.
          offload_embedding: False.
          float32_mixed_precision: None.
          fast_inference: False.
          gpu_memory_utilization: 0.5.
          float8_kv_cache: False.
          random_state: Seed of the adapter's matrices, where `get_peft_model` is given none.
          max_lora_rank: 64.
          disable_log_stats: True.
          qat_scheme: None.
          load_in_fp8: False.
          unsloth_tiled_mlp: False.
          text_only: Either; of a multimodal folder the text part is loaded.
          kernels: Backend of every op: "auto" or "xla".
          mesh: Of one axis: every device gets the weights, and a step's rows are split over them,
            `per_device_train_batch_size` each. None: one device.
          local_files_only: Use the hub's cache and no network.

        Returns:
          (model, tokenizer); the tokenizer is None, with a warning, if the folder has none.

        Raises:
          NotBuiltYetError: An argument at a value that nothing here serves.
          UnsupportedModelError: The configuration asks for maths not computed here.
          ModelNotFoundError: No such folder or repository, or no access to it.
        """
        _check_neutral(locals())
        _remat(use_gradient_checkpointing)
        check_backend(kernels)
        _check_length(max_seq_length)
        model, tokenizer = load_pretrained(
            Source(
                name=str(model_name),
                token=token,
                revision=revision,
                local_files_only=local_files_only,
            ),
            Range(max_seq_length=max_seq_length, rope_scaling=rope_scaling),
            dtype=dtype,
            mesh=data_mesh(mesh),
            fix_tokenizer=fix_tokenizer,
            load_in_4bit=load_in_4bit and not load_in_16bit and not full_finetuning,
            full_finetuning=full_finetuning,
        )
        _set_plan(model, use_gradient_checkpointing)
        model.model.kernels = kernels
        model.carried.random_state = random_state
        return model, tokenizer

    @staticmethod
    def get_peft_model(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these names.
        model: LanguageModel,
        r: int = 16,
        target_modules: Sequence[str] | str = PROJECTIONS,
        lora_alpha: int | float = 16,
        lora_dropout: int | float = 0.0,
        bias: str = "none",
        layers_to_transform: Sequence[int] | int | None = None,
        layers_pattern: Sequence[str] | str | None = None,
        finetune_last_n_layers: int | None = None,
        use_gradient_checkpointing: bool | str = "auto",
        random_state: int | None = None,
        max_seq_length: int | None = None,
        use_rslora: bool = False,
        modules_to_save: Sequence[str] | None = None,
        init_lora_weights: bool | str = True,
        loftq_config: Mapping[str, Any] | None = None,
        temporary_location: str = "_unsloth_temporary_saved_buffers",
        qat_scheme: str | None = None,
        target_parameters: Sequence[str] | None = None,
        ensure_weight_tying: bool = False,
        *,
        use_dora: bool = False,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, int | float] | None = None,
    ) -> LanguageModel:
        """Freeze the model and add a LoRA adapter that changes nothing yet.

        y = W x + s B A drop(x), s = lora_alpha / r (with `use_rslora`, / sqrt(r)).

        Args:
          model: From `from_pretrained`; changed in place.
          r: Rank.
          target_modules: Names of the projections to adapt; "all-linear"; or another string, a
            regular expression that matches full names. `embed_tokens` and `lm_head` in a list are
            trained whole.
          lora_alpha: Numerator of the scale.
          lora_dropout: Probability of zeroing an input of A.
          bias: Biases to train: "none", "all", or "lora_only", those of adapted projections.
          layers_to_transform: Layer indices to adapt; None: all.
          layers_pattern: Name of the list of layers that the indices count in.
          finetune_last_n_layers: Adapt the last n layers; in place of `layers_to_transform`.
          use_gradient_checkpointing: As in `from_pretrained`; "auto" keeps what was chosen there.
          random_state: Seed of A; None: that of `from_pretrained` (3407).
          max_seq_length: Longest row in tokens, at most the range that the model was loaded with.
          use_rslora: Scale by 1 / sqrt(r).
          modules_to_save: Modules to train whole, with a float32 master.
          init_lora_weights: True, False (nothing is zero: not the base at first) or "gaussian".
          loftq_config: None or {}.
          temporary_location: Left alone: nothing is written here.
          qat_scheme: None.
          target_parameters: None.
          ensure_weight_tying: Either; embedding and head of a tied model stay one matrix.
          use_dora: Also train the length of each row of the adapted weights:
            y = m (W + s B A) x / |W + s B A|, row by row, with no gradient through the norm.
          rank_pattern: {name or expression that ends a module's name: its rank}.
          alpha_pattern: {likewise: its alpha}.

        Returns:
          The same model.

        Raises:
          TypeError: The model has an adapter with other settings.
          ValueError: A value is out of range, or a target matches nothing.
        """
        _check_neutral(locals())
        _remat(use_gradient_checkpointing)
        if model.carried.full_finetuning:
            say_above_bars(
                "jaxtune: every weight is trained (full_finetuning); no adapter is added."
            )
            return model
        _check_init(init_lora_weights)
        request = AdapterConfig(
            base_model_name_or_path=model.carried.name_or_path,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=_listed(target_modules) or [],
            bias=bias,
            layers_to_transform=_last_layers(model, layers_to_transform, finetune_last_n_layers),
            layers_pattern=layers_pattern,
            use_rslora=use_rslora,
            use_dora=use_dora,
            modules_to_save=_listed(modules_to_save),
            init_lora_weights=init_lora_weights,
            rank_pattern=dict(rank_pattern or {}),
            alpha_pattern=dict(alpha_pattern or {}),
        )
        _set_length(model, max_seq_length)
        if _has_adapter(model, request):
            return model
        seed = model.carried.random_state if random_state is None else random_state
        model.carried.adapter = create_adapter(model, request, seed=seed)
        model.carried.adapter_request = request
        if use_gradient_checkpointing != "auto":
            _set_plan(model, use_gradient_checkpointing)
        return model

    @staticmethod
    def for_inference(model: LanguageModel) -> LanguageModel:
        """Return the model: it has no modes, and generates at any moment of a training run."""
        return model

    @staticmethod
    def for_training(
        model: LanguageModel, use_gradient_checkpointing: bool | str = "auto"
    ) -> LanguageModel:
        """Return the model: it has no modes; "auto" keeps the checkpointing it was loaded with."""
        if use_gradient_checkpointing != "auto":
            _set_plan(model, use_gradient_checkpointing)
        return model


class FastModel(FastLanguageModel):
    """`FastLanguageModel` under Unsloth's newer name; for text models."""


def _check_neutral(arguments: Mapping[str, Any]) -> None:
    """Refuse an argument of `NEUTRAL` at a value that would have to do something."""
    for name in arguments.keys() & NEUTRAL.keys():
        value = arguments[name]
        if not any(value == neutral for neutral in NEUTRAL[name]):
            raise NotBuiltYetError(
                f"`{name}` must be one of {list(NEUTRAL[name])}, which changes nothing; got "
                f"{value!r}, which nothing here serves. Leave it out."
            )


def _remat(choice: bool | str) -> Remat:
    if choice not in REMAT:
        raise NotBuiltYetError(
            f"`use_gradient_checkpointing` must be one of {list(REMAT)} in this version; got "
            f"{choice!r}, which is not built yet."
        )
    return REMAT[choice]


def _set_plan(model: LanguageModel, choice: bool | str) -> None:
    """Set the plan, which the trainer may change if nobody chose it."""
    model.model.remat = _remat(choice)
    model.carried.auto_plan = model.model.remat if choice == "auto" else None


def _check_length(max_seq_length: int | None) -> None:
    if max_seq_length is not None and max_seq_length < 1:
        raise ValueError(
            f"`max_seq_length` must be >= 1 token; got {max_seq_length}. Pass None for the "
            "model's whole range."
        )


def _set_length(model: LanguageModel, max_seq_length: int | None) -> None:
    """Shorten the rows; a range can only be stretched while loading."""
    _check_length(max_seq_length)
    if max_seq_length is None:
        return
    limit = model.config.max_position_embeddings
    if max_seq_length > limit:
        raise ValueError(
            f"`max_seq_length` of get_peft_model must be <= {limit}, the range the model was "
            f"loaded with; got {max_seq_length}. Pass it to from_pretrained, which stretches it."
        )
    model.carried.max_seq_length = max_seq_length


def _listed(names: Sequence[str] | str | None) -> list[str] | str | None:
    return names if names is None or isinstance(names, str) else list(names)


def _last_layers(
    model: LanguageModel, layers: Sequence[int] | int | None, last: int | None
) -> Sequence[int] | int | None:
    """`layers_to_transform`, or the last n."""
    if last is None:
        return layers
    count = model.config.num_hidden_layers
    if layers is not None or not 0 < last <= count:
        raise ValueError(
            f"`finetune_last_n_layers` must be 1 to {count}, without layers_to_transform; got "
            f"{last} and {layers}."
        )
    return list(range(count - last, count))


def _check_init(init: bool | str) -> None:
    if init not in (True, False, "gaussian"):
        raise NotBuiltYetError(
            f"`init_lora_weights` must be True, False or 'gaussian'; got {init!r}, which is not "
            "built yet."
        )


def _has_adapter(model: LanguageModel, request: AdapterConfig) -> bool:
    """Whether the model has this adapter already; another one is an error."""
    if model.carried.adapter is None:
        return False
    if model.carried.adapter_request == request:
        return True
    raise TypeError(
        "a model takes one adapter; this one has an adapter with other settings. "
        "Load the base again, or pass the same settings."
    )
