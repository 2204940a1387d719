"""What `jaxtune doctor` says of the installation: caches, hub, versions, extras."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import jax
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement

from jaxtune import runtime
from jaxtune.cli.finding import Finding, broken, note, ok
from jaxtune.memory import GIB

LITTLE_SPACE = 20 * GIB  # an 8B model in 16 bits has 16 GB
# Extra of pyproject.toml: its packages, as they are imported, and what they are for.
EXTRAS = {
    "torch": (("torch", "peft"), "to_torch(), and verify=True by peft and transformers"),
    "plot": (("matplotlib",), "trainer.plot() and loss.png"),
    "tensorboard": (("tensorboard",), "--report-to tensorboard"),
    "wandb": (("wandb",), "--report-to wandb"),
    "notebooks": (("IPython", "matplotlib"), "the notebooks' tables and plots"),
    "gguf": (("gguf",), "export to GGUF"),
}
PACKAGE = "jaxtune"


def cache_findings() -> list[Finding]:
    """Where compiled programs are kept, and whether they can be."""
    folder = runtime.use_compile_cache()
    # pyrefly: ignore[missing-attribute]  jax.config makes its attributes as it starts.
    place = str(folder or jax.config.jax_compilation_cache_dir)
    whose = "" if folder else ", as JAX_COMPILATION_CACHE_DIR says"
    if "://" in place:
        return [ok(f"{place}{whose}")]
    existing = next((p for p in (Path(place), *Path(place).parents) if p.exists()), Path("/"))
    if not os.access(existing, os.W_OK):
        return [
            note(
                f"{place}{whose}: not to be written to, so every start compiles anew.",
                "Set JAX_COMPILATION_CACHE_DIR to a folder of yours",
            )
        ]
    files = [file for file in Path(place).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    held = f"{len(files)} files, {size / 2**20:.0f} MiB" if files else "empty: first starts compile"
    return [ok(f"{place}{whose}: {held}")]


def hub_findings() -> list[Finding]:
    """Where models are kept, how much fits there, and whether the hub will be asked."""
    place = Path(constants.HF_HUB_CACHE)
    existing = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    text = f"{place}: {free / GIB:.0f} GiB free"
    found = [ok(text)]
    if free < LITTLE_SPACE:
        found = [note(f"{text}; an 8B model has 16 GB.", "Set HF_HOME to a larger disk")]
    if constants.HF_HUB_OFFLINE:
        found.append(note("HF_HUB_OFFLINE is set: only downloaded models load."))
    if get_token() is None:
        found.append(note("no access token is stored; gated models need one.", "hf auth login"))
    else:
        found.append(ok("an access token is stored"))
    return found


def version_findings() -> list[Finding]:
    """The versions of what is required, against what is required."""
    python = f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}"
    try:
        required = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
        own = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return [ok(python), note("jaxtune runs from a folder and is not installed.")]
    found, shown = [], [f"{PACKAGE} {own}"]
    for one in required:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not one.specifier.contains(version, prereleases=True):
            held = "missing" if version is None else version
            cure = f'{sys.executable} -m pip install "{one.name}{one.specifier}"'
            found.append(broken(f"{one.name} {held}: {one.specifier} is needed.", cure))
        else:
            shown.append(f"{one.name} {version}")
    return [ok(python), ok(", ".join(shown)), *found]


def extra_findings() -> list[Finding]:
    """The optional packages that are missing, and what for."""
    found = []
    for extra, (packages, purpose) in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            cure = f'{sys.executable} -m pip install "{PACKAGE}[{extra}]"'
            found.append(note(f"{', '.join(missing)} missing: needed for {purpose}.", cure))
    here = [extra for extra in EXTRAS if not any(extra in f.cure for f in found)]
    return [ok(f"installed: {', '.join(here)}")] * bool(here) + found
