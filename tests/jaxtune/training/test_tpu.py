"""The training step's program for a TPU, made on a machine that has none."""

import numpy as np
import optax

from jaxtune import FastLanguageModel, functional
from jaxtune.optim.registry import create_optimizer
from tests.packaged import packaged_model_folder


def test_a_step_is_lowered_for_a_tpu() -> None:
    """No op that a CPU takes is one that JAX cannot lower for a TPU; nothing is run on one."""
    model, _ = FastLanguageModel.from_pretrained(
        str(packaged_model_folder()), dtype="bfloat16", max_seq_length=64
    )
    model = FastLanguageModel.get_peft_model(model, r=2)
    graphdef, trainable, frozen = functional.split(model)
    tx = create_optimizer("adamw_8bit", optax.constant_schedule(1e-3))
    step = functional.make_train_step(graphdef, tx, accumulation=2, max_grad_norm=1.0)
    rows = np.zeros((4, 16), np.int32)
    batch = functional.Batch(input_ids=rows, labels=rows, layout="causal")
    traced = step.trace(trainable, tx.init(trainable), frozen, batch)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" in text
    assert "__gpu" not in text
