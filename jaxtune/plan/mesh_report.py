"""What `jaxtune plan --mesh` prints beside the table."""

import math
from collections.abc import Iterator

from jaxtune.plan.options import PlanRequest
from jaxtune.plan.report import GIB
from jaxtune.plan.simulation import Simulated
from jaxtune.plan.spread import Received


def wire_lines(options: PlanRequest, found: Received) -> Iterator[str]:
    """What is on the wire, predicted.

    Args:
      options: Of the command line.
      found: By a device, in a step.

    Yields:
      Lines without their ends.
    """
    devices = math.prod(options.sizes.values())
    yield (
        f"All of the above is that of one of the {devices} devices of --mesh {options.mesh}. It "
        "receives"
    )
    yield (
        f"{found.total / GIB:.2f} GiB a step from the others, {found.weights / GIB:.2f} of weights "
        f"and {found.gradients / GIB:.2f} of gradients; times leave that out."
    )
    if options.sizes.get("tensor", 1) > 1:
        yield (
            'What "tensor" exchanges comes on top, and activations count as if it were not there.'
        )


def compiled_lines(found: Simulated) -> Iterator[str]:
    """What the compiler says.

    Args:
      found: Of one device.

    Yields:
      Lines without their ends.
    """
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in found.received.items())
    yield (
        f"Compiled for simulated devices: {found.held / GIB:.2f} GiB of weights, LoRA, states and "
        "rows on each; received in"
    )
    yield f"a step, GiB: {parts or 'nothing'} (16-bit floats travel as 32 bits there)."
