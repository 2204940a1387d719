"""On a CUDA device: the same numbers as on the CPU, and the ops in bfloat16 at real shapes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from jaxtune.api import FastLanguageModel
from jaxtune.data.batch import Batch
from jaxtune.language_model import with_verbs
from jaxtune.models.build import build
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.models.precision import is_bfloat16_supported, resolve_dtype
from jaxtune.training.step import loss, split
from pallas_kernels import attention, linear_cross_entropy
from tests.families import SMALL
from tests.quickstart_losses import losses
from tests.stories_losses import tuned
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


def on_the_cpu(*module: str) -> list[float]:
    """The losses that a script of the tests prints in a process that sees no GPU."""
    command = [sys.executable, "-m", *module]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    assert expected["platform"] == "cpu"
    return expected["losses"]


def test_the_stories_run_gives_the_cpus_losses(assets: Path) -> None:
    expected = on_the_cpu("tests.stories_losses", str(assets))
    difference = np.abs(np.asarray(tuned(assets)[1]) - expected).max()
    sys.stdout.write(f"stories: difference {difference:.1e} over {len(expected)} steps\n")
    assert difference <= 1e-3


def test_the_quickstart_gives_the_cpus_losses() -> None:
    expected = on_the_cpu("tests.quickstart_losses")
    difference = np.abs(np.asarray(losses()) - expected).max()
    sys.stdout.write(f"quickstart: difference {difference:.1e} over {len(expected)} steps\n")
    assert difference <= 1e-3


def test_offloaded_inputs_leave_the_device() -> None:
    """Layer inputs, [L, B, T, D] in bfloat16, stand in host memory; the gradient is the same."""
    sizes = {**SMALL, "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 16}
    hf = AutoConfig.for_model("llama", **sizes, head_dim=64).to_dict()
    family = with_verbs(LlamaForCausalLM)
    config = dataclasses.replace(family.config_from_hf(hf), max_position_embeddings=4096)
    model = build(family, config, "random", dtype=jnp.bfloat16)
    FastLanguageModel.get_peft_model(model, r=4)
    rows = np.random.default_rng(0).integers(0, 97, (1, 4096)).astype(np.int32)
    batch = Batch(input_ids=rows, labels=rows, layout="causal")
    memory, gradients = {}, {}
    for remat in ("full", "offload"):
        model.model.remat = remat
        gradient = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
        memory[remat] = gradient.lower(*split(model), batch).compile().memory_analysis()
        gradients[remat] = jax.tree.leaves(gradient(*split(model), batch)[0])
    inputs = 16 * 4096 * 512 * 2
    assert memory["offload"].host_temp_size_in_bytes >= inputs
    assert memory["full"].host_temp_size_in_bytes == 0
    saved = memory["full"].temp_size_in_bytes - memory["offload"].temp_size_in_bytes
    assert saved >= 0.7 * inputs
    for ours, theirs in zip(gradients["offload"], gradients["full"], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_default_dtype_is_bfloat16() -> None:
    assert resolve_dtype(None) == jnp.bfloat16
    assert is_bfloat16_supported()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (700, 50.0)])
def test_attention_in_bfloat16_at_real_heads(window: int | None, softcap: float | None) -> None:
    """32 query and 8 key heads of width 128, 1,300 positions: more than two blocks."""
    draw = np.random.default_rng(0)
    q, k, v, dy = (
        jnp.asarray(draw.normal(size=(1, 1300, heads, 128)), jnp.bfloat16)
        for heads in (32, 8, 8, 32)
    )

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        y = attention(q, k, v, scale=128**-0.5, window=window, softcap=softcap)
        return jnp.sum(y.astype(jnp.float32) * dy.astype(jnp.float32))

    y = attention(q, k, v, scale=128**-0.5, window=window, softcap=softcap)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    ours = [np.asarray(x.astype(jnp.float32)) for x in (y, *gradients)]
    theirs = attention_oracle(q, k, v, dy, window, softcap)
    names = ("attention_forward", *["attention_gradient"] * 3)
    for name, actual, expected in zip(names, ours, theirs, strict=True):
        assert relative_error(actual, expected) <= tolerance("bfloat16", name)


def attention_oracle(
    q: jax.Array, k: jax.Array, v: jax.Array, dy: jax.Array, window: int | None, cap: float | None
) -> list[np.ndarray]:
    """Output and gradients by torch's autograd in float64, on the CPU."""
    tensors = [
        torch.tensor(np.asarray(x.astype(jnp.float32)), dtype=torch.float64) for x in (q, k, v, dy)
    ]
    q_, k_, v_ = (x.transpose(1, 2).requires_grad_() for x in tensors[:3])
    wide = [x.repeat_interleave(4, dim=1) for x in (k_, v_)]
    scores = q_ @ wide[0].transpose(-1, -2) * 128**-0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    t = torch.arange(q.shape[1])
    hidden = t[None] > t[:, None]
    if window is not None:
        hidden = hidden | (t[:, None] - t[None] >= window)
    y = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ wide[1]
    y = y.transpose(1, 2)
    y.backward(tensors[3])
    return [y.detach().numpy(), *(x.grad.transpose(1, 2).numpy() for x in (q_, k_, v_))]


def test_cross_entropy_in_bfloat16_holds_no_whole_logits() -> None:
    """4,096 rows of Llama 3's vocabulary: 2.1 GB of float32 logits if they were ever whole."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(4096, 256)), jnp.bfloat16)
    head = jnp.asarray(draw.normal(size=(128256, 256)) / 16, jnp.bfloat16)
    labels = jnp.asarray(draw.integers(0, 128256, 4096))
    gradient = jax.jit(jax.value_and_grad(linear_cross_entropy))
    memory = gradient.lower(x, head, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.2e9
    total, dx = gradient(x, head, labels)
    rows = torch.tensor(np.asarray(x[:64].astype(jnp.float32)), dtype=torch.float64)
    rows.requires_grad_()
    matrix = torch.tensor(np.asarray(head.astype(jnp.float32)), dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(
        rows @ matrix.T, torch.tensor(np.asarray(labels[:64]), dtype=torch.long), reduction="sum"
    )
    expected.backward()
    part = linear_cross_entropy(x[:64], head, labels[:64])
    assert relative_error(part, expected.detach().numpy()) <= tolerance(
        "bfloat16", "cross_entropy_forward"
    )
    actual = np.asarray(dx[:64].astype(jnp.float32))
    assert relative_error(actual, rows.grad.numpy()) <= tolerance(
        "bfloat16", "cross_entropy_gradient"
    )
    assert np.isfinite(float(total))
