"""The kinds of nnx Variable that a model holds, and which of two weights a module computes with.

`nnx.Param` is trained, `Frozen` is not; the split of a model into the two trees of the training
step is by this type alone.
"""

from typing import Any

from flax import nnx


class Frozen(nnx.Variable):
    """A weight that training reads and never changes."""


class TrainedCopy(nnx.Param):
    """A full copy of a frozen weight that is trained in its place: PEFT's `modules_to_save`."""


def weight_of(module: Any, adapters: bool) -> Any:
    """The weight that a module computes with: an array, or a stack of quantised ones.

    Args:
      module: Has `weight`, and `trained_weight` where it has a trained copy.
      adapters: False gives the base model's.

    Returns:
      The trained copy if there is one and adapters are on, else the base weight.
    """
    trained = getattr(module, "trained_weight", None)
    return (module.weight if trained is None or not adapters else trained).get_value()
