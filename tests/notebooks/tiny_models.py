"""Tiny models in place of those that the notebooks name, with tokenizers of their families."""

import json
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
# How Llama 3 cuts text into words, by which llama.cpp knows the tokenizer.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_llama(folder: Path) -> Path:
    """A random Llama whose tokens are bytes."""
    return _write(
        folder, transformers.LlamaConfig, ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    )


def write_gemma2(folder: Path) -> Path:
    """A random Gemma 2 with the tokens of its chats."""
    specials = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
    return _write(folder, transformers.Gemma2Config, specials)


def write_rows(file: Path) -> Path:
    """Instructions with answers, in Alpaca's columns, and texts."""
    rows = [
        {
            "instruction": f"Add {n} and {n + 1}.",
            "input": "" if n % 2 else f"{n} {n + 1}",
            "output": f"{2 * n + 1}",
            "text": f"{n} and {n + 1} make {2 * n + 1}. Nothing else does.",
        }
        for n in range(40)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def _write(folder: Path, kind: type, specials: list[str]) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *specials])}
    backend = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{specials[0]} $A", special_tokens=[(specials[0], vocabulary[specials[0]])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=specials[0],
        eos_token=specials[1],
        pad_token=specials[2],
        additional_special_tokens=specials[3:],
    ).save_pretrained(folder)
    config = kind(vocab_size=len(vocabulary), **SIZES)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
