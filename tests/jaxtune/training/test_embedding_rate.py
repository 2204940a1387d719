"""A rate of its own for embedding and head: against TRL over torch's groups."""

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optax
import peft
import pytest
import torch
import transformers
import trl
from flax import nnx

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune import UnslothTrainer as OurTrainer
from jaxtune import UnslothTrainingArguments as OurArguments
from jaxtune.adapters.peft_form import peft_names
from jaxtune.errors import NotBuiltYetError
from jaxtune.language_model import LanguageModel
from jaxtune.models.build import train_all
from tests.families import BY_NAME, VARIANTS
from tests.jaxtune.training.runs import SHARED, adapted, records_of
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle
from tests.tolerances import relative_error, tolerance
from tests.trl_runs import run_trl
from tests.words import ragged_rows, word_tokenizer

VARIANT = {"untied": "llama-untied", "tied": "llama-tied-llama3-rope"}
MATRICES = ["embed_tokens", "lm_head"]
OWN = 3e-3  # SHARED's learning_rate is 2e-2


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    folder = tmp_path_factory.mktemp("embedding-rate")
    return {
        kind: make_oracle(VARIANTS[BY_NAME[name]], folder / kind, initializer_range=0.3)
        for kind, name in VARIANT.items()
    }


def whole(oracle: Oracle, **options: Any) -> LanguageModel:
    """A new adapter with whole embedding and head, and the word tokenizer."""
    base = load_base(oracle.folder)
    base.carried.tokenizer = word_tokenizer()
    options = {"target_modules": ["q_proj"], "modules_to_save": MATRICES, **options}
    return FastLanguageModel.get_peft_model(base, r=4, **options)


def run(model: LanguageModel, kind: type = SFTTrainer, args: type = OurArguments, **options: Any):
    """A trainer with the shared options and a rate for the matrices, before its run."""
    given = {name: options.pop(name) for name in ("optimizers",) if name in options}
    if args is OurArguments:
        options = {"embedding_learning_rate": OWN, **options}
    options = {**SHARED, "disable_tqdm": True, **options}
    return kind(model, args=args(**options), train_dataset=ragged_rows(13), **given)


