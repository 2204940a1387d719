"""Several GPUs: the step of one, with compiled kernels."""

import jax
import pytest

from tests.jaxtune.distribution.runs import compared
from tests.tolerances import tolerance

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("axis", ["data", "fsdp"])
@pytest.mark.parametrize("kind", ["dense", "nf4", "bank", "full"])
def test_a_step_over_gpus_is_the_step_of_one(kind, axis):
    if jax.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = {"kind": kind, "batch": "packed", "optim": "sgd", "sizes": {axis: 2}, "steps": 5}
    found = compared(case, {})
    assert found["loss"] <= tolerance("float32", "mesh_loss")
    assert found["gradient"] <= tolerance("float32", "mesh_gradient")
    if kind != "full":
        assert not any(name.startswith("in all-reduce") for name in found["traffic"])
