"""The program: `jaxtune`, or `python -m jaxtune`."""

import os
import sys

from jaxtune import cli
from jaxtune.cli.launcher import launcher_options


def main() -> int:
    """Set what only a program may set, and run the command."""
    # Without torch, transformers says that models are not available; its models are not used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # noqa: TID251
    # A notebook would have the pool.
    if sys.argv[1:2] == ["bench"] and "--notebook" not in sys.argv:
        # JAX then takes memory as it is needed, so that nvidia-smi shows the step's and not a pool.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # noqa: TID251
    if sys.argv[1:2] in (["train"], ["doctor"]):  # the latter says what the former will have
        # JAX takes 75 % of a card by default; what trains there has it to itself.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # noqa: TID251
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"]:  # what the user says comes behind, and wins
        arguments[1:1] = launcher_options(os.environ)  # noqa: TID251
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
