"""`jaxtune chat`: each answer is the model's to all that was said; nothing ends it but its end."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtune import FastLanguageModel, cli
from jaxtune.cli import chat
from tests import base_install
from tests.jaxtune.cli.made import make_adapter, make_model

ROOT = Path(__file__).parents[3]
# Without the penalty the random model says the same to everything.
SHORT = ["--no-load-in-4bit", "--max-new-tokens", "6", "--repetition-penalty", "3"]


@pytest.fixture
def talk(monkeypatch, capsys):
    """Runs the program on lines of a pipe; its exit status and what it printed after its head."""

    def talked(lines: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        status = cli.main(["chat", *arguments, *SHORT])
        said = capsys.readouterr()
        return status, said.out.partition(f"{chat.COMMANDS}\n")[2] or said.out + said.err

    return talked


@pytest.fixture(scope="module")
def answers(adapter):
    """Greedy answers of the adapter to texts, by `generate`."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(adapter), max_seq_length=None, load_in_4bit=False
    )

    def answer(text: str, most: int = 6) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made = model.generate([ids], max_new_tokens=most, repetition_penalty=3.0)[0][len(ids) :]
        return tokenizer.decode(made, skip_special_tokens=True)

    return answer


def test_answers_are_to_all_that_was_said(talk, adapter, answers):
    status, said = talk("w1 w2\n\nw3\n/reset\nw1 w2\n", str(adapter))
    begun = "<s> w26 w1 w2 </s> w27"
    first = answers(begun)
    second = answers(f"{begun} {first} </s> w26 w3 </s> w27")
    assert first != second
    assert status == 0
    assert said.split("\n") == [first, second, "Forgotten.", first, "", ""]


def test_a_system_message_stays_after_reset(talk, adapter, answers):
    _, said = talk("w1\n/reset\nw1\n/quit\nw2\n", str(adapter), "--system", "w5 w6")
    wanted = answers("<s> w25 w5 w6 </s> w26 w1 </s> w27")
    assert said.split("\n") == [wanted, "Forgotten.", wanted, ""]


def test_a_question_that_is_too_long_is_forgotten(talk, adapter, answers):
    _, said = talk(f"{'w1 ' * 70}\nw1 w2\n/what\n", str(adapter))
    assert "the model takes 64" in said
    assert answers("<s> w26 w1 w2 </s> w27") in said.split("\n")
    assert f"There is no /what. {chat.COMMANDS}" in said


def test_a_longer_answer_than_the_range_is_cut(talk, adapter, answers):
    asked = " ".join(["w1"] * 57)
    _, said = talk(f"{asked}\n", str(adapter))
    text = f"<s> w26 {asked} </s> w27"
    assert said.split("\n")[0] == answers(text, 64 - len(text.split()))


def test_without_a_template_lines_are_continued(tmp_path, talk):
    plain = make_model(tmp_path / "plain", template=None)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(plain), max_seq_length=None, load_in_4bit=False
    )
    ids = tokenizer("w1 w2")["input_ids"]
    made = model.generate([ids], max_new_tokens=6, repetition_penalty=3.0)[0][len(ids) :]
    wanted = tokenizer.decode(made, skip_special_tokens=True)
    _, said = talk("w1 w2\nw1 w2\n", str(plain))
    assert said.split("\n") == [wanted, wanted, "", ""]
    status, said = talk("", str(plain), "--system", "w1")
    assert status == 2
    assert "--system needs a chat template" in said


def test_draws_follow_from_the_seed(talk, adapter):
    drawn = [talk("w1\n", str(adapter), "--temperature", "2", "--seed", s)[1] for s in "112"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert talk("w1\n", str(adapter), "--temperature", "0")[0] == 0


def test_the_token_that_ends_a_turn_ends_an_answer(adapter):
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(adapter), max_seq_length=None, load_in_4bit=False
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "unk_token")
    options = chat.Chat(model="x")
    assert chat.Conversation(model, tokenizer, options)._stops == [0, 2]


def test_an_adapter_of_another_base(tmp_path, talk, adapter, model, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(base_install.SIZES, "intermediate_size", 20)
        other = make_model(tmp_path / "other")
    status, said = talk("w1\n", str(adapter), "--base", str(other))
    assert status == 2
    assert "Check that the adapter was made for this base model" in said
    copy = make_model(tmp_path / "copy")
    assert talk("w1\n", str(adapter), "--base", str(copy)) == talk("w1\n", str(adapter))
    status, said = talk("w1\n", str(model), "--base", str(copy))
    assert (status, "--base goes with an adapter" in said) == (2, True)
    gone = make_adapter(copy, tmp_path / "adapter")
    copy.rename(tmp_path / "moved")
    status, said = talk("w1\n", str(gone))
    assert status == 2
    assert str(copy) in said


def test_ctrl_c_stops_an_answer_and_not_the_chat(monkeypatch, talk, adapter):
    real, calls = chat.Conversation._answer, []

    def interrupted(self, ids, most):
        calls.append(ids)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, ids, most)

    monkeypatch.setattr(chat.Conversation, "_answer", interrupted)
    status, said = talk("w1\nw2\n", str(adapter))
    assert status == 0
    assert said.startswith("\nStopped.\n")
    assert len(calls[1]) == len(calls[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens must be >= 1"),
        (["--temperature", "-1"], "--temperature must be >= 0"),
        ([], "MODEL"),
    ],
)
def test_wrong_options_are_explained(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", *(["x"] if arguments else []), *arguments])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.slow
def test_the_program_itself(adapter):
    command = [sys.executable, "-m", "jaxtune", "chat", str(adapter), *SHORT]
    done = subprocess.run(
        command, cwd=ROOT, input="w1\n", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Running on ")
