"""The kernels of a step over simulated GPUs, lowered for CUDA on a machine that has none.

python -m tests.jaxtune.distribution.kernels
"""

import json
import re
import sys

from jaxtune.models.placement import mesh_of, split_rows
from jaxtune.models.sharding import place_model
from jaxtune.optim.registry import create_optimizer
from jaxtune.training.optimizer_places import first_state
from jaxtune.training.step import make_train_step, split
from pallas_kernels import dispatch
from tests.jaxtune.distribution.models import packed, tiny_model
from tests.pallas_kernels.lowering import gpu, kernels, of_gpus

KIND = "NVIDIA H100 80GB HBM3"


def lowered():
    """Text of the program."""
    mesh, model = mesh_of({"data": 2, "fsdp": 4}), tiny_model("nf4")
    place_model(model, mesh)
    tx = create_optimizer("adamw_8bit", lambda _: 1e-3)
    model.model.mesh = of_gpus(mesh, KIND)  # where JAX asks the mesh for a device
    graphdef, trained, frozen = split(model)
    arguments = (trained, first_state(tx, trained, mesh), frozen)
    device = dispatch.Device(platform="gpu", compute_capability=(9, 0))
    for name, module in list(sys.modules.items()):
        if name.startswith("pallas_kernels") and hasattr(module, "current_device"):
            module.current_device = lambda: device
    step = make_train_step(graphdef, tx)
    with gpu(KIND):
        program = step.trace(*arguments, split_rows(packed(8, length=32), mesh))
        return program.lower(lowering_platforms=("cuda",)).as_text()


if __name__ == "__main__":
    text = lowered()
    gathered = re.findall(r"stablehlo.all_gather.*-> tensor<(\S+)>", text)
    found = {"kernels": [operands for operands, _ in kernels(text)], "gathered": gathered}
    sys.stdout.write(json.dumps(found))
