"""`jaxtune quickstart`: what it runs on, then the tiny model or the user's own."""

import time

from jaxtune import runtime
from jaxtune.console import say
from jaxtune.machine import first_line, probe
from jaxtune.quickstart import own_model, tiny_model
from jaxtune.quickstart.options import Quickstart


def run(options: Quickstart) -> int:
    """Tune, compare before and after, write the adapter.

    Args:
      options: Of the command line.

    Returns:
      The exit status: 0, or 1 if the model did not learn.
    """
    started = time.perf_counter()
    say(first_line(probe()), "")
    runtime.use_compile_cache()
    status = tiny_model.run(options) if options.model is None else own_model.run(options)
    say("", f"Done in {time.perf_counter() - started:.0f} s.")
    return status
