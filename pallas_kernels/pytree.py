"""Dataclasses of arrays as pytrees, in whose leaves JAX may put anything."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from jax.tree_util import GetAttrKey

T = TypeVar("T")


def pytree(*, data: tuple[str, ...], meta: tuple[str, ...]) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass whose `__init__` is not run when JAX puts it together.

    JAX's internals put markers, shapes and None in the place of arrays (`custom_vjp` does so with
    its arguments), which a checked `__init__` refuses; `register_dataclass` would call it.

    Args:
      data: Names of the fields that are subtrees.
      meta: Names of those that are static.

    Returns:
      A decorator of the class.
    """

    def register(cls: type[T]) -> type[T]:
        def flatten_with_keys(value: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            keyed = [(GetAttrKey(name), getattr(value, name)) for name in data]
            return keyed, tuple(getattr(value, name) for name in meta)

        def unflatten(static: tuple[Any, ...], children: Iterable[Any]) -> T:
            made = object.__new__(cls)
            for names, values in ((data, children), (meta, static)):
                for name, value in zip(names, values, strict=True):
                    object.__setattr__(made, name, value)
            return made

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
        return cls

    return register
