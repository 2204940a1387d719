"""`jaxtune bench --notebook`: from the start of a process to a saved adapter, twice."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from convert import write_json
from jaxtune import runtime
from jaxtune.bench import notebook_process
from jaxtune.bench.notebook_process import LABELS, Request
from jaxtune.bench.options import Bench
from jaxtune.bench.random_files import write_random_files
from jaxtune.bench.subject import Subject, read_config
from jaxtune.console import say
from jaxtune.memory import GIB

STARTS = ("cold", "warm")
TAIL = 2000  # characters of what a start said before it failed


def run_notebook(options: Bench, subject: Subject) -> dict[str, Any]:
    """Write the model if it is not there, then start the notebook twice.

    The first start finds no compiled program, the second those of the first.

    Args:
      options: Of the command line.
      subject: Of its `--model`, which is written where `--weights` has no config.json.

    Returns:
      A JSON object: device and driver, and a start each for "cold" and "warm".

    Raises:
      ValueError: Files that are missing, or a start that failed.
      CheckpointError: The model cannot be written.
    """
    weights, dataset = _paths(options)
    if not (weights / "config.json").is_file():
        if options.tokenizer is None:
            raise ValueError(
                f"--weights must be a model's folder, or --tokenizer say whose tokenizer goes with "
                f"the random one to write; {weights} has no config.json. Pass --tokenizer FOLDER."
            )
        say(f"Writing random weights of {subject.name} in {options.bits} bits to {weights}.")
        runtime.use_cpu()  # the starts have the GPU
        config_json = read_config(options.model)
        write_random_files(weights, subject, config_json, options.tokenizer, bits=options.bits)
    starts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in STARTS:
            request = Request(
                model=str(weights),
                dataset=str(dataset),
                length=options.length,
                rank=options.rank,
                bits=options.bits,
                output=f"{folder}/adapter-{name}",
                cache=f"{folder}/programs",
            )
            say(f"Start with {'no' if name == STARTS[0] else 'these'} compiled programs ...")
            starts[name] = _start(request, Path(folder) / name)
    device, driver = (starts[STARTS[0]][key] for key in ("device", "driver"))
    return {"device": device, "driver": driver, "starts": starts}


def _paths(options: Bench) -> tuple[Path, Path]:
    """The folder and the file that the options must name."""
    if options.weights is None or options.dataset is None:
        raise ValueError(
            "--notebook needs --weights FOLDER, for the model, and --dataset FILE, for its rows "
            "(Alpaca's columns, or `text`)."
        )
    if not options.dataset.is_file():
        raise ValueError(f"--dataset must be a file; there is none at {options.dataset}.")
    return options.weights.absolute(), options.dataset.absolute()


def _start(request: Request, place: Path) -> dict[str, Any]:
    """One start; what it wrote down, with the sizes that follow from it."""
    given, result = place.with_suffix(".request"), place.with_suffix(".result")
    write_json(given, dataclasses.asdict(request))
    command = [sys.executable, "-m", notebook_process.__name__, str(given), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not result.is_file():
        said = (done.stderr or done.stdout).strip()[-TAIL:]
        raise ValueError(f"a start of the notebook must end well; it ended with:\n{said}")
    found = json.loads(result.read_text("utf-8"))
    seconds, further = found["seconds"], found["steps"] - 1
    found["total_seconds"] = sum(seconds.values())
    found["step_ms"] = 1e3 * seconds["training"] / further if further else None
    if not (Path(request.output) / "adapter_model.safetensors").is_file():
        raise ValueError(f"a start must leave an adapter; {request.output} holds none.")
    return found


def notebook_lines(record: dict[str, Any]) -> list[str]:
    """What is printed of a record.

    Args:
      record: Of `run_notebook`.

    Returns:
      Lines without their ends.
    """
    starts = record["starts"]

    def row(label: str, values: list[str]) -> str:
        return f"{label:<28}" + "".join(f"{value:>12}" for value in values)

    def of(form: str, key: str) -> list[str]:
        values = [start[key] for start in starts.values()]
        return ["-" if value is None else form.format(value) for value in values]

    said = [row("", list(starts))]
    for phase, label in LABELS.items():
        said.append(row(label, [f"{start['seconds'][phase]:.1f} s" for start in starts.values()]))
    return [
        *said,
        row("process start to adapter", of("{:.1f} s", "total_seconds")),
        "",
        row("a step after the first", of("{:.1f} ms", "step_ms")),
        row("programs compiled", of("{}", "compiled")),
        row("of these after the first step", of("{}", "compiled_after_first_step")),
        row("most memory held", [f"{s['peak_bytes'] / GIB:.2f} GiB" for s in starts.values()]),
        row("plan", [start["plan"] for start in starts.values()]),
        row("loss of the first step", [f"{s['losses'][0]:.4f}" for s in starts.values()]),
        row("of the last", [f"{s['losses'][-1]:.4f}" for s in starts.values()]),
        "",
        "The weights' files may be in the system's memory already at both starts.",
    ]
