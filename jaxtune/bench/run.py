"""`jaxtune bench`: look at the request, measure a step or what else is asked for, say it."""

from collections.abc import Callable
from typing import Any

import jax

from convert import write_json
from jaxtune.bench.answers import check_answers, measure_answers
from jaxtune.bench.claims import claim_lines
from jaxtune.bench.floors import floor, work
from jaxtune.bench.measure import measure
from jaxtune.bench.notebook import notebook_lines, run_notebook
from jaxtune.bench.options import Bench
from jaxtune.bench.profile import STEPS, profile_steps
from jaxtune.bench.rates import measure_rates
from jaxtune.bench.record import Json, about, answered, place_of, profiled, results
from jaxtune.bench.report import answer_lines, lines
from jaxtune.bench.results import read_results
from jaxtune.bench.setup import draw_documents, make_model, make_optimizer, make_setup
from jaxtune.bench.subject import Subject, check_length, find_subject
from jaxtune.bench.trace import Kernel, kernels, scopes_of
from jaxtune.console import say
from jaxtune.machine import first_line, probe
from jaxtune.models.precision import resolve_dtype
from pallas_kernels import check_backend

NO_MEMORY = "RESOURCE_EXHAUSTED"


def run(options: Bench) -> int:
    """Measure a step, print the result and write it.

    Args:
      options: Of the command line.

    Returns:
      The exit status.

    Raises:
      ValueError: An option that the model or this version does not serve, or too little memory.
    """
    if options.claims:
        say(*claim_lines(read_results()))
        return 0
    subject = find_subject(options.model)
    check_backend(options.kernels)
    if options.generate:
        check_answers(options, subject)
    else:
        check_length(subject, options.length, options.packing)
        make_optimizer(options.optimizer)
    if options.notebook:
        record, printed = run_notebook(options, subject), notebook_lines
    elif options.generate:
        record, printed = _here(options, subject, _answers), answer_lines
    else:
        record, printed = _here(options, subject, _measure), lines
    record = {**about(options, subject), **record}
    say(*printed(record))
    if options.output is not None:
        write_json(options.output, record)
        say("", f"Written to {options.output}.")
    return 0


def _here(options: Bench, subject: Subject, measured: Callable[..., Json]) -> Json:
    """Measure in this process, and say where that is."""
    machine = probe()
    say(first_line(machine))
    if machine.backend == "cpu":
        say("CPU: times mean nothing for a GPU.")
    say("")
    try:
        return {**place_of(machine), **measured(options, subject)}
    except jax.errors.JaxRuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        raise ValueError(_too_large(options)) from error


def _too_large(options: Bench) -> str:
    """Why the device's memory does not do, and what would."""
    if options.generate:
        return (
            f"answers must fit into the device's memory; {options.model} with --rows "
            f"{' '.join(map(str, options.rows))} --bits {options.bits} do not. Try --bits 4, or "
            "fewer rows."
        )
    return (
        f"a step must fit into the device's memory; {options.model} with --batch "
        f"{options.batch} --length {options.length} --bits {options.bits} --plan "
        f"{options.plan} does not. Try --bits 4, --plan offload, or shorter or fewer rows."
    )


def _answers(options: Bench, subject: Subject) -> dict[str, Any]:
    """The device alone, then answers for each number of rows."""
    rates = measure_rates(subject.config, max(options.rows) * options.prompt, resolve_dtype(None))
    model = make_model(options, subject)
    return answered(measure_answers(options, model, rates), options, model, rates)


def _measure(options: Bench, subject: Subject) -> dict[str, Any]:
    """The step first, on a device that holds nothing else; then the device alone."""
    rows = options.batch * options.accumulation
    documents = draw_documents(rows, options.length, packing=options.packing)
    found = _run_steps(options, subject, documents)
    rates = measure_rates(subject.config, options.batch * options.length, resolve_dtype(None))
    done = work(
        subject.config,
        [length for row in documents for length in row],
        bits=options.bits,
        accumulation=options.accumulation,
    )
    least = floor(done, rates)
    record = results(found["measured"], done, rates, least)
    if found["kernels"] is not None:
        record["profile"] = profiled(found["kernels"], least)
    return record


def _run_steps(options: Bench, subject: Subject, documents: list[list[int]]) -> dict[str, Any]:
    """Make the model, time its step and profile it; the memory is free again afterwards."""
    setup = make_setup(options, subject, make_optimizer(options.optimizer), documents)
    measured, step, hlo_text = measure(setup, options.steps)
    found: list[Kernel] | None = None
    if options.profile is not None:
        events = profile_steps(step, options.profile)
        found = kernels(events, scopes_of(hlo_text), STEPS)
    return {"measured": measured, "kernels": found}
