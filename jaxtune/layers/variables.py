"""The kinds of nnx Variable that a model holds.

`nnx.Param` is trained, `Frozen` is not; the split of a model into the two trees of the training
step is by this type alone.
"""

from flax import nnx


class Frozen(nnx.Variable):
    """A weight that training reads and never changes."""
