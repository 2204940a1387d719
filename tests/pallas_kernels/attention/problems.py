"""Calls of attention as the choice of a backend sees them."""

from pallas_kernels.dispatch import Device, Problem

SIZES = {"B": 2, "T": 64, "S": 64, "N": 8, "K": 2, "H": 128}
OPTIONS = {
    "scale": 1.0,
    "window": None,
    "softcap": None,
    "segments": False,
    "whole": True,
    "traced_window": False,
}


def problem(capability=(9, 0), dtype="bfloat16", platform="gpu", **changes):
    return Problem(
        op="attention",
        device=Device(platform=platform, compute_capability=capability),
        dtype=dtype,
        sizes=SIZES | {name: n for name, n in changes.items() if name in SIZES},
        options=OPTIONS | {name: n for name, n in changes.items() if name in OPTIONS},
    )
