"""Every row of `docs/migration.md` is true: checked here, or by the test that is named."""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import peft
import pytest
import trl

import jaxtune
from convert import CheckpointError
from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer, TrainerCallback
from jaxtune.adapters.counting import count_parameters
from jaxtune.api import REMAT
from jaxtune.errors import NotBuiltYetError
from tests.base_install import write_model
from tests.named_tests import TESTS, exists, rows_of

PAGE = TESTS.parent / "docs" / "migration.md"
ROWS = {row[0]: row[1:] for row in rows_of(PAGE)}
TEXTS = [{"text": "w1 w2 w3"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migration")
    write_model(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    options = {"max_seq_length": 32, "load_in_4bit": False, **options}
    return FastLanguageModel.from_pretrained(str(folder), **options)[0]


def adapted(folder: Path, **options: Any) -> Any:
    return FastLanguageModel.get_peft_model(load(folder), **{"r": 2, **options})


def defaults(folder: Path) -> None:
    ours = SFTConfig()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own deprecations
        theirs = trl.SFTConfig(output_dir=str(folder), use_cpu=True, report_to="none")
    assert (ours.per_device_train_batch_size, ours.gradient_accumulation_steps) == (4, 2)
    assert (ours.learning_rate, ours.optim, ours.warmup_steps) == (5e-5, "adamw_8bit", 0.1)
    assert (ours.weight_decay, ours.logging_steps, ours.seed) == (0.001, 1, 3407)
    assert theirs.max_length == 1024
    assert (ours.output_dir, ours.saves) == (None, "no")
    trainer = SFTTrainer(adapted(folder), theirs, train_dataset=TEXTS)
    assert trainer.max_length == 32
    assert trainer.args.learning_rate == theirs.learning_rate


def recomputation(folder: Path) -> None:
    default = inspect.signature(FastLanguageModel.from_pretrained).parameters
    assert REMAT[default["use_gradient_checkpointing"].default] == "full"
    assert load(folder, use_gradient_checkpointing="unsloth").model.remat == "offload"


def four_bits(folder: Path) -> None:
    model = load(folder, load_in_4bit=True)
    assert model.carried.name_or_path == str(folder)


def head(folder: Path) -> None:
    """One matrix of 32 x 16 beside the adapter of q: A 2 x 16 and B 16 x 2, in two layers."""
    count, _ = count_parameters(adapted(folder, target_modules=["q_proj", "lm_head"]))
    assert count == 32 * 16 + 2 * (2 * 16 + 16 * 2)


def head_of_lora_config(folder: Path) -> None:
    config = peft.LoraConfig(target_modules=["lm_head"])
    with pytest.raises(NotBuiltYetError, match="modules_to_save"):
        SFTTrainer(load(folder), train_dataset=TEXTS, peft_config=config)


def all_linear(folder: Path) -> None:
    everything = count_parameters(adapted(folder, target_modules="all-linear"))
    assert everything == count_parameters(adapted(folder))


def lora_defaults(folder: Path) -> None:
    trainer = SFTTrainer(load(folder), train_dataset=TEXTS, peft_config=peft.LoraConfig())
    made = trainer.model.carried.adapter
    assert (made.r, set(made.target_modules)) == (8, {"q_proj", "v_proj"})
    given = inspect.signature(FastLanguageModel.get_peft_model).parameters
    assert (given["r"].default, len(given["target_modules"].default)) == (16, 7)


def modes(folder: Path) -> None:
    model = load(folder)
    assert FastLanguageModel.for_inference(model) is model


def generated(folder: Path) -> None:
    found = load(folder).generate([[1, 5, 7]], max_new_tokens=2, eos_token_id=[-1])
    assert isinstance(found, np.ndarray)
    assert found[0, :3].tolist() == [1, 5, 7]
    with pytest.raises(TypeError, match="There is no beam search"):
        load(folder).generate([[1, 5, 7]], num_beams=2)


def pairs(folder: Path) -> None:
    given = (optax.sgd(1e-3), optax.constant_schedule(1e-3))
    assert SFTTrainer(adapted(folder), train_dataset=TEXTS, optimizers=given).optimizer is given[0]


def inside_a_step(folder: Path) -> None:
    class Mine(TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            pass

    with pytest.raises(ValueError, match="one program"):
        SFTTrainer(adapted(folder), train_dataset=TEXTS, callbacks=[Mine()])


def threads(folder: Path) -> None:
    args = SFTConfig(dataset_num_proc=2, dataloader_num_workers=2)
    assert "dataloader_num_workers=2" in (args.idle_wishes() or "")
    assert len(SFTTrainer(adapted(folder), args, train_dataset=TEXTS).train_dataset.rows) == 1


def no_gguf(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="llama-quantize"):
        load(folder).save_pretrained_gguf(folder / "gguf", quantization_method="q4_k_m")


def absent(*names: str) -> Callable[[Path], None]:
    def check(_: Path) -> None:
        for name in names:
            with pytest.raises(AttributeError, match="has no attribute"):
                getattr(jaxtune, name)

    return check


def refused(
    of: Callable[..., Any] | None = None, kind: type[Exception] = NotBuiltYetError, **options: Any
) -> Callable[[Path], None]:
    """Each option by itself, of `from_pretrained` or of a function of options."""

    def check(folder: Path) -> None:
        for name, value in options.items():
            with pytest.raises(kind, match=name):
                (of or (lambda **option: load(folder, **option)))(**{name: value})

    return check


def lora_options(folder: Path) -> None:
    for option in ({"loftq_config": {"bits": 4}}, {"init_lora_weights": "pissa"}):
        with pytest.raises(NotBuiltYetError, match=next(iter(option))):
            adapted(folder, **option)
    adapted(folder, init_lora_weights="gaussian")


def no_fast_generate(folder: Path) -> None:
    refused(fast_inference=True)(folder)
    assert not hasattr(load(folder), "fast_generate")


def no_resizing(folder: Path) -> None:
    refused(resize_model_vocab=64)(folder)
    assert not hasattr(load(folder), "resize_token_embeddings")
    assert jaxtune.add_new_tokens


def no_loss_function(_: Path) -> None:
    assert "compute_loss_func" not in inspect.signature(SFTTrainer).parameters
    assert "compute_loss_func" in inspect.signature(trl.SFTTrainer).parameters


def unknown_names(folder: Path) -> None:
    for option in ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {"optim": "rmsprop"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            SFTTrainer(adapted(folder), SFTConfig(**option), train_dataset=TEXTS)


def no_merge(folder: Path) -> None:
    assert not hasattr(adapted(folder), "merge_and_unload")


# By the first cell of the row.
CHECKS: dict[str, Callable[[Path], None] | str] = {
    "`torch.cuda.max_memory_reserved()`": "jaxtune/test_memory.py::test_a_held_array_counts",
    '`inputs.to("cuda")`': (
        "jaxtune/generation/test_sampling.py::test_jax_arrays_and_a_model_that_samples_by_itself"
    ),
    '`PeftModel.from_pretrained(base, "lora")`': (
        "jaxtune/test_stories.py::test_the_saved_adapter_loads_here_with_the_same_logits"
    ),
    "`model.merge_and_unload()`": no_merge,
    "`SFTConfig()`": defaults,
    "`max_length`": defaults,
    "`output_dir`": defaults,
    "`fp16`, `bf16`": (
        "jaxtune/training/test_trainer.py::test_the_models_dtype_wins_and_a_line_says_so"
    ),
    "`gradient_checkpointing`": (
        "jaxtune/training/test_script_arguments.py::test_a_wish_is_answered"
    ),
    "`use_gradient_checkpointing`": recomputation,
    "`load_in_4bit=True`": four_bits,
    '`target_modules="all-linear"`': all_linear,
    '`target_modules=[..., "lm_head"]`': head,
    '`LoraConfig(target_modules=["lm_head"])`': head_of_lora_config,
    "`peft_config=LoraConfig()`": lora_defaults,
    "`for_inference(model)`": modes,
    "`model.generate(...)`": generated,
    "`generate(num_beams=2)`": generated,
    "text without EOS": "jaxtune/data/test_tokenize.py::test_a_row_has_one_bos_and_one_eos",
    "`get_chat_template`": (
        "jaxtune/data/test_chat_template_choice.py::test_the_tokenizer_is_not_changed"
    ),
    "`assistant_only_loss=True`": (
        "jaxtune/data/test_chat_rows.py::test_the_learned_tokens_are_the_assistants_characters"
    ),
    "`train_on_responses_only`": (
        "jaxtune/data/test_response_markers.py::test_refuses_markers_that_are_not_there"
    ),
    "rows that cannot be learned": (
        "jaxtune/data/test_bad_rows.py"
        "::test_bad_rows_are_refused_with_their_numbers_or_skipped_and_counted"
    ),
    "`packing=True` of Gemma 2": (
        "jaxtune/models/test_parity.py::test_packed_documents_equal_running_alone"
    ),
    "`dataset_num_proc`": threads,
    "`dataloader_num_workers=2`": threads,
    "`optimizers=(...)`": pairs,
    "`preprocess_logits_for_metrics`": (
        "jaxtune/training/test_evaluation.py::test_logits_of_many_rows_are_refused"
    ),
    "`on_optimizer_step` of a callback": inside_a_step,
    "`train(resume_from_checkpoint=...)`": (
        "jaxtune/training/test_resume.py"
        "::test_a_folder_of_weights_alone_gives_them_and_says_what_is_lost"
    ),
    "a loss that is NaN": (
        "jaxtune/training/test_non_finite.py::test_the_model_is_left_at_the_last_finite_step"
    ),
    '`save_method="merged_4bit"`': "jaxtune/test_merged_4bit.py::test_config_json_says_how",
    '`save_method="merged_16bit"` of a bitsandbytes folder': (
        "jaxtune/test_qlora.py::test_merging_rounds_the_dequantised_sum_once_to_a_16_bit_model"
    ),
    '`save_pretrained_gguf(quantization_method="q4_k_m")`': no_gguf,
    "`FastVisionModel`": absent("FastVisionModel"),
    "`DPOTrainer`, `GRPOTrainer`, `RewardTrainer`": absent(
        "DPOTrainer", "GRPOTrainer", "RewardTrainer"
    ),
    "`load_in_8bit=True`": refused(load_in_8bit=True),
    "`fast_inference=True`, `model.fast_generate`": no_fast_generate,
    "`load_in_fp8=True`": refused(load_in_fp8=True),
    "`trust_remote_code=True`": refused(trust_remote_code=True),
    '`loftq_config={"bits": 4}`, `init_lora_weights="pissa"`': lora_options,
    "`q_galore_config`": refused(jaxtune.UnslothTrainingArguments, q_galore_config="galore"),
    "`resize_model_vocab`, `resize_token_embeddings`": no_resizing,
    "`auto_find_batch_size=True`": refused(SFTConfig, ValueError, auto_find_batch_size=True),
    "`deepspeed`, `fsdp`": refused(SFTConfig, ValueError, deepspeed="zero.json", fsdp="full_shard"),
    "`push_to_hub=True` of the options": refused(SFTConfig, ValueError, push_to_hub=True),
    "`eval_packing=True`": refused(SFTConfig, eval_packing=True),
    "`compute_loss_func`": no_loss_function,
    '`lr_scheduler_type="reduce_lr_on_plateau"`': unknown_names,
    '`optim="rmsprop"`': unknown_names,
}


def imports() -> Iterator[tuple[str, str]]:
    """The import lines of the page: theirs, and ours."""
    for theirs, cells in ROWS.items():
        if theirs.startswith("`from "):
            yield theirs.strip("`"), cells[0].strip("`")


def test_every_row_has_a_check() -> None:
    theirs = {f"`{line}`" for line, _ in imports()}
    assert set(CHECKS) == set(ROWS) - theirs
    assert len(theirs) == 4


@pytest.mark.parametrize(("theirs", "ours"), list(imports()))
def test_the_imports_work(theirs: str, ours: str) -> None:
    assert theirs.split(" import ")[1] == ours.split(" import ")[1]
    exec(ours, {})  # noqa: S102  a line of the page


@pytest.mark.parametrize("name", CHECKS)
def test_a_row_is_true(name: str, folder: Path) -> None:
    check = CHECKS[name]
    if isinstance(check, str):
        assert exists(check), check
        return
    check(folder)


def test_names_that_stand_in_their_place_exist(folder: Path) -> None:
    """What the last column names of ours."""
    text = " ".join(cell for cells in ROWS.values() for cell in cells[-1:])
    model = adapted(folder)
    for name in re.findall(r"`model\.(\w+)", text):
        assert callable(getattr(model, name)), name
    options = {*inspect.signature(FastLanguageModel.from_pretrained).parameters}
    options |= {*inspect.signature(FastLanguageModel.get_peft_model).parameters}
    options |= {*inspect.signature(SFTTrainer).parameters}
    options |= {*inspect.signature(SFTConfig).parameters}
    for name in re.findall(r"`(\w+)=", text):
        assert name in options, name
