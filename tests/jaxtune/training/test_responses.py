"""Chats through the trainer: what is learned, said before the run, and the names of Unsloth."""

from typing import Any

import datasets
import numpy as np
import pytest

from jaxtune import DataCollatorForSeq2Seq, SFTConfig, SFTTrainer, train_on_responses_only
from jaxtune.data import stream
from jaxtune.data.batch import IGNORE
from jaxtune.data.rows import TokenizedRows
from jaxtune.language_model import LanguageModel
from jaxtune.training.data_report import report_lines
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, trainer_of
from tests.oracles import make_oracle
from tests.words import word_tokenizer

PARTS = ("w90 w91", "w90 w92")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} w90 {{ 'w91' if m.role == 'user' else 'w92' }} "
    "{{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} w90 w92{% endif %}"
)
CHAT = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3"},
    {"role": "user", "content": "w4"},
    {"role": "assistant", "content": "w5 w6"},
]
# Words are 4 and more: w3 </s>, w5 w6 </s>.
LEARNED = [7, 2, 9, 10, 2]
TEXT = "w90 w91 w1 w2 w90 w92 w3 </s> w90 w91 w4 w90 w92 w5 w6"


def chat_tokenizer() -> Any:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("responses")
    model = adapted(make_oracle(VARIANTS[0], folder, initializer_range=0.3))
    model.carried.tokenizer = chat_tokenizer()
    return model


def learned(trainer: SFTTrainer) -> list[list[int]]:
    labels = trainer.train_dataset.labels
    assert labels is not None
    return [row[row != IGNORE].tolist() for row in labels]


def test_the_options_of_the_loss_reach_the_rows(model: LanguageModel) -> None:
    args = SFTConfig(assistant_only_loss=True)
    assert learned(SFTTrainer(model, args, train_dataset=[{"messages": CHAT}])) == [LEARNED]
    pairs = [{"prompt": CHAT[:3], "completion": CHAT[3:]}]
    assert learned(SFTTrainer(model, train_dataset=pairs)) == [LEARNED[2:]]
    whole = SFTTrainer(model, SFTConfig(completion_only_loss=False), train_dataset=pairs)
    assert whole.train_dataset.labels is None


@pytest.mark.parametrize("parts", [PARTS, (None, None)], ids=["given", "seen"])
@pytest.mark.parametrize("rows", [{"messages": CHAT}, {"text": TEXT}], ids=["messages", "text"])
def test_answers_are_learned_as_unsloth_names_it(
    model: LanguageModel, rows: dict[str, Any], parts: tuple[str | None, str | None]
) -> None:
    trainer = SFTTrainer(
        model, train_dataset=[rows], data_collator=DataCollatorForSeq2Seq(model.carried.tokenizer)
    )
    assert train_on_responses_only(trainer, *parts) is trainer
    assert learned(trainer) == [LEARNED]
    row = trainer.train_dataset[0]
    assert [n for n in row["labels"] if n != IGNORE] == LEARNED
    assert row["input_ids"] == trainer.train_dataset.rows[0].tolist()
    assert len(trainer.train_dataset) == 1
    train_on_responses_only(trainer, *parts, last_response_only=True)
    assert learned(trainer) == [LEARNED[2:]]


@pytest.mark.slow
def test_only_answers_move_the_model(model: LanguageModel) -> None:
    """The loss of the first step is that of rows with these labels."""
    rows: list[dict[str, Any]] = [{"text": TEXT}, {"text": f"{TEXT} </s> {TEXT}"}] * 4
    run: dict[str, Any] = {"max_steps": 1, "max_length": 60, "learning_rate": 0.0}
    masked = train_on_responses_only(trainer_of(model, train_dataset=rows, **run), *PARTS)
    labelled = [masked.train_dataset[number] for number in range(len(rows))]
    losses = [
        trainer.train().training_loss
        for trainer in (
            masked,
            trainer_of(model, train_dataset=labelled, **run),
            trainer_of(model, train_dataset=rows, **run),
        )
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_function_of_labels_is_returned(model: LanguageModel) -> None:
    function = train_on_responses_only(
        None, *PARTS, tokenizer=model.carried.tokenizer, return_function=True
    )
    ids = SFTTrainer(model, train_dataset=[{"text": TEXT}]).train_dataset[0]["input_ids"]
    [labels] = function({"input_ids": [ids]})["labels"]
    assert [n for n in labels if n != IGNORE] == LEARNED
    had = [IGNORE if n == 9 else n for n in ids]
    [labels] = function({"input_ids": [ids], "labels": [had]})["labels"]
    assert [n for n in labels if n != IGNORE] == [7, 2, 10, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"instruction_part": "w1"}, r"go together; `response_part` is None"),
        ({"num_proc": 0}, r"`num_proc` must be at least 1 or None; got 0"),
        (
            {"instruction_part": "w90 w91", "response_part": "w50"},
            r"`response_part` must occur in the rows; 'w50'",
        ),
    ],
)
def test_refuses_markers(model: LanguageModel, arguments: dict[str, Any], message: str) -> None:
    trainer = SFTTrainer(model, train_dataset=[{"text": TEXT}])
    with pytest.raises(ValueError, match=message):
        train_on_responses_only(trainer, **arguments)
    assert trainer.train_dataset.labels is None


