"""`jaxtune plan`: build the model without its weights, count bytes and milliseconds, print them."""

import math
import sys
from collections.abc import Iterator
from typing import get_args

from convert import AdapterConfig
from jaxtune import runtime
from jaxtune.adapters.create import create_adapter
from jaxtune.adapters.targets import PROJECTIONS
from jaxtune.bench.setup import make_optimizer
from jaxtune.bench.subject import Subject, check_length, find_subject
from jaxtune.config import Remat
from jaxtune.console import columns, say
from jaxtune.models.build import build
from jaxtune.models.decoder import CausalLM
from jaxtune.models.placement import mesh_of_sizes
from jaxtune.plan.cards import Card, card_of
from jaxtune.plan.mesh_report import compiled_lines, wire_lines
from jaxtune.plan.options import PlanRequest
from jaxtune.plan.report import Row, bar_length, lines
from jaxtune.plan.simulation import simulate
from jaxtune.plan.speed import milliseconds
from jaxtune.plan.spread import mesh_without_devices, received, spread_over
from jaxtune.training.footprint import Footprint, footprint, largest
from jaxtune.training.memory_plan import USABLE
from jaxtune.training.sizes import held_by, shape_of


def run(options: PlanRequest) -> int:
    """Print what a step would take.

    Args:
      options: Of the command line.

    Returns:
      The exit status: 0, also where no plan fits.

    Raises:
      ValueError: An option that the model does not serve.
    """
    # Nothing is computed, and a GPU would be taken for it.
    runtime.use_cpu(devices=math.prod(options.sizes.values()) if options.compiled else 1)
    card = card_of(options.gpu)
    if card is None:  # the options have been checked
        raise ValueError(f"--gpu must be a card or its memory; got {options.gpu!r}.")
    subject = find_subject(options.model)
    check_length(subject, options.length, packing=False)
    limit = USABLE * options.memory_fraction * card.memory
    rows = rows_of(options, subject, card, limit)
    length = bar_length(columns(sys.stdout))
    say(*lines(options, subject.config, card, limit, rows, length))
    if options.mesh is not None:
        say("", *mesh_lines(options, subject, card))
    return 0


def mesh_lines(options: PlanRequest, subject: Subject, card: Card) -> Iterator[str]:
    """What the devices of a mesh send to each other.

    Args:
      options: Of the command line.
      subject: The model.
      card: The GPU.

    Yields:
      Lines without their ends.
    """
    model = abstract_model(options, subject, card)
    yield from wire_lines(options, received(model, options.accumulation))
    if options.compiled:
        spread_over(model, mesh_of_sizes(options.sizes))
        yield from compiled_lines(
            simulate(
                model,
                options.optim,
                rows=options.batch,
                length=options.length,
                accumulation=options.accumulation,
            )
        )


def rows_of(options: PlanRequest, subject: Subject, card: Card, limit: float) -> list[Row]:
    """What each plan takes.

    Args:
      options: Of the command line.
      subject: The model.
      card: The GPU.
      limit: Bytes that may be used of it.

    Returns:
      A row a plan, the fastest first.
    """
    model = abstract_model(options, subject, card)
    held = held_by(model, make_optimizer(options.optim))

    def predicted(plan: Remat, rows: int, length: int) -> Footprint:
        shape = shape_of(
            model,
            rows,
            length,
            accumulation=options.accumulation,
            gpu=True,
            blockwise=not card.kernels,
        )
        return footprint(shape, held, plan)

    def row(plan: Remat) -> Row:
        found = predicted(plan, options.batch, options.length)
        return Row(
            plan=plan,
            parts=found.parts(),
            milliseconds=milliseconds(
                subject.config,
                card,
                plan,
                rows=options.batch,
                length=options.length,
                bits=options.bits,
                accumulation=options.accumulation,
            ),
            fits=found.peak <= limit,
            largest_batch=largest(lambda n: predicted(plan, n, options.length).peak <= limit),
            longest_row=largest(
                lambda n: predicted(plan, options.batch, n).peak <= limit,
                subject.config.max_position_embeddings,
            ),
        )

    return [row(plan) for plan in get_args(Remat)]


def abstract_model(options: PlanRequest, subject: Subject, card: Card) -> CausalLM:
    """The model with its adapter, without an array; over the mesh that is asked for."""
    model = build(subject.family, subject.config, "abstract", dtype=card.dtype, bits=options.bits)
    request = AdapterConfig(
        base_model_name_or_path=subject.name,
        r=options.rank,
        lora_alpha=options.rank,
        target_modules=list(PROJECTIONS),
    )
    create_adapter(model, request, seed=0)
    if options.mesh is not None:
        spread_over(model, mesh_without_devices(options.sizes))
    return model
