"""A model whose arrays lie on several hosts, made ready for one of them to write."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxtune import processes
from jaxtune.errors import NotBuiltYetError
from jaxtune.models.decoder import CausalLM

ModelT = TypeVar("ModelT", bound=CausalLM)


@contextlib.contextmanager
def for_writing(model: ModelT, *, whole: bool = False) -> Iterator[ModelT | None]:
    """The model for the process that writes it; all processes call this, and leave it together.

    A model whose trained arrays (its weights, if it has none) lie in this process's memory is its
    own to write: the copy that a checkpoint is written from, for one.

    Args:
      model: Its trained arrays, where they are spread over hosts, are gathered.
      whole: The frozen weights are written too; else they may be spread.

    Yields:
      The model with arrays of this host on the first process, None on the others.

    Raises:
      NotBuiltYetError: `whole`, and frozen weights are spread.
    """
    graphdef, trainable, frozen = nnx.split(model, nnx.Param, ...)
    if not _spans(jax.tree.leaves(trainable) or frozen):
        yield model
        return
    if whole and any(map(_is_spread, jax.tree.leaves(frozen))):
        raise _elsewhere("a merged model")
    trainable = jax.tree.map(
        lambda leaf: processes.on_host(leaf) if _is_spread(leaf) else _own_copy(leaf), trainable
    )
    if not processes.is_first():
        yield None
    else:
        here: Any = nnx.merge(graphdef, trainable, jax.tree.map(_own_copy, frozen))
        here.carried = model.carried
        yield here
    processes.wait_for_all("the first process has written")


def check_on_one_host(model: CausalLM, what: str) -> None:
    """Raise if a model lies on the devices of several processes.

    Args:
      model: Of a run.
      what: Needs it on one host, for the message.

    Raises:
      NotBuiltYetError: It does.
    """
    if _spans(nnx.state(model)):
        raise _elsewhere(what)


def _spans(tree: Any) -> bool:
    return any(map(processes.spans, jax.tree.leaves(tree)))


def _is_spread(leaf: Any) -> bool:
    """Whether no process has the whole of an array."""
    return processes.spans(leaf) and not leaf.is_fully_replicated


def _own_copy(leaf: Any) -> Any:
    """The copy of an array on this process's first device, where there is one."""
    return leaf.addressable_data(0) if processes.spans(leaf) and not _is_spread(leaf) else leaf


def _elsewhere(what: str) -> NotBuiltYetError:
    return NotBuiltYetError(
        f"{what} must be made on one host; got a model over {processes.count()} processes. Save "
        "what was trained with save_pretrained, load that folder in one process, and make it there."
    )
