"""The command line: one program, `jaxtune COMMAND`.

Nothing heavy is imported before a command is chosen, so that `--help` is quick.
"""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from jaxtune.bench.options import Bench
from jaxtune.cli.chat_options import Chat
from jaxtune.cli.config_file import with_config
from jaxtune.cli.doctor_options import Doctor
from jaxtune.cli.export_options import Export
from jaxtune.cli.train_options import Train
from jaxtune.cli.training_fields import registry
from jaxtune.console import fitted
from jaxtune.plan.options import PlanRequest
from jaxtune.quickstart.options import Quickstart

DESCRIPTION = """Fine-tune Llama, Mistral and Gemma with LoRA in JAX; the adapter loads in peft.

Start here, without network, GPU or arguments:
    jaxtune quickstart

Then a model and rows of your own, one {"text": "..."} a line:
    jaxtune quickstart --model HuggingFaceTB/SmolLM2-135M --dataset rows.jsonl

`jaxtune COMMAND --help` says what a command does, and what its options are.

If something does not work, begin with `jaxtune doctor`."""

# Name of the command: its options, and the module whose `run(options) -> exit status` serves it.
COMMANDS = {
    "quickstart": (Quickstart, "jaxtune.quickstart.run"),
    "train": (Train, "jaxtune.cli.train"),
    "chat": (Chat, "jaxtune.cli.chat"),
    "export": (Export, "jaxtune.cli.export"),
    "plan": (PlanRequest, "jaxtune.plan.run"),
    "bench": (Bench, "jaxtune.bench.run"),
    "doctor": (Doctor, "jaxtune.cli.doctor"),
}
COMPLETION = "--tyro-"  # of tyro's options that write completion scripts
WRONG_REQUEST = 2
UNREAD = 141  # likewise, of one whose output nobody reads any more
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    Args:
      arguments: Without the program's name; None: those of the process.

    Returns:
      The exit status: 0 done, 1 the run did not reach its aim, 2 a request that cannot be served,
      130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parsed(given)
        module = next(module for kind, module in COMMANDS.values() if isinstance(options, kind))
        return importlib.import_module(module).run(options)
    except KeyboardInterrupt:
        return _end("stopped.", INTERRUPTED)
    except BrokenPipeError:  # `jaxtune ... | head`: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        return _end(str(error), WRONG_REQUEST)


def _parsed(given: list[str]) -> Any:
    """The options of the command that is named; else help, a completion script or an error."""
    name = given[0] if given else ""
    if name in COMMANDS:
        spelt = with_config(given[1:]) if name == "train" else given[1:]
        kind: Callable[..., Any] = COMMANDS[name][0]
        try:
            return tyro.cli(kind, prog=f"jaxtune {name}", args=spelt, registry=registry())
        except SystemExit as ended:
            if ended.code and len(spelt) > len(given) - 1:
                sys.stderr.write("The options of --config count as if they stood there.\n")
            raise
    completes = any(word.startswith(COMPLETION) for word in given)
    kinds: dict[str, Callable[..., Any]] = {
        name: kind if completes else _named(kind) for name, (kind, _) in COMMANDS.items()
    }
    return tyro.extras.subcommand_cli_from_dict(
        kinds,
        prog="jaxtune",
        description=DESCRIPTION,
        args=given or ["--help"],
        registry=registry(),
    )


def _named(kind: type) -> type:
    """A stand-in for a command in the list of them: its first line, and no options to look at."""
    first, _, _ = (kind.__doc__ or "").partition("\n")
    return dataclasses.make_dataclass(kind.__name__, [], namespace={"__doc__": first})


def _end(message: str, status: int) -> int:
    """Say why the program ends, below whatever bar stands on the terminal."""
    sys.stderr.write(fitted(f"\njaxtune: {message}\n", sys.stderr))
    return status
