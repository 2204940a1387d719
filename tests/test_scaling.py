"""The commands and files of `docs/scaling.md` are ones that the program and Kubernetes take."""

import re
import shlex
from pathlib import Path

import pytest
import tyro
import yaml

from jaxtune.cli.train_options import Train
from jaxtune.cli.training_fields import registry

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text("utf-8")
COMMAND = re.compile(r"jaxtune train(?:\\\n|[^\n`])*")
# What a shell puts in the place of its variables, and what a file of options says.
SHELL = {"$resume": "--resume-from-checkpoint last", "$JOB_COMPLETION_INDEX": "1"}
FILE = "--model m --dataset d.jsonl"


def commands() -> list[str]:
    blocks = re.findall(r"```(?:sh|bash|yaml)\n(.*?)```", PAGE, re.DOTALL)
    return [found for block in blocks for found in COMMAND.findall(block)]


@pytest.mark.parametrize("command", commands())
def test_a_command_is_taken(command: str) -> None:
    command = re.sub(r"--config \S+", FILE, command.replace("\\\n", " "))
    for name, value in SHELL.items():
        command = command.replace(name, value)
    _, _, *words = shlex.split(command, comments=True)
    options = tyro.cli(Train, args=words, registry=registry())
    assert options.dataset


def test_there_are_commands() -> None:
    assert len(commands()) == 6


def test_the_jobset_has_as_many_pods_as_processes() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    jobset = yaml.safe_load(text)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (program,) = spec["template"]["spec"]["containers"][0]["args"]
    assert spec["parallelism"] == spec["completions"] == 2
    assert "--num-processes 2" in program
    assert spec["completionMode"] == "Indexed"
    address = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}:1234"
    assert f"--coordinator-address {address}" in program
