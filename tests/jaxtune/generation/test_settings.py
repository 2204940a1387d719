"""Where values come from, and what is refused."""

import warnings

import numpy as np
import pytest

from jaxtune.errors import NotBuiltYetError
from jaxtune.generation.prompts import bucket
from jaxtune.generation.settings import pad_id, settle, stop_ids
from jaxtune.language_model import LanguageModel
from tests.jaxtune.generation.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def test_the_call_then_the_model_then_the_defaults() -> None:
    settings = settle(
        {"top_k": 3, "top_p": None}, {"do_sample": True, "top_k": 9, "top_p": 0.4, "x": 1}
    )
    assert (settings.do_sample, settings.top_k, settings.top_p) == (True, 3, 0.4)
    assert (settings.temperature, settings.min_p, settings.repetition_penalty) == (1.0, None, 1.0)


def test_stops_of_generation_config_come_before_those_of_config() -> None:
    assert stop_ids(None, {"eos_token_id": [5, 6]}, {"eos_token_id": 2}) == [5, 6]
    assert stop_ids(None, {}, {"eos_token_id": 2}) == [2]
    assert stop_ids(np.array([7, 8]), {"eos_token_id": 2}) == [7, 8]
    assert stop_ids(None, {}, {}) == []


def test_the_pad_token_is_the_models_else_eos() -> None:
    assert pad_id(None, [4], 9, {}, {"pad_token_id": 3}) == 3
    assert pad_id(None, [-1, 4], 9, {}, {}) == 4
    assert pad_id(1, [4], 9, {}, {"pad_token_id": 3}) == 1
    with pytest.raises(ValueError, match=r"`pad_token_id` must be in \[0, 9\); got 9"):
        pad_id(9, [4], 9)


def test_sampling_values_without_sampling_warn() -> None:
    with pytest.warns(UserWarning, match=r"temperature, min_p changes nothing without do_sample"):
        settle({"temperature": 1.5, "min_p": 0.1}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle({"do_sample": False, "temperature": 0.0}, {"top_p": 0.5})


def test_what_the_models_file_asks_for_in_vain_warns() -> None:
    with pytest.warns(UserWarning, match=r"asks for no_repeat_ngram_size, which is not built"):
        settle({}, {"no_repeat_ngram_size": 3, "num_beams": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature": 0.0, "do_sample": True},
            r"`temperature` must be > 0 .*got 0.0.*do_sample",
        ),
        ({"temperature": -1.0, "do_sample": True}, r"`temperature` must be > 0"),
        ({"top_k": -1}, r"`top_k` must be an integer >= 0; got -1. Pass 0"),
        ({"top_k": 0.5}, r"`top_k` must be an integer >= 0; got 0.5"),
        ({"top_p": 1.2}, r"`top_p` must be in \[0, 1\]; got 1.2"),
        ({"min_p": -0.1}, r"`min_p` must be in \[0, 1\]; got -0.1"),
        ({"repetition_penalty": 0.0}, r"`repetition_penalty` must be > 0; got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settle(options, {})


def test_the_call_refuses(model: LanguageModel) -> None:
    prompt = [[1, 5]]
    with pytest.raises(ValueError, match=r"`num_return_sequences` must be 1 without sampling"):
        model.generate(prompt, num_return_sequences=2)
    with pytest.raises(ValueError, match=r"`num_return_sequences` must be >= 1; got 0"):
        model.generate(prompt, num_return_sequences=0, do_sample=True)
    with pytest.raises(NotBuiltYetError, match=r"`use_cache` must be True"):
        model.generate(prompt, use_cache=False)
    with pytest.raises(TypeError, match=r"`streamer` must have the methods put"):
        model.generate(prompt, streamer=print)
    with pytest.raises(TypeError, match=r"needs the tokenizer.*Pass tokenizer="):
        model.generate(prompt, stop_strings="a")
    with pytest.raises(TypeError, match=r"must hold input_ids, .* got \['ids'\]. Pass what"):
        model.generate({"ids": prompt})
    with pytest.raises(TypeError, match=r"got \['input_ids'\] and attention_mask"):
        model.generate({"input_ids": prompt}, [[1, 1]])
    with pytest.raises(
        ValueError, match=r"got 300 \+ 20. Shorten the prompt, or load .*seq_length.$"
    ):
        model.generate([[5] * 300])
    with pytest.raises(ValueError, match=r"or pass max_new_tokens <= 6\."):
        model.generate([[5] * 250])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (
            "max_new_token",
            r"takes input_ids, .* seed; got 'max_new_token'. Did you mean max_new_tokens",
        ),
        ("num_beams", "There is no beam search"),
        ("max_length", "Pass max_new_tokens"),
        ("zzz", "Leave it out"),
    ],
)
def test_an_unknown_argument_is_explained(model: LanguageModel, name: str, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        model.generate([[1, 5]], **{name: 4})


def test_others_arguments_are_taken_where_they_change_nothing(model: LanguageModel) -> None:
    prompt = np.array([[1, 5], [7, 9]])
    wanted = model.generate(prompt, max_new_tokens=3)
    got = model.generate(prompt, max_new_tokens=3, num_beams=1, max_length=None, typical_p=1.0)
    np.testing.assert_array_equal(got, wanted)
    for option in ({"num_beams": True}, {"no_repeat_ngram_size": 3}, {"max_length": 9}):
        name, value = next(iter(option.items()))
        with pytest.raises(TypeError, match=rf"got {name}={value}\. "):
            model.generate(prompt, **option)


def test_what_a_tokenizer_returned_is_a_prompt(model: LanguageModel) -> None:
    wanted = model.generate([[5], [7, 9]], max_new_tokens=3)
    padded = {"input_ids": np.array([[3, 5], [7, 9]]), "attention_mask": np.array([[0, 1], [1, 1]])}
    np.testing.assert_array_equal(model.generate(padded, max_new_tokens=3)[:, 2:], wanted[:, 2:])
    lists = {"input_ids": [[5], [7, 9]], "attention_mask": [[1], [1, 1]]}
    np.testing.assert_array_equal(model.generate(lists, max_new_tokens=3), wanted)


def test_buckets_are_few_and_close() -> None:
    widths = [bucket(length) for length in range(1, 4097)]
    assert all(length <= width for length, width in enumerate(widths, 1))
    assert all(width <= max(1.25 * length, length + 31) for length, width in enumerate(widths, 1))
    assert len(set(widths)) == 4 + 4 * 5  # to 128, then four an octave
