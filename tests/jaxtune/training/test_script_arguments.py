"""What scripts written for PyTorch set: it works, or says why not; nothing is swallowed."""

import dataclasses
from typing import Any

import pytest

from jaxtune import SFTConfig, TrainingArguments, UnslothTrainingArguments
from jaxtune.training import script_arguments
from jaxtune.training.script_arguments import CURES, NEUTRAL, WISHES, ScriptArguments

FIELDS = {field.name: field for field in dataclasses.fields(ScriptArguments)}
# Of one effect at either value, or read elsewhere.
EITHER = {"do_eval", "do_train", "gradient_checkpointing", "remove_unused_columns", "torch_compile"}

# What 112 notebooks set, with the values that they set it to; those of evaluation are elsewhere.
NOTEBOOKS: dict[str, tuple[Any, ...]] = {
    "per_device_train_batch_size": (1, 2, 4),
    "gradient_accumulation_steps": (1, 2, 4, 8),
    "learning_rate": (2e-4, 5e-5, 2e-5),
    "optim": ("adamw_8bit", "adamw_torch_fused", "paged_adamw_8bit", "adamw_torch"),
    "weight_decay": (0.001, 0.01),
    "lr_scheduler_type": ("linear", "cosine"),
    "seed": (3407,),
    "logging_steps": (1, 5),
    "max_steps": (60, 30),
    "warmup_steps": (5, 10),
    "dataset_text_field": ("text", ""),
    "output_dir": ("outputs",),
    "max_length": (2048,),
    "remove_unused_columns": (False,),
    "dataset_kwargs": (None, {}),
    "warmup_ratio": (0.03, 0.1),
    "max_grad_norm": (0.3, 1.0),
    "fp16": (True, False),
    "bf16": (True, False),
    "gradient_checkpointing": (True, False),
    "gradient_checkpointing_kwargs": ({"use_reentrant": False},),
    "num_train_epochs": (1, 2, 3),
    "dataset_num_proc": (1, 2, 4),
    "loss_type": ("nll", None),
    "padding_free": (True, False),
    "packing": (True, False),
    "dataloader_num_workers": (0, 2, 4),
}


@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments, UnslothTrainingArguments])
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in NOTEBOOKS.items() for value in values],
)
def test_what_notebooks_set_is_taken(kind: type[SFTConfig], name: str, value: Any) -> None:
    assert getattr(kind(**{name: value}), name) == value


def test_saving_as_notebooks_ask_for_it() -> None:
    for strategy in ("no", "steps", "epoch"):
        assert SFTConfig(output_dir="outputs", save_strategy=strategy).saves == strategy


OTHER_VALUES: dict[str, Any] = {
    "data_seed": 7,
    "hub_private_repo": True,
    "model_init_kwargs": {"dtype": "bfloat16"},
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "loss_type": "dft",
    "hub_strategy": "end",
    "truncation_mode": "keep_end",
    "optim_target_modules": ["attn"],
    "ddp_find_unused_parameters": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "log_level": "info",
    "tf32": True,
}


def other(name: str) -> Any:
    """A value that is not the default."""
    default = FIELDS[name].default
    return OTHER_VALUES.get(name, not default if isinstance(default, bool) else "something")


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_would_change_something_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .+; got .+\. \w+.+\."):
        SFTConfig(**{name: other(name)})
    for value in NEUTRAL[name]:
        SFTConfig(**{name: value})


def test_a_token_is_never_shown() -> None:
    with pytest.raises(ValueError, match="got a value that is not shown") as caught:
        SFTConfig(hub_token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_each_field_has_one_treatment() -> None:
    assert set(NEUTRAL) | set(WISHES) | EITHER == set(FIELDS)
    assert len(NEUTRAL) + len(WISHES) + len(EITHER) == len(FIELDS)
    assert set(CURES) <= set(NEUTRAL)


WISHED = dict.fromkeys(
    (
        "dataloader_num_workers",
        "dataloader_prefetch_factor",
        "eval_accumulation_steps",
        "pad_to_multiple_of",
        "torch_empty_cache_steps",
    ),
    4,
)


@pytest.mark.parametrize("name", WISHES)
def test_a_wish_is_answered(name: str) -> None:
    assert SFTConfig().idle_wishes() is None
    value = WISHED.get(name, other(name))
    said = SFTConfig(**{name: value}).idle_wishes()
    assert said == f"has no effect here: {name}={value!r}"


def test_the_documentation_names_every_field() -> None:
    documented = script_arguments.ScriptArguments.__doc__ or ""
    assert [name for name in FIELDS if f"\n      {name}: " not in documented] == []
