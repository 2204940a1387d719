"""`jaxtune bench` from the command line to its file."""

import json
import re

import jax
import pytest

from jaxtune import cli
from jaxtune.bench import run
from jaxtune.bench.report import lines


@pytest.fixture(scope="module")
def measured(folder):
    """One run, with everything on: its status and its record."""
    file = folder / "out.json"
    options = ["--model", str(folder), "--bits", "16", "--length", "32", "--rank", "2"]
    options += ["--accumulation", "2", "--packing", "--output", str(file)]
    status = cli.main(["bench", *options, "--profile", str(folder / "trace")])
    return status, json.loads(file.read_text())


def test_the_step_is_measured(measured):
    status, record = measured
    assert status == 0
    step = record["step"]
    assert step["tokens"] == 2 * 2 * 32
    assert len(step["each_ms"]) == 10
    assert 0 < min(step["each_ms"]) <= step["p20_ms"] <= step["median_ms"] <= step["p80_ms"]
    assert step["tokens_per_second"] == pytest.approx(1e3 * 128 / step["median_ms"])
    assert 3 < step["loss"] < 7


def test_nothing_compiles_while_timing_and_every_donated_array_is_taken(measured):
    _, record = measured
    assert record["compilation"]["during_timed_steps"] == 0
    assert record["compilation"]["compile_seconds"] > 0
    assert record["compilation"]["start_to_first_step_seconds"] > 0
    # A and B of seven projections, Adam's two moments of each, and the counters.
    assert record["donation"]["of"] >= 3 * 14 + 1
    assert record["donation"]["taken_over"] == record["donation"]["of"]


def test_the_numbers_belong_together(measured):
    _, record = measured
    floor, step, work = record["floor"], record["step"], record["work"]
    assert floor["percent_of_step"] == pytest.approx(100 * floor["total_ms"] / step["median_ms"])
    reached = 1e3 * work["flops"] / step["median_ms"]
    rate = record["rates"]["matmul_flops_per_second"]
    assert record["utilisation"]["of_measured_matmul"] == pytest.approx(reached / rate)
    held = record["memory_bytes"]
    assert held["optimizer"] > 2 * held["adapter"] > 0  # two moments, and a count
    plan = held["compiler"]
    parts = held["frozen"] + held["adapter"] + held["optimizer"]
    assert 0 < plan["arguments"] - parts < 10_000  # the batch
    held = plan["arguments"] + plan["temporaries"] + plan["outputs"] - plan["aliased"]
    assert plan["peak"] == held > plan["arguments"] > 0
    assert work["linears"] == 4 * 2 * 32 * (2 * 8 * (4 + 2) + 3 * 44) * 128
    assert record["options"]["packing"] is True
    assert record["versions"]["jax"] == jax.__version__


def test_what_is_printed(measured):
    _, record = measured
    text = "\n".join(lines(record))
    step = record["step"]
    assert f"{step['median_ms']:.1f} ms median of 10" in text
    assert f"{step['tokens_per_second']:,.0f} tokens/s" in text
    assert "2 x 2 rows of 32 tokens, packed; 16 bits, LoRA rank 2, adamw_torch, plan full" in text
    assert re.search(r"compiled while timing +0 programs", text)
    assert re.search(r"by the compiler +[\d.]+ MiB \(arguments [\d.]+ MiB", text)
    assert re.search(r"by nvidia-smi +not told", text)
    assert "no datasheet peak known" in text
    columns = {re.match(r"(.*?)(?: {2,}|$)(?=\S)", row)[0] for row in text.splitlines()[:4]}
    assert len({len(column) for column in columns}) == 1


def test_a_small_run_prints_and_ends_well(folder, capsys):
    assert cli.main(["bench", "--model", str(folder), "--bits", "16", "--length", "16"]) == 0
    out = capsys.readouterr().out
    assert "CPU: times mean nothing for a GPU.\n" in out
    assert "Written to" not in out
    assert "profile" not in out


def test_on_a_cpu_the_profile_says_that_it_holds_no_kernels(measured):
    _, record = measured
    assert record["profile"]["kernels"] == []
    assert lines(record)[-1] == "profile: the trace holds no GPU kernels."


def test_a_gpus_record_in_words(measured):
    _, record = measured
    group = {"ms": 1.5, "launches": 2.0, "floor_ms": 1.25}
    kernel = {"name": "nvjet", "group": "GEMM", "ms": 1.5, "launches": 2.0, "share": 0.75}
    memory = {"allocator_before": 5 * 2**30, "allocator": 5 * 2**30, "in_use": 2**30}
    memory["nvidia_smi"] = 6 * 2**30
    record = {
        **record,
        "driver": "580.65",
        "memory_bytes": {**record["memory_bytes"], **memory},
        "profile": {
            "total_ms": 2.0,
            "groups": {"GEMM": group, "other": {**group, "floor_ms": None}},
            "kernels": [kernel] * 30,
        },
    }
    record["rates"] = {**record["rates"], "datasheet_flops_per_second": 989e12}
    record["utilisation"] = {"of_datasheet": 0.5, "of_measured_matmul": 0.6}
    said = lines(record)
    assert any("50.0 % of the datasheet's 989 TFLOP/s" in row for row in said)
    assert any("at most 5.00 GiB, reached while the weights were drawn" in row for row in said)
    assert any(re.search(r"by nvidia-smi +6\.00 GiB$", row) for row in said)
    assert "GEMM                         1.50  75.0 %         2      1.25" in said
    assert "other                        1.50  75.0 %         2         -" in said
    assert sum(row.endswith("  nvjet") for row in said) == 25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--length", "65"], "--length must be <= 64"),
        (["--length", "16", "--optimizer", "adam"], "`optim` must be one of"),
        (["--length", "16", "--kernels", "cuda"], "`kernels` must be one of"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_any_work(
    folder, monkeypatch, capsys, arguments, said
):
    monkeypatch.setattr(run, "make_setup", lambda *_: pytest.fail("work was begun"))
    assert cli.main(["bench", "--model", str(folder), "--bits", "16", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_too_little_memory_is_one_message(folder, monkeypatch, capsys):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(run, "make_setup", fail)
    assert cli.main(["bench", "--model", str(folder), "--bits", "16", "--length", "16"]) == 2
    assert "--plan full does not. Try --bits 4" in capsys.readouterr().err


def test_another_error_of_the_device_keeps_its_traceback(folder, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(run, "make_setup", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        cli.main(["bench", "--model", str(folder), "--bits", "16", "--length", "16"])
