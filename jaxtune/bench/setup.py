"""What a step takes: a random model with its adapter, an optimizer and a batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from convert import AdapterConfig
from jaxtune.adapters.create import create_adapter
from jaxtune.adapters.targets import PROJECTIONS
from jaxtune.bench.options import Bench
from jaxtune.bench.subject import Subject
from jaxtune.data.batch import Batch
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.models.build import build
from jaxtune.models.host_embedding import place_embedding
from jaxtune.models.precision import resolve_dtype
from jaxtune.optim.registry import create_optimizer
from jaxtune.training.step import Step, make_train_step, split

LEARNING_RATE = 2e-4
WEIGHT_DECAY = 0.001
MAX_GRAD_NORM = 1.0
SHORTEST, LONGEST = 100, 500


@dataclasses.dataclass(kw_only=True)
class Setup:
    """A step and its arguments; the first two change hands at each step.

    Attributes:
      step: Not compiled yet.
      trainable: The adapter.
      opt_state: Of the optimizer.
      frozen: The base.
      batch: The rows of the whole step, on the device.
    """

    step: Step
    trainable: nnx.State
    opt_state: Any
    frozen: nnx.State
    batch: Batch


def make_optimizer(name: str) -> optax.GradientTransformation:
    """The optimizer of a name; raises for an unknown one."""
    schedule = optax.constant_schedule(LEARNING_RATE)
    return create_optimizer(name, schedule, weight_decay=WEIGHT_DECAY)


def make_model(options: Bench, subject: Subject) -> LanguageModel:
    """Draw the weights on the device and add an adapter that is not zero.

    B of a new adapter is zero, and so would be A's gradient; here both are drawn.

    Args:
      options: Of the command line.
      subject: Family and configuration.

    Returns:
      The model, with the plan and the kernels that were asked for.
    """
    family = with_verbs(subject.family)
    model = build(family, subject.config, "random", dtype=resolve_dtype(None), bits=options.bits)
    request = AdapterConfig(
        base_model_name_or_path=subject.name,
        r=options.rank,
        lora_alpha=options.rank,
        target_modules=list(PROJECTIONS),
        init_lora_weights=False,
    )
    create_adapter(model, request, seed=0)
    model.model.remat = options.plan
    model.model.kernels = options.kernels
    place_embedding(model)
    return model


def make_setup(
    options: Bench,
    subject: Subject,
    tx: optax.GradientTransformation,
    documents: Sequence[Sequence[int]],
) -> Setup:
    """A step of a random model, and its arguments.

    Args:
      options: Of the command line.
      subject: Family and configuration.
      tx: Of `make_optimizer`.
      documents: Tokens of each document, row by row.

    Returns:
      The step, ready to be compiled.
    """
    model = make_model(options, subject)
    graphdef, trainable, frozen = split(model)
    return Setup(
        step=make_train_step(
            graphdef, tx, accumulation=options.accumulation, max_grad_norm=MAX_GRAD_NORM
        ),
        trainable=trainable,
        opt_state=jax.jit(tx.init)(trainable),
        frozen=frozen,
        batch=make_batch(documents, subject.config.vocab_size, packing=options.packing),
    )


def draw_documents(rows: int, length: int, *, packing: bool) -> list[list[int]]:
    """Lengths of the documents of each row, in tokens; each row is full.

    Args:
      rows: Of the whole step.
      length: Tokens a row.
      packing: Documents of 100 to 500 tokens, at least two a row; else one a row.

    Returns:
      A list a row.
    """
    if not packing:
        return [[length] for _ in range(rows)]
    draw = np.random.default_rng(0)
    longest = min(LONGEST, length // 2)
    shortest = min(SHORTEST, longest)
    found: list[list[int]] = []
    for _ in range(rows):
        row: list[int] = []
        while sum(row) < length:
            drawn = int(draw.integers(shortest, longest, endpoint=True))
            row.append(min(drawn, length - sum(row)))
        found.append(row)
    return found


def make_batch(documents: Sequence[Sequence[int]], vocab_size: int, *, packing: bool) -> Batch:
    """Random tokens, every one a label.

    Args:
      documents: Of `draw_documents`.
      vocab_size: V.
      packing: Whether the rows carry segment ids.

    Returns:
      Arrays on the device.
    """
    shape = len(documents), sum(documents[0])
    ids = jax.random.randint(jax.random.key(0), shape, 0, vocab_size, jnp.int32)
    if not packing:
        return Batch(input_ids=ids, labels=jnp.copy(ids), layout="causal")
    segments = np.stack([np.repeat(np.arange(1, len(row) + 1), row) for row in documents])
    return Batch(
        input_ids=ids,
        labels=jnp.copy(ids),
        segment_ids=jnp.asarray(segments, jnp.int32),
        layout="packed",
    )
