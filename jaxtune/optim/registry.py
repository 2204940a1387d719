"""Optimizers under the names of `TrainingArguments.optim`."""

import functools
from collections.abc import Callable

import optax

from jaxtune.optim.adafactor import adafactor
from jaxtune.optim.adamw_8bit import adamw_8bit
from jaxtune.optim.decay import decay_mask
from jaxtune.optim.groups import by_rate
from jaxtune.optim.lion import lion_8bit, lion_32bit
from jaxtune.optim.paged import paged


def _adamw(
    learning_rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: int | float
) -> optax.GradientTransformation:
    """AdamW; optax's update equals torch's: p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps)."""
    return optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask
    )


def _paged_adamw_8bit(
    learning_rate: optax.Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: int | float,
    backend: str = "auto",
) -> optax.GradientTransformation:
    return paged(adamw_8bit(learning_rate, b1, b2, eps, weight_decay, backend=backend))


def _adafactor(
    learning_rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: int | float
) -> optax.GradientTransformation:
    """Adafactor; b1, b2 and eps have no part, as in transformers' trainer."""
    del b1, b2, eps
    return adafactor(learning_rate, weight_decay)


def _lion_32bit(
    learning_rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: int | float
) -> optax.GradientTransformation:
    """Lion with Adam's b1 and b2, as transformers' trainer has it; eps has no part."""
    del eps
    return lion_32bit(learning_rate, b1, b2, weight_decay)


def _lion_8bit(
    learning_rate: optax.Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: int | float,
    backend: str = "auto",
) -> optax.GradientTransformation:
    """As `_lion_32bit`, in 8 bits."""
    del eps
    return lion_8bit(learning_rate, b1, b2, weight_decay, backend=backend)


def _sgd(
    learning_rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: int | float
) -> optax.GradientTransformation:
    """Plain SGD with torch's coupled decay: p - lr (g + wd p); b1, b2 and eps have no part."""
    del b1, b2, eps
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask), optax.sgd(learning_rate)
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adafactor": _adafactor,
    "adamw_8bit": adamw_8bit,
    "adamw_bnb_8bit": adamw_8bit,
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw,
    "lion_32bit": _lion_32bit,
    "lion_8bit": _lion_8bit,
    "paged_adamw_8bit": _paged_adamw_8bit,
    "sgd": _sgd,
}
# Those that have kernels.
EIGHT_BITS = ("adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "paged_adamw_8bit")


def create_optimizer(
    name: str,
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: int | float = 0.0,
    embedding_learning_rate: optax.Schedule | None = None,
    kernels: str = "auto",
) -> optax.GradientTransformation:
    """The optimizer of an `optim` name; clipping is the training step's.

    Args:
      name: As in `TrainingArguments.optim`.
      learning_rate: Schedule, 1/step.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled for AdamW and Lion; biases and norms are spared, see `decay_mask`.
      embedding_learning_rate: Schedule of the trained embedding and head, 1/step; None: as all
        else. Everything but the rate stays the same, weight decay too.
      kernels: Backend request of the 8-bit ones: "auto" or "xla", where the compiler must be able
        to split what is trained over devices.

    Returns:
      An optax transformation.

    Raises:
      ValueError: No optimizer has that name.
    """
    if name == "adamw_hf":
        raise ValueError(
            "`optim` must be an optimizer that transformers has; got 'adamw_hf', which it removed. "
            "Use optim='adamw_torch'."
        )
    if name not in OPTIMIZERS:
        raise ValueError(f"`optim` must be one of {sorted(OPTIMIZERS)}; got {name!r}.")
    make = functools.partial(OPTIMIZERS[name], b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    if name in EIGHT_BITS:
        make = functools.partial(make, backend=kernels)
    if embedding_learning_rate is None:
        return make(learning_rate)
    return by_rate(make, learning_rate, embedding_learning_rate)
