"""What the constructor takes, refuses, and makes of a name and a peft configuration."""

import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import optax
import peft
import pytest
import torch
import transformers
import trl

from jaxtune import SFTConfig, SFTTrainer
from jaxtune.adapters.counting import count_parameters
from jaxtune.data.batch import IGNORE
from jaxtune.errors import NotBuiltYetError
from jaxtune.language_model import LanguageModel
from jaxtune.training import inputs
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, trainer_of
from tests.loaded import load_base
from tests.oracles import Oracle, make_oracle
from tests.tolerances import relative_error, tolerance
from tests.words import ragged_rows, word_tokenizer


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    oracle = make_oracle(VARIANTS[0], tmp_path_factory.mktemp("inputs"), initializer_range=0.3)
    word_tokenizer().save_pretrained(oracle.folder)
    return oracle


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> LanguageModel:
    return adapted(oracle)


@pytest.mark.parity
def test_positional_arguments_are_those_of_trl() -> None:
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    ours = [
        name
        for name, parameter in inspect.signature(SFTTrainer).parameters.items()
        if parameter.kind is positional
    ]
    assert ours == list(inspect.signature(trl.SFTTrainer).parameters)[: len(ours)]
    assert ours[:2] == ["model", "args"]


def test_what_is_not_built_says_so_before_any_work() -> None:
    rows = [{"text": "w1"}]
    with pytest.raises(NotBuiltYetError, match=r"an evaluation with a `data_collator` .* built"):
        SFTTrainer("no/model", train_dataset=rows, eval_dataset=rows, data_collator=list)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "adamw_9bit"}, "`optim` must be one of"),
        ({"lr_scheduler_type": "linaer"}, "`lr_scheduler_type` must be one of"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "has no warm-up"),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.5}, "has no warm-up"),
    ],
)
def test_names_in_the_options_are_checked_before_any_work(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SFTTrainer("no/model", SFTConfig(**options), train_dataset=ragged_rows(1))


def test_names_that_are_not_used_are_not_checked() -> None:
    args = SFTConfig(optim="mine", lr_scheduler_type="mine")
    tx = optax.sgd(0.1)
    assert inputs.checked_optimizers((tx, None), args) == (tx, None)
    rate = optax.constant_schedule(0.1)
    assert inputs.checked_optimizers((None, rate), SFTConfig(lr_scheduler_type="mine"))[1] is rate


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        (optax.sgd(0.1), "must be a pair"),  # itself a tuple, of init and update
        ((optax.sgd(0.1),), r"must be a pair .*got 1 object"),
        ((torch.optim.SGD([torch.zeros(1)]), None), r"an optax .*; got torch\.optim\.sgd\.SGD"),
        ((optax.sgd(0.1), 0.1), "an optax schedule, a function of the step; got float"),
    ],
)
def test_optimizers_must_be_optax(optimizers: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        inputs.checked_optimizers(optimizers, SFTConfig())


def test_what_cannot_train_is_refused(oracle: Oracle) -> None:
    base, rows = load_base(oracle.folder), ragged_rows(3)
    tokenizer = word_tokenizer()
    refuse = functools.partial(SFTTrainer, train_dataset=rows)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        refuse(base, tokenizer=tokenizer)
    model = adapted(oracle)
    with pytest.raises(ValueError, match="`train_dataset` must be given; got None"):
        SFTTrainer(model)
    with pytest.raises(ValueError, match="two names of one argument"):
        refuse(model, tokenizer=tokenizer, processing_class=word_tokenizer())
    with pytest.raises(ValueError, match="must be between 1 and the model's range of 128"):
        refuse(model, max_seq_length=129)
    with pytest.raises(ValueError, match="must be between 1"):
        refuse(model, max_seq_length=0)
    with pytest.raises(ValueError, match="text column `body`"):
        refuse(model, dataset_text_field="body")
    with pytest.raises(ValueError, match="at least one row"):
        SFTTrainer(model, train_dataset=[])
    model.carried.tokenizer = None
    with pytest.raises(ValueError, match="a tokenizer is needed"):
        refuse(model)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "w1 beyond w2"}, "below the model's vocabulary of 97"),
        ({"input_ids": [5], "labels": [5]}, "fewer than two tokens, or labels"),
        ({"input_ids": [5, 6], "labels": [5, IGNORE]}, "all -100 after its first"),
    ],
)
def test_rows_that_the_model_cannot_learn_are_refused(
    model: LanguageModel, row: dict[str, Any], message: str
) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["beyond"])
    with pytest.raises(ValueError, match=message):
        SFTTrainer(model, tokenizer=tokenizer, train_dataset=[row])


