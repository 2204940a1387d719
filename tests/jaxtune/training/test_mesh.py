"""A mesh of devices: the same script, rows split over them, the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxtune import FastLanguageModel
from jaxtune.errors import NotBuiltYetError
from tests.base_install import write_model
from tests.tolerances import tolerance

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
import jax
from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from tests.base_install import write_model

def losses(mesh, batch):
    model, _ = FastLanguageModel.from_pretrained(
        sys.argv[1], max_seq_length=32, load_in_4bit=False, mesh=mesh
    )
    FastLanguageModel.get_peft_model(model, r=2, lora_dropout=0.0)
    rows = [{"text": " ".join(f"w{n % 29}" for n in range(i, i + 3 + i % 9))} for i in range(23)]
    args = SFTConfig(
        max_steps=4, per_device_train_batch_size=batch, gradient_accumulation_steps=2,
        learning_rate=1e-2, warmup_steps=0, disable_tqdm=True, per_device_eval_batch_size=batch,
    )
    trainer = SFTTrainer(model, args=args, train_dataset=rows, eval_dataset=rows[:7])
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    up = model.model.layers.mlp.up_proj
    placed = [len(a.sharding.device_set) for a in (up.weight[...], up.lora_A[...])]
    trained = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    return [*trained, evaluated], [*placed, model.model.split_kernels]

mesh = jax.make_mesh((2,), ("data",))
print(json.dumps([losses(None, 4), losses(mesh, 2)]))
"""


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    (one, placed), (two, spread) = json.loads(done.stdout.splitlines()[-1])
    assert two == pytest.approx(one, rel=tolerance("float32", "loss"))
    assert len(set(one)) == 5
    assert (placed, spread) == ([1, 1, "auto"], [2, 2, "xla"])


@pytest.mark.parametrize(
    ("mesh", "error", "message"),
    [
        ("auto", TypeError, "must be a jax.sharding.Mesh or None; got str"),
        (jax.make_mesh((1, 1), ("data", "model")), NotBuiltYetError, "must have one axis"),
    ],
)
def test_another_mesh_is_refused_before_loading(
    mesh: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FastLanguageModel.from_pretrained("./nowhere", load_in_4bit=False, mesh=mesh)
