"""How a run begins: its state, and what is said of its size, dtype and layout."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from flax import nnx

from jaxtune.adapters.counting import count_parameters
from jaxtune.data.plan import Plan, describe
from jaxtune.data.stream_plan import StreamPlan
from jaxtune.language_model import LanguageModel
from jaxtune.layers.variables import Frozen
from jaxtune.models.placement import TENSOR, described
from jaxtune.training.config import SFTConfig
from jaxtune.training.state import TrainerState
from pallas_kernels.dispatch import current_device
from pallas_kernels.nf4 import is_stack


def state_of(begun: TrainerState, args: SFTConfig, steps: int, epochs: int) -> TrainerState:
    """Where a run begins, and how far it goes.

    Args:
      begun: Of the checkpoint that it goes on from, or nothing yet.
      args: The intervals.
      steps: Of the whole run.
      epochs: Passes over the data that they take, the last one begun.

    Returns:
      The state, with intervals in steps.
    """
    return dataclasses.replace(
        begun,
        max_steps=steps,
        num_train_epochs=epochs,
        logging_steps=args.interval("logging", steps),
        eval_steps=begun.eval_steps if args.eval_steps is None else args.interval("eval", steps),
        save_steps=args.interval("save", steps),
        train_batch_size=args.per_device_train_batch_size,
    )


def start_lines(
    model: LanguageModel,
    args: SFTConfig,
    plan: Plan | StreamPlan,
    state: TrainerState,
    resumed: Path | None,
    memory: Sequence[str],
) -> Iterator[str]:
    """What is about to be trained.

    Args:
      model: What is trained in it is counted.
      args: The options.
      plan: How the rows are laid out.
      state: Where the run begins, and how far it goes.
      resumed: The checkpoint that it goes on from.
      memory: What is known of the memory that it takes.

    Yields:
      Lines for a person.
    """
    yield from _banner(model, plan, state)
    yield from memory
    if resumed is not None:
        yield f"jaxtune: {resumed} is resumed at step {state.global_step:,}"
    for asked, name in ((args.fp16, "float16"), (args.bf16, "bfloat16")):
        if asked and model.dtype != name:
            yield (
                f"jaxtune: {name} was asked for; the model has {model.dtype}, and is "
                "trained in it (from_pretrained(dtype=...) decides)"
            )
    if args.gradient_checkpointing is not None:
        recomputes = model.model.remat != "none"
        if recomputes != bool(args.gradient_checkpointing):
            yield (
                f"jaxtune: gradient_checkpointing={args.gradient_checkpointing!r} was asked for; "
                f"the model's plan is {model.model.remat!r} "
                "(from_pretrained(use_gradient_checkpointing=...) decides)"
            )
    wishes = args.idle_wishes()
    if wishes is not None:
        yield f"jaxtune: {wishes}"
    layout = describe(plan.head if isinstance(plan, StreamPlan) else plan)
    if layout is not None:
        yield f"jaxtune: {layout}"


def _banner(model: LanguageModel, plan: Plan | StreamPlan, state: TrainerState) -> Iterator[str]:
    """The run at a glance."""
    trainable, total = count_parameters(model)
    asked, device = plan.request, jax.devices()[0].device_kind
    mesh = model.carried.mesh
    several = "" if mesh is None or mesh.size == 1 else f"{mesh.size} x "
    split = f" ({described(mesh)})" if several else ""
    epochs = state.num_train_epochs
    rows = "a stream"
    if plan.examples is not None:
        rows = f"{plan.examples:,}, {epochs} epoch{'s' if epochs > 1 else ''}"
    yield f"jaxtune: training on {several}{device}{split}, {_kernels(model)}"
    idle = jax.device_count() - (1 if mesh is None else mesh.size)
    if idle:
        yield f'  devices  {idle} of {jax.device_count()} stand idle; mesh="auto" uses all'
    yield f"  model    {total:,} parameters in {_dtypes(model)}; backward pass: {model.model.remat}"
    yield f"  trained  {trainable:,} parameters ({100 * trainable / total:.2f} %)"
    yield f"  rows     {rows}"
    yield (
        f"  steps    {state.max_steps:,}, each of {asked.window:,} rows "
        f"({asked.batch_size} x {asked.accumulation})"
    )


def _kernels(model: LanguageModel) -> str:
    """Which kernels an op takes where nothing in its shapes speaks against them."""
    requested, capability = model.model.kernels, current_device().compute_capability
    mesh = model.carried.mesh
    if requested == "auto" and mesh is not None and mesh.shape[TENSOR] > 1:
        return 'plain JAX (kernels are not split over "tensor")'
    if requested == "auto":
        requested = "triton" if capability is not None and capability >= (8, 0) else "xla"
    return {"triton": "Pallas Triton kernels", "xla": "plain JAX"}.get(requested, requested)


def _dtypes(model: LanguageModel) -> str:
    """Of the weights that are not trained."""
    leaves = jax.tree.leaves(nnx.state(model, Frozen), is_leaf=is_stack)
    base = " over 4-bit weights" if any(map(is_stack, leaves)) else ""
    return f"{model.dtype}{base}"
