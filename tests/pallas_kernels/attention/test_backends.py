"""What the Triton kernels serve, and what they say of the rest."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import Unsupported, attention, pallas_triton
from pallas_kernels.attention import api, block_sizes, tiles
from pallas_kernels.attention.cases import Case, make_inputs
from pallas_kernels.dispatch import Device, choose
from tests.pallas_kernels.attention.problems import problem
from tests.pallas_kernels.drawing import normal

REFUSALS = [
    ({"dtype": "float64"}, "it needs bfloat16, float16 or float32; got float64"),
    ({"T": 1}, "queries and keys must be the same whole rows"),
    ({"whole": False}, "queries and keys must be the same whole rows"),
    ({"H": 264}, "heads must be at most 256 wide; got 264"),
    ({"scale": 0.0}, "the scale must be positive; got 0.0"),
    ({"scale": -1.0}, "the scale must be positive; got -1.0"),
]
DEVICES = [
    ({"capability": None, "platform": "cpu"}, "it needs an NVIDIA GPU; the device is a cpu"),
    ({"capability": None}, "it needs an NVIDIA GPU; the device is a gpu"),
    ({"capability": (7, 5)}, "it needs compute capability 8.0; the GPU has 7.5"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSALS)
@pytest.mark.parametrize("backend", ["triton", "interpret"])
def test_refuses_and_says_why(backend, changes, reason):
    with pytest.raises(Unsupported, match=f"refused by {backend}: {reason}"):
        choose(backend, api.BACKENDS, problem(**changes))


@pytest.mark.parametrize(("changes", "reason"), DEVICES)
def test_refuses_other_devices_and_the_interpreter_does_not(changes, reason):
    with pytest.raises(Unsupported, match=f"refused by triton: {reason}"):
        choose("triton", api.BACKENDS, problem(**changes))
    assert choose("interpret", api.BACKENDS, problem(**changes)).name == "interpret"


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize(
    "changes",
    [{"segments": True}, {"softcap": 50.0}, {"traced_window": True}, {"dtype": "float32"}],
)
def test_serves_what_cudnn_does_not(changes, capability):
    asked = problem(capability=capability, **changes)
    assert choose("auto", api.BACKENDS, asked).name == "triton"


def test_without_pallas_triton_plain_jax_serves(monkeypatch):
    monkeypatch.setattr(pallas_triton, "plt", None)
    assert choose("auto", api.BACKENDS, problem(segments=True)).name == "xla"
    with pytest.raises(Unsupported, match=r"triton: this JAX has no jax\.experimental\.pal"):
        choose("triton", api.BACKENDS, problem())


def test_offset_that_may_be_traced_is_left_to_plain_jax():
    q, k, v = make_inputs(Case(name="x", B=1, T=4, S=4, N=1, K=1, H=8), "float32", normal(0))[:3]
    with pytest.raises(Unsupported, match="interpret: queries and keys must be the same whole"):
        attention(q, k, v, scale=1.0, q_offset=jnp.int32(0), backend="interpret")


def shared_bytes(blocks, own, other, held, H, itemsize):
    return (held * own + 2 * blocks.stages * other) * H * itemsize


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("H", [16, 64, 80, 128, 256])
@pytest.mark.parametrize(("capability", "kib"), [((8, 0), 163), ((8, 9), 99), ((9, 0), 227)])
def test_cuts_fit_into_shared_memory(H, itemsize, capability, kib):
    device = Device(platform="gpu", compute_capability=capability)
    cuts = block_sizes.sizes(H, itemsize, device)
    width = tiles.padded(H)
    forward, dkv, dq = cuts.forward, cuts.dkv, cuts.dq
    assert shared_bytes(forward, forward.q, forward.k, 1, width, itemsize) <= kib * 1024
    assert shared_bytes(dkv, dkv.k, dkv.q, 2, width, itemsize) <= kib * 1024
    assert shared_bytes(dq, dq.q, dq.k, 2, width, itemsize) <= kib * 1024
    for blocks in (forward, dkv, dq):
        for n in (blocks.q, blocks.k):
            assert n >= 16
            assert n & (n - 1) == 0


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the device serves it")
def test_forced_triton_says_what_the_device_lacks():
    q, k, v = make_inputs(Case(name="x", B=1, T=4, S=4, N=1, K=1, H=8), "float32", normal(0))[:3]
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        attention(q, k, v, scale=1.0, backend="triton")
