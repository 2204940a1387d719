"""Each op's kernels lower for every kind of card that they serve, forward and backward."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import (
    adam_8bit,
    add_rms_norm,
    attention,
    dequantize_nf4,
    dispatch,
    glu,
    linear_cross_entropy,
    lora_linear,
    nf4_matmul,
    quantize_blockwise,
    quantize_nf4,
)
from pallas_kernels.adam_8bit.contract import Decays, zero_moments
from pallas_kernels.lora_linear import Adapter
from tests.pallas_kernels.lowering import CALL, DEVICES, NAMED, lowered

KINDS = DEVICES if NAMED else ("unnamed",)
CAPABILITIES = dict(zip(DEVICES, ((8, 0), (8, 9), (9, 0), (10, 0)), strict=True))


def shape(*sizes, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def stack(O, I):
    return jax.eval_shape(partial(quantize_nf4, backend="xla"), shape(O, I))


def gradient(function):
    """The function's value and its cotangents."""

    def both(*arguments):
        y, pull = jax.vjp(function, *arguments)
        return y, pull(jax.tree.map(jnp.ones_like, y))

    return both


def lora(x, weight, a, b):
    adapters = [Adapter(a, b, jnp.float32(2))]
    return gradient(lambda x: lora_linear(x, [weight], adapters, backend="triton"))(x)


def step(p, g, moments):
    decays = Decays(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    return adam_8bit(p, g, moments, learning_rate=1e-3, step=1, decays=decays, backend="triton")


def attend(q, k, v, ids):
    run = partial(
        attention, scale=0.1, q_segment_ids=ids, kv_segment_ids=ids, softcap=50.0, backend="triton"
    )
    return gradient(run)(q, k, v)


def cross_entropy(x, head, labels):
    run = partial(linear_cross_entropy, softcap=30.0, backend="triton")
    return jax.value_and_grad(lambda x: run(x, head, labels))(x)


HEADS = (shape(2, 512, 8, 128), shape(2, 512, 2, 128), shape(2, 512, 2, 128))
OPS = {
    "adam_8bit": (
        step,
        shape(2, 8192, dtype="float32"),
        shape(2, 8192, dtype="float32"),
        jax.eval_shape(lambda: zero_moments(2, 8192)),
    ),
    "attention": (attend, *HEADS, shape(2, 512, dtype="int32")),
    "blockwise_quant": (partial(quantize_blockwise, backend="triton"), shape(2, 4096)),
    "cross_entropy": (cross_entropy, shape(256, 64), shape(5000, 64), shape(256, dtype="int32")),
    "dequantize_nf4": (
        lambda weight: dequantize_nf4(weight, 0, "bfloat16", backend="triton"),
        stack(256, 512),
    ),
    "glu": (gradient(partial(glu, backend="triton")), shape(64, 512), shape(64, 512)),
    "lora_linear": (
        lora,
        shape(4096, 256),
        stack(4096, 256),
        shape(16, 256, dtype="float32"),
        shape(4096, 16, dtype="float32"),
    ),
    "nf4_matmul": (
        lambda x, weight: nf4_matmul(x, weight, 0, backend="triton"),
        shape(8, 512),
        stack(256, 512),
    ),
    "quantize_nf4": (partial(quantize_nf4, backend="triton"), shape(256, 512)),
    "rms_norm": (
        gradient(partial(add_rms_norm, eps=1e-5, backend="triton")),
        *(shape(64, 512), shape(64, 512), shape(512)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", OPS)
def test_the_kernels_of_an_op_lower_for_a_card(op, kind, monkeypatch):
    capability = CAPABILITIES.get(kind, (9, 0))
    device = dispatch.Device(platform="gpu", compute_capability=capability)
    for module in modules():
        monkeypatch.setattr(module, "current_device", lambda: device)
    function, *arguments = OPS[op]
    text = lowered(function, *arguments, **({"kind": kind} if NAMED else {}))
    assert CALL in text


def modules():
    """Everything in the package that asks for the device."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("pallas_kernels") and hasattr(module, "current_device")
    ]
