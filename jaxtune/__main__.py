"""The program: `jaxtune`, or `python -m jaxtune`."""

import os
import sys

from jaxtune import cli


def main() -> int:
    """Set what only a program may set, and run the command."""
    # Without torch, transformers says that models are not available; its models are not used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # noqa: TID251
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
