"""`python -m convert TARGET SRC OUT`: write an adapter for those who do not use JAX."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from convert.errors import CheckpointError
from convert.exporters import EXPORTERS, Meter

_FAILED, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str]) -> int:
    """Run one export.

    Args:
      arguments: The command line without the program's name.

    Returns:
      The exit status: 0, 2 after an error, which stands on stderr, or 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    live = sys.stderr.isatty()
    try:
        message = EXPORTERS[options.target].export(options, _meter() if live else _silent)
    except (CheckpointError, OSError) as error:
        print(f"{_end(live)}error: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print(f"{_end(live)}Stopped: {options.out} is as it was before.", file=sys.stderr)
        return _INTERRUPTED
    print(_end(live), end="", file=sys.stderr)
    print(message)
    return 0


def _parser() -> argparse.ArgumentParser:
    """One sub-command for each target, with its example."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Write a LoRA adapter, ours or PEFT's, in a form that others load.",
        epilog="examples:\n" + "\n".join(f"  {row.example}" for row in EXPORTERS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    targets = parser.add_subparsers(dest="target", metavar="TARGET", required=True)
    for name, row in EXPORTERS.items():
        target = targets.add_parser(
            name,
            help=row.summary,
            description=f"Write {row.summary}.",
            epilog=f"example:\n  {row.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        target.add_argument(
            "src",
            type=Path,
            metavar="SRC",
            help="the adapter's folder (gguf, merged-4bit: or a model's)",
        )
        target.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
        row.add_options(target)
    return parser


def _silent(done: int, total: int) -> None:
    """Report nothing, where stderr is no terminal."""


def _meter() -> Meter:
    """Report MB written, MB/s and the share on one line that is written over."""
    begun = time.monotonic()

    def show(done: int, total: int) -> None:
        speed = done / max(time.monotonic() - begun, 1e-3) / 1e6
        share = 100 * done / max(total, 1)
        line = f"{done / 1e6:.0f} MB written, {speed:.0f} MB/s, {share:.0f} %"
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

    return show


def _end(live: bool) -> str:
    """What ends the line of the progress, if there is one."""
    return "\n" if live else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
