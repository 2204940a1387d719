"""What quickstart says of peft where it is not installed, and where the logits differ."""

from pathlib import Path

import pytest

from jaxtune.adapters.counting import count_parameters
from jaxtune.quickstart import peft_check
from jaxtune.quickstart.pretrain import new_model


@pytest.fixture(scope="module")
def model():
    return new_model(seed=0)


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"peft"}, "With peft installed, quickstart would load it there and compare."),
        ({"torch"}, "With torch installed, quickstart would load it there and compare."),
        (
            {"peft", "torch"},
            "With peft and torch installed, quickstart would load it there and compare.",
        ),
    ],
)
def test_without_peft_or_torch_it_says_one_line(model, capsys, monkeypatch, lacking, said):
    monkeypatch.setattr(
        peft_check.importlib.util, "find_spec", lambda name: None if name in lacking else 1
    )
    peft_check.check_in_peft(model, "base", Path("lora"), ["text"])
    assert capsys.readouterr().out == said + "\n"


def test_a_large_model_is_not_compared(model, capsys, monkeypatch):
    monkeypatch.setattr(peft_check, "LARGEST", count_parameters(model)[1] - 1)
    peft_check.check_in_peft(model, "base", Path("lora"), ["text"])
    assert capsys.readouterr().out.startswith("Not compared with peft")


@pytest.mark.parametrize("difference", [2.1e-3, float("nan")])
def test_logits_that_differ_are_an_error(model, monkeypatch, difference):
    monkeypatch.setattr(peft_check, "logit_difference", lambda *_: (difference, 20.0))
    with pytest.raises(ValueError, match="fault of jaxtune"):
        peft_check.check_in_peft(model, "base", Path("lora"), ["text"])


def test_the_difference_is_printed(model, capsys, monkeypatch):
    monkeypatch.setattr(peft_check, "logit_difference", lambda *_: (1.9e-3, 20.0))
    peft_check.check_in_peft(model, "base", Path("lora"), ["text"])
    assert "jaxtune is 1.9e-03 (float32, logits up to 20)." in capsys.readouterr().out
