"""Which device a program runs on, and what to do where JAX cannot see the GPU."""

import dataclasses
import logging
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from jaxtune import runtime

# https://docs.jax.dev/en/latest/installation.html: the oldest driver for each wheel, newest first.
OLDEST_DRIVER = {"cuda13": 580, "cuda12": 525}
VERSION = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found; `first_line` turns it into words.

    Attributes:
      driver: Version of the NVIDIA driver, "" if there is one of unknown version, None if there
        is no NVIDIA GPU.
      plugins: JAX's installed CUDA plugins, of `OLDEST_DRIVER`.
      backend: `jax.default_backend()`: "cpu", "gpu" or "tpu".
      devices: What JAX calls each device.
      reason: What JAX said when it gave up on the GPU, or "".
      platforms: The user's choice of platforms (`JAX_PLATFORMS`), or "".
      python: The running interpreter, for commands to copy.
    """

    driver: str | None
    plugins: frozenset[str]
    backend: str
    devices: tuple[str, ...]
    reason: str = ""
    platforms: str = ""
    python: str = sys.executable


def first_line(machine: Machine) -> str:
    """One line on where the program runs; where JAX misses a GPU, with the command that helps.

    Args:
      machine: What was found.

    Returns:
      A line without its end.
    """
    if machine.backend != "cpu":
        count = len(machine.devices)
        several = f" and {count - 1} more like it" if count > 1 else ""
        return f"Running on {machine.devices[0]}{several}."
    if machine.driver is None:
        return "Running on the CPU (this machine has no NVIDIA GPU)."
    if machine.platforms:
        return (
            f"Running on the CPU, as JAX_PLATFORMS={machine.platforms} asks; "
            "unset it to use the NVIDIA GPU."
        )
    return f"JAX cannot see this machine's NVIDIA GPU, so this runs on the CPU: {_cure(machine)}"


def _cure(machine: Machine) -> str:
    """Why JAX misses the GPU, and the command."""
    install = f"{machine.python} -m pip install"
    number = int(machine.driver.split(".")[0]) if machine.driver else None
    if number is not None and number < min(OLDEST_DRIVER.values()):
        return (
            f"its driver {machine.driver} is too old. Install driver 580 or newer, then run: "
            f'{install} "jaxtune[cuda13]"'
        )
    # A driver of unknown version gets the wheel that asks least of it.
    fitting = [wheel for wheel, oldest in OLDEST_DRIVER.items() if (number or 0) >= oldest]
    wanted = fitting[0] if fitting else "cuda12"
    if not machine.plugins:
        return f'it was installed without CUDA. Run: {install} "jaxtune[{wanted}]"'
    if number is not None and not machine.plugins & set(fitting):
        held = sorted(machine.plugins)[0]
        remove = " ".join(f"jax-{held}-{part}" for part in ("plugin", "pjrt"))
        return (
            f"JAX's {held} needs driver {OLDEST_DRIVER[held]} or newer; this one is "
            f"{machine.driver}. Run: {machine.python} -m pip uninstall -y {remove} && "
            f'{install} "jaxtune[{wanted}]"'
        )
    reason = machine.reason.rstrip(".") or "JAX gave no reason"
    return f"{reason} (driver {machine.driver or 'of unknown version'})."


def probe() -> Machine:
    """Look at the machine; starts JAX, on the CPU if that is all that starts.

    Raises:
      ValueError: The user chose platforms (`JAX_PLATFORMS`) that do not start.
    """
    driver, plugins, chosen = find_driver(), installed_plugins(), runtime.chosen_platforms()
    said = _Said()
    logger = logging.getLogger("jax._src.xla_bridge")
    propagate, logger.propagate = logger.propagate, False  # the first line says it, with the cure
    logger.addHandler(said)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # a plugin that fails; JAX asserts in between
        if chosen:
            raise ValueError(
                f"JAX_PLATFORMS must name platforms that start here; {chosen!r} does not: "
                f"{str(error) or 'there is no such device'}. Unset it, and JAX takes what there is."
            ) from error
        said.heard.insert(0, str(error))
        runtime.use_cpu()
        devices = jax.devices()
    finally:
        logger.removeHandler(said)
        logger.propagate = propagate
    return Machine(
        driver=driver,
        plugins=plugins,
        backend=devices[0].platform,
        devices=tuple(device.device_kind for device in devices),
        reason=" ".join(said.heard[0].split()) if said.heard else "",
        platforms=chosen,
    )


class _Said(logging.Handler):
    """Keeps what JAX logs while it looks for devices; the first is the cause of the rest."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, and the exception that it is about."""
        error = record.exc_info[1] if record.exc_info else None
        self.heard.append(f"{record.getMessage()} {error or ''}")


def installed_plugins() -> frozenset[str]:
    """The CUDA plugins of JAX that are installed, of `OLDEST_DRIVER`."""
    names = {distribution.name for distribution in metadata.distributions()}
    return frozenset(wheel for wheel in OLDEST_DRIVER if f"jax-{wheel}-plugin" in names)


def find_driver(
    version_file: Path = Path("/proc/driver/nvidia/version"), device: Path = Path("/dev/nvidiactl")
) -> str | None:
    """Version of the NVIDIA driver, without JAX.

    Args:
      version_file: Where Linux's driver says its version.
      device: Where Linux's driver is spoken to.

    Returns:
      Such as "580.65.06"; "" if there is a driver whose version is not to be had; None if there
      is none.
    """
    if version_file.is_file():
        found = VERSION.search(version_file.read_text(encoding="utf-8", errors="replace"))
        if found:
            return found[0]
    program = shutil.which("nvidia-smi")
    if program:
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        found = VERSION.search(done.stdout) if done and done.returncode == 0 else None
        if found:
            return found[0]
    return "" if device.exists() else None
