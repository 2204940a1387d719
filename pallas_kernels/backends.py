"""Which backends the ops have: looked at before a model is loaded, not at the first call."""

from pallas_kernels.attention.api import BACKENDS as ATTENTION
from pallas_kernels.cross_entropy.api import BACKENDS as CROSS_ENTROPY
from pallas_kernels.dispatch import REQUESTS, Unsupported, current_device
from pallas_kernels.glu.api import BACKENDS as GLU
from pallas_kernels.lora_linear.api import BACKENDS as LORA_LINEAR
from pallas_kernels.nf4.api import BACKENDS as NF4
from pallas_kernels.nf4_matmul.api import BACKENDS as NF4_MATMUL
from pallas_kernels.pallas_triton import ABSENT, plt, refuse_device
from pallas_kernels.rms_norm.api import BACKENDS as RMS_NORM

OPS = {
    "attention": ATTENTION,
    "linear_cross_entropy": CROSS_ENTROPY,
    "rms_norm": RMS_NORM,
    "glu": GLU,
    "lora_linear": LORA_LINEAR,
    "dequantize_nf4": NF4,
    "nf4_matmul": NF4_MATMUL,
}


def check_backend(requested: str) -> None:
    """Raise if a forced backend is one that some op does not have, or that cannot run here.

    Args:
      requested: "auto", "xla", "triton" or "interpret".

    Raises:
      ValueError: Another name.
      Unsupported: An op has no backend of that name, or the default device cannot run it.
    """
    if requested not in REQUESTS:
        raise ValueError(f"`kernels` must be one of {', '.join(REQUESTS)}; got {requested!r}.")
    if requested == "auto":
        return
    lacking = [op for op, backends in OPS.items() if requested not in {b.name for b in backends}]
    if lacking:
        raise Unsupported(
            f"every op must have the forced backend; {', '.join(lacking)} has no "
            f"{requested!r}. Pass kernels='auto'."
        )
    reason = None
    if requested == "triton":
        reason = refuse_device(current_device())
    elif requested == "interpret" and plt is None:
        reason = ABSENT
    if reason is not None:
        raise Unsupported(
            f"the forced backend must be one that runs here; got {requested!r}: {reason}. Pass "
            "kernels='auto'."
        )
