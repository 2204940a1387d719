"""Run the cells of a notebook as IPython does, in one process: `python run_cells.py FILE`.

FILE holds the code cells as a list of texts. The first cell that fails ends it with status 1.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before IPython chooses: there is no screen
from IPython.core.interactiveshell import InteractiveShell


def main(file: str) -> int:
    """Run them; what a last expression gives is printed, as in a notebook."""
    shell = InteractiveShell.instance()
    for cell in json.loads(Path(file).read_text(encoding="utf-8")):
        if not shell.run_cell(cell).success:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
