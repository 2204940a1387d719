"""Choice of the backend that serves a call: decided before tracing, from the arguments alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

REQUESTS = ("auto", "xla", "triton", "interpret")

_logger = logging.getLogger(__name__)


class Unsupported(NotImplementedError):
    """A right request that the forced backend, or every backend, cannot serve."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a backend needs to know about the device: no handle, so tests can make one up.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      compute_capability: Of a CUDA device, such as (9, 0); None elsewhere.
    """

    platform: str
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call of an op, as far as the choice of a backend may depend on it.

    Attributes:
      op: Name of the op, for messages.
      device: Where the call will run.
      dtype: Name of the dtype of the arrays, such as "bfloat16".
      sizes: Length of every axis by its shape letter.
      options: The op's static arguments by name.
    """

    op: str
    device: Device
    dtype: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def serves_all(problem: Problem) -> None:
    """Refuse no problem."""
    del problem


def no_backward(*_: Any) -> Any:
    """Stand for the backward of an op that has none, or of a forward that has its own."""
    raise NotImplementedError("this backend has no backward of its own; differentiate its forward")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op.

    Attributes:
      name: One of `REQUESTS` other than "auto".
      refuse: Says why the backend cannot serve a problem; None if it can.
      forward: Gives (y, residuals); its arguments are the op's contract.
      backward: From residuals and the cotangent of y, gives the cotangents of the inputs;
        `no_backward` where the op has no gradient, or `forward` gives y alone, with a gradient of
        its own.
    """

    name: str
    refuse: Callable[[Problem], str | None]
    forward: Callable[..., Any]
    backward: Callable[..., Any] = no_backward


def current_device() -> Device:
    """Describe the device that JAX would use by default. Called when an op is traced."""
    # JAX defines its options at run time, out of a type checker's sight.
    default = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
    device = default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0]
    capability = getattr(device, "compute_capability", None)  # "9.0"; CUDA devices only
    if not isinstance(capability, str) or "." not in capability:
        return Device(platform=device.platform)
    major, minor = capability.split(".")
    return Device(platform=device.platform, compute_capability=(int(major), int(minor)))


def choose(requested: str, backends: Sequence[Backend], problem: Problem) -> Backend:
    """Choose the backend for a problem.

    "auto" takes the first of `backends` that does not refuse; a name takes that one or raises.

    Args:
      requested: "auto", "xla", "triton", "interpret", or another name that the op has.
      backends: Those that the op has, best first.
      problem: The call to serve.

    Returns:
      A member of `backends`.

    Raises:
      ValueError: `requested` is none of these.
      Unsupported: the forced backend is missing or refuses, or under "auto" all refuse.
    """
    known = (*REQUESTS, *(b.name for b in backends if b.name not in REQUESTS))
    if requested not in known:
        raise ValueError(f"`backend` must be one of {', '.join(known)}; got {requested!r}.")
    candidates = [b for b in backends if requested in ("auto", b.name)]
    if not candidates:
        raise Unsupported(
            f"`{problem.op}` has no backend {requested!r}; it has "
            f"{', '.join(b.name for b in backends) or 'none'}. Pass backend='auto'."
        )
    refusals = []
    for backend in candidates:
        reason = backend.refuse(problem)
        if reason is None:
            if refusals:
                _logger.info("%s runs on %s: %s", problem.op, backend.name, "; ".join(refusals))
            return backend
        refusals.append(f"{backend.name}: {reason}")
    raise Unsupported(
        f"`{problem.op}` cannot run with backend={requested!r}; refused by {'; '.join(refusals)}."
    )
