"""Each notebook runs from top to bottom on a tiny model, and is stored without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebooks.tiny_models import write_gemma2, write_llama, write_rows

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
# Folders that a notebook leaves, and files in each.
LEFT = {
    "01_lora_sft": {"lora": ADAPTER},
    "02_qlora_gemma2": {"lora": ADAPTER, "merged": {"model.safetensors", "tokenizer.json"}},
    "03_export": {
        "lora": ADAPTER,
        "merged": {"model.safetensors", "config.json"},
        "gguf": {"model.Q8_0.gguf"},
    },
    "04_continued_pretraining": {"lora": ADAPTER, "merged": {"model.safetensors"}},
    "05_own_training_loop": {"lora": ADAPTER},
}
SAID = {
    "02_qlora_gemma2": ["<start_of_turn>model\n", "[["],
    "03_export": ["read back by peft", "PeftModelForCausalLM"],
    "04_continued_pretraining": ["perplexity of held-out text:", "instead of 5.00e-05"],
    "05_own_training_loop": ["gradient norm"],
}


def cells_of(notebook: Path, kind: str) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_there_are_five_notebooks() -> None:
    assert list(LEFT) == NAMES


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_short_and_stored_without_outputs(notebook: Path) -> None:
    cells = cells_of(notebook, "code")
    assert len(cells) + len(cells_of(notebook, "markdown")) < 20
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_installs_and_says_what_a_t4_does(notebook: Path) -> None:
    (install,) = [cell for cell in cells_of(notebook, "code") if "install" in tags(cell)]
    assert "%pip install" in "".join(install["source"])
    first = "".join(cells_of(notebook, "markdown")[0]["source"])
    for said in ("T4", "float16", "Kaggle without internet", "Two T4s"):
        assert said in first


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands in for the models and the rows."""
    folder = tmp_path_factory.mktemp("stand_ins")
    return {
        "rows": write_rows(folder / "rows.jsonl"),
        "llama": write_llama(folder / "llama" / "model"),
        "gemma2": write_gemma2(folder / "gemma2" / "model"),
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_on_a_tiny_model(
    notebook: Path, tmp_path: Path, stand_ins: dict[str, Path]
) -> None:
    model = stand_ins["gemma2" if "gemma2" in notebook.stem else "llama"]
    parameters = (
        f"MODEL = {str(model)!r}\nDATASET = {str(stand_ins['rows'])!r}\n"
        "MAX_SEQ_LENGTH = 128\nSTEPS = 6\nRANK = 4\n"
    )
    parts = [
        parameters if "parameters" in tags(cell) else "".join(cell["source"])
        for cell in cells_of(notebook, "code")
        if "install" not in tags(cell)
    ]
    assert parameters in parts
    cells = tmp_path / "cells.json"
    cells.write_text(json.dumps(parts), encoding="utf-8")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    away = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "run_cells.py"), str(cells)],
        cwd=tmp_path,
        env={**os.environ, **away, "PYTHONPATH": path, "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for said in ("mean loss", *SAID.get(notebook.stem, [])):
        assert said in done.stdout
    for folder, files in LEFT[notebook.stem].items():
        assert files <= {path.name for path in (tmp_path / folder).iterdir()}
