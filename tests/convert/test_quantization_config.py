import json

import ml_dtypes
import numpy as np
import pytest

from convert.errors import CheckpointError
from convert.quantization_config import Quantization, quantization_of, with_quantization


def bitsandbytes_config(**options):
    """What the real class writes."""
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    return {"quantization_config": transformers.BitsAndBytesConfig(**options).to_dict()}


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": {}}])
def test_a_model_without_quantisation_has_none(config):
    assert quantization_of(config) is None


@pytest.mark.parity
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("skipped", [None, ["lm_head", "model.layers.1.mlp"]], ids=str)
def test_what_transformers_writes_is_read(quant_type, double, skipped):
    config = bitsandbytes_config(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double,
        llm_int8_skip_modules=skipped,
    )
    wanted = Quantization(
        quant_type=quant_type, double_quant=double, skip_modules=tuple(skipped or ())
    )
    assert quantization_of(config) == wanted
    assert quantization_of({"text_config": config}) == wanted


@pytest.mark.parametrize("values", [{"load_in_4bit": True}, {"_load_in_4bit": True}], ids=str)
def test_what_a_file_does_not_say_is_transformers_default(values):
    wanted = Quantization(quant_type="fp4", double_quant=False, skip_modules=())
    assert quantization_of({"quantization_config": values}) == wanted


@pytest.mark.parity
def test_llm_int8_as_transformers_writes_it_is_refused():
    with pytest.raises(CheckpointError, match=r"got load_in_8bit.*LLM\.int8"):
        quantization_of(bitsandbytes_config(load_in_8bit=True))


REFUSED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq"},
    "fp8": {"quant_method": "fp8", "load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
    "both": {"load_in_4bit": True, "_load_in_8bit": True},
    "neither": {"quant_method": "bitsandbytes", "load_in_4bit": False},
    "empty": {},
    "text": "4bit",
    "no-text": {"quant_method": ["bitsandbytes"]},
    "type": {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"},
    "double": {"load_in_4bit": True, "bnb_4bit_use_double_quant": "yes"},
    "skip": {"load_in_4bit": True, "llm_int8_skip_modules": [1]},
    "skip-text": {"load_in_4bit": True, "llm_int8_skip_modules": "lm_head"},
}


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("case", REFUSED)
def test_any_other_quantisation_is_refused_with_what_to_use(case, key):
    with pytest.raises(CheckpointError, match=r"Use the model's 16-bit .* -bnb-4bit") as caught:
        quantization_of({key: REFUSED[case]})
    if case in ("gptq", "awq", "fp8", "compressed-tensors"):
        assert f"got quant_method '{case}'" in str(caught.value)


def test_a_text_configs_own_quantisation_is_seen():
    with pytest.raises(CheckpointError, match="gptq"):
        quantization_of({"text_config": {"quantization_config": {"quant_method": "gptq"}}})


@pytest.mark.parity
@pytest.mark.parametrize("double", [True, False])
def test_what_is_written_is_what_transformers_writes(double):
    ours = Quantization(quant_type="nf4", double_quant=double, skip_modules=("lm_head", "vision"))
    written = with_quantization({"a": 1}, ours, np.dtype(ml_dtypes.bfloat16))
    theirs = bitsandbytes_config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype="bfloat16",
        llm_int8_skip_modules=["lm_head", "vision"],
    )
    assert json.loads(json.dumps(written)) == {"a": 1, **theirs}
    assert quantization_of(written) == ours
