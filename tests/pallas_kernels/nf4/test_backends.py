"""Which backend serves a stack, and what the others say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Unsupported, pallas_triton
from pallas_kernels.dispatch import Device, Problem, choose
from pallas_kernels.nf4 import (
    NF4,
    NestedAbsmax,
    api,
    dequantize_nf4,
    quantize,
    quantize_nf4,
    quantize_triton,
    triton,
)
from tests.pallas_kernels.drawing import normal

H100 = Device(platform="gpu", compute_capability=(9, 0))
DEVICES = {
    "cpu": Device(platform="cpu"),
    "tpu": Device(platform="tpu"),
    "rocm": Device(platform="gpu"),
    "t4": Device(platform="gpu", compute_capability=(7, 5)),
}
LISTS = {"dequantize_nf4": api.BACKENDS, "quantize_nf4": quantize.BACKENDS}


def problem(op="dequantize_nf4", device=H100, dtype="bfloat16", L=1, C=4096, block=64):
    return Problem(op=op, device=device, dtype=dtype, sizes={"L": L, "C": C, "block": block})


def stack_of(L=1, O=2, I=64, block=64):
    """A stack of zeros."""
    blocks = -(-O * I // block)
    return NF4(
        codes=jnp.zeros((L, -(-O * I // 2)), jnp.uint8),
        absmax=jnp.zeros((L, blocks), jnp.uint8),
        table=jnp.zeros(16),
        nested=NestedAbsmax(
            absmax=jnp.zeros((L, -(-blocks // 256))), table=jnp.zeros(256), offset=jnp.zeros(L)
        ),
        matrix=(O, I),
        dtype="float32",
        block=block,
    )


REFUSALS = [
    ("cpu", {}, "it needs an NVIDIA GPU; the device is a cpu"),
    ("tpu", {}, "it needs an NVIDIA GPU; the device is a tpu"),
    ("rocm", {}, "it needs an NVIDIA GPU; the device is a gpu"),
    ("t4", {}, "it needs compute capability 8.0; the GPU has 7.5"),
    (None, {"C": 96}, "half of the weight must be whole blocks; got 96 elements, blocks of 64"),
    (None, {"block": 2048}, "half of the weight must be whole blocks; got 4096 elements, bl"),
    (None, {"L": 2**19}, f"a stack of 2 to 4 GiB has offsets .* got {2**31} bytes"),
    (None, {"L": 2**20 - 1}, f"a stack of 2 to 4 GiB has offsets .* got {2**32 - 4096} bytes"),
]


@pytest.mark.parametrize("op", LISTS)
@pytest.mark.parametrize(("device", "sizes", "reason"), REFUSALS)
def test_triton_refuses_and_auto_takes_plain_jax(op, device, sizes, reason):
    asked = problem(op, DEVICES.get(device, H100), **sizes)
    with pytest.raises(Unsupported, match=f"`{op}` .* refused by triton: {reason}"):
        choose("triton", LISTS[op], asked)
    assert choose("auto", LISTS[op], asked).name == "xla"


@pytest.mark.parametrize("op", LISTS)
@pytest.mark.parametrize("sizes", [{}, {"L": 2**19 - 1}, {"L": 2**20}, {"C": 64}, {"block": 1024}])
def test_triton_serves_an_nvidia_gpu(op, sizes):
    for capability in ((8, 0), (8, 9), (9, 0), (12, 0)):
        device = Device(platform="gpu", compute_capability=capability)
        assert choose("auto", LISTS[op], problem(op, device, **sizes)).name == "triton"


def test_quantisation_by_triton_needs_a_dtype_of_training():
    asked = problem("quantize_nf4", dtype="float64")
    with pytest.raises(Unsupported, match="float32, bfloat16 or float16; got float64"):
        choose("triton", quantize.BACKENDS, asked)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the device serves it")
def test_forced_triton_says_what_the_device_lacks():
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        dequantize_nf4(stack_of(), 0, "float32", backend="triton")
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        quantize_nf4(jnp.zeros((2, 64)), backend="triton")


def test_forced_interpreter_says_why_halves_do_not_fit():
    with pytest.raises(Unsupported, match="interpret: half of the weight must be whole blocks"):
        dequantize_nf4(stack_of(O=1), 0, "float32", backend="interpret")
    with pytest.raises(Unsupported, match="interpret: half of the weight must be whole blocks"):
        quantize_nf4(jnp.zeros((1, 64)), backend="interpret")


def test_without_pallas_triton_plain_jax_serves(monkeypatch):
    for module in (pallas_triton, triton, quantize_triton):
        monkeypatch.setattr(module, "plt", None)
    for module in (api, quantize):
        monkeypatch.setattr(module, "current_device", lambda: H100)
    # Called below its own `jit`, which would remember what was chosen before and for after.
    weight = np.asarray(normal(0)((4, 64)), np.float32)
    stack = jax.jit(partial(quantize_nf4.__wrapped__, backend="auto"))(weight)
    values = jax.jit(partial(dequantize_nf4, layer=0, dtype="float32"))(stack)
    assert np.abs(np.asarray(values) - weight).max() < 0.16 * np.abs(weight).max()
    for backend in ("interpret", "triton"):
        reason = f"{backend}: this JAX has no jax.experimental.pallas.triton"
        with pytest.raises(Unsupported, match=reason):
            dequantize_nf4(stack, 0, "float32", backend=backend)
        with pytest.raises(Unsupported, match=reason):
            quantize_nf4.__wrapped__(jnp.asarray(weight), backend=backend)


def cut(stack, name):
    """The stack with one array shortened; put together as JAX does it, without the checks."""

    def shorter(path, array):
        return array[..., :-1] if ".".join(str(key.name) for key in path) == name else array

    return jax.tree_util.tree_map_with_path(shorter, stack)


@pytest.mark.parametrize("name", ["codes", "absmax", "table"])
def test_rejects_an_array_of_the_wrong_shape(name):
    wrong = cut(stack_of(L=3), name)
    with pytest.raises(ValueError, match=rf"`NF4.{name}` of 3 weights \(2, 64\) .* must have"):
        dequantize_nf4(wrong, 0, "float32")


@pytest.mark.parametrize("name", ["absmax", "table", "offset"])
def test_rejects_a_nested_array_of_the_wrong_shape(name):
    wrong = cut(stack_of(L=3), f"nested.{name}")
    array = getattr(wrong.nested, name)
    with pytest.raises(ValueError, match=rf"`NF4.nested.{name}` .* got \({str(array.shape)[1:-1]}"):
        dequantize_nf4(wrong, 0, "float32")