def test_refuses_what_is_no_trainer_of_ours() -> None:
    with pytest.raises(TypeError, match=r"`trainer` must be a jaxtune.SFTTrainer; got int"):
        train_on_responses_only(3, *PARTS)


def test_the_report_shows_what_is_learned(model: LanguageModel) -> None:
    args = SFTConfig(assistant_only_loss=True, max_length=12)
    rows = [{"messages": CHAT}, {"messages": CHAT[:2]}]
    trainer = SFTTrainer(model, args, train_dataset=rows)
    lines = list(report_lines(trainer.train_dataset, trainer.tokenizer, 12, colour=False))
    assert lines == [
        "jaxtune: 1 rows cut at 12 tokens, 5 tokens lost: row 0",
        "jaxtune: learned: the assistant's turns; 4 of 21 tokens (19.0 %)",
        "jaxtune: 2 of 2 rows begin with <s>, 2 learn </s>",
        "jaxtune: row 1, [[...]] is learned:",
        "<s> w90 w91 w1 w2 w90 w92[[ w3 </s>]] w90 w91 w4",
    ]
    coloured = list(report_lines(trainer.train_dataset, trainer.tokenizer, 12, colour=True))
    assert coloured[-1] == "<s> w90 w91 w1 w2 w90 w92\x1b[32m w3 </s>\x1b[0m w90 w91 w4"


def test_the_report_stands_before_the_run(
    model: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(model, train_dataset=[{"text": TEXT}], max_steps=1, disable_tqdm=False)
    trainer.train()
    printed = capsys.readouterr().out
    assert "learned: every token; 14 of 14 tokens (100.0 %)" in printed
    assert "end-of-text token appended to 1 rows" in printed
    assert "[[<s> w90 w91" in printed


def test_long_rows_are_shortened_and_special_tokens_that_are_not_eos_are_named() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    row = np.array([1, 1, *[5] * 400, 97], np.int32)
    lines = list(report_lines(TokenizedRows(rows=[row]), tokenizer, 500, colour=False))
    assert (
        "1 of 1 rows begin with <s>, 1 with two of them, 0 learn </s>, 1 learn <turn>" in lines[1]
    )
    assert len(lines[-1]) < 320
    assert "characters)..." in lines[-1]


def test_rows_of_evaluations_are_masked_alike(model: LanguageModel) -> None:
    rows = [{"text": TEXT}]
    for held in (rows, {"a": rows}):
        trainer = SFTTrainer(model, train_dataset=rows, eval_dataset=held)
        train_on_responses_only(trainer, *PARTS)
        masked = trainer.eval_dataset["a"] if isinstance(held, dict) else trainer.eval_dataset
        assert [row[row != IGNORE].tolist() for row in masked.labels] == [LEARNED]


@pytest.mark.slow
def test_answers_of_a_stream_are_learned_and_what_it_skips_is_said(
    model: LanguageModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH", 4)
    rows = [{"text": TEXT}] * 6 + [{"text": ""}, {"text": TEXT}]
    dataset = datasets.IterableDataset.from_generator(lambda: iter(rows))
    args = SFTConfig(max_steps=3, disable_tqdm=False, bad_rows="skip", resplit=False)
    trainer = train_on_responses_only(SFTTrainer(model, args, train_dataset=dataset), *PARTS)
    whole = train_on_responses_only(SFTTrainer(model, args, train_dataset=rows), *PARTS)
    expected = whole.train_dataset.labels[0].tolist()
    for chunk in trainer.train_dataset.chunks(0):
        assert [row.tolist() for row in chunk.labels] == [expected] * len(chunk)
    trainer.train()
    assert "jaxtune: skipped 1 bad, row 6: " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"a run over a stream needs `max_steps`.*got -1"):
        SFTTrainer(model, train_dataset=dataset)
