"""Runs over simulated devices, in a process of its own: which compares them with one device.

python -m tests.jaxtune.distribution.runs '{"cases": [...]}'
"""

import collections
import json
import re
import sys

import jax
import numpy as np
import optax

from jaxtune.models.placement import mesh_of, split_rows
from jaxtune.models.sharding import place_model
from jaxtune.optim.registry import create_optimizer
from jaxtune.training.optimizer_places import first_state
from jaxtune.training.step import make_train_step, split
from tests.jaxtune.distribution.models import packed, padded, tiny_model
from tests.tolerances import relative_error

RATES = {"sgd": 1e-2, "adamw_torch": 1e-3, "adamw_8bit": 1e-3}
BATCHES = {"padded": (padded, 16, 2), "packed": (packed, 8, 1)}
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def run(kind, batch, optim, sizes, steps):
    """Losses, the first step's gradient, the parameters at the end, and the program."""
    model, mesh = tiny_model(kind), mesh_of(sizes)
    place_model(model, mesh)
    make, rows, accumulation = BATCHES[batch]
    # Without a decay the trace is the gradient itself.
    tx = optax.chain(
        optax.trace(decay=0.0), create_optimizer(optim, optax.constant_schedule(RATES[optim]))
    )
    graphdef, trained, frozen = split(model)
    state = first_state(tx, trained, mesh)
    step = make_train_step(graphdef, tx, accumulation=accumulation)
    window = split_rows(make(rows), mesh)
    program = step.lower(trained, state, frozen, window).compile()
    losses, gradient = [], None
    for _ in range(steps):
        trained, state, metrics = program(trained, state, frozen, window)
        losses.append(float(metrics["loss"]))
        gradient = jax.tree.map(np.asarray, state[0].trace) if gradient is None else gradient
    return losses, gradient, jax.tree.map(np.asarray, trained), program.as_text()


def worst(actual, expected):
    """Over the leaves of two trees."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(relative_error(left, right) for left, right in pairs)


def traffic(program):
    """How often each collective stands inside and outside the loops: {"in all-gather u8": 3}."""
    loops = set(re.findall(r"body=%([\w.\-]+)", program))
    found, here = collections.Counter(), ""
    for line in program.splitlines():
        begins = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        here = begins[1] if begins else here
        call = re.search(rf"= \(?(\w+)\[.* ({COLLECTIVES})(?:-start)?\(", line)
        if call:
            found[f"{'in' if here in loops else 'out'} {call[2]} {call[1]}"] += 1
    return found


def compared(case, known):
    """A case against the same run on one device."""
    key = (case["kind"], case["batch"], case["optim"], case["steps"])
    if key not in known:
        known[key] = run(*key[:3], None, key[3])
    one, many = known[key], run(*key[:3], case["sizes"], key[3])
    return {
        "loss": max(relative_error(a, b) for a, b in zip(many[0], one[0], strict=True)),
        "gradient": worst(many[1], one[1]),
        "parameters": worst(many[2], one[2]),
        "fell": one[0][0] - one[0][-1],
        "traffic": traffic(many[3]),
    }


if __name__ == "__main__":
    held = {}
    with jax.default_matmul_precision("highest"):
        found = [compared(case, held) for case in json.loads(sys.argv[1])]
    sys.stdout.write(json.dumps(found))
