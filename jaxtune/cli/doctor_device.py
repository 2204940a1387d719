"""What `jaxtune doctor` says of the device: found, started, its memory, its kernels."""

import shutil
import subprocess
import time

import jax
import jax.numpy as jnp

from jaxtune.cli.finding import Finding, broken, note, ok
from jaxtune.cli.kernel_choices import choices
from jaxtune.machine import Machine, first_line
from jaxtune.memory import GIB, memory_stats
from jaxtune.models.precision import resolve_dtype
from pallas_kernels import rms_norm
from pallas_kernels.dispatch import current_device

LITTLE = 0.5  # of a card's memory
MUCH = 0.1
MIB = 2**20
_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def device_findings(machine: Machine) -> list[Finding]:
    """Which device it is, whether it computes, and how much memory JAX may take.

    Args:
      machine: What was found.

    Returns:
      The findings; a broken one if JAX misses a GPU, or the device fails.
    """
    line = first_line(machine)
    if machine.backend == "cpu":
        if machine.driver is None:
            found = [
                note(line, "Use a machine with an NVIDIA GPU for models above about 1B parameters")
            ]
        elif machine.platforms:
            found = [note(line)]
        else:
            reason, _, cure = line.partition(": ")
            return [broken(f"{reason}.", cure)]
    else:
        found = [ok(line)]
    if machine.driver is not None:
        found.append(ok(f"NVIDIA driver {machine.driver or 'of unknown version'}"))
    device = current_device()
    if device.compute_capability is not None:
        found.append(_capability(*device.compute_capability))
    if len(machine.devices) > 1:
        found.append(
            note(
                f"{len(machine.devices)} devices: programs use the first.",
                f"`jaxtune train --devices {len(machine.devices)}` splits the rows over all",
            )
        )
    return [*found, _works(), _memory(machine)]


def _capability(major: int, minor: int) -> Finding:
    """What the card's age means."""
    dtype = resolve_dtype(None)
    if (major, minor) >= (8, 0):
        return ok(f"compute capability {major}.{minor}: bfloat16 and all kernels")
    return note(
        f"compute capability {major}.{minor}: {dtype} instead of bfloat16, and plain JAX instead "
        "of Pallas Triton and cuDNN attention, which need 8.0: slower, and more memory.",
        "Llama and Mistral train well so; Gemma 2 and 3 overflow in float16: --dtype float32",
    )


def _works() -> Finding:
    """Run a product and a kernel."""
    dtype = resolve_dtype(None)
    started = time.perf_counter()
    try:
        x = jax.random.normal(jax.random.key(0), (256, 256), jnp.float32).astype(dtype)
        y = jax.jit(lambda a: rms_norm(a @ a, a[0], eps=1e-5))(x)
        finite = bool(jnp.isfinite(y.astype(jnp.float32)).all())
    except (RuntimeError, NotImplementedError) as error:
        return broken(
            f"A product of matrices and a norm fail: {' '.join(str(error).split())[:300]}",
            "Restart what holds the device; if that does not help, install the CUDA wheels again",
        )
    if not finite:
        return broken("A product of matrices gives NaN.", "Test the device's memory")
    seconds = time.perf_counter() - started
    return ok(f"compiled and ran a product and a norm in {dtype}, {seconds:.1f} s")


def _memory(machine: Machine) -> Finding:
    """How much JAX may take, and of what."""
    stats = memory_stats()
    size = stats.total_memory / GIB
    if machine.backend == "cpu":
        return ok(f"memory of the host: {size:.1f} GiB")
    card = _card_memory()
    if card is None:
        return ok(f"memory that JAX may take: {size:.1f} GiB")
    total, used = card
    share = stats.total_memory / total
    text = (
        f"memory: `jaxtune train` takes {size:.1f} of the card's {total / GIB:.1f} GiB in advance "
        f"({100 * share:.0f} %), which nvidia-smi shows as used; scripts of your own take JAX's "
        f"default of 75 %, or what {_SHARE} says."
    )
    if share < LITTLE:
        return note(text, f"Another share: {_SHARE}=0.9 jaxtune train ...")
    others = used - stats.total_memory
    if others > MUCH * total:
        return note(
            f"{text} Other programs hold {others / GIB:.1f} GiB.", "End them: nvidia-smi lists them"
        )
    return ok(text)


def _card_memory() -> tuple[int, int] | None:
    """Bytes of the first card, and those in use; None without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
        total, used = done.stdout.splitlines()[0].split(",")
        return int(total) * MIB, int(used) * MIB
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def kernel_findings() -> list[Finding]:
    """Which implementation serves each operation, with the reason where it is not the best."""
    groups: dict[tuple[str, str], list[str]] = {}
    for choice in choices(current_device(), str(resolve_dtype(None))):
        groups.setdefault((choice.backend, choice.why), []).append(choice.label)
    found = []
    for (backend, why), labels in groups.items():
        reason = f" ({why})" if why else ""
        found.append(ok(f"{backend}: {', '.join(labels)}{reason}"))
    return found
