"""The one place that touches JAX's configuration."""

from pathlib import Path

import jax

LEAST_SECONDS = 0.05  # of compiling, for a program that is kept


def use_compile_cache(folder: Path | None = None) -> Path | None:
    """Keep compiled programs on disk, so that the second start of a run compiles nothing.

    Called when a model is loaded and when a trainer or a program starts, never at import. A cache
    that the user configured is left as it is. The folder is trusted code: whoever can write to it
    can run code here.

    Args:
      folder: Where; None is `.cache/jaxtune/xla` in the user's home.

    Returns:
      The folder set here, or None if the user had one.
    """
    # pyrefly: ignore[missing-attribute]  jax.config makes its attributes as it starts.
    if jax.config.jax_compilation_cache_dir is not None:
        return None
    folder = folder or Path.home() / ".cache" / "jaxtune" / "xla"
    # This module is the one exception to the rule against changing JAX's configuration.
    jax.config.update("jax_compilation_cache_dir", str(folder))  # noqa: TID251
    # By default programs that compile within a second are not kept; loading has many of these.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)  # noqa: TID251
    return folder


def use_cpu(devices: int = 1) -> None:
    """Run on the CPU: another platform failed to start, or nothing is computed.

    Args:
      devices: To simulate; a number other than 1 before any is used.
    """
    jax.config.update("jax_platforms", "cpu")  # noqa: TID251
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)  # noqa: TID251


def chosen_platforms() -> str:
    """The platforms that the user chose (`JAX_PLATFORMS`); "" if JAX chooses."""
    # pyrefly: ignore[missing-attribute]  jax.config makes its attributes as it starts.
    return jax.config.jax_platforms or ""
