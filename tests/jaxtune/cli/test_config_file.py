"""Options in YAML: read as a command line has them, overridden by it, and refused by name."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from jaxtune import cli
from jaxtune.cli import train
from jaxtune.cli.config_file import with_config
from jaxtune.cli.train_options import Train
from jaxtune.cli.training_fields import IDLE, explanations, grouped
from jaxtune.training.config import UnslothTrainingArguments

NEEDED = ["--model", "m", "--dataset", "d.jsonl"]


@pytest.fixture
def parse(monkeypatch):
    """What `train` would be run with, and its exit status."""

    def parsed(*arguments: str) -> Train:
        seen = []
        monkeypatch.setattr(train, "run", lambda options: seen.append(options) or 0)
        assert cli.main(["train", *arguments]) == 0
        return seen[0]

    return parsed


def refused(capsys, *arguments: str) -> str:
    """What `train` says of arguments that it does not take; some errors are tyro's, in a box."""
    try:
        status = cli.main(["train", *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    said = capsys.readouterr()
    return " ".join((said.out + said.err).replace("│", " ").split())


def written(folder: Path, text: str) -> str:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_without_options_the_arguments_are_those_of_python(parse):
    got = parse(*NEEDED).args
    assert got == dataclasses.replace(UnslothTrainingArguments(), output_dir="outputs")


def test_every_field_has_one_place_and_an_explanation():
    placed = [name for names in grouped().values() for name in names]
    fields = [field.name for field in dataclasses.fields(UnslothTrainingArguments)]
    assert sorted([*placed, *IDLE]) == sorted(fields)
    texts = explanations(UnslothTrainingArguments)
    assert [name for name in fields if not texts.get(name)] == []
    assert explanations(Train).keys() >= {f.name for f in dataclasses.fields(Train)}


def test_a_file_gives_options_and_the_command_line_wins(parse, tmp_path):
    file = written(
        tmp_path,
        "model: m\ndataset: d.jsonl\nlearning_rate: 2e-4\nmax_steps: 60\nwarmup-steps: 5\n"
        "load_in_4bit: false\npacking: true\ntarget_modules: [q_proj, v_proj]\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\n"
        "report_to: [tensorboard, wandb]\neval_steps: null\nbf16: true\nrun_name: --strange\n",
    )
    got = parse("--config", file, "--max-steps", "7", "--packing-strategy", "wrapped")
    assert (got.model, got.load_in_4bit, got.targets) == ("m", False, ["q_proj", "v_proj"])
    args = got.args
    assert (args.learning_rate, args.max_steps, args.warmup_steps) == (2e-4, 7, 5)
    assert (args.packing, args.packing_strategy, args.bf16) == (True, "wrapped", True)
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert list(args.report_to or ()) == ["tensorboard", "wandb"]
    assert (args.eval_steps, args.run_name) == (None, "--strange")


def test_every_default_survives_a_file(parse, tmp_path):
    own = {f.name: f.default for f in dataclasses.fields(Train)}
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in own.items()
        if name not in ("model", "dataset", "config", "args", "resume_from_checkpoint")
    }
    values |= {f.name: f.default for f in dataclasses.fields(UnslothTrainingArguments)}
    values["output_dir"] = "outputs"
    file = written(tmp_path, yaml.safe_dump(values))
    assert parse(*NEEDED, "--config", file) == dataclasses.replace(
        parse(*NEEDED), config=Path(file)
    )


def test_options_of_pytorchs_trainers_are_taken_where_they_change_nothing(parse, tmp_path, capsys):
    file = written(tmp_path, "dataloader_num_workers: 4\ngradient_checkpointing: true\n")
    args = parse(*NEEDED, "--config", file).args
    assert (args.dataloader_num_workers, args.gradient_checkpointing) == (4, True)
    file = written(tmp_path, "hub_token: hf_secret\n")
    said = refused(capsys, *NEEDED, "--config", file)
    assert "hf_secret" not in said
    assert "a value that is not shown" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lerning_rate: 1\n", "got `lerning_rate`. Did you mean `learning_rate`?"),
        ("config: other.yaml\n", "got `config`."),
        ("- 1\n- 2\n", "holds a list"),
        ("", "holds a NoneType"),
        ("a: [1\n", "must be plain YAML"),
        ("seed: &a [1, 1]\nrun_name: [*a, *a]\n", "must have no aliases"),
        ("model: !!python/object/apply:os.system ['touch owned']\n", "must be plain YAML"),
        ("seed: 1\nseed: 2\n", None),  # YAML's own rule: the later one
        ("max-steps: 1\nmax_steps: 2\n", "has `max_steps` twice"),
        ("target_modules: [q_proj, --output-dir]\n", "must not begin with --"),
        ("\x00", "must be plain YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_to_be(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, text)
    if said is None:
        assert with_config(["--config", file])[0] == "--seed=2"
        return
    assert cli.main(["train", *NEEDED, "--config", file]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_a_value_of_the_wrong_kind_and_a_missing_file(tmp_path, capsys):
    file = written(tmp_path, "max_steps: many\n")
    said = refused(capsys, *NEEDED, "--config", file)
    assert "--max-steps" in said
    assert "The options of --config count" in said
    assert "no.yaml is none" in refused(capsys, "--config", str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--r", "0"], "--r must be >= 1; got 0"),
        (["--eval-dataset", "x.jsonl"], "Add --eval-strategy"),
        (["--learning-rate", "-1"], "`learning_rate` must be >= 0"),
        (["--lr-scheduler-kwargs", "{"], "must be JSON"),
        (["--script-arguments", '{"learning_rate": 1}'], "learning_rate"),
        (["--save-strategy", "no", "--resume-from-checkpoint", "last"], "needs checkpoints"),
        (["--full-finetuning", "--use-dora"], "--use-dora is of adapters"),
    ],
)
def test_wrong_options_of_train_are_explained(capsys, arguments, said):
    assert said in refused(capsys, *NEEDED, *arguments)


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (("all-linear",), "all-linear"),
        (("q_proj",), ["q_proj"]),
        (("self_attn.q_proj",), ["self_attn.q_proj"]),
        ((r".*\.q_proj",), r".*\.q_proj"),
        (("q_proj", "lm_head"), ["q_proj", "lm_head"]),
    ],
)
def test_targets_are_names_or_one_expression(given, targets):
    assert Train(model="m", dataset="d", target_modules=given).targets == targets
