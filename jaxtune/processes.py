"""The processes of one run, on one host or several: how they meet, wait and agree.

A program that JAX knows nothing of runs in one process, and every function here is then free: none
of them starts a device.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.errors import ProcessLostError

# In the words of what moves arrays between processes, when one of them is gone.
_LOST = ("Gloo", "NCCL", "heartbeat", "coordination service")


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout: int = 100,
) -> None:
    """Meet the other processes of the run; to be called before any device is used.

    What is None is found by JAX: under SLURM, Open MPI, and Kubernetes with its Python client.

    Args:
      coordinator_address: "host:port" of process 0, which all can reach.
      num_processes: In all.
      process_id: Of this one, from 0.
      heartbeat_timeout: Seconds of silence after which a process counts as dead, and all end.

    Raises:
      ValueError: Something is None and JAX does not find it.
      ConnectionError: The others cannot be reached.
    """
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout,
            # One that ends by an error waits so long for the others, who may be waiting for it.
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except RuntimeError as error:
        raise ConnectionError(
            "the processes of a run must reach the coordinator, which is process 0; got "
            f"{error}. Check that its host and port are open to all hosts, that each process has a "
            "number of its own, and that all were started."
        ) from error


def count() -> int:
    """How many processes the run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that logs, writes and uploads."""
    return number() == 0


def wait_for_all(what: str) -> None:
    """Go on when every process is here.

    Args:
      what: Of the place in the program; one that is somewhere else is an error.
    """
    if count() > 1:
        multihost_utils.sync_global_devices(what)


def gathered(value: Any) -> np.ndarray:
    """The values that the processes have, [processes, ...], on each of them.

    Args:
      value: A number or an array of 32 bits, of one shape everywhere.
    """
    if count() == 1:
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def spans(leaf: Any) -> bool:
    """Whether an array lies on devices of several processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def on_host(leaf: Any) -> np.ndarray:
    """A copy of an array in this host's memory; all processes ask for one that is spread over them.

    Args:
      leaf: On the device or the host; where its parts lie on several hosts, it is whole on each
        device for a moment.
    """
    if spans(leaf) and not leaf.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(leaf, copy=True)


@contextlib.contextmanager
def explained_loss() -> Iterator[None]:
    """Say what to do where an operation fails since another process is gone.

    Yields:
      Nothing.

    Raises:
      ProcessLostError: In place of what the operation raised.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if count() == 1 or not any(word in str(error) for word in _LOST):
            raise
        first, *_ = str(error).splitlines()
        raise ProcessLostError(
            f"every process of a run must live to its end; got {first}: another one has ended, or "
            "the network between them. Look for its own message, then start all of them again "
            "with resume_from_checkpoint=True (--resume-from-checkpoint last): the run goes on "
            "from its last checkpoint."
        ) from error
