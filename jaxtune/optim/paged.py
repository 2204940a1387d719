"""States that stay in the host's pinned memory between steps."""

from typing import Any

import jax
import optax


def paged(
    optimizer: optax.GradientTransformation, *, moves: bool | None = None
) -> optax.GradientTransformation:
    """An optimizer whose state is in pinned host memory, and on the device only during its update.

    bitsandbytes pages states by CUDA's managed memory, on demand; here they are moved whole.

    Args:
      optimizer: Any.
      moves: Whether to move; None: where the device's memory is not the host's own.

    Returns:
      The optimizer; scalars of its state stay where they are.
    """

    def init(params: Any) -> Any:
        return _moved(optimizer.init(params), jax.memory.Space.Host, moves)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        state = _moved(state, jax.memory.Space.Device, moves)
        updates, state = optimizer.update(updates, state, params)
        return updates, _moved(state, jax.memory.Space.Host, moves)

    return optax.GradientTransformation(init, update)


def _moved(tree: Any, space: jax.memory.Space, moves: bool | None) -> Any:
    if not (jax.default_backend() != "cpu" if moves is None else moves):
        return tree
    device = jax.memory.Space.Device
    return jax.tree.map(lambda x: jax.device_put(x, space if x.ndim else device), tree)
