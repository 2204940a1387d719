"""The compile cache: set when a run starts, only where the user set none."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxtune.runtime import use_compile_cache

NAME = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = getattr(jax.config, NAME)
    yield
    jax.config.update(NAME, before)


def test_the_cache_is_set_where_there_is_none(tmp_path: Path) -> None:
    jax.config.update(NAME, None)
    assert use_compile_cache(tmp_path / "xla") == tmp_path / "xla"
    assert getattr(jax.config, NAME) == str(tmp_path / "xla")


def test_a_users_cache_is_left_alone(tmp_path: Path) -> None:
    jax.config.update(NAME, str(tmp_path / "mine"))
    assert use_compile_cache(tmp_path / "xla") is None
    assert getattr(jax.config, NAME) == str(tmp_path / "mine")
