"""Text while it is made, against transformers' streamers on the same tokens."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jaxtune import TextIteratorStreamer, TextStreamer
from jaxtune.generation.decode import CHUNK
from jaxtune.language_model import LanguageModel
from tests.jaxtune.generation.tiny import tiny_model

TEXTS = (
    "One day, Lily's dog ran: it was fun.\nThen \u4f60\u597d, na\u00efve \U0001f600 end </s>",
    "no spaces at all",
    "\n\n  two spaces\n",
)


@pytest.fixture(scope="module")
def tokenizer(assets: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(assets / "stories260K")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


class Recorder:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []
        self.ended = 0

    def put(self, value: np.ndarray) -> None:
        self.given.append(np.asarray(value))

    def end(self) -> None:
        self.ended += 1


def feed(streamer: Any, prompt: list[int], tokens: list[int], *, torch_arrays: bool) -> None:
    form = torch.tensor if torch_arrays else np.array
    streamer.put(form([prompt]))
    for token in tokens:
        streamer.put(form([token]))
    streamer.end()


@pytest.mark.parity
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip_prompt", [False, True])
def test_the_text_is_transformers(tokenizer: Any, text: str, skip_prompt: bool, capsys) -> None:
    prompt, tokens = tokenizer("Once upon")["input_ids"], tokenizer(text)["input_ids"]
    options = {"skip_prompt": skip_prompt, "skip_special_tokens": True}
    feed(transformers.TextStreamer(tokenizer, **options), prompt, tokens, torch_arrays=True)
    expected = capsys.readouterr().out
    feed(TextStreamer(tokenizer, **options), prompt, tokens, torch_arrays=False)
    assert capsys.readouterr().out == expected


def test_a_streamer_serves_twice(tokenizer: Any, capsys) -> None:
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    prompt, tokens = tokenizer("Once upon")["input_ids"], tokenizer("a time")["input_ids"]
    feed(streamer, prompt, tokens, torch_arrays=False)
    feed(streamer, prompt, tokens, torch_arrays=False)
    first, second, rest = capsys.readouterr().out.split("\n")
    assert first == second
    assert "a time" in first
    assert "upon" not in first
    assert rest == ""


def test_words_come_one_by_one_and_letters_of_several_bytes_whole(tokenizer: Any) -> None:
    pieces: list[str] = []

    class Kept(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append(text)

    tokens = tokenizer("a dog na\u00efve \u4f60\u597d end", add_special_tokens=False)["input_ids"]
    feed(Kept(tokenizer), tokens[:1], tokens[1:], torch_arrays=False)
    spoken = [piece for piece in pieces if piece]
    assert "".join(spoken) == tokenizer.decode(tokens)
    assert len(spoken) >= 4
    assert not any("\ufffd" in piece for piece in spoken)


def test_several_rows_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"takes one row; got 2. Generate one prompt"):
        TextStreamer(tokenizer).put(np.zeros((2, 3), int))


@pytest.mark.parametrize("new", [1, 2, CHUNK, CHUNK + 1, CHUNK + 2, 2 * CHUNK + 1, 21])
def test_the_streamer_gets_what_is_returned(model: LanguageModel, new: int) -> None:
    options = {"max_new_tokens": new, "eos_token_id": -1, "do_sample": True, "seed": 5}
    whole = model.generate([[1, 7, 9]], **options)
    recorder = Recorder()
    out = model.generate([[1, 7, 9]], streamer=recorder, **options)
    np.testing.assert_array_equal(out, whole)
    prompt, *tokens = recorder.given
    np.testing.assert_array_equal(prompt, [[1, 7, 9]])
    assert [token.shape for token in tokens] == [(1,)] * new
    np.testing.assert_array_equal(np.stack(tokens, axis=1), whole[:, 3:])
    assert recorder.ended == 1


def test_the_stream_ends_where_the_row_does(model: LanguageModel) -> None:
    free = model.generate([[1, 7, 9]], max_new_tokens=30, eos_token_id=-1, do_sample=True)[0, 3:]
    stop = int(free[11])
    end = free.tolist().index(stop) + 1
    recorder = Recorder()
    out = model.generate(
        [[1, 7, 9]], max_new_tokens=30, eos_token_id=stop, do_sample=True, streamer=recorder
    )
    np.testing.assert_array_equal(out[0, 3:], free[:end])
    assert len(recorder.given) == 1 + end


def test_text_comes_from_another_thread(model: LanguageModel, tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60.0)
    made: list[np.ndarray] = []

    def work() -> None:
        options = {"max_new_tokens": 21, "do_sample": True, "streamer": streamer}
        made.append(model.generate([[1, 7, 9]], **options))

    thread = threading.Thread(target=work)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(made[0][0, 3:])
