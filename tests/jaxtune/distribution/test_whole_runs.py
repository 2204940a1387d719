"""The same script over many devices: loading, training, evaluation, generation, resuming."""

import pytest

from tests.jaxtune.distribution.processes import run
from tests.tolerances import tolerance

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("weights", ["dense", "4bit"])
def test_a_run_over_a_mesh_is_that_of_one_device(weights, tmp_path):
    found = run("whole_runs", str(tmp_path), weights)
    one = found["one"]
    assert set(one["devices"]) == {1}
    for name in ("both", "args"):
        many = found[name]
        assert many["losses"] == pytest.approx(one["losses"], rel=tolerance("float32", "mesh_loss"))
        assert many["answer"] == one["answer"]
        assert many["adapter"] == one["adapter"]
        assert one["resumed"]
        assert many["resumed"]
        assert set(many["devices"]) == {8}
        assert "fsdp" in many["split"]
    assert (
        "must have one mesh; got {'data': 1, 'fsdp': 8, 'tensor': 1} in `args`"
        in (found["conflict"])
    )


def test_weights_arrive_as_on_one_device_and_no_device_has_them_all(tmp_path):
    found = run("whole_runs", str(tmp_path), "loads")
    for loaded in found["loads"].values():
        assert loaded["equal"]
        # Its quarter, and a layer's matrix with the pieces that it is made of.
        assert loaded["whole"] / 4 < loaded["most"] < loaded["whole"] * 0.5
    copied, parts = {"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}
    assert found["auto"] == [copied, parts, parts]
