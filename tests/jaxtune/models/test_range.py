"""Rows beyond a model's range, other RoPE scalings: transformers' logits of the same config."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jaxtune import FastLanguageModel
from tests.families import BY_NAME, VARIANTS
from tests.oracles import make_oracle, random_rows
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity
LENGTH = 24
LINEAR = {"rope_type": "linear", "factor": 1.5}


def short(name: str, folder: Path) -> Path:
    """A variant whose range is 16 tokens."""
    base = make_oracle(VARIANTS[BY_NAME[name]], folder, initializer_range=0.3).folder
    config = json.loads((base / "config.json").read_text())
    config.get("text_config", config)["max_position_embeddings"] = 16
    (base / "config.json").write_text(json.dumps(config))
    return base


def load(base: Path, **options: Any) -> Any:
    with pytest.warns(UserWarning, match="no tokenizer files"):
        return FastLanguageModel.from_pretrained(str(base), load_in_4bit=False, **options)[0]


def their_logits(model: Any, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.double().eval()(input_ids=torch.tensor(rows)).logits.numpy()


def compare(ours: Any, theirs: Any, length: int = LENGTH) -> None:
    rows = random_rows((1, length))
    actual = np.asarray(ours(rows.astype(np.int32)))
    assert relative_error(actual, their_logits(theirs, rows)) <= tolerance("float32", "logits")


@pytest.mark.parametrize(
    ("variant", "factor"),
    [
        ("llama-untied", 1.5),
        ("llama-biases-linear-rope", 2.5 * 1.5),
        ("llama-tied-llama3-rope", None),
        ("gemma3-multimodal", 4 * 1.5),
    ],
)
def test_a_longer_row_stretches_the_range(
    variant: str, factor: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = short(variant, tmp_path)
    ours = load(base, max_seq_length=LENGTH)
    said = (
        "its llama3 RoPE scaling kept" if factor is None else f"linear RoPE scaling by {factor:g}"
    )
    assert f"range of 16 tokens is stretched to 24, {said}" in "".join(capsys.readouterr())
    config = transformers.AutoConfig.from_pretrained(base)
    text = config.get_text_config()
    rope = text.rope_parameters.get("full_attention", text.rope_parameters)
    if factor is not None:
        rope |= {"rope_type": "linear", "factor": factor}
    text.max_position_embeddings = LENGTH
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, config=config)
    compare(ours, theirs)
    assert ours.config.max_position_embeddings == LENGTH
    # The merged folder carries it, in transformers' eyes too.
    ours.save_pretrained_merged(tmp_path / "merged")
    merged = transformers.AutoConfig.from_pretrained(tmp_path / "merged").get_text_config()
    assert merged.max_position_embeddings == LENGTH
    assert merged.rope_parameters == text.rope_parameters
    # And the adapter's card says how to load the base.
    FastLanguageModel.get_peft_model(ours, r=2).save_pretrained(tmp_path / "ours")
    card = (tmp_path / "ours" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    names: dict[str, Any] = {}
    code = code.replace("path/to/this/folder", str(tmp_path / "ours"))
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  it is what readers run
    compare(ours, names["model"])


def test_within_the_range_nothing_changes(tmp_path: Path) -> None:
    base = short("llama-untied", tmp_path)
    ours = load(base, max_seq_length=16)
    assert ours.carried.base_changes == {}
    assert ours.config.period[0].rope.rope_type == "default"
    assert load(base, max_seq_length=None).carried.max_seq_length == 16


@pytest.mark.parametrize("variant", ["llama-untied", "gemma3-multimodal"])
def test_another_rope_scaling_is_transformers_own(variant: str, tmp_path: Path) -> None:
    base = short(variant, tmp_path)
    ours = load(base, max_seq_length=LENGTH, rope_scaling={"type": "linear", "factor": 1.5})
    config = transformers.AutoConfig.from_pretrained(base)
    rope = config.get_text_config().rope_parameters
    rope = rope.get("full_attention", rope)
    rope |= LINEAR
    compare(ours, transformers.AutoModelForCausalLM.from_pretrained(base, config=config))
    assert ours.config.max_position_embeddings == LENGTH
    with pytest.raises(ValueError, match=r"rope type must be one of|RoPE|rope"):
        FastLanguageModel.from_pretrained(
            str(base), load_in_4bit=False, rope_scaling={"rope_type": "yarn", "factor": 2.0}
        )
