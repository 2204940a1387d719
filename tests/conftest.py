"""Shared fixtures: exact matrix products, the hypothesis profile, assets, the skips."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Compiling is most of what the tests do on a CPU; unoptimised code compiles three times faster.
# XLA reads this when jax starts, so it must be set before the first import of jax.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

from tests.repeats import repeats, thorough

hypothesis.settings.register_profile(
    "jaxtune", deadline=None, max_examples=25, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("jaxtune")


def pytest_collection_finish() -> None:
    """Modules stay: collecting garbage among them took an eighth of the time of tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


@pytest.fixture(autouse=True)
def _exact_matrix_products() -> Iterator[None]:
    """Parity is of the maths; a GPU's TF32 products would hide it."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session", autouse=True)
def _compile_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled programs are shared by the run's processes, and never reach the user's own cache."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and data (`JAXTUNE_ASSETS`, else beside the project)."""
    beside = Path(__file__).parents[2] / "shared" / "assets"
    folder = Path(os.environ.get("JAXTUNE_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"no assets at {folder}; set JAXTUNE_ASSETS")
    return folder


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what repeats another test as slow, and skip what needs a GPU where there is none."""
    for item in items:
        if repeats(item.nodeid) or thorough(item.nodeid):
            item.add_marker(pytest.mark.slow)
        if thorough(item.nodeid):
            item.add_marker(pytest.mark.thorough)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
