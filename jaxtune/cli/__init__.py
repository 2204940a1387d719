"""The command line: one program, `jaxtune COMMAND`.

Nothing heavy is imported before a command is chosen, so that `--help` is quick.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from jaxtune.bench.options import Bench
from jaxtune.plan.options import PlanRequest
from jaxtune.quickstart.options import Quickstart

DESCRIPTION = """Fine-tune Llama, Mistral and Gemma with LoRA in JAX; the adapter loads in peft.

Start here, without network, GPU or arguments:
    jaxtune quickstart

Then a model and rows of your own, one {"text": "..."} a line:
    jaxtune quickstart --model HuggingFaceTB/SmolLM2-135M --dataset rows.jsonl"""

# Name of the command: its options, and the module whose `run(options) -> exit status` serves it.
COMMANDS = {
    "quickstart": (Quickstart, "jaxtune.quickstart.run"),
    "bench": (Bench, "jaxtune.bench.run"),
    "plan": (PlanRequest, "jaxtune.plan.run"),
}
WRONG_REQUEST = 2
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    Args:
      arguments: Without the program's name; None: those of the process.

    Returns:
      The exit status: 0 done, 1 the run did not reach its aim, 2 a request that cannot be served,
      130 interrupted.
    """
    kinds: dict[str, Callable[..., Any]] = {name: kind for name, (kind, _) in COMMANDS.items()}
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = tyro.extras.subcommand_cli_from_dict(
            kinds,
            prog="jaxtune",
            description=DESCRIPTION,
            args=given or ["--help"],
        )
        module = next(module for kind, module in COMMANDS.values() if isinstance(options, kind))
        return importlib.import_module(module).run(options)
    except KeyboardInterrupt:
        return _end("stopped.", INTERRUPTED)
    except (ValueError, NotImplementedError, OSError) as error:
        return _end(str(error), WRONG_REQUEST)


def _end(message: str, status: int) -> int:
    """Say why the program ends, below whatever bar stands on the terminal."""
    sys.stderr.write(f"\njaxtune: {message}\n")
    return status
