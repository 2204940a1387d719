"""Arguments that scripts written for PyTorch pass and that have no counterpart here."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# What changes results where it is obeyed: taken at these values, at which it changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "auto_find_batch_size": (False,),
    "average_tokens_across_devices": (True,),
    "chat_template_path": (None,),
    "data_seed": (None,),
    "dataset_kwargs": (None, {}),
    "deepspeed": (None,),
    "eos_token": (None,),
    "fsdp": (None, "", [], False),
    "hub_model_id": (None,),
    "hub_private_repo": (None,),
    "hub_strategy": ("every_save",),
    "hub_token": (None,),
    "loss_type": (None, "nll", "chunked_nll"),
    "model_init_kwargs": (None, {}),
    "optim_args": (None, ""),
    "optim_target_modules": (None,),
    "pad_token": (None,),
    "push_to_hub": (False,),
    "save_safetensors": (True,),
    "shuffle_dataset": (False,),
    "truncation_mode": ("keep_start",),
    "trust_remote_code": (False,),
}
# What to do for those whose name does not say it.
CURES = {
    "chat_template_path": "Pass tokenizer=get_chat_template(tokenizer, ...) to the trainer.",
    "dataset_kwargs": "Rows of `input_ids` are taken as they are; of text, BOS is added once.",
    "eos_token": "Set it on the tokenizer.",
    "fsdp": "Pass mesh='auto' or mesh={'fsdp': 8}.",
    "deepspeed": "Pass mesh='auto' or mesh={'fsdp': 8}.",
    "hub_token": "Log in with huggingface_hub, or pass token= to from_pretrained.",
    "model_init_kwargs": "Load the model with FastLanguageModel.from_pretrained.",
    "pad_token": "Set it on the tokenizer.",
    "push_to_hub": "Call model.push_to_hub(name) after training.",
}
# Wishes about PyTorch's speed, memory or printing: any value is taken, and a line says so.
WISHES = (
    "activation_offloading",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_find_unused_parameters",
    "eval_accumulation_steps",
    "gradient_checkpointing_kwargs",
    "log_level",
    "overwrite_output_dir",
    "pad_to_multiple_of",
    "skip_memory_metrics",
    "tf32",
    "torch_empty_cache_steps",
    "use_cpu",
    "use_liger_kernel",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptArguments:
    """Base of the options: what changes nothing here, at the values where that is right.

    Attributes:
      activation_offloading: Any; `use_gradient_checkpointing="unsloth"` offloads.
      auto_find_batch_size: False.
      average_tokens_across_devices: True; the loss is over the tokens of all devices.
      chat_template_path: None.
      data_seed: None; `seed` orders the data.
      dataloader_num_workers: Any; rows are tokenised before the run, and laid out beside it.
      dataloader_persistent_workers: Any.
      dataloader_pin_memory: Any.
      dataloader_prefetch_factor: Any.
      dataset_kwargs: None or {}.
      ddp_find_unused_parameters: Any.
      deepspeed: None.
      do_eval: Any; transformers' trainer does not read it either.
      do_train: Likewise.
      eos_token: None; the tokenizer's own.
      eval_accumulation_steps: Any; predictions are never held.
      fsdp: None, "", [] or False.
      gradient_checkpointing: A request; the plan of the model wins, and a line says so where they
        differ. None: none.
      gradient_checkpointing_kwargs: Any.
      hub_model_id: None.
      hub_private_repo: None.
      hub_strategy: "every_save".
      hub_token: None.
      log_level: Any.
      loss_type: None, "nll" or "chunked_nll": one loss.
      model_init_kwargs: None or {}.
      optim_args: None or "".
      optim_target_modules: None.
      overwrite_output_dir: Any; checkpoints of the same step are replaced.
      pad_token: None; the tokenizer's own.
      pad_to_multiple_of: Any; shapes are chosen from the rows.
      push_to_hub: False.
      remove_unused_columns: Either; columns that are not used are not read.
      save_safetensors: True.
      shuffle_dataset: False; the rows of each epoch are in random order anyway.
      skip_memory_metrics: Any.
      tf32: Any; products are as precise as `jax.default_matmul_precision` says.
      torch_compile: Either; every step is compiled.
      torch_empty_cache_steps: Any.
      truncation_mode: "keep_start".
      trust_remote_code: False.
      use_cpu: Any; JAX's default device is used.
      use_liger_kernel: Any; the kernels are fused.
    """

    activation_offloading: bool = False
    auto_find_batch_size: bool = False
    average_tokens_across_devices: bool = True
    chat_template_path: str | None = None
    data_seed: int | None = None
    dataloader_num_workers: int = 0
    dataloader_persistent_workers: bool = False
    dataloader_pin_memory: bool = True
    dataloader_prefetch_factor: int | None = None
    dataset_kwargs: Mapping[str, Any] | None = None
    ddp_find_unused_parameters: bool | None = None
    deepspeed: Any = None
    do_eval: bool = False
    do_train: bool = False
    eos_token: str | None = None
    eval_accumulation_steps: int | None = None
    fsdp: Any = None
    gradient_checkpointing: bool | str | None = None
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    hub_strategy: str = "every_save"
    hub_token: str | None = dataclasses.field(default=None, repr=False)
    log_level: str = "passive"
    loss_type: str | None = "nll"
    model_init_kwargs: Mapping[str, Any] | None = None
    optim_args: str | None = None
    optim_target_modules: str | Sequence[str] | None = None
    overwrite_output_dir: bool = False
    pad_token: str | None = None
    pad_to_multiple_of: int | str | None = "auto"
    push_to_hub: bool = False
    remove_unused_columns: bool = True
    save_safetensors: bool = True
    shuffle_dataset: bool = False
    skip_memory_metrics: bool = True
    tf32: bool | None = None
    torch_compile: bool = False
    torch_empty_cache_steps: int | None = None
    truncation_mode: str = "keep_start"
    trust_remote_code: bool = False
    use_cpu: bool = False
    use_liger_kernel: bool = False

    def __post_init__(self) -> None:
        """Refuse what would have to do something."""
        for name, wanted in NEUTRAL.items():
            value = getattr(self, name)
            if not any(value == neutral for neutral in wanted):
                raise ValueError(
                    f"`{name}` must be one of {list(wanted)}, which changes nothing; got "
                    f"{shown(name, value)}, which nothing here serves. "
                    f"{CURES.get(name, 'Leave it out.')}"
                )

    def idle_wishes(self) -> str | None:
        """A line on the wishes that have no effect here, or None if there are none."""
        defaults = {field.name: field.default for field in dataclasses.fields(ScriptArguments)}
        asked = [
            f"{name}={getattr(self, name)!r}"
            for name in WISHES
            if getattr(self, name) != defaults[name]
        ]
        return f"has no effect here: {', '.join(asked)}" if asked else None


def shown(name: str, value: Any) -> str:
    """A value for a message; a token never."""
    return "a value that is not shown" if name.endswith("hub_token") and value else repr(value)