def test_every_way_to_the_rows_is_passed_on(model: LanguageModel) -> None:
    rows = [{"body": "w1 w2"}, {"body": "w3"}]
    of_column = SFTTrainer(model, train_dataset=rows, dataset_text_field="body")
    of_function = SFTTrainer(
        model, train_dataset=rows, formatting_func=lambda row: row["body"], dataset_num_proc=2
    )
    of_option = SFTTrainer(
        model, SFTConfig(dataset_text_field="body", dataset_num_proc=1), train_dataset=rows
    )
    for trainer in (of_column, of_function, of_option):
        assert [row.tolist() for row in trainer.train_dataset.rows] == [[1, 5, 6, 2], [1, 7, 2]]
    with pytest.raises(ValueError, match="`dataset_num_proc` must be at least 1; got 0"):
        SFTTrainer(model, train_dataset=rows, dataset_text_field="body", dataset_num_proc=0)


def test_labels_of_the_rows_reach_the_step(oracle: Oracle, model: LanguageModel) -> None:
    row = {"input_ids": [1, 5, 6, 7], "labels": [IGNORE, IGNORE, IGNORE, 7]}
    trainer = trainer_of(adapted(oracle), train_dataset=[row], max_steps=1)
    loss = trainer.train().training_loss
    logits = torch.tensor(np.asarray(model(np.array([row["input_ids"]], np.int32)))[0, 2])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(7))
    assert loss == pytest.approx(expected.item(), rel=tolerance("float32", "loss"))


LORA = {"r": 3, "lora_alpha": 5, "target_modules": ["k_proj", "down_proj"], "use_rslora": True}


@pytest.mark.parity
@pytest.mark.parametrize(
    "peft_config",
    [{}, LORA, peft.LoraConfig(**LORA, task_type="CAUSAL_LM")],
    ids=["defaults", "dict", "LoraConfig"],
)
def test_a_name_is_loaded_and_gets_the_adapter_that_peft_would_make(
    oracle: Oracle, peft_config: Any
) -> None:
    args = SFTConfig(max_length=14)
    trainer = SFTTrainer(
        str(oracle.folder), args, train_dataset=ragged_rows(3), peft_config=peft_config
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    config = peft.LoraConfig(**peft_config) if isinstance(peft_config, dict) else peft_config
    theirs = peft.get_peft_model(base, config)
    assert count_parameters(trainer.model) == theirs.get_nb_trainable_parameters()
    made = trainer.model.carried.adapter
    for name in ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora"):
        assert getattr(made, name) == getattr(config, name), name
    assert set(made.target_modules) == set(theirs.peft_config["default"].target_modules)
    assert trainer.model.carried.max_seq_length == 14
    assert trainer.tokenizer is trainer.model.carried.tokenizer


def test_the_seed_draws_the_adapter(oracle: Oracle) -> None:
    def drawn(seed: int) -> np.ndarray:
        base = load_base(oracle.folder)
        trainer = SFTTrainer(
            base,
            SFTConfig(seed=seed),
            train_dataset=ragged_rows(3),
            tokenizer=word_tokenizer(),
            peft_config={"r": 2},
        )
        return np.asarray(trainer.model.model.layers.self_attn.q_proj.lora_A[...])

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


@pytest.mark.parity
def test_a_name_without_an_adapter_is_fully_fine_tuned_and_saved(
    oracle: Oracle, tmp_path: Path
) -> None:
    args = SFTConfig(
        max_length=14,
        max_steps=2,
        per_device_train_batch_size=2,
        warmup_steps=0,
        learning_rate=1e-2,
        output_dir=tmp_path,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(str(oracle.folder), args, train_dataset=ragged_rows(3))
    trainable, total = count_parameters(trainer.model)
    assert trainable == total
    trainer.train()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    rows = np.array([[1, 5, 6, 7]])
    with torch.no_grad():
        expected, before = (m(input_ids=torch.tensor(rows)).logits for m in (theirs, base))
    found = np.asarray(trainer.model(rows.astype(np.int32)))
    assert relative_error(found, expected) <= tolerance("float32", "logits")
    assert relative_error(before, expected) > 1e-2
    transformers.AutoTokenizer.from_pretrained(tmp_path / "checkpoint-2")


def test_the_name_of_an_adapter_is_trained_as_it_is(oracle: Oracle) -> None:
    trainer = SFTTrainer(
        str(oracle.adapter_folder), train_dataset=ragged_rows(3), max_seq_length=14
    )
    assert count_parameters(trainer.model) == count_parameters(adapted(oracle))
