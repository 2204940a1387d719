"""The package's face: light at import, names resolved at first use."""

import importlib
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import jaxtune

ROOT = Path(__file__).parents[2]
HEAVY = {"jax", "flax", "optax", "orbax", "transformers", "datasets", "torch", "numpy"}


def loaded_after(program):
    """Top-level packages in memory after a program in a fresh process, and its seconds."""
    lines = [
        "import sys, time; start = time.perf_counter()",
        program,
        "print(time.perf_counter() - start, *{m.split('.')[0] for m in sys.modules})",
    ]
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    return float(seconds), set(modules)


def test_import_is_light_and_quick():
    runs = [loaded_after("import jaxtune") for _ in range(3)]
    assert [modules & HEAVY for _, modules in runs] == [set()] * 3
    assert statistics.median(seconds for seconds, _ in runs) <= 0.1


@pytest.mark.parametrize(
    "program", ["import jaxtune.training.config", "from jaxtune import SFTConfig; SFTConfig()"]
)
def test_the_options_need_no_jax(program):
    assert loaded_after(program)[1] & HEAVY == set()


@pytest.mark.parametrize("name", jaxtune.__all__)
def test_each_name_resolves(name):
    found = getattr(jaxtune, name)
    assert found.__name__.rsplit(".", 1)[-1] == name


def test_names_resolve_to_the_one_object():
    config = importlib.import_module("jaxtune.training.config")
    assert jaxtune.SFTConfig is config.SFTConfig
    assert jaxtune.functional is importlib.import_module("jaxtune.functional")


def test_functional_resolves_in_a_fresh_process():
    program = "import jaxtune; assert jaxtune.functional.__name__ == 'jaxtune.functional'"
    assert "jax" in loaded_after(program)[1]


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"no attribute 'FastModell'; it has \['DataC"):
        _ = jaxtune.FastModell
    assert not hasattr(jaxtune, "FastModell")
    with pytest.raises(ImportError, match="cannot import name 'FastModell'"):
        importlib.import_module("builtins").exec("from jaxtune import FastModell")


def test_dir_lists_the_public_names():
    assert dir(jaxtune) == sorted(jaxtune.__all__)
    assert set(jaxtune.__all__) == set(jaxtune._HOMES)
