"""Print the losses of the quickstart's training as JSON: `python -m tests.quickstart_losses`.

Run on two machines, the lists can be compared.
"""

import json
import sys

import jax

from jaxtune.quickstart.options import Quickstart
from jaxtune.quickstart.tiny_model import adapt, load, train, words


def losses() -> list[float]:
    """The loss of each step, at the first seed."""
    options = Quickstart()
    with jax.default_matmul_precision("highest"):
        model, tokenizer = load()
        trainer = train(adapt(model, options.seed), tokenizer, words(options.seed)[0], options)
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


if __name__ == "__main__":
    result = {"platform": jax.default_backend(), "losses": losses()}
    sys.stdout.write(json.dumps(result) + "\n")
