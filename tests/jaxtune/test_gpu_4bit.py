"""4-bit weights on a CUDA device: the kernels' bits, the joined product, the gradient, memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig

from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import projections
from jaxtune.data.batch import Batch
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.layers.linear import LoraSpec
from jaxtune.models.build import build
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.training.step import loss, split
from pallas_kernels import dequantize_nf4, quantize_nf4
from pallas_kernels.nf4 import Beside, dequantize_group
from pallas_kernels.nf4.reference import dequantize_nf4_ref
from tests.families import SMALL
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.gpu
SIZES = {**SMALL, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8}


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> jax.Array:
    return (jax.random.normal(jax.random.key(seed), shape) * 0.05).astype(dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("matrix", [(1024, 4096), (4096, 3584), (258, 64), (129, 5504)])
def test_kernels_give_the_bits_of_plain_jax(
    matrix: tuple[int, int], nested: bool, dtype: str
) -> None:
    weight = normal(matrix, dtype)
    ours = quantize_nf4(weight, nested=nested, backend="triton")
    plain = quantize_nf4(weight, nested=nested, backend="xla")
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(left, right)
    expected = np.asarray(dequantize_nf4_ref(ours, 0, dtype))
    dense = dequantize_nf4(ours, 0, dtype, backend="triton")
    np.testing.assert_array_equal(np.asarray(dense), expected)
    rows, columns = matrix
    stack = normal((2, 2 * rows, 16), dtype, seed=1)
    beside = Beside(stack, jnp.int32(1), 0, (0, 16), 32)
    wide = dequantize_group([ours, ours], 0, dtype, beside=beside, below=1, backend="triton")
    np.testing.assert_array_equal(wide[:rows, :columns], expected)
    np.testing.assert_array_equal(wide[rows:-1, :columns], expected)
    own = np.zeros((2 * rows, 32), stack.dtype)
    own[:rows, :16], own[rows:, 16:] = stack[1, :rows], stack[1, rows:]
    np.testing.assert_array_equal(wide[:-1, columns:], own)


def adapted() -> LanguageModel:
    hf = AutoConfig.for_model("llama", **SIZES, head_dim=64).to_dict()
    family = with_verbs(LlamaForCausalLM)
    model = build(family, family.config_from_hf(hf), "random", bits=4, initializer_range=0.1)
    spec = LoraSpec(ranks=(4,) * 8, scales=(1.0,) * 8, dropout=0.0)
    inject_lora(model, dict.fromkeys(projections(model), spec), seed=0, init_lora_weights=False)
    return model


def test_every_plan_and_backend_gives_one_gradient_and_none_keeps_a_dense_weight() -> None:
    model = adapted()
    rows = np.random.default_rng(0).integers(0, 97, (2, 32)).astype(np.int32)
    batch = Batch(input_ids=rows, labels=rows, layout="causal")
    gradient = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
    found = {}
    for remat, kernels in (
        ("full", "xla"),
        ("full", "auto"),
        ("none", "auto"),
        ("offload", "auto"),
    ):
        model.model.remat, model.model.kernels = remat, kernels
        found[remat, kernels] = jax.tree.leaves(gradient(*split(model), batch)[0])
        memory = gradient.lower(*split(model), batch).compile().memory_analysis()
        # Half of all dense weights together; cuBLAS' workspace, 32 MiB, counts too.
        stacks = [module.weight.get_value() for module in projections(model).values()]
        assert memory.temp_size_in_bytes < sum(math.prod(s.shape) for s in stacks) * 4 / 2
    expected = found.pop(("full", "xla"))
    for leaves in found.values():
        errors = [relative_error(*pair) for pair in zip(leaves, expected, strict=True)]
        assert max(errors) <= tolerance("float32", "lora_gradient")
