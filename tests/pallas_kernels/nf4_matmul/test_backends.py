"""Which backend serves a product, and what the others say."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import Unsupported
from pallas_kernels.dispatch import Device, Problem, choose
from pallas_kernels.nf4_matmul import api, nf4_matmul
from pallas_kernels.nf4_matmul.cases import ODD_CASES, make_inputs
from tests.pallas_kernels.drawing import normal

H100 = Device(platform="gpu", compute_capability=(9, 0))
T4 = Device(platform="gpu", compute_capability=(7, 5))


def problem(device=H100, dtype="bfloat16", **sizes):
    sizes = {"M": 1, "L": 1, "O": 1024, "I": 4096, "block": 64} | sizes
    sizes["C"] = -(-sizes["O"] * sizes["I"] // 2)
    return Problem(op="nf4_matmul", device=device, dtype=dtype, sizes=sizes)


REFUSALS = [
    ({"device": Device(platform="cpu")}, "it needs an NVIDIA GPU; the device is a cpu"),
    ({"device": T4}, "it needs compute capability 8.0; the GPU has 7.5"),
    ({"M": 33}, "x must have 1 to 32 rows; got 33"),
    ({"M": 0}, "x must have 1 to 32 rows; got 0"),
    ({"dtype": "float64"}, "x must be float32, bfloat16 or float16; got float64"),
    ({"O": 1023}, "half of the weight must be whole rows; got 1023 rows"),
    ({"I": 172}, "a row must be whole blocks; got rows of 172, blocks of 64"),
    ({"block": 8}, "a block must have 16 to 256 elements; got 8"),
    ({"block": 512}, "a block must have 16 to 256 elements; got 512"),
    ({"L": 1024}, f"a stack of 2 to 4 GiB has offsets .* got {2**31} bytes"),
]


@pytest.mark.parametrize(("asked", "reason"), REFUSALS)
def test_triton_refuses_and_auto_takes_plain_jax(asked, reason):
    with pytest.raises(Unsupported, match=f"`nf4_matmul` .* refused by triton: {reason}"):
        choose("triton", api.BACKENDS, problem(**asked))
    assert choose("auto", api.BACKENDS, problem(**asked)).name == "xla"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [{}, {"M": 32}, {"L": 1023}, {"L": 2048}, {"block": 256}])
def test_triton_serves_an_nvidia_gpu_that_asks_for_it(sizes, dtype):
    asked = problem(dtype=dtype, **sizes)
    assert choose("triton", api.best_first(asked), asked).name == "triton"


@pytest.mark.parametrize(
    ("sizes", "best"),
    [({"O": 4096}, "triton"), ({"O": 4096, "M": 17}, "xla"), ({"O": 1024}, "xla")],
)
def test_auto_takes_the_faster_one(sizes, best):
    asked = problem(**sizes)
    assert choose("auto", api.best_first(asked), asked).name == best


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the device serves it")
def test_forced_triton_says_what_the_device_lacks():
    x, stack = make_inputs(ODD_CASES[0], "float32", normal(0))
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        nf4_matmul(x, stack, 0, backend="triton")


def test_rows_are_counted_over_all_leading_axes():
    _, stack = make_inputs(ODD_CASES[0], "float32", normal(0))
    with pytest.raises(Unsupported, match="interpret: x must have 1 to 32 rows; got 34"):
        nf4_matmul(jnp.zeros((17, 2, 64)), stack, 0, backend="interpret")


def test_rejects_x_of_another_width():
    _, stack = make_inputs(ODD_CASES[0], "float32", normal(0))
    with pytest.raises(ValueError, match=r"`x` must be \[..., 64\] for weights \(2, 64\); got"):
        nf4_matmul(jnp.zeros((2, 32)), stack, 0)
