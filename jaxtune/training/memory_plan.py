"""Which rematerialisation plan a run takes, settled before its first step.

Predicted from sizes (`footprint`), then checked by the compiled step's own memory analysis. The
limit is the allocator's, which is not the card's size. Where there is none, as on a CPU, nothing
is chosen and nothing checked.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast, get_args

import jax
import numpy as np
import optax

from jaxtune.config import Remat
from jaxtune.data.batch import Batch
from jaxtune.data.collate import Place
from jaxtune.data.plan import Plan
from jaxtune.data.rows import TokenizedRows
from jaxtune.data.stream_plan import StreamPlan
from jaxtune.language_model import LanguageModel
from jaxtune.memory import GIB, planned
from jaxtune.models.host_embedding import place_embedding
from jaxtune.models.placement import split_rows
from jaxtune.training.agreement import agreed_bytes
from jaxtune.training.config import SFTConfig
from jaxtune.training.footprint import Held, footprint, largest
from jaxtune.training.resume import Start
from jaxtune.training.sizes import held_by, nbytes_here, shape_of
from jaxtune.training.step import Step, make_train_step, split
from jaxtune.training.train_rows import TrainRows, known_rows
from pallas_kernels.dispatch import current_device

FASTEST_FIRST: tuple[Remat, ...] = get_args(Remat)
# Of the allocator's limit: what it cannot use between its blocks, and libraries' workspaces.
USABLE = 0.97


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settled:
    """A run's step and what is known of its memory.

    Attributes:
      step: Of the plan that the model now has.
      lines: For a person; none where the device has no limit.
    """

    step: Step
    lines: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizing:
    """The bytes of a run by plan, rows and tokens a row."""

    predicted: Callable[[Remat, int, int], float]
    limit: int | float
    rows: int
    length: int

    def fits(self, plan: Remat, rows: int, length: int) -> bool:
        """Whether so many rows of so many tokens are predicted to fit."""
        return self.predicted(plan, rows, length) <= self.limit


def settle(
    model: LanguageModel,
    args: SFTConfig,
    tx: optax.GradientTransformation,
    layout: Plan | StreamPlan,
    rows: TrainRows,
    start: Start,
) -> Settled:
    """Choose a plan if the user left the choice, and check that the step fits.

    Args:
      model: Gets the plan.
      args: The options.
      tx: The optimizer.
      layout: How the rows are laid out.
      rows: To train on; of a stream, its head counts.
      start: With the optimizer's state.

    Returns:
      The step that the run makes.

    Raises:
      ValueError: No plan that may be taken fits; it says what would.
    """
    own = (split(model)[1:], start.opt_state)
    free = agreed_bytes(free_bytes(jax.local_devices()[0].memory_stats(), own))
    if free is None:
        place_embedding(model)
        return Settled(step=step_of(model, args, tx))
    head = layout.head if isinstance(layout, StreamPlan) else layout
    sizing = _sizing(model, args, tx, head, free * USABLE)
    batch = longest_batch(head, known_rows(rows))
    batch = split_rows(batch, model.carried.mesh)
    if start.dropout_key is not None:
        batch = dataclasses.replace(batch, dropout_key=start.dropout_key)
    peak: int | None = None
    for plan in _candidates(model, sizing):
        model.model.remat = plan
        place_embedding(model)
        step = step_of(model, args, tx)
        peak = compiled_peak(step, model, start.opt_state, batch)
        if peak is None or peak <= sizing.limit:
            if model.carried.auto_plan is not None:
                model.carried.auto_plan = plan
            return Settled(step=step, lines=tuple(_lines(plan, peak, sizing, free)))
    raise ValueError(_refusal(model.model.remat, peak or 0, sizing, free))


def fits_copied(
    model: LanguageModel,
    args: SFTConfig,
    tx: optax.GradientTransformation,
    length: int,
    limit: int,
) -> bool:
    """Whether a step is predicted to fit into a device that has a copy of all weights.

    Args:
      model: With what is trained.
      args: The options.
      tx: The optimizer.
      length: Of the longest row, tokens.
      limit: Of the device's allocator, bytes.
    """
    plan = FASTEST_FIRST[-1]
    if model.model.remat != model.carried.auto_plan:
        plan = model.model.remat
    predicted = _prediction(model, args, held_by(model, tx, copied=True))
    return predicted(plan, args.per_device_train_batch_size, length) <= limit * USABLE


def step_of(model: LanguageModel, args: SFTConfig, tx: optax.GradientTransformation) -> Step:
    """The step of a run, not compiled yet."""
    return make_train_step(
        split(model)[0],
        tx,
        accumulation=args.gradient_accumulation_steps,
        max_grad_norm=args.max_grad_norm,
        label_smoothing=args.label_smoothing_factor,
        neftune_noise_alpha=args.neftune_noise_alpha,
        deterministic=args.full_determinism,
    )


def free_bytes(stats: Mapping[str, int] | None, own: Any) -> int | None:
    """What a run may take of a device, its own arrays included; None where there is no limit.

    Args:
      stats: Of the device's allocator, which knows its limit, or not.
      own: Arrays of the run that are there already.
    """
    if stats is None or "bytes_limit" not in stats:
        return None
    others = max(0, stats.get("bytes_in_use", 0) - nbytes_here(own))
    return stats["bytes_limit"] - others


def longest_batch(layout: Plan, rows: TokenizedRows) -> Any:
    """A window of the longest shape that a run will have."""
    batch = next(iter(layout.windows(rows, Place()))).batch
    if not isinstance(batch, Batch):
        return batch  # packed windows have one shape
    shape = (batch.input_ids.shape[0], layout.lengths[-1])
    return jax.tree.map(lambda a: np.zeros(shape, a.dtype), batch)


def compiled_peak(step: Step, model: LanguageModel, opt_state: Any, batch: Any) -> int | None:
    """Bytes at the worst moment, by the compiler; None where it tells nothing."""
    _, trainable, frozen = split(model)
    # A jitted function has `lower`; `Step` says only how it is called.
    lowered = cast(Any, step).lower(trainable, opt_state, frozen, batch, np.bool_(False))
    found = planned(lowered.compile())
    return None if found is None else found.peak


def _candidates(model: LanguageModel, sizing: Sizing) -> Iterator[Remat]:
    """Plans to try, the fastest that is predicted to fit first; the last one whatever is said."""
    if model.model.remat != model.carried.auto_plan:
        yield model.model.remat
        return
    for plan in FASTEST_FIRST:
        if plan == FASTEST_FIRST[-1] or sizing.fits(plan, sizing.rows, sizing.length):
            yield plan


def _sizing(
    model: LanguageModel,
    args: SFTConfig,
    tx: optax.GradientTransformation,
    layout: Plan,
    limit: float,
) -> Sizing:
    return Sizing(
        predicted=_prediction(model, args, held_by(model, tx)),
        limit=limit,
        rows=layout.size // layout.request.devices,
        length=layout.lengths[-1],
    )


def _prediction(
    model: LanguageModel, args: SFTConfig, held: Held
) -> Callable[[Remat, int, int], float]:
    """The bytes of a step on one device by plan, rows and tokens a row."""
    device, kernels = current_device(), model.model.kernels
    capable = device.compute_capability is not None and device.compute_capability >= (8, 0)
    blockwise = kernels == "xla" or not capable

    def predicted(plan: Remat, rows: int, length: int) -> float:
        shape = shape_of(
            model,
            rows,
            length,
            accumulation=args.gradient_accumulation_steps,
            gpu=device.platform == "gpu",
            blockwise=blockwise,
        )
        return footprint(shape, held, plan).peak

    return predicted


def _lines(plan: Remat, peak: int | None, sizing: Sizing, free: int) -> Iterator[str]:
    """The verdict."""
    said = sizing.predicted(plan, sizing.rows, sizing.length)
    checked = "" if peak is None else f", {_gib(peak)} by the compiler"
    yield f'  memory   {_gib(said)} predicted{checked}, of {_gib(free)}, with the plan "{plan}"'
    most = largest(lambda rows: sizing.fits(plan, rows, sizing.length))
    smallest = FASTEST_FIRST[-1]
    line = f"  fits     {most:,} rows of {sizing.length:,} tokens at most"
    if plan != smallest:
        further = largest(lambda rows: sizing.fits(smallest, rows, sizing.length))
        line += f', {further:,} with "{smallest}"'
    yield line


def _refusal(plan: Remat, peak: int, sizing: Sizing, free: int) -> str:
    """Why the run ends before its first step, and what would fit."""
    smallest, rows, length = FASTEST_FIRST[-1], sizing.rows, sizing.length
    cures = []
    if plan != smallest:
        found = [p for p in FASTEST_FIRST if sizing.fits(p, rows, length)]
        cures += [f"use_gradient_checkpointing={found[0]!r}"] if found else []
    fewer = largest(lambda n: sizing.fits(smallest, n, length))
    if 0 < fewer < rows:
        cures.append(f"per_device_train_batch_size={fewer}")
    shorter = largest(lambda n: sizing.fits(smallest, rows, n))
    if 0 < shorter < length:
        cures.append(f"max_seq_length={shorter}")
    cure = " or ".join(cures) or "a smaller model, or load_in_4bit=True"
    return (
        f"a step must fit into the {_gib(free)} that this device's allocator has left; {rows} rows "
        f'of {length:,} tokens take {_gib(peak)} with the plan "{plan}", which is the compiler\'s '
        f"number. What is predicted to fit: {cure}."
    )


def _gib(size: int | float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
