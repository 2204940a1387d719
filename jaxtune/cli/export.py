"""`jaxtune export`: adapters for those who do not use JAX, by `convert`."""

import argparse
import functools
from pathlib import Path

from tqdm.auto import tqdm

from convert import EXPORTERS, open_adapter
from jaxtune.cli.data_source import check_writable
from jaxtune.cli.export_options import READS, Export
from jaxtune.console import say
from jaxtune.models.hub import resolve_folder

ADAPTER_FILE = "adapter_config.json"


def run(options: Export) -> int:
    """Write one export.

    Args:
      options: Of the command line.

    Returns:
      The exit status.

    Raises:
      ValueError: The source, the base or the method does not serve.
      OSError: A folder is not there, or is not to be written to.
    """
    if not options.source.is_dir():
        raise FileNotFoundError(
            f"the source must be the folder of an adapter or a model; {options.source} is none. "
            "Check the path."
        )
    made = not options.out.exists()
    check_writable(options.out, "the folder to write")
    try:
        _export(options)
    finally:
        if made and options.out.is_dir() and not any(options.out.iterdir()):
            options.out.rmdir()
    return 0


def _export(options: Export) -> None:
    base = _base(options)
    request = argparse.Namespace(
        src=options.source,
        out=options.out,
        base=None if base is None else Path(base),
        dtype=options.dtype,
        method=list(options.method),
    )
    with tqdm(desc=f"writing {options.target}", unit="B", unit_scale=True, delay=1) as bar:
        message = EXPORTERS[options.target].export(request, functools.partial(_show, bar))
    say(message)


def _show(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _base(options: Export) -> str | None:
    """The base's folder, downloaded if the hub has it; None for a full model and for peft."""
    if "base" not in READS[options.target] or not (options.source / ADAPTER_FILE).is_file():
        return options.base
    name = options.base
    if name is None:
        config, tensors = open_adapter(options.source)
        tensors.close()
        name = config.base_model_name_or_path
    if not name:
        raise ValueError(
            f"an adapter is merged into its base; adapter_config.json of {options.source} names "
            "none. Add --base FOLDER."
        )
    try:
        return str(resolve_folder(name))
    except OSError as error:
        raise type(error)(f"{error} If the base is elsewhere, add --base FOLDER.") from error
