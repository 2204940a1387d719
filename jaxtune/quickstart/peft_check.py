"""The written adapter, loaded by peft: how to do it, and whether its logits are ours."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.adapters.counting import count_parameters
from jaxtune.api import FastLanguageModel
from jaxtune.console import say
from jaxtune.language_model import LanguageModel

LARGEST = 1_100_000_000  # parameters; two float32 copies of a larger model are too much to ask for
TOLERANCE = 1e-4  # of the largest logit; float32 rounding through many layers stays below it


def tell_how_to_load(base: str, output: Path) -> None:
    """Print the lines that load the adapter in peft."""
    say(
        "To load it in PyTorch:",
        "",
        "    from peft import PeftModel",
        "    from transformers import AutoModelForCausalLM",
        f"    base = AutoModelForCausalLM.from_pretrained({base!r})",
        f"    model = PeftModel.from_pretrained(base, {str(output)!r})",
        "",
    )


def check_in_peft(model: LanguageModel, base: str, output: Path, texts: list[str]) -> None:
    """Load the adapter in peft, where it is installed, and print the largest logit difference.

    Both sides compute in float32 on these texts.

    Args:
      model: With the adapter that was written.
      base: Folder or hub id of its base.
      output: The adapter's folder.
      texts: What to compare on.

    Raises:
      ValueError: The logits differ by more than rounding.
    """
    lacking = [name for name in ("peft", "torch") if importlib.util.find_spec(name) is None]
    if lacking:
        say(f"With {' and '.join(lacking)} installed, quickstart would load it there and compare.")
        return
    if count_parameters(model)[1] > LARGEST:
        say("Not compared with peft: in float32 this model would take too much memory twice.")
        return
    say("Loading it in peft to compare ...")
    difference, largest = logit_difference(model, base, output, texts)
    say(
        f"The largest logit difference between peft and jaxtune is {difference:.1e} (float32, "
        f"logits up to {largest:.0f})."
    )
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"peft and jaxtune must agree on the written adapter within {TOLERANCE:.0e} of the "
            f"largest logit, {largest:.1f}; they differ by {difference:.1e}. This is a fault of "
            "jaxtune: please report it."
        )


def logit_difference(
    model: LanguageModel, base: str, output: Path, texts: list[str]
) -> tuple[float, float]:
    """Largest difference of the logits, peft against jaxtune, and the largest logit; in float32.

    Args:
      model: With the adapter; read anew from `output` unless it is in float32.
      base: Folder or hub id of its base.
      output: The adapter's folder.
      texts: What to compare on.

    Returns:
      (max |z_peft - z_jaxtune|, max |z_peft|).
    """
    tokenizer = model.carried.tokenizer
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = min(map(len, rows))
    input_ids = np.asarray([row[:width] for row in rows], np.int32)
    if model.dtype != jnp.float32:
        model, _ = FastLanguageModel.from_pretrained(
            str(output), max_seq_length=None, dtype="float32", load_in_4bit=False
        )
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(model(input_ids))
    theirs = _peft_logits(base, output, input_ids)
    return float(np.abs(theirs - ours).max()), float(np.abs(theirs).max())


def _peft_logits(base: str, output: Path, input_ids: np.ndarray) -> np.ndarray:
    """Logits of base and adapter in float32 on the CPU, by peft."""
    with _without_advice():
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(model, str(output)).eval()
        with torch.no_grad():
            return model(input_ids=torch.tensor(input_ids, dtype=torch.long)).logits.numpy()


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hold back what these libraries say as they load: none of it is about the adapter."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
