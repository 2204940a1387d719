"""`jaxtune bench --generate`: what is timed, its floors, and what is refused."""

import json

import pytest

from jaxtune import cli
from jaxtune.bench import run
from jaxtune.bench.answer_floors import answer_floor, token_bytes
from jaxtune.bench.floors import DEQUANTISED_BYTES, Rates, linear_parameters
from jaxtune.bench.report import answer_lines
from jaxtune.bench.subject import find_subject
from jaxtune.models.build import build, freeze
from jaxtune.plan.cards import CARDS
from jaxtune.plan.options import PlanRequest
from jaxtune.plan.run import abstract_model


@pytest.fixture(scope="module")
def measured(folder):
    file = folder / "out.json"
    options = ["--model", str(folder), "--bits", "16", "--rank", "2", "--rows", "1", "3"]
    options += ["--prompt", "9", "--new-tokens", "7", "--output", str(file)]
    status = cli.main(["bench", "--generate", *options])
    return status, json.loads(file.read_text())


@pytest.mark.slow
def test_answers_are_timed_for_each_number_of_rows_with_and_without_for_inference(measured):
    status, record = measured
    assert status == 0
    answers = record["answers"]
    rows = [(answer["rows"], answer["for_inference"]) for answer in answers]
    assert rows == [(1, False), (1, True), (3, False), (3, True)]
    for answer in answers:
        whole = answer["answer"]["median_ms"]
        assert len(answer["answer"]["each_ms"]) == len(answer["first_token"]["each_ms"]) == 10
        assert answer["tokens_per_second"] == pytest.approx(1e3 * answer["rows"] * 7 / whole)
        further = whole - answer["first_token"]["median_ms"]
        decoded = answer["decoded_tokens_per_second"]
        assert decoded is None or decoded == pytest.approx(1e3 * answer["rows"] * 6 / further)
        assert answer["compiled_during"] == 0
    # What the first call compiles serves the model of `for_inference` too.
    assert answers[1]["first_call_seconds"] < answers[0]["first_call_seconds"]


@pytest.mark.slow
def test_what_is_printed_of_answers(measured):
    _, record = measured
    text = "\n".join(answer_lines(record))
    assert "prompts of 9 tokens, 7 new ones, greedy; 16 bits, LoRA rank 2" in text
    for answer in record["answers"]:
        assert f"{answer['tokens_per_second']:>10,.0f}" in text
    table = [line for line in text.splitlines() if line.startswith(("rows", "1 ", "3 "))]
    assert len(table) == 5
    assert len({len(line) for line in table}) == 1


def test_bytes_of_a_token_by_hand(folder):
    request = PlanRequest(model=str(folder), bits=16, rank=2)
    model = abstract_model(request, find_subject(str(folder)), CARDS["h200"])
    layer = 2 * 32 * 8 * (4 + 2) + 3 * 32 * 44
    frozen = 2 * layer + 97 * 32 + (2 * 2 + 1) * 32  # the embedding is the head
    adapter = 2 * 2 * (4 * 32 + 2 * (32 + 16) + 2 * (32 + 44) + 44 + 32)
    cache = 2 * 2 * 2 * 8 * 3 * 10.0
    assert token_bytes(model, 3, 10.0) == 2 * (frozen + adapter + cache)


def test_the_floors_of_llama_3_8b():
    subject = find_subject("llama-3-8b")
    model = build(subject.family, subject.config, "abstract", dtype="bfloat16", bits=4)
    freeze(model)
    least = answer_floor(model, 1, 2048, 128, Rates(matmul=684e12, copy=4.3e12))
    # 3.6 GB of 4-bit weights, 1.05 of the head: about 900 tokens/s.
    assert 1e3 / least.token == pytest.approx(900, rel=0.05)
    linear = 2 * linear_parameters(subject.config)
    dequantised = DEQUANTISED_BYTES * linear / 2 / 4.3e12
    attention = 32 * 4 * 4096 * 2048**2 / 2 / (0.59 * 684e12)
    head = 2 * 128256 * 4096 / 684e12
    expected = 1e3 * (linear * 2048 / 684e12 + head + attention + dequantised)
    assert least.first_token == pytest.approx(expected)


def test_a_single_token_is_not_read_faster_than_the_weights():
    subject = find_subject("llama-3.2-1b")
    model = build(subject.family, subject.config, "abstract", dtype="bfloat16")
    freeze(model)
    least = answer_floor(model, 1, 1, 2, Rates(matmul=684e12, copy=4.3e12))
    assert least.first_token == least.token


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "0"], "--rows must be numbers >= 1; got [0]"),
        (["--prompt", "0"], "--prompt must be >= 1"),
        (["--new-tokens", "1"], "--new-tokens must be >= 2"),
        (["--plan", "none"], "--plan changes nothing of what --generate measures; got 'none'"),
        (["--packing"], "--packing changes nothing"),
        (["--batch", "4"], "--batch changes nothing"),
    ],
)
def test_wrong_options_of_answers(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--generate", *arguments])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [["--rows", "4"], ["--prompt", "9"], ["--new-tokens", "9"]])
def test_a_step_refuses_options_of_answers(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"{arguments[0]} changes nothing of what a step measures" in said


def test_answers_beyond_the_range_are_refused_before_any_work(folder, monkeypatch, capsys):
    monkeypatch.setattr(run, "make_model", lambda *_: pytest.fail("work was begun"))
    arguments = ["--prompt", "60", "--new-tokens", "5"]
    assert cli.main(["bench", "--generate", "--model", str(folder), *arguments]) == 2
    assert "must be <= 64, the range of" in capsys.readouterr().err
