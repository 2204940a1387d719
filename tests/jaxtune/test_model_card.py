"""The README beside saved weights, and what `verify=True` measures and writes there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.adapters.modules import projections
from jaxtune.language_model import LanguageModel
from jaxtune.verification import verify_saved
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle
from tests.packaged import packaged_model_folder
from tests.quantized_models import load, save_4bit, save_dense
from tests.tolerances import tolerance

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    variant = VARIANTS[BY_NAME["llama-tied-llama3-rope"]]
    return make_oracle(variant, tmp_path_factory.mktemp("cards"), initializer_range=0.3)


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The block that the hub reads, and the text."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_an_adapters_card_says_what_it_is_and_how_its_base_is_scaled(
    oracle: Oracle, tmp_path: Path
) -> None:
    ours = load_adapted(oracle.adapter_folder)
    ours.save_pretrained(tmp_path)
    front, text = card(tmp_path)
    assert front["base_model"] == str(oracle.folder)
    assert front["library_name"] == "peft"
    assert front["tags"] == ["jaxtune"]
    for part in (
        "# LoRA adapter for",
        "| rank | 4 |",
        "| alpha | 6 |",
        "q_proj",
        "## RoPE scaling",
        '"rope_type": "llama3"',
        "PeftModel.from_pretrained",
    ):
        assert part in text
    assert "## Training" not in text
    assert "## Measured" not in text


def test_a_name_cannot_break_out_of_the_card(oracle: Oracle, tmp_path: Path) -> None:
    ours = load_adapted(oracle.adapter_folder)
    ours.carried.name_or_path = 'a"\nlicense: evil\n---\n# b'
    ours.save_pretrained(tmp_path)
    front, text = card(tmp_path)
    assert front["base_model"] == ours.carried.name_or_path
    assert "license" not in front
    assert "\nlicense: evil" not in text


@pytest.mark.slow
def test_a_trained_adapters_card_has_the_runs_numbers(tmp_path: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(packaged_model_folder()), load_in_4bit=False, max_seq_length=64
    )
    model = FastLanguageModel.get_peft_model(model, r=2, use_dora=True, use_rslora=True)
    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=1,
        disable_tqdm=True,
    )
    rows = [{"text": "one two"}, {"text": "three four"}]
    SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=rows, args=args).train()
    model.save_pretrained(tmp_path / "lora")
    _, text = card(tmp_path / "lora")
    for part in (
        "# DoRA adapter for",
        "(use_rslora, use_dora)",
        "| steps | 2 of 2 |",
        "| learning rate | 0.001 (linear) |",
        "| optimizer | adamw_8bit |",
        "| last loss |",
    ):
        assert part in text
    assert "| steps | 1 of 2 |" in card(tmp_path / "out" / "checkpoint-1")[1]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("jaxtune.verification.tell", lines.append)
    return lines


def test_verify_reads_an_adapter_by_peft_and_a_merged_model_by_transformers(
    oracle: Oracle, tmp_path: Path, said: list[str]
) -> None:
    ours = load_adapted(oracle.adapter_folder)
    ours.save_pretrained(tmp_path / "lora", verify=True)
    found = verify_saved(ours, tmp_path / "lora")
    assert found.reader == "peft"
    assert found.difference <= tolerance("float32", "logits")
    assert found.agreement == 1
    assert "read back by peft" in said[0]
    assert "Read back by peft, its logits differ by at most" in card(tmp_path / "lora")[1]
    ours.save_pretrained_merged(tmp_path / "merged", verify=True)
    front, text = card(tmp_path / "merged")
    assert front["library_name"] == "transformers"
    assert "Read back by transformers" in text
    assert "| weights | bfloat16 |" in text
    merged = verify_saved(ours, tmp_path / "merged")
    assert tolerance("float32", "logits") < merged.difference < 0.2
    (tmp_path / "merged" / "README.md").write_text("mine")
    ours.save_pretrained_merged(tmp_path / "merged", verify=True)
    assert (tmp_path / "merged" / "README.md").read_text() == "mine"


def test_verify_sees_a_file_that_is_not_the_model(
    oracle: Oracle, tmp_path: Path, said: list[str]
) -> None:
    ours = load_adapted(oracle.adapter_folder)
    ours.save_pretrained(tmp_path)
    up = projections(ours)["mlp.up_proj"]
    up.lora_B.set_value(up.lora_B[...] * 3)
    assert verify_saved(ours, tmp_path).difference > 0.05
    assert "more than rounding" in said[0]


def test_without_torch_files_are_read_by_jaxtune(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr("jaxtune.verification._installed", lambda _: False)
    ours = load_adapted(oracle.adapter_folder)
    ours.save_pretrained(tmp_path / "lora", verify=True)
    ours.save_pretrained_merged(tmp_path / "merged", verify=True)
    assert all("read back by jaxtune" in line for line in said)
    assert verify_saved(ours, tmp_path / "lora").difference <= 1e-6


@pytest.mark.slow
def test_4_bit_models_are_verified(tmp_path: Path, said: list[str]) -> None:
    import torch

    dense = save_dense(tmp_path / "dense", layers=2)
    base = save_4bit(dense, tmp_path / "base", dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
    ours: LanguageModel = FastLanguageModel.get_peft_model(load(base), r=4, init_lora_weights=False)
    ours.save_pretrained(tmp_path / "lora", verify=True)
    assert "read back by peft" in said[-1]
    assert verify_saved(ours, tmp_path / "lora").difference <= tolerance("float32", "logits")
    ours.save_pretrained_merged(tmp_path / "merged", save_method="merged_4bit", verify=True)
    assert "read back by jaxtune" in said[-1]
    assert "4 bits of bitsandbytes" in card(tmp_path / "merged")[1]
    plain = load_base(dense)
    plain.save_pretrained_merged(tmp_path / "plain", verify=True)
    assert np.isfinite(verify_saved(plain, tmp_path / "plain").difference)
