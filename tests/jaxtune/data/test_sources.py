"""Files of rows, and tokenised rows that are kept beside them."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from jaxtune.data import tokenize
from jaxtune.data.row_options import RowOptions
from jaxtune.data.tokenize import tokenize_dataset
from tests.jaxtune.data.test_chat_rows import CHAT, WORDS
from tests.jaxtune.data.test_tokenize import ids, tokenized
from tests.jaxtune.data.words import make_tokenizer

ROWS = [{"text": "a b", "n": 1}, {"text": "c", "n": 2}]
WANTED = [[0, 3, 4, 1], [0, 5, 1]]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """`datasets` keeps nothing outside the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write(path: Path) -> Path:
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_files_are_read_by_their_ending(tmp_path, ending):
    file = write(tmp_path / f"rows{ending}")
    assert ids(tokenized(str(file), WORDS)) == WANTED
    assert ids(tokenized(file, WORDS)) == WANTED


def test_several_files_are_one_data_set(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    assert ids(tokenized([str(file) for file in files], WORDS)) == WANTED * 2


def test_messages_of_a_file(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": CHAT}) + "\n")
    found = tokenized(file, WORDS, assistant_only_loss=True)
    assert ids(found) == ids(tokenized([{"messages": CHAT}], WORDS))


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no file 'org/data'\. Load .*load_dataset\('org/data'"):
        tokenized("org/data", WORDS)
    (tmp_path / "rows.xml").touch()
    with pytest.raises(ValueError, match=r"one of \.json, .*; got \.xml\. Load others"):
        tokenized(tmp_path / "rows.xml", WORDS)
    (tmp_path / "rows.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match=r"a json file must hold rows .* cannot be read"):
        tokenized(tmp_path / "rows.jsonl", WORDS)


def test_the_splits_that_there_are_are_named():
    splits = datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS))
    with pytest.raises(TypeError, match=r"of \['test'\]\. Pass one split, such as dataset\['test'"):
        tokenized(splits, WORDS)


@pytest.fixture
def counted(monkeypatch):
    """How often a data set was tokenised."""
    calls = []
    plain = tokenize._tokenized

    def counting(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(tokenize, "_tokenized", counting)
    return calls


def assert_equal(one, other):
    assert ids(one) == ids(other)
    assert (one.labels is None) == (other.labels is None)
    for mine, theirs in zip(one.labels or (), other.labels or (), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("truncated", "tokens_lost", "first_truncated", "eos_appended", "skipped"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([*ROWS, {"text": "", "n": 3}], {"bad_rows": "skip", "max_length": 3}),
        ([{"messages": CHAT}], {"assistant_only_loss": True}),
    ],
    ids=["text", "messages"],
)
def test_tokenised_rows_of_a_file_are_kept(tmp_path, counted, rows, options):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = tokenized(file, WORDS, **options)
    again = tokenized(file, WORDS, threads=2, **options)
    assert len(counted) == 1
    assert_equal(again, first)
    assert again.digest() == first.digest()
    [kept] = (tmp_path / "cache").rglob("jaxtune-*.npz")
    kept.write_bytes(kept.read_bytes()[:-40])  # damaged: made anew
    assert_equal(tokenized(file, WORDS, **options), first)
    assert len(counted) == 2


def test_other_rows_tokenizers_and_options_are_made_anew(tmp_path, counted):
    file = write(tmp_path / "rows.jsonl")
    dataset = datasets.load_dataset("json", data_files=str(file), split="train")
    tokenized(dataset, WORDS)
    other = make_tokenizer(words=("user", "assistant", "system", ":"), adds_bos=False)
    for number, request in enumerate(
        (
            (dataset.select([1]), WORDS, {}),
            (dataset, other, {}),
            (dataset, WORDS, {"max_length": 2}),
            (dataset, WORDS, {"vocab_size": 50}),
            (dataset.map(lambda row: {"text": row["text"] + " d"}), WORDS, {}),
        ),
        start=2,
    ):
        rows, tokenizer, options = request
        tokenized(rows, tokenizer, **options)
        assert len(counted) == number


def test_nothing_is_kept_of_functions_memory_or_where_datasets_keeps_nothing(tmp_path, counted):
    file = write(tmp_path / "rows.jsonl")
    dataset = datasets.load_dataset("json", data_files=str(file), split="train")
    memory = datasets.Dataset.from_list(ROWS)
    for _ in range(2):
        tokenized(dataset, WORDS, formatting_func=lambda row: row["text"])
        tokenized(memory, WORDS)
        datasets.disable_caching()
        tokenized(dataset, WORDS)
        datasets.enable_caching()
    assert len(counted) == 6
    assert not list(tmp_path.rglob("jaxtune-*"))


def test_a_folder_that_takes_no_file_is_no_error(tmp_path, monkeypatch):
    file = write(tmp_path / "rows.jsonl")

    def refuse(_, target):
        raise PermissionError(target)

    monkeypatch.setattr(Path, "replace", refuse)
    dataset = datasets.load_dataset("json", data_files=str(file), split="train")
    options = RowOptions(max_length=8)
    assert ids(tokenize_dataset(dataset, WORDS, options)) == WANTED
    assert not list(tmp_path.rglob("jaxtune-*"))
