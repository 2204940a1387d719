"""`jaxtune doctor`: what this machine will do, what is wrong, and what to do about it."""

import sys

from jaxtune.cli.doctor_device import device_findings, kernel_findings
from jaxtune.cli.doctor_install import (
    cache_findings,
    extra_findings,
    hub_findings,
    version_findings,
)
from jaxtune.cli.doctor_options import Doctor
from jaxtune.cli.finding import Finding, broken
from jaxtune.console import columns, say
from jaxtune.machine import Machine, probe

UNSET = "Unset JAX_PLATFORMS, and JAX takes what there is"


def run(_: Doctor) -> int:
    """Print what was found.

    Returns:
      The exit status: 1 if something is broken, else 0.
    """
    failing: list[Finding] = []
    for title, findings in _sections():
        say(title)
        for finding in findings:
            say(*finding.lines(columns(sys.stdout)))
        say("")
        failing += [finding for finding in findings if finding.state == "broken"]
    if not failing:
        say("Nothing is broken.")
        return 0
    say(f"{len(failing)} broken:")
    for finding in failing:
        say(*finding.lines(columns(sys.stdout)))
    return 1


def _sections() -> list[tuple[str, list[Finding]]]:
    """Everything, device first."""
    try:
        machine = probe()
    except ValueError as error:  # platforms that do not start
        text, _, _ = str(error).partition(" Unset it")
        device = [("Device", [broken(text, UNSET)])]
    else:
        device = _device_sections(machine)
    return [
        *device,
        ("Compile cache", cache_findings()),
        ("Hub", hub_findings()),
        ("Versions", version_findings()),
        ("Extras", extra_findings()),
    ]


def _device_sections(machine: Machine) -> list[tuple[str, list[Finding]]]:
    found = device_findings(machine)
    if any(finding.state == "broken" for finding in found):
        return [("Device", found)]
    return [("Device", found), ("Kernels", kernel_findings())]
