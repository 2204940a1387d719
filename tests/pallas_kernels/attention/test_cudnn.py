"""What cuDNN serves, and that its options are those of the op; it runs on a GPU alone."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from pallas_kernels import Unsupported, attention
from pallas_kernels.attention import api, cudnn
from pallas_kernels.attention.cases import Case, make_inputs
from pallas_kernels.attention.reference import attention_ref
from pallas_kernels.dispatch import choose
from tests.pallas_kernels.attention.problems import problem
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

CASE = Case(name="whole_rows", B=2, T=37, S=37, N=4, K=2, H=8)
NEEDS_A_GPU = "it needs an NVIDIA GPU of compute capability 8.0"
# What cuDNN says, and who serves instead.
REFUSALS = [
    ({"capability": None, "platform": "cpu"}, NEEDS_A_GPU, "xla"),
    ({"capability": None}, NEEDS_A_GPU, "xla"),
    ({"capability": (7, 5)}, NEEDS_A_GPU, "xla"),
    ({"dtype": "float32"}, "it needs bfloat16 or float16; got float32", "triton"),
    ({"segments": True}, "it has no segments, no soft-cap and no traced window", "triton"),
    ({"softcap": 50.0}, "it has no segments, no soft-cap and no traced window", "triton"),
    ({"traced_window": True}, "it has no segments, no soft-cap and no traced window", "triton"),
    ({"T": 1}, "queries and keys must be the same whole rows", "xla"),
    ({"whole": False}, "queries and keys must be the same whole rows", "xla"),
    ({"H": 20}, "heads must be a multiple of 8 and at most 256 wide; got 20", "triton"),
    ({"H": 264}, "heads must be a multiple of 8 and at most 256 wide; got 264", "xla"),
    ({"H": 256, "capability": (8, 9)}, "heads must be .* at most 128 wide; got 256", "triton"),
    ({"H": 136, "capability": (8, 0)}, "heads must be .* at most 128 wide; got 136", "triton"),
]


@pytest.mark.parametrize(("changes", "reason", "other"), REFUSALS)
def test_refuses_and_auto_takes_another(changes, reason, other):
    asked = problem(**changes)
    with pytest.raises(Unsupported, match=f"refused by cudnn: {reason}"):
        choose("cudnn", api.BACKENDS, asked)
    assert choose("auto", api.BACKENDS, asked).name == other


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "float16"},
        {"window": 16},
        {"H": 256},
        {"capability": (8, 0)},
        {"capability": (12, 0), "H": 64},
    ],
)
def test_serves_whole_rows_in_half_precision(changes):
    assert choose("auto", api.BACKENDS, problem(**changes)).name == "cudnn"


def test_forced_without_a_gpu_says_what_the_device_lacks():
    inputs = make_inputs(CASE, "bfloat16", normal(0))
    on_cpu = jax.default_device(jax.local_devices(backend="cpu")[0])
    with on_cpu, pytest.raises(Unsupported, match="cudnn: it needs an NVIDIA GPU"):
        attention(*inputs[:3], scale=1.0, backend="cudnn")


@pytest.mark.parametrize("window", [None, 1, 11])
def test_its_options_mean_what_ours_do(window, monkeypatch):
    asked = []
    in_plain_jax = jax.nn.dot_product_attention

    def instead(*arrays, implementation, **options):
        asked.append(implementation)
        return in_plain_jax(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    case = replace(CASE, window=window)
    inputs = make_inputs(case, "float32", normal(0))
    y = quick_jit(partial(cudnn.forward, case.options))(inputs)
    expected = quick_jit(partial(attention_ref, case.options))(inputs)
    assert asked == ["cudnn"]
    assert relative_error(np.asarray(y), expected) <= tolerance("float32", "attention_forward")
