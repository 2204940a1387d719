"""`python -m jaxtune`: the same program as `jaxtune`."""

import sys

from jaxtune.cli import main

if __name__ == "__main__":
    sys.exit(main())
