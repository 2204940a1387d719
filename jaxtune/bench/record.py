"""All that was measured, as one JSON object."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune.bench.answers import Answers
from jaxtune.bench.floors import Floor, Rates, Work, datasheet_peak, linear_parameters
from jaxtune.bench.measure import Measured
from jaxtune.bench.memory import allocated, nvidia_smi_bytes
from jaxtune.bench.options import Bench
from jaxtune.bench.subject import Subject
from jaxtune.bench.trace import ATTENTION, DEQUANTISATION, GEMM, Kernel, by_group
from jaxtune.language_model import LanguageModel
from jaxtune.machine import Machine
from jaxtune.training.sizes import nbytes
from jaxtune.training.step import split

PACKAGES = ("jaxtune", "jax", "jaxlib", "flax", "optax", "numpy")

Json = dict[str, Any]


def about(options: Bench, subject: Subject) -> Json:
    """What was measured when, with which versions.

    Args:
      options: Of the command line.
      subject: The model.

    Returns:
      A JSON object.
    """
    config = subject.config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in PACKAGES},
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(options).items()
        },
        "model": {
            "family": subject.family.family,
            "linear_parameters": linear_parameters(config),
            **{name: getattr(config, name) for name in names},
        },
    }


def place_of(machine: Machine) -> Json:
    """Where it was measured."""
    device = {"kind": machine.devices[0], "platform": machine.backend}
    return {"device": device, "driver": machine.driver}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a copy that was not installed
        return None


def results(measured: Measured, work: Work, rates: Rates, floor: Floor) -> Json:
    """The numbers; bytes, FLOPs, ms and seconds, as their names say.

    Args:
      measured: Times, memory, compilation.
      work: Of a step.
      rates: Of the device.
      floor: Of a step at those rates.

    Returns:
      A JSON object.
    """
    times = spread(measured.step_ms)
    median = times["median_ms"]
    reached = 1e3 * work.flops / median
    peak = datasheet_peak(jax.devices()[0].device_kind)
    plan = measured.memory.compiler
    memory = dataclasses.asdict(measured.memory)
    if plan is not None:
        memory["compiler"] = {**dataclasses.asdict(plan), "peak": plan.peak}
    return {
        "step": {
            **times,
            "tokens": work.tokens,
            "tokens_per_second": 1e3 * work.tokens / median,
            "loss": measured.loss if np.isfinite(measured.loss) else None,
        },
        "work": {**dataclasses.asdict(work), "flops": work.flops},
        "rates": {
            "matmul_flops_per_second": rates.matmul,
            "copy_bytes_per_second": rates.copy,
            "datasheet_flops_per_second": peak,
        },
        "utilisation": {
            "of_datasheet": None if peak is None else reached / peak,
            "of_measured_matmul": reached / rates.matmul,
        },
        "floor": {
            **{f"{name}_ms": value for name, value in dataclasses.asdict(floor).items()},
            "total_ms": floor.total,
            "percent_of_step": 100 * floor.total / median,
        },
        "memory_bytes": memory,
        "compilation": {
            "trace_seconds": measured.trace_seconds,
            "compile_seconds": measured.compile_seconds,
            "from_cache": measured.from_cache,
            "start_to_first_step_seconds": measured.start_to_first_step,
            "during_timed_steps": measured.compilations,
        },
        "donation": {"taken_over": measured.donated, "of": measured.donatable},
    }


def spread(milliseconds: Sequence[float]) -> dict[str, Any]:
    """Times of the same thing: median, p20, p80, and each."""
    p20, median, p80 = (float(x) for x in np.percentile(milliseconds, [20, 50, 80]))
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "each_ms": list(milliseconds)}


def answered(found: Sequence[Answers], options: Bench, model: LanguageModel, rates: Rates) -> Json:
    """Answers in numbers; tokens/s are those of all rows.

    Args:
      found: What was seen.
      options: Of the command line.
      model: What answered.
      rates: Of the device.

    Returns:
      A JSON object.
    """
    device, (_, trainable, frozen) = jax.devices()[0], split(model)
    return {
        "answers": [_answer(answers, options) for answers in found],
        "rates": {
            "matmul_flops_per_second": rates.matmul,
            "copy_bytes_per_second": rates.copy,
        },
        "memory_bytes": {
            "frozen": nbytes(frozen),
            "adapter": nbytes(trainable),
            "allocator": allocated(device, "peak_bytes_in_use"),
            "nvidia_smi": nvidia_smi_bytes(device),
        },
    }


def _answer(answers: Answers, options: Bench) -> Json:
    first, whole = spread(answers.first_token_ms), spread(answers.answer_ms)
    further = whole["median_ms"] - first["median_ms"]
    decoded = answers.rows * (options.new_tokens - 1)
    return {
        "rows": answers.rows,
        "for_inference": answers.for_inference,
        "first_call_seconds": answers.first_call_seconds,
        "first_token": first,
        "answer": whole,
        "tokens_per_second": 1e3 * answers.rows * options.new_tokens / whole["median_ms"],
        # Noise may make a short answer no slower than its first token.
        "decoded_tokens_per_second": 1e3 * decoded / further if further > 0 else None,
        "compiled_during": answers.compilations,
        "floor": {
            "first_token_ms": answers.floor.first_token,
            "token_ms": answers.floor.token,
            "tokens_per_second": 1e3 * answers.rows / answers.floor.token,
        },
    }


def profiled(found: Sequence[Kernel], floor: Floor) -> Json:
    """The kernels, and their groups beside the floors that are known.

    Args:
      found: Of `jaxtune.bench.trace.kernels`.
      floor: Of the step.

    Returns:
      A JSON object.
    """
    floors: Mapping[str, float] = {
        GEMM: floor.linears + floor.head,
        ATTENTION: floor.attention,
        DEQUANTISATION: floor.dequantisation,
    }
    total = sum(kernel.ms for kernel in found)
    return {
        "total_ms": total,
        "groups": {
            group: {"ms": ms, "launches": launches, "floor_ms": floors.get(group)}
            for group, (ms, launches) in by_group(found).items()
        },
        "kernels": [
            {**dataclasses.asdict(kernel), "share": kernel.ms / total if total else 0.0}
            for kernel in found
        ],
    }
