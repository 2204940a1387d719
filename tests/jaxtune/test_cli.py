"""The command line: quick and telling help, one readable line for an error, exit statuses."""

import importlib.util
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxtune import __main__, cli
from jaxtune.errors import NotBuiltYetError, UnsupportedModelError
from jaxtune.quickstart import own_model, tiny_model
from jaxtune.quickstart import run as quickstart

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "flax", "optax", "transformers", "datasets", "torch", "numpy")


def fresh(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxtune", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def cpu_of_children() -> float:
    """Seconds of work; those on the clock would be the other tests' too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_takes_half_a_second_and_teaches():
    seconds = []
    for _ in range(3):
        start = cpu_of_children()
        done = fresh("--help")
        seconds.append(cpu_of_children() - start)
    assert statistics.median(seconds) <= 0.5
    assert done.returncode == 0
    assert "\n    jaxtune quickstart\n" in done.stdout
    assert "--model HuggingFaceTB/SmolLM2-135M --dataset rows.jsonl" in done.stdout
    assert fresh().stdout == done.stdout


def test_help_imports_nothing_heavy():
    program = (
        "import sys, jaxtune.cli\n"
        "try: jaxtune.cli.main(['quickstart', '--help'])\n"
        f"finally: sys.stderr.write(repr([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]"


def test_the_default_numbers_of_steps_are_those_of_the_help():
    text = " ".join(fresh("quickstart", "--help").stdout.replace("│", " ").split())
    assert f"by default {tiny_model.STEPS} for the tiny model, {own_model.STEPS} for" in text


def test_only_commands_that_exist_are_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = "jaxtune [-h] {quickstart,train,chat,export,plan,bench,doctor}\n"
    assert listed in capsys.readouterr().out
    for _, module in cli.COMMANDS.values():
        assert importlib.util.find_spec(module) is not None


def test_every_option_of_quickstart_is_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["quickstart", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for option in ("--model", "--dataset", "--output", "--steps", "--seed"):
        assert re.search(rf"{option} [A-Z]+ +\w+", out), option


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quikstart"], "quickstart"),
        (["quickstart", "--stps", "3"], "--steps"),
        (["quickstart", "--steps", "many"], "many"),
        (["quickstart", "--steps", "0"], "--steps must be >= 1; got 0"),
        (["quickstart", "--seed", "-1"], "--seed must be >= 0; got -1"),
        (["quickstart", "--model", "x"], "Add --dataset"),
        (["quickstart", "--dataset", "x"], "Add --model"),
        (["quickstart", "--output", str(ROOT / "README.md")], "is a file"),
    ],
)
def test_wrong_arguments_are_explained_with_status_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    "error",
    [ValueError, UnsupportedModelError, NotBuiltYetError, FileNotFoundError, ConnectionError],
)
def test_an_error_of_the_library_is_one_message_with_status_2(monkeypatch, capsys, error):
    def fail(_):
        raise error("the rule; what was got; what to do.")

    monkeypatch.setattr(quickstart, "run", fail)
    assert cli.main(["quickstart"]) == 2
    assert capsys.readouterr().err == "\njaxtune: the rule; what was got; what to do.\n"


def test_a_fault_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise KeyError("a fault of the program")

    monkeypatch.setattr(quickstart, "run", fail)
    with pytest.raises(KeyError):
        cli.main(["quickstart"])


def test_ctrl_c_ends_with_a_short_line_and_status_130(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "run", interrupt)
    assert cli.main(["quickstart"]) == 130
    assert capsys.readouterr().err == "\njaxtune: stopped.\n"


def test_the_status_is_the_processs():
    assert fresh("quickstart", "--model", "x").returncode == 2


def test_the_program_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert declared == {"jaxtune": f"{__main__.main.__module__}:{__main__.main.__name__}"}


def test_the_program_keeps_transformers_from_advising_torch(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda _: 7)
    monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
    assert __main__.main() == 7
    assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "1"


@pytest.mark.parametrize(
    ("command", "share"), [("train", "0.9"), ("doctor", "0.9"), ("chat", None), ("bench", None)]
)
def test_training_takes_most_of_the_card_unless_told_otherwise(monkeypatch, command, share):
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.setattr(cli, "main", lambda _: 0)
    monkeypatch.setattr(sys, "argv", ["jaxtune", command])
    for given in (None, "0.5"):
        with monkeypatch.context() as patched:
            patched.setenv(name, given or "")
            if given is None:
                patched.delenv(name)
            __main__.main()
            assert os.environ.get(name) == (given or share)
            os.environ.pop(name, None)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_know_commands_and_options(capsys, shell):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--tyro-print-completion", shell])
    assert not ended.value.code
    script = capsys.readouterr().out
    for word in (*cli.COMMANDS, "learning-rate", "max-new-tokens", "method"):
        assert word in script


def test_the_commands_of_the_readme_are_parsed(monkeypatch, tmp_path):
    seen = []
    for _, module in cli.COMMANDS.values():
        monkeypatch.setattr(f"{module}.run", lambda options: seen.append(options) or 0)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (file,) = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    (tmp_path / "run.yaml").write_text(file, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix("# ") for line in file.splitlines() if line.startswith("# jaxtune")]
    for block in re.findall(r"```sh\n(.*?)```", readme, re.S):
        lines += [line for line in block.splitlines() if re.match(r"jaxtune \w", line)]
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
    assert len(seen) == len(lines) >= 8
    assert seen[0].args.learning_rate == 2e-4


@pytest.mark.slow
def test_output_that_nobody_reads_ends_quietly():
    command = f"{sys.executable} -m jaxtune doctor | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout in ("141\n", "0\n")  # 0 where the pipe was still open
    assert done.stderr == ""
