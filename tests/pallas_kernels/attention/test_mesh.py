"""The Triton kernels on a mesh: each device attends for its own rows alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tolerances import tolerance

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, re
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from pallas_kernels.attention import api, triton
from pallas_kernels.attention.cases import Case, make_inputs
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error

case = Case(name="mesh", B=4, T=21, S=21, N=2, K=1, H=8, document=8)
inputs = make_inputs(case, "float32", normal(0))._replace(window=jax.numpy.int32(11))
mesh = Mesh(jax.devices(), ("data",), axis_types=(AxisType.Auto,))
spread = NamedSharding(mesh, PartitionSpec("data"))

def loss(q, k, v, ids):
    arrays = inputs._replace(q=q, k=k, v=v, q_segment_ids=ids, kv_segment_ids=ids)
    return (api.differentiable(triton.INTERPRET, case.options, arrays) ** 2).sum()

gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
arrays = (*inputs[:3], inputs.q_segment_ids)
whole = gradient(*arrays)
arrays = [jax.device_put(x, spread) for x in arrays]
program = gradient.lower(*arrays).compile()
split = program(*arrays)
print(json.dumps({
    "error": max(relative_error(a, b) for a, b in zip(split, whole, strict=True)),
    "spread": [x.sharding.spec[0] for x in split],
    "moved": re.findall("all-gather|all-reduce|all-to-all|collective-permute", program.as_text()),
}))
"""


def test_rows_stay_where_they_are():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"] <= tolerance("float32", "attention_gradient")
    assert found["spread"] == ["data"] * 3
    assert found["moved"] == []
