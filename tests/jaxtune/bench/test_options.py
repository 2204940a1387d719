"""The options of `jaxtune bench`: explained, checked before anything is loaded."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from jaxtune import cli
from jaxtune.api import REMAT
from jaxtune.bench.configs import BUILT_IN
from jaxtune.bench.options import Bench
from jaxtune.config import Remat
from jaxtune.models import run

ROOT = Path(__file__).parents[3]


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for name in (name.replace("_", "-") for name in Bench.__dataclass_fields__):
        assert re.search(rf"--{name}[ ,]", out), name
    assert "{none,gate_up,attention,full,offload,least}" in out
    assert "{4,16}" in out


def test_help_imports_nothing_heavy():
    program = (
        "import sys, jaxtune.cli\n"
        "try: jaxtune.cli.main(['bench', '--help'])\n"
        "finally: sys.stderr.write(repr([m for m in ('jax', 'numpy', 'flax') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]"


def test_the_plans_are_those_of_the_model():
    assert run.Remat is Remat
    assert set(REMAT.values()) == set(get_args(Remat))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "--batch must be >= 1; got 0"),
        (["--length", "1"], "--length must be >= 2; got 1"),
        (["--rank", "0"], "--rank must be >= 1; got 0"),
        (["--accumulation", "0"], "--accumulation must be >= 1; got 0"),
        (["--steps", "9"], "--steps must be >= 10; got 9"),
        (["--bits", "8"], "8"),
        (["--plan", "most"], "most"),
        (["--model", "llama-3-9b"], "got 'llama-3-9b'"),
        (["--output", "no/such/folder.json"], "--output must be a file"),
        (["--profile", str(ROOT / "README.md")], "is a file"),
    ],
)
def test_wrong_arguments_are_explained_with_status_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_an_unknown_model_is_answered_with_the_built_in_names():
    with pytest.raises(ValueError, match="built-in name") as error:
        Bench(model="llama-3-9b")
    assert all(name in str(error.value) for name in BUILT_IN)
