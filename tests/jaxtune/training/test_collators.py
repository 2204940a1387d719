"""Collators: those that pad as we do, others on the host; what is never packed, and says so."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import trl.trainer.sft_trainer as trl_sft

from jaxtune import DataCollatorForSeq2Seq, SFTConfig, SFTTrainer
from jaxtune.data.batch import IGNORE
from jaxtune.data.collate import Place
from jaxtune.data.plan import Request, make_plan
from jaxtune.data.rows import TokenizedRows
from jaxtune.errors import UnsupportedModelError
from jaxtune.language_model import LanguageModel
from jaxtune.training.collators import host_collator
from jaxtune.training.inputs import ready_model
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, records_of, trainer_of
from tests.oracles import Oracle, make_oracle
from tests.words import ragged_rows, word_tokenizer

TOKENIZER = word_tokenizer()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("collators"), initializer_range=0.3)


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> LanguageModel:
    """For tests that train nothing."""
    return adapted(oracle)


@dataclasses.dataclass
class Recording:
    """transformers' own collator, as one that must be called."""

    seen: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        self.seen.append(features)
        return transformers.DataCollatorForLanguageModeling(TOKENIZER, mlm=False)(features)


def test_collators_that_pad_as_we_do_are_not_called() -> None:
    assert DataCollatorForSeq2Seq is transformers.DataCollatorForSeq2Seq
    for collator in (
        None,
        DataCollatorForSeq2Seq(TOKENIZER, pad_to_multiple_of=8),
        transformers.DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        trl_sft.DataCollatorForLanguageModeling(pad_token_id=0),
    ):
        assert host_collator(collator) is None


def test_collators_of_another_task_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`label_pad_token_id` .* must be -100.*got 0"):
        host_collator(DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=0))
    with pytest.raises(ValueError, match=r"`padding` of the collator must be on"):
        host_collator(DataCollatorForSeq2Seq(TOKENIZER, padding=False))
    masking = word_tokenizer()
    masking.mask_token = "<unk>"
    with pytest.raises(ValueError, match=r"`mlm` of the collator must be False"):
        host_collator(transformers.DataCollatorForLanguageModeling(masking))
    with pytest.raises(TypeError, match=r"must be a function of a list of rows; got str"):
        host_collator("DataCollatorForSeq2Seq")


def test_a_collator_of_ones_own_trains_as_ours_does(oracle: Oracle) -> None:
    """And gets rows as transformers' trainer gives them, a micro-batch at a time."""
    collator = Recording()
    theirs = trainer_of(adapted(oracle), data_collator=collator, max_steps=4)
    theirs.train()
    ours = trainer_of(adapted(oracle), resplit=False, max_steps=4)
    ours.train()
    assert records_of(theirs) == records_of(ours)
    assert theirs.state.num_input_tokens_seen == ours.state.num_input_tokens_seen
    assert {len(features) for features in collator.seen} == {2, 1}
    assert set(collator.seen[0][0]) == {"input_ids", "attention_mask"}


def plan_of(rows: TokenizedRows, collator: Any) -> Any:
    request = Request(
        batch_size=2, accumulation=2, max_length=100, seed=0, padding_free=True, collator=collator
    )
    return make_plan(np.array([len(row) for row in rows.rows]), request)


def test_what_a_collator_makes_is_what_is_trained_on() -> None:
    """Padding on the left, labels of its own, fewer rows, a batch longer than any row."""

    def collator(features: list[dict[str, Any]]) -> dict[str, Any]:
        ids = np.zeros((1, 130), np.int64)
        mask = np.zeros_like(ids)
        row = features[0]["input_ids"]
        ids[0, -len(row) :], mask[0, -len(row) :] = row, 1
        return {"input_ids": ids, "labels": ids + 1, "attention_mask": mask, "more": None}

    rows = TokenizedRows(rows=[np.array([5, 6, 7], np.int32)] * 3)
    (window,) = plan_of(rows, collator).windows(rows, Place())
    batch = window.batch
    assert (batch.layout, batch.labels.shape, window.tokens) == ("packed", (4, 192), 6)
    assert batch.segment_ids is not None
    for place in (0, 2):
        assert batch.input_ids[place, 127:130].tolist() == [5, 6, 7]
        assert batch.labels[place, 127:130].tolist() == [6, 7, 8]
        assert batch.segment_ids[place].sum() == 3
    assert (batch.labels == IGNORE).sum() == batch.labels.size - 6


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"input_ids": [[1]]}, r"with `input_ids` and `labels`.*got \['input_ids'\]"),
        ([1], r"must return a mapping .*got list"),
        ({"input_ids": [[1]], "labels": [[1, 2]]}, r"\[B, T\] of one shape"),
        ({"input_ids": [1], "labels": [1]}, r"\[B, T\] of one shape"),
        ({"input_ids": [[1]] * 3, "labels": [[1]] * 3}, r"B at most the 2 rows"),
    ],
)
def test_what_is_no_batch_is_refused(made: Any, message: str) -> None:
    rows = TokenizedRows(rows=[np.array([5, 6], np.int32)] * 2)
    with pytest.raises(ValueError, match=message):
        next(plan_of(rows, lambda _: made).windows(rows, Place()))


def test_rows_of_a_collator_are_not_packed_and_a_warning_says_why(model: LanguageModel) -> None:
    with pytest.warns(UserWarning, match=r"packing=True is ignored: `data_collator` lays out"):
        trainer = SFTTrainer(
            model, SFTConfig(packing=True), data_collator=Recording(), train_dataset=ragged_rows(4)
        )
    assert trainer._plan().kind == "padded"


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("column", ["image", "images", "pixel_values", "video", "videos"])
def test_rows_of_images_are_refused_packed_or_not(
    model: LanguageModel, column: str, packing: bool
) -> None:
    rows = [{**row, column: [0.0]} for row in ragged_rows(4)]
    with pytest.raises(ValueError, match=rf"images, video .* packed; got the column `{column}`"):
        SFTTrainer(model, train_dataset=rows, packing=packing)


def test_parts_of_messages_that_are_images_are_refused(model: LanguageModel) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    parts = [{"type": "image"}, {"type": "text", "text": "w1"}]
    rows = [{"messages": [{"role": "user", "content": parts}]}]
    with pytest.raises(ValueError, match=r"must be text, or a list of .*message 0 .* in row 0"):
        SFTTrainer(model, tokenizer=tokenizer, train_dataset=rows, packing=True)


@pytest.mark.parametrize("name", ["tokenizer", "processing_class"])
def test_a_processor_is_refused(model: LanguageModel, name: str) -> None:
    class AudioProcessor(transformers.ProcessorMixin):
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

    with pytest.raises(TypeError, match=r"got the processor AudioProcessor.*processor\.tokenizer"):
        SFTTrainer(
            model, train_dataset=ragged_rows(4), packing=True, **{name: AudioProcessor(TOKENIZER)}
        )


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UnsupportedModelError, match="t5"):
        SFTTrainer(str(tmp_path), train_dataset=ragged_rows(4), packing=True)
    with pytest.raises(TypeError, match=r"`model` must be one of FastLanguageModel.*T5Config"):
        ready_model(config, None, None, SFTConfig())
