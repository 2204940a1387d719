"""A run on the base install alone: tune, save, read back, generate, render a chat template.

Run as a script where neither torch nor pytest is installed.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from convert import read_adapter, write_json, write_safetensors

SIZES = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def write_model(folder: Path) -> None:
    """A random Llama in Hugging Face form, with a word tokenizer."""
    draw = np.random.default_rng(0)
    width, inner, half = SIZES["hidden_size"], SIZES["intermediate_size"], 8
    shapes = {"model.embed_tokens.weight": (SIZES["vocab_size"], width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(SIZES["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (width, width),
            f"{at}self_attn.k_proj.weight": (half, width),
            f"{at}self_attn.v_proj.weight": (half, width),
            f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}mlp.gate_proj.weight": (inner, width),
            f"{at}mlp.up_proj.weight": (inner, width),
            f"{at}mlp.down_proj.weight": (width, inner),
            f"{at}input_layernorm.weight": (width,),
            f"{at}post_attention_layernorm.weight": (width,),
        }
    tensors = {
        name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()
    }
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", SIZES)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": 3 + n for n in range(29)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def main() -> None:
    """Raise if any step fails."""
    for name in ("torch", "peft", "pytest"):
        if importlib.util.find_spec(name) is not None:
            raise RuntimeError(f"{name} must not be in the base install")
    from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(folder), max_seq_length=32, load_in_4bit=False
        )
        model = FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8)
        chat = [{"role": "w1", "content": "w2 w3"}, {"role": "w4", "content": "w5"}]
        rows = [{"text": tokenizer.apply_chat_template(chat, tokenize=False)}] * 8
        args = SFTConfig(max_steps=5, learning_rate=1e-2, warmup_steps=0)
        trainer = SFTTrainer(model, args=args, train_dataset=rows)
        trainer.train()
        losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        if not losses[-1] < losses[0]:
            raise RuntimeError(f"the loss must fall; got {losses}")
        model.save_pretrained(folder / "adapter")
        adapter = read_adapter(folder / "adapter")
        again, _ = FastLanguageModel.from_pretrained(
            str(folder / "adapter"), max_seq_length=32, load_in_4bit=False
        )
        prompt = [tokenizer("w1 w2")["input_ids"]]
        before, after = model.generate(prompt), again.generate(prompt)
        if not np.array_equal(before, after):
            raise RuntimeError(f"the read adapter must generate the same; got {before}, {after}")
        print(
            f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps; adapter of "
            f"{len(adapter.tensors)} tensors written in PEFT's format, read back, and generating "
            f"the same tokens: {after[0].tolist()}"
        )


if __name__ == "__main__":
    main()
