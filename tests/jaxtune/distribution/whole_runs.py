"""The trainer over simulated devices, from a folder to an adapter, in a process of its own.

python -m tests.jaxtune.distribution.whole_runs FOLDER dense|4bit|loads
"""

import gc
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.models import loading, read_ahead
from jaxtune.models.auto_mesh import mesh_for_weights
from jaxtune.training import mesh_choice
from tests import base_install

ROWS = [{"text": " ".join(f"w{n % 29}" for n in range(i, i + 3 + i % 9))} for i in range(40)]


def loaded(folder, four_bits, mesh):
    """A model with its adapter."""
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=32, load_in_4bit=four_bits, mesh=mesh
    )
    return FastLanguageModel.get_peft_model(model, r=2)


def trained(folder, four_bits, mesh=None, *, args_mesh=None, rows=8):
    """Losses, evaluation, generation and the adapter of a run, and whether it can be resumed."""
    model = loaded(folder, four_bits, mesh)
    output = folder / f"out-{four_bits}-{mesh}-{args_mesh}".replace(" ", "")
    options = SFTConfig(
        max_steps=3,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        learning_rate=1e-2,
        warmup_steps=0,
        disable_tqdm=True,
        mesh=args_mesh,
        output_dir=output,
        save_steps=2,
    )
    trainer = SFTTrainer(
        model,
        args=options,
        train_dataset=ROWS,
        eval_dataset=ROWS[:7],
        compute_metrics=lambda found: {"same": float((found.predictions == 4).sum())},
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )
    trainer.train()
    evaluated = trainer.evaluate()
    trainer.save_model(output / "adapter")
    again = SFTTrainer(loaded(folder, four_bits, mesh), args=options, train_dataset=ROWS)
    again.train(resume_from_checkpoint=output / "checkpoint-2")
    losses, resumed = (
        [r["loss"] for r in t.state.log_history if "loss" in r] for t in (trainer, again)
    )
    attention = model.model.layers.self_attn
    return {
        "losses": [*losses, evaluated["eval_loss"], evaluated["eval_same"]],
        "resumed": resumed == losses,
        "answer": model.generate([[3, 4, 5], [6, 7]], max_new_tokens=6).tolist(),
        "devices": [len(a.sharding.device_set) for a in jax.tree.leaves(nnx.state(model))][::9],
        "split": str(jax.tree.leaves(attention.q_proj.weight.get_value())[0].sharding.spec)
        if model.carried.mesh is not None
        else "",
        "adapter": sorted(path.name for path in (output / "adapter").iterdir()),
    }


def error_of(function, *arguments, **options):
    """What a refusal says."""
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)
    return "nothing"


def loads(folder):
    """Whether weights arrive as they are on one device, and the most that a device had of them."""
    most = 0

    class Watched(loading.tqdm):
        def update(self, n=1):
            nonlocal most
            # Looking at an array's parts makes arrays of them, on one device each.
            spread = [a for a in jax.live_arrays() if len(a.sharding.device_set) > 1]
            parts = [part for array in spread for part in array.addressable_shards]
            most = max(most, sum(part.data.nbytes for part in parts if part.device == last))
            return super().update(n)

    last = jax.devices()[-1]
    read_ahead.AHEAD_BYTES = 1  # these weights are smaller than what is read ahead
    found = {}
    for four_bits in (False, True):
        one, _ = FastLanguageModel.from_pretrained(str(folder), load_in_4bit=four_bits)
        one = jax.tree.map(np.asarray, nnx.state(one))
        before, most, loading.tqdm = loading.tqdm, 0, Watched
        many, _ = FastLanguageModel.from_pretrained(
            str(folder), load_in_4bit=four_bits, mesh={"data": 2, "fsdp": 4}
        )
        loading.tqdm = before
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(nnx.state(many)), strict=True)
        found[f"{four_bits}"] = {
            "equal": all(np.array_equal(left, right) for left, right in pairs),
            "whole": sum(leaf.nbytes for leaf in jax.tree.leaves(one)),
            "most": most,
        }
        del many
        gc.collect()
    return found


def auto(folder):
    """The meshes of "auto": with room for a copy of the weights, and without."""
    model = loaded(folder, False, "auto")
    weights = nnx.state(model)
    begun = dict(model.carried.mesh.shape)
    small = dict(mesh_for_weights(model.config, weights, 1000).shape)
    mesh_choice.device_limit = lambda: 1000
    SFTTrainer(model, args=SFTConfig(max_steps=1), train_dataset=ROWS)
    return [begun, small, dict(model.carried.mesh.shape)]


def main(place, what):
    """What one test asks for."""
    if what == "loads":
        base_install.SIZES.update(
            hidden_size=64, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8
        )
    base_install.write_model(place)
    if what == "loads":
        return {"loads": loads(place), "auto": auto(place)}
    four = what == "4bit"
    return {
        "one": trained(place, four),
        "both": trained(place, four, {"data": 2, "fsdp": 4}, rows=1),
        "args": trained(place, four, args_mesh={"fsdp": 4, "tensor": 2}, rows=2),
        "conflict": error_of(trained, place, four, {"data": 2}, args_mesh={"fsdp": 8}),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
