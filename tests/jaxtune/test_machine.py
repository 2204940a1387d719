"""The first line of a program: where it runs, and the command that helps where JAX misses a GPU."""

import dataclasses
import logging
from pathlib import Path

import jax
import pytest

from jaxtune import machine, runtime
from jaxtune.machine import Machine, find_driver, first_line, installed_plugins, probe

CPU = Machine(
    driver=None, plugins=frozenset(), backend="cpu", devices=("cpu",), python="/venv/bin/python"
)
CUDA12 = '/venv/bin/python -m pip install "jaxtune[cuda12]"'
CUDA13 = '/venv/bin/python -m pip install "jaxtune[cuda13]"'
UNSEEN = "JAX cannot see this machine's NVIDIA GPU, so this runs on the CPU: "


def line(driver=None, plugins=(), **changes):
    return first_line(
        dataclasses.replace(CPU, driver=driver, plugins=frozenset(plugins), **changes)
    )


@pytest.mark.parametrize("plugins", [(), ("cuda12",), ("cuda13",)])
def test_without_a_gpu_it_says_cpu(plugins):
    assert line(None, plugins) == "Running on the CPU (this machine has no NVIDIA GPU)."


@pytest.mark.parametrize(
    ("driver", "command"),
    [
        ("580.65.06", CUDA13),
        ("610.10", CUDA13),
        ("579.99", CUDA12),
        ("525.60.13", CUDA12),
        ("", CUDA12),
    ],
)
def test_an_install_without_cuda_gets_the_command_that_fits_the_driver(driver, command):
    said = line(driver)
    assert said == f"{UNSEEN}it was installed without CUDA. Run: {command}"


@pytest.mark.parametrize("plugins", [(), ("cuda12",), ("cuda13",)])
def test_an_old_driver_is_named_with_the_version_to_install(plugins):
    assert line("470.256.02", plugins) == (
        f"{UNSEEN}its driver 470.256.02 is too old. Install driver 580 or newer, then run: {CUDA13}"
    )


def test_a_plugin_too_new_for_the_driver_is_replaced():
    assert line("550.54.14", ["cuda13"]) == (
        f"{UNSEEN}JAX's cuda13 needs driver 580 or newer; this one is 550.54.14. Run: "
        f"/venv/bin/python -m pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && {CUDA12}"
    )


@pytest.mark.parametrize(
    ("driver", "plugins"),
    [("580.65.06", ["cuda13"]), ("580.65.06", ["cuda12"]), ("535.1", ["cuda12"]), ("", ["cuda13"])],
)
def test_a_plugin_that_fails_is_reported_in_jaxs_words(driver, plugins):
    said = line(driver, plugins, reason="No cuDNN.")
    assert said.startswith(f"{UNSEEN}No cuDNN (driver ")
    assert "JAX gave no reason" in line(driver, plugins)


def test_the_users_choice_of_the_cpu_is_respected():
    said = line("580.65.06", ["cuda13"], platforms="cpu")
    assert said.startswith("Running on the CPU, as JAX_PLATFORMS=cpu asks")


def test_a_gpu_is_named():
    one = {"backend": "gpu", "devices": ("NVIDIA H100",)}
    assert line("580.65.06", ["cuda13"], **one) == "Running on NVIDIA H100."
    two = {"backend": "gpu", "devices": ("NVIDIA H100",) * 2}
    assert line("580.65.06", ["cuda13"], **two) == "Running on NVIDIA H100 and 1 more like it."


PROC = {
    "580.65.06": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release "
    "Build  (dvs-builder@U22)\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
    "535.183.01": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 "
    "UTC 2024\nGCC version:\n",
}


@pytest.mark.parametrize("version", PROC)
def test_the_driver_is_read_from_proc(tmp_path: Path, version):
    (tmp_path / "version").write_text(PROC[version])
    assert find_driver(tmp_path / "version", tmp_path / "none") == version


def program(folder: Path, text: str) -> str:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_else_from_nvidia_smi_and_else_from_the_device(tmp_path: Path, monkeypatch):
    none = tmp_path / "none"
    answer = {"path": program(tmp_path, "echo 570.86.15")}
    monkeypatch.setattr(machine.shutil, "which", lambda _: answer["path"])
    assert find_driver(none, none) == "570.86.15"
    answer["path"] = program(tmp_path, "echo NVIDIA-SMI has failed; exit 9")
    assert find_driver(none, none) is None
    assert find_driver(none, tmp_path) == ""
    answer["path"] = None
    assert find_driver(none, none) is None


def test_plugins_are_found_by_their_distributions(tmp_path: Path, monkeypatch):
    assert installed_plugins() <= {"cuda12", "cuda13"}
    for name in ("jax_cuda13_plugin", "jax_cuda13_pjrt"):
        info = tmp_path / f"{name}-0.10.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "cuda13" in installed_plugins()


def test_the_probe_agrees_with_jax():
    found = probe()
    assert found.backend == jax.default_backend()
    assert len(found.devices) == jax.device_count()


def test_a_plugin_that_raises_leaves_the_cpu_and_its_reason(monkeypatch):
    calls = []

    def devices():
        calls.append(None)
        if len(calls) == 1:
            logging.getLogger("jax._src.xla_bridge").warning("a consequence")
            raise RuntimeError("Unable to initialize\n backend 'cuda': no cuDNN")
        return ["cpu"]

    class Device:
        platform = device_kind = "cpu"

    monkeypatch.setattr(machine.jax, "devices", lambda: [Device() for _ in devices()])
    monkeypatch.setattr(machine, "find_driver", lambda: "580.65.06")
    monkeypatch.setattr(machine, "installed_plugins", lambda: frozenset(["cuda13"]))
    chosen = []
    monkeypatch.setattr(runtime, "use_cpu", lambda: chosen.append(True))
    monkeypatch.setattr(runtime, "chosen_platforms", lambda: "")
    said = first_line(probe())
    assert chosen == [True]
    assert said == f"{UNSEEN}Unable to initialize backend 'cuda': no cuDNN (driver 580.65.06)."


def test_a_chosen_platform_that_does_not_start_is_an_error(monkeypatch):
    def devices():
        raise AssertionError  # what jax 0.10 does where there is no such device

    monkeypatch.setattr(machine.jax, "devices", devices)
    monkeypatch.setattr(runtime, "chosen_platforms", lambda: "cuda")
    with pytest.raises(ValueError, match=r"'cuda' does not: there is no such device\. Unset it"):
        probe()
