"""Real conversations and tokenizers, and TRL's preparation of rows as the oracle."""

import functools
import json
import tempfile
from types import SimpleNamespace

import datasets
import transformers
import trl
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

SENDERS = {"human": "user", "gpt": "assistant"}
# The first token of an answer and what closes it, as each family's owner documents them.
ANSWERS = {
    "llama3.2": r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)",
    "gemma": r"<start_of_turn>model\n(.*?<end_of_turn>\n)",
    "mistral_v3": r"\[/INST\](.*?</s>)",
}


@functools.cache
def real_tokenizer(assets, name):
    return transformers.AutoTokenizer.from_pretrained(assets / "tokenizers" / name)


@functools.cache
def conversations(assets):
    """Multi-turn conversations of two sets, without tools: lists of messages."""
    folder = assets / "data" / "llamafactory"
    found = []
    for row in json.loads((folder / "glaive_toolcall_en_demo.json").read_text()):
        found.append(row["conversations"])
    for row in json.loads((folder / "dpo_en_demo.json").read_text()):
        found.append([*row["conversations"], row["chosen"]])
    return [
        [{"role": SENDERS[turn["from"]], "content": turn["value"]} for turn in turns]
        for turns in found
        if len(turns) >= 4
        and [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        and all(turn["value"].strip() for turn in turns)
    ]


def trl_prepared(rows, tokenizer, *, completion_only=False, assistant_only=False, max_length=4096):
    """Ids and labels of `trl.SFTTrainer`, without its model."""
    with tempfile.TemporaryDirectory() as folder:
        args = trl.SFTConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_length=max_length,
            assistant_only_loss=assistant_only,
        )
    swapped = assistant_only and not has_generation_markers(tokenizer.chat_template)
    trainer = SimpleNamespace(
        _tokenizer=tokenizer,
        chat_template=get_training_chat_template(tokenizer) if swapped else None,
        completion_only_loss=completion_only,
    )
    prepared = trl.SFTTrainer._prepare_dataset(
        trainer, datasets.Dataset.from_list(rows), tokenizer, args, False, None, "train"
    )
    return list(prepared["input_ids"]), list(prepared["labels"])
