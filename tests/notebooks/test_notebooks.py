"""Each notebook runs from top to bottom on a tiny model, and is stored without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.base_install import write_model

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert 0 < len(cells) < 20
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_tiny_model(notebook: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_model(model)
    parameters = f"MODEL = {str(model)!r}\nMAX_SEQ_LENGTH = 32\nSTEPS = 6\n"
    parts = [
        parameters if "parameters" in cell["metadata"].get("tags", []) else "".join(cell["source"])
        for cell in code_cells(notebook)
    ]
    assert parameters in parts
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(parts), encoding="utf-8")
    command = [sys.executable, str(script)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean loss" in done.stdout
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "lora").iterdir()
    }
