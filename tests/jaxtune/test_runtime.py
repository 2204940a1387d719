"""The compile cache: set when a run starts, only where the user set none."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxtune.runtime import use_compile_cache

NAME = "jax_compilation_cache_dir"
LEAST = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in (NAME, LEAST)}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_is_set_where_there_is_none(tmp_path: Path) -> None:
    jax.config.update(NAME, None)
    assert use_compile_cache(tmp_path / "xla") == tmp_path / "xla"
    assert getattr(jax.config, NAME) == str(tmp_path / "xla")
    # Those of loading take less than JAX's second.
    assert getattr(jax.config, LEAST) < 0.1


def test_a_users_cache_is_left_alone(tmp_path: Path) -> None:
    jax.config.update(NAME, str(tmp_path / "mine"))
    jax.config.update(LEAST, 7.0)
    assert use_compile_cache(tmp_path / "xla") is None
    assert getattr(jax.config, NAME) == str(tmp_path / "mine")
    assert getattr(jax.config, LEAST) == 7.0
