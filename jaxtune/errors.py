"""Exceptions that need an explanation of their own; everything else is a built-in."""

from typing import Any


class UnsupportedModelError(ValueError):
    """The model's configuration asks for maths that this library does not compute.

    Raised while the configuration is read, before any weight is touched. Loading such a model
    anyway would give wrong logits without a word, so an unknown key is an error and not a warning.
    """


class IncompatibleCheckpointError(ValueError):
    """The files of a checkpoint do not hold the tensors that the model's configuration promises."""


class ModelNotFoundError(OSError):
    """A model's name is well formed, and leads to no files that can be read.

    The repository is missing, private or gated, has no such revision, holds no safetensors, or is
    neither cached nor within reach of the network. An `OSError`, because that is what transformers
    raises in all of these cases and what scripts written for it catch.
    """


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient of a training step was NaN or infinite, and the run has ended.

    Attributes:
      step: Its number.
      batch: Its rows, as the step got them.
    """

    def __init__(self, message: str, *, step: int, batch: Any) -> None:
        """Keep what a search for the cause needs."""
        super().__init__(message)
        self.step = step
        self.batch = batch


class ProcessLostError(ConnectionError):
    """Another process of the run has ended, and this one cannot go on without it."""


class HubUploadError(OSError):
    """A model was not uploaded: no token, one that may not write there, or no hub within reach.

    An `OSError`, because that is what huggingface_hub's own errors are, which scripts catch.
    """


class NotBuiltYetError(NotImplementedError):
    """A right request that this version does not serve yet; the message names a way around."""
