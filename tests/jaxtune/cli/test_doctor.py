"""`jaxtune doctor`: true of this machine, of made-up ones, and 1 where something is broken."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jax
import pytest

from jaxtune import cli, machine
from jaxtune.cli import doctor, doctor_device, doctor_install
from jaxtune.cli.finding import Finding, broken, note, ok
from jaxtune.cli.kernel_choices import CALLS, choices
from jaxtune.machine import Machine
from jaxtune.memory import MemoryStats
from pallas_kernels.dispatch import Device

ROOT = Path(__file__).parents[3]
GIB = 2**30
CPU = Machine(driver=None, plugins=frozenset(), backend="cpu", devices=("cpu",))


def run(capsys) -> tuple[int, str]:
    status = cli.main(["doctor"])
    return status, " ".join(capsys.readouterr().out.split())


def test_this_machine_is_well_and_named(capsys):
    status, said = run(capsys)
    assert status == 0
    assert said.endswith("Nothing is broken.")
    assert f"jax {metadata.version('jax')}" in said
    assert f"Python {sys.version.split()[0]}" in said
    assert machine.first_line(machine.probe()) in said
    for _, (label, *_) in enumerate(CALLS):
        assert label in said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            Machine(driver="580.65.06", plugins=frozenset(), backend="cpu", devices=("cpu",)),
            "so this runs on the CPU. -> it was installed without CUDA. Run: ",
        ),
        (
            Machine(driver="470.1", plugins=frozenset({"cuda12"}), backend="cpu", devices=("cpu",)),
            "its driver 470.1 is too old",
        ),
    ],
)
def test_a_gpu_that_jax_misses_is_broken(monkeypatch, capsys, found, said):
    monkeypatch.setattr(doctor, "probe", lambda: found)
    status, out = run(capsys)
    assert status == 1
    assert said in out
    assert "1 broken: BROKEN JAX cannot see" in out


def test_platforms_that_do_not_start_are_broken(monkeypatch, capsys):
    def fail():
        raise ValueError("JAX_PLATFORMS must name platforms that start here")

    monkeypatch.setattr(doctor, "probe", fail)
    status, out = run(capsys)
    assert status == 1
    assert "-> Unset JAX_PLATFORMS" in out
    assert "Versions" in out


def test_a_device_that_fails_is_broken(monkeypatch, capsys):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(doctor_device, "rms_norm", fail)
    status, out = run(capsys)
    assert status == 1
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in out


@pytest.mark.parametrize(
    ("device", "dtype", "wanted"),
    [
        (Device(platform="cpu"), "float32", {"plain JAX"}),
        (Device(platform="gpu", compute_capability=(7, 5)), "float16", {"plain JAX"}),
        (
            Device(platform="gpu", compute_capability=(8, 0)),
            "bfloat16",
            {"plain JAX", "cuDNN", "Pallas Triton"},
        ),
    ],
)
def test_kernels_are_those_that_the_ops_choose(device, dtype, wanted):
    found = choices(device, dtype)
    assert {choice.backend for choice in found} == wanted
    by_label = {choice.label: choice for choice in found}
    if device.compute_capability == (8, 0):
        assert by_label["attention"].backend == "cuDNN"
        assert by_label["attention of packed rows"].backend == "Pallas Triton"
    if device.compute_capability == (7, 5):
        assert "it needs compute capability 8.0; the GPU has 7.5" in by_label["norms"].why


def made_up_gpu(monkeypatch, capability, *, limit, card, count=1) -> list[Finding]:
    """The findings of a card that is not here."""
    device = Device(platform="gpu", compute_capability=capability)
    stats = MemoryStats(name="GPU", total_memory=limit, memory_reserved=0, max_memory_reserved=0)
    monkeypatch.setattr(doctor_device, "current_device", lambda: device)
    monkeypatch.setattr(doctor_device, "memory_stats", lambda: stats)
    monkeypatch.setattr(doctor_device, "_card_memory", lambda: card)
    found = Machine(
        driver="580.65.06",
        plugins=frozenset({"cuda13"}),
        backend="gpu",
        devices=("Tesla T4",) * count,
    )
    return doctor_device.device_findings(found)


def test_a_t4_is_told_what_it_loses(monkeypatch):
    found = made_up_gpu(monkeypatch, (7, 5), limit=13 * GIB, card=(15 * GIB, 13 * GIB), count=2)
    (age,) = [one for one in found if "compute capability" in one.text]
    assert age.state == "note"
    assert "Gemma 2 and 3 overflow in float16" in age.cure
    (several,) = [one for one in found if "2 devices" in one.text]
    assert "--devices 2" in several.cure
    assert not any(one.state == "broken" for one in found)


@pytest.mark.parametrize(
    ("limit", "used", "state", "said"),
    [
        (72, 72, "ok", "takes 72.0 of the card's 80.0 GiB in advance (90 %)"),
        (20, 20, "note", "(25 %)"),
        (60, 75, "note", "Other programs hold 15.0 GiB"),
    ],
)
def test_memory_is_the_pool_against_the_card(monkeypatch, limit, used, state, said):
    found = made_up_gpu(monkeypatch, (9, 0), limit=limit * GIB, card=(80 * GIB, used * GIB))
    assert found[-1].state == state
    assert said in found[-1].text


def test_a_version_that_does_not_fit_is_broken(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda _: ["tyro<0.1", "no-such-thing>=1", "jax"])
    found = [one for one in doctor_install.version_findings() if one.state == "broken"]
    assert [one.text.split()[0] for one in found] == ["tyro", "no-such-thing"]
    assert "missing" in found[1].text
    assert found[0].cure.endswith('-m pip install "tyro<0.1"')


def test_extras_are_those_of_the_project(monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = declared["optional-dependencies"].keys() - {"cuda12", "cuda13", "test", "dev"}
    assert doctor_install.EXTRAS.keys() == own
    monkeypatch.setattr(doctor_install.importlib.util, "find_spec", lambda _: None)
    found = doctor_install.extra_findings()
    assert [one.state for one in found] == ["note"] * len(own)
    assert 'pip install "jaxtune[gguf]"' in found[-1].cure


def test_a_cache_that_cannot_be_written_is_noted(monkeypatch):
    monkeypatch.setattr(doctor_install.os, "access", lambda *_: False)
    (found,) = doctor_install.cache_findings()
    assert found.state == "note"
    assert "JAX_COMPILATION_CACHE_DIR" in found.text + found.cure


def test_a_stored_token_is_not_shown(monkeypatch):
    monkeypatch.setattr(doctor_install, "get_token", lambda: "hf_secret")
    found = doctor_install.hub_findings()
    assert any("token is stored" in one.text for one in found)
    assert "hf_secret" not in str(found)


def test_lines_are_marked_and_commands_unbroken():
    cure = "python -m pip install " + "x" * 200
    assert ok("fine").lines() == ["ok      fine"]
    assert broken("bad", cure).lines() == ["BROKEN  bad", f"        -> {cure}"]
    assert all(len(line) <= 98 for line in note("word " * 60).lines())


@pytest.mark.slow
def test_the_program_itself():
    command = [sys.executable, "-m", "jaxtune", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