def their_run(model: peft.PeftModel, folder: Path) -> trl.SFTTrainer:
    """TRL's trainer over Unsloth's two groups, with the weight decay that the user asked for."""
    matrices = [
        p for n, p in model.named_parameters() if n.endswith("modules_to_save.default.weight")
    ]
    others = [p for n, p in model.named_parameters() if p.requires_grad and "lora_" in n]
    groups = [{"params": others}, {"params": matrices, "lr": OWN}]
    tx = torch.optim.AdamW(groups, SHARED["learning_rate"], weight_decay=SHARED["weight_decay"])
    return run_trl(
        model, ragged_rows(13), word_tokenizer(), folder, optimizers=(tx, None), **SHARED
    )


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("kind", sorted(VARIANT))
def test_the_run_is_trls_over_torchs_groups(
    kind: str, oracles: dict[str, Oracle], tmp_path: Path
) -> None:
    whole(oracles[kind]).save_pretrained(tmp_path / "start")
    base = transformers.AutoModelForCausalLM.from_pretrained(oracles[kind].folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's and TRL's own
        start = peft.PeftModel.from_pretrained(base, tmp_path / "start", is_trainable=True)
        theirs = their_run(start, tmp_path / "trl")
    model = load_adapted(tmp_path / "start")
    model.carried.tokenizer = word_tokenizer()
    trainer = run(model)
    trainer.train()
    records = [record for record in theirs.state.log_history if "loss" in record]
    for mine, their in zip(records_of(trainer), records, strict=True):
        for key in ("loss", "grad_norm", "learning_rate"):
            limit = tolerance("float32", f"trl_{key}")
            assert mine[key] == pytest.approx(float(their[key]), rel=limit, abs=1e-12), (mine, key)
    named = peft_names(nnx.state(model, nnx.Param))
    expected = {
        name.replace(".modules_to_save.default", "").replace(".default", ""): parameter
        for name, parameter in start.named_parameters()
        if parameter.requires_grad
    }
    assert set(named) - set(expected) <= {"base_model.model.lm_head.weight"}
    for name, parameter in expected.items():
        error = relative_error(named[name], parameter.detach().numpy())
        assert error <= tolerance("float32", "embedding_rate_parameters"), name


def test_both_trainers_take_both_configs_with_the_same_result(oracles: dict[str, Oracle]) -> None:
    losses = []
    for args, kind in itertools.product((SFTConfig, OurArguments), (SFTTrainer, OurTrainer)):
        options = {"max_steps": 2, "warmup_steps": 0, "gradient_accumulation_steps": 1}
        trainer = run(whole(oracles["untied"]), kind, args, **options)
        trainer.train()
        losses.append([record["loss"] for record in records_of(trainer)])
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[0] != losses[2]  # its matrices run at their own rate
    plain, more = SFTConfig(**SHARED), OurArguments(**SHARED)
    for field in dataclasses.fields(SFTConfig):
        assert getattr(plain, field.name) == getattr(more, field.name)


def full(oracle: Oracle) -> LanguageModel:
    model = load_base(oracle.folder)
    model.carried.tokenizer = word_tokenizer()
    train_all(model)
    return model


@pytest.mark.parametrize(
    ("make", "kind", "count"),
    [
        pytest.param(whole, "untied", 2, marks=pytest.mark.slow),
        (whole, "tied", 2),
        (full, "tied", 1),
    ],
)
def test_the_rate_is_that_of_embedding_and_head_alone(
    make: Any, kind: str, count: int, oracles: dict[str, Oracle]
) -> None:
    """At rate 0 they stay; whatever else is trained moves. Copies of a tie have two names."""
    model = make(oracles[kind])
    before = {n: np.asarray(t) for n, t in peft_names(nnx.state(model, nnx.Param)).items()}
    options = {"max_steps": 1, "warmup_steps": 0, "gradient_accumulation_steps": 1}
    run(model, embedding_learning_rate=0, **options).train()
    after = peft_names(nnx.state(model, nnx.Param))
    stayed = {name for name, tensor in before.items() if np.array_equal(tensor, after[name])}
    assert stayed == {name for name in before if any(matrix in name for matrix in MATRICES)}
    assert len(stayed) == count


LINE = "jaxtune: Setting lr = 1.00e-05 instead of 5.00e-05 for "


@pytest.mark.parametrize(
    ("kind", "options", "ends"),
    [
        ("untied", {}, ["embed_tokens.", "lm_head."]),
        ("untied", {"modules_to_save": ["lm_head"]}, ["lm_head."]),
        ("tied", {}, ["embed_tokens, which is lm_head too."]),
        (
            "untied",
            {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["norm"]},
            ["lm_head."],
        ),
    ],
)
def test_a_line_a_matrix_is_printed(
    kind: str, options: Any, ends: list[str], oracles: dict[str, Oracle], capsys: Any
) -> None:
    model = whole(oracles[kind], **options)
    rates = {"learning_rate": 5e-5, "embedding_learning_rate": 1e-5}
    trainer = run(model, **rates, disable_tqdm=False)
    trainer._prepare_optimizer(7)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [LINE + end for end in ends]
    run(model, **rates)._prepare_optimizer(7)
    run(model, embedding_learning_rate=None, disable_tqdm=False)._prepare_optimizer(7)
    assert capsys.readouterr().out == ""


def test_a_schedule_of_ones_own_is_followed_in_proportion(oracles: dict[str, Oracle]) -> None:
    rate = optax.linear_schedule(1e-3, 0.0, 5)
    model = whole(oracles["untied"])
    trainer = run(model, optimizers=(None, rate), optim="sgd", weight_decay=0.0)
    tx = trainer._prepare_optimizer(7)
    gradient = nnx.state(model, nnx.Param)
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    moved = updates["lm_head"]["trained_weight"].get_value()
    expected = -1e-3 * OWN / SHARED["learning_rate"] * gradient["lm_head"]["trained_weight"][...]
    assert relative_error(moved, expected) <= tolerance("float32", "schedule")
    assert trainer.lr_scheduler(0) == pytest.approx(1e-3)


def test_a_rate_without_a_trained_embedding_is_refused(oracles: dict[str, Oracle]) -> None:
    for kind in (SFTTrainer, OurTrainer):
        with pytest.raises(
            ValueError, match=r"needs a trained embedding.*got 0\.003 .*modules_to_"
        ):
            run(adapted(oracles["untied"]), kind)
    run(adapted(oracles["untied"]), embedding_learning_rate=None)


def test_a_rate_beside_an_optimizer_of_ones_own_is_refused(oracles: dict[str, Oracle]) -> None:
    with pytest.raises(ValueError, match=r"got 0\.003 beside an optimizer of your own\. Group"):
        run(whole(oracles["untied"]), optimizers=(optax.sgd(1e-3), None))


@pytest.mark.parametrize("rate", [-1e-5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    message = rf"`embedding_learning_rate` must be >= 0 or None; got {rate}"
    with pytest.raises(ValueError, match=message):
        OurArguments(embedding_learning_rate=rate)


def test_a_rate_needs_a_schedule_that_is_not_zero() -> None:
    with pytest.raises(ValueError, match=r"which must be > 0; got 1e-05 and 0\. Pass"):
        OurArguments(embedding_learning_rate=1e-5, learning_rate=0)
    OurArguments(learning_rate=0)


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(NotBuiltYetError, match=r"`q_galore_config` is not built yet; got 'galore'"):
        OurArguments(q_galore_config="galore")
