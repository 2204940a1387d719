"""Text while it is being made: to the screen, or to an iterator."""

import queue
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Streamer(Protocol):
    """What `generate` hands tokens to; transformers' streamers have this form too."""

    def put(self, value: Any) -> None:
        """Take the prompts, [B, P], then the next token of each row, [B], again and again."""

    def end(self) -> None:
        """No more tokens come."""


class TextStreamer:
    """Print the text of one row as soon as its words are whole.

    A subclass overrides `on_finalized_text` to send the text elsewhere.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> None:
        """Begin with nothing read.

        Args:
          tokenizer: Decodes the tokens.
          skip_prompt: Leave the prompt out.
          skip_special_tokens: Leave out tokens such as EOS.
          clean_up_tokenization_spaces: As in the tokenizer's `decode`.
        """
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_options = {"skip_special_tokens": skip_special_tokens}
        if clean_up_tokenization_spaces is not None:
            self.decode_options["clean_up_tokenization_spaces"] = clean_up_tokenization_spaces
        self._tokens: list[int] = []
        self._shown = 0  # letters of the tokens' text
        self._at_prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt, [1, P] or [P], then token by token, [1].

        Raises:
          ValueError: Several rows.
        """
        tokens = np.asarray(value)
        if tokens.ndim > 1 and len(tokens) > 1:
            raise ValueError(
                f"a text streamer takes one row; got {len(tokens)}. Generate one prompt at a time, "
                "with num_return_sequences=1, or leave the streamer out."
            )
        skipped = self.skip_prompt and self._at_prompt
        self._at_prompt = False
        if skipped:
            return
        self._tokens.extend(tokens.reshape(-1).tolist())
        text = self._decode(self._tokens)
        whole = _whole_length(text)
        new, self._shown = text[self._shown : whole], max(self._shown, whole)
        if text.endswith("\n"):
            # Decoding all of a long text again and again would be slow. One token stays: a
            # decoder may drop the space before a first one.
            self._tokens = self._tokens[-1:]
            self._shown = len(self._decode(self._tokens))
        self.on_finalized_text(new)

    def end(self) -> None:
        """Give the rest of the text, and be ready for another."""
        rest = self._decode(self._tokens)[self._shown :]
        self._tokens, self._shown, self._at_prompt = [], 0, True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print; a line ends with the stream.

        Args:
          text: New, perhaps empty.
          stream_end: Nothing follows.
        """
        print(text, flush=True, end="\n" if stream_end else "")  # noqa: T201  what it is for

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, **self.decode_options)


class TextIteratorStreamer(TextStreamer):
    """Iterate over the text while `generate` runs in another thread."""

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> None:
        """Begin with nothing read.

        Args:
          tokenizer: Decodes the tokens.
          skip_prompt: Leave the prompt out.
          timeout: Seconds to wait for the next text before `queue.Empty` is raised; None: for ever.
          skip_special_tokens: Leave out tokens such as EOS.
          clean_up_tokenization_spaces: As in the tokenizer's `decode`.
        """
        super().__init__(
            tokenizer,
            skip_prompt,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        self.timeout = timeout
        self.text_queue: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue the text; None marks the end."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> Iterator[str]:
        """Itself."""
        return self

    def __next__(self) -> str:
        """The next piece of text, perhaps empty; waits for it."""
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text


def check_streamer(streamer: Any) -> None:
    """Refuse what cannot be fed."""
    if not isinstance(streamer, Streamer):
        raise TypeError(
            "`streamer` must have the methods put(tokens) and end(); got "
            f"{type(streamer).__name__}. Pass jaxtune.TextStreamer(tokenizer)."
        )


def _whole_length(text: str) -> int:
    """How much of a text a further token cannot change.

    What follows the last space may still become another letter (bytes of one that is not whole
    yet) or lose the space before it; Chinese, Japanese and Korean letters stand alone.
    """
    if (text and "\u3040" <= text[-1] <= "\u9fff") or text.endswith("\n"):
        return len(text)
    return text.rfind(" ") + 1
