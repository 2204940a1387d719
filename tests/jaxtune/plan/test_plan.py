"""`jaxtune plan`: a table for any model, row and card, without a GPU and without weights."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from jaxtune import runtime
from jaxtune.bench.subject import find_subject
from jaxtune.config import Remat
from jaxtune.plan.cards import CARDS, card_of
from jaxtune.plan.options import PlanRequest
from jaxtune.plan.report import BAR, Row, bar, bar_length, lines
from jaxtune.plan.run import run
from jaxtune.plan.speed import milliseconds
from tests.jaxtune.bench.tiny import TINY

GIB = 2**30


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path: Path) -> Any:
    """What is printed of the tiny model, and the words of each plan's line."""
    monkeypatch.setattr(runtime, "use_cpu", lambda **_: None)  # of the whole process
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))

    def printed(**options: Any) -> tuple[str, dict[str, list[str]]]:
        given = {"model": str(folder), "length": 64, **options}
        assert run(PlanRequest(**given)) == 0
        said = capsys.readouterr().out
        table = said.split("\n\n")[1]
        return said, {line.split()[0]: line.split() for line in table.splitlines()[1:]}

    return printed


def test_every_plan_has_a_line_and_the_first_that_fits_is_autos(printed) -> None:
    said, rows = printed()
    assert list(rows) == list(get_args(Remat))
    assert all("yes" in words for words in rows.values())
    assert 'use_gradient_checkpointing="auto" takes the first that fits: "none".' in said
    assert max(map(len, said.splitlines()[1:])) <= 104


def test_a_card_that_is_too_small_says_what_would_fit(printed) -> None:
    said, rows = printed(gpu="1GB", batch=20_000, memory_fraction=0.4)
    assert all("no" in words for words in rows.values())
    cure = re.search(r"No plan fits. What would: --batch (\d+) or --length (\d+) or", said)
    assert cure is not None
    assert 0 < int(cure[1]) < 20_000
    assert 0 < int(cure[2]) < 64
    said, rows = printed(gpu="1GB", batch=int(cure[1]), memory_fraction=0.4)
    assert "yes" in rows["least"]
    assert "Times need a card's name" in said


@pytest.mark.parametrize(("plan", "measured"), [("none", 255), ("full", 332), ("offload", 357)])
def test_the_times_measured_on_an_h200(plan: Remat, measured: float) -> None:
    config = find_subject("llama-3-8b").config
    found = milliseconds(config, CARDS["h200"], plan, rows=2, length=2048, bits=4, accumulation=1)
    assert found == pytest.approx(measured, rel=0.02)


def test_plans_are_in_the_order_of_their_times() -> None:
    for name in ("llama-3-8b", "gemma-2-9b", "llama-3.2-1b"):
        config = find_subject(name).config
        times = [
            milliseconds(config, CARDS["l4"], plan, rows=1, length=1024, bits=4, accumulation=2)
            for plan in get_args(Remat)
        ]
        assert times == sorted(times)


def test_a_card_by_its_memory() -> None:
    card = card_of("24GB")
    assert card is not None
    assert card.memory == 0.95 * 24 * GIB
    assert (
        milliseconds(
            find_subject("llama-3-8b").config,
            card,
            "none",
            rows=1,
            length=8,
            bits=4,
            accumulation=1,
        )
        is None
    )
    assert card_of("H100") is CARDS["h100"]
    assert card_of("0GB") is None
    assert card_of("h1000") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu": "h1000"}, "--gpu must be one of t4, l4, a100, h100, h200, or memory"),
        ({"batch": 0}, "--batch must be >= 1; got 0"),
        ({"memory_fraction": 0.0}, "--memory-fraction must be over 0"),
        ({"model": "llama"}, "--model must be a built-in name"),
        ({"mesh": "rows=2"}, "--mesh must be sizes of data, fsdp, tensor, each once; got 'rows=2'"),
        ({"mesh": "fsdp=0"}, "got 'fsdp=0'"),
        ({"mesh": "fsdp=2,fsdp=2"}, "got 'fsdp=2,fsdp=2'"),
        ({"compiled": True}, "--compiled is of a mesh"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PlanRequest(**options)


def test_rows_beyond_the_models_range_are_refused(printed) -> None:
    with pytest.raises(ValueError, match="--length must be <= 64"):
        printed(length=65)


def test_rows_fit_a_terminal_of_80_columns() -> None:
    assert bar_length(None) == bar_length(200) == BAR
    row = Row(
        plan="attention",
        parts={"weights": 2e10, "LoRA": 0, "states": 0, "activations": 0, "logits": 0},
        milliseconds=12345.0,
        fits=True,
        largest_batch=12345,
        longest_row=131072,
    )
    subject = find_subject("llama-3-8b")
    card = card_of("h200")
    assert card is not None
    said = list(lines(PlanRequest(), subject.config, card, 1e11, [row], bar_length(80)))
    heading = next(line for line in said if line.startswith("plan "))
    table = [heading, next(line for line in said if line.startswith("attention "))]
    assert [len(line) for line in table] == [80, 80]


def test_the_bar_is_as_long_as_its_parts() -> None:
    parts = {"weights": 2.0, "LoRA": 0.01, "states": 0.0, "activations": 1.5, "logits": 0.49}
    row = Row(
        plan="full",
        parts=parts,
        milliseconds=None,
        fits=True,
        largest_batch=1,
        longest_row=1,
    )
    assert bar(row, 100.0, 4 / BAR) == "W" * 20 + "A" * 15 + "V" * 5
    assert bar(row, 3.0, 4 / BAR) == "W" * 20 + "A" * 10 + "|" + "A" * 4 + "V" * 5
    assert bar(row, 5.0, 8 / BAR) == "W" * 10 + "A" * 8 + "VV" + " " * 5 + "|" + " " * 14


def test_a_mesh_divides_what_it_splits(printed) -> None:
    def weights(said: str) -> float:
        return float(re.search(r"W weights ([\d.]+), ", said)[1])

    alone, _ = printed(model="llama-3-8b")
    copied, _ = printed(model="llama-3-8b", mesh="data=4")
    split, _ = printed(model="llama-3-8b", mesh="data=2,fsdp=4")
    # 5.3 GiB; a fourth, and embedding, head and a layer whole
    assert weights(alone) == weights(copied)
    assert 0.5 * weights(alone) < weights(split) < 0.7 * weights(alone)
    assert "receives" not in alone
    assert "0.00 of weights" in copied
    assert "one of the 8 devices of --mesh data=2,fsdp=4" in split
    assert max(map(len, split.splitlines()[1:])) <= 104


def test_a_mesh_that_does_not_divide_the_model_is_refused(printed) -> None:
    with pytest.raises(ValueError, match='"fsdp" must divide'):
        printed(model="llama-3-8b", mesh="fsdp=3")
