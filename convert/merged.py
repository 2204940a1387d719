"""An adapter merged into its base: a full Hugging Face checkpoint, streamed tensor by tensor."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.checkpoint import Checkpoint, open_checkpoint
from convert.companions import companions
from convert.dequantized import DequantizedCheckpoint
from convert.edits import HEAD, Edit, Pair, Whole, plan_edits
from convert.errors import broken, shown
from convert.merged_4bit import in_4bit, quantization_for
from convert.model_config import dtype_of, merged_config, read_model_config, ties_embeddings
from convert.names import file_name
from convert.peft import open_adapter
from convert.quantization_config import with_quantization
from convert.quantized import QuantizedInfo
from convert.rounding import FLOAT_DTYPES, WEIGHT_DTYPES, cast, merge_linear
from convert.stream import LazyTensor, Progress
from convert.tied_head import rows_of, settle_head
from convert.writer import SHARD_BYTES, write_checkpoint


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merged checkpoint that is not yet computed.

    Attributes:
      base: The folder that it is computed from.
      tensors: By the base's names.
      config: What config.json will hold.
      copied: Files to copy beside the weights.
    """

    base: Path
    tensors: Mapping[str, LazyTensor]
    config: Mapping[str, object]
    copied: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def write(
        self, out: Path, *, max_shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
    ) -> None:
        """Compute and write it; inside the `with` statement of `plan_merge`.

        Args:
          out: Created or replaced, all of it or nothing, as `write_checkpoint` does.
          max_shard_bytes: Most bytes of tensors in one file.
          progress: Called after each tensor with its name and its bytes.

        Raises:
          CheckpointError: what `write_checkpoint` refuses; `out` is the base's folder.
          OSError: the disk refused.
        """
        if out.resolve() == self.base.resolve():
            raise broken(
                "A merged model must have a folder of its own",
                got=f"that of its base, {out}",
                wanted="another one",
                cure="Choose another path; the adapter stays of use only while its base is there.",
            )
        write_checkpoint(
            out,
            self.tensors,
            self.config,
            max_shard_bytes=max_shard_bytes,
            copied=self.copied,
            progress=progress,
        )


def merge_adapter(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: np.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Merge a PEFT LoRA adapter into its base model and write the full checkpoint.

    W + s B A in float64, its rows stretched where it is DoRA, rounded once. The host holds the
    largest tensor and its merged copy.

    Args:
      base: The base model's folder; 16 or 32 bits, or 4 bits of bitsandbytes, whose weights become
        float32 before they are merged.
      adapter: The adapter's folder, as PEFT or `write_adapter` wrote it.
      out: As in `MergePlan.write`.
      dtype: Of every float tensor; None is the base's where that has 16 bits (for 4-bit weights:
        that of the model they were quantised from), else bfloat16.
      max_shard_bytes: Most bytes of tensors in one file.
      progress: Called after each tensor with its name and its bytes.

    Raises:
      CheckpointError: what `plan_merge` and `MergePlan.write` refuse.
      OSError: the disk refused.
    """
    with plan_merge(base, adapter, dtype=dtype) as plan:
        plan.write(out, max_shard_bytes=max_shard_bytes, progress=progress)


@contextlib.contextmanager
def plan_merge(
    base: Path,
    adapter: Path | None,
    *,
    dtype: np.dtype | None = None,
    four_bits: bool = False,
) -> Iterator[MergePlan]:
    """Open base and adapter, check that they fit, and say what the merged checkpoint will hold.

    Args:
      base: The base model's folder.
      adapter: The adapter's; None: the base alone.
      dtype: As in `merge_adapter`.
      four_bits: Write projections in bitsandbytes' 4 bits; see `in_4bit`.

    Yields:
      The plan; its tensors can be read while the `with` statement lasts. Only an adapter that
      brings an embedding or a head for a tied base has these read beforehand, to compare them.

    Raises:
      CheckpointError: a damaged folder, a base quantised otherwise than to 4 bits by bitsandbytes,
        a dtype that no checkpoint has, an adapter whose tensors do not all have their place in the
        base (see `plan_edits`), and what `in_4bit` refuses.
    """
    config = read_model_config(base)
    if dtype is not None and np.dtype(dtype) not in WEIGHT_DTYPES:
        raise broken(
            "`dtype` of a merged model must be one that weights have",
            got=str(dtype),
            wanted=", ".join(map(str, WEIGHT_DTYPES)),
            cure="Leave it out to keep the base's.",
        )
    with contextlib.ExitStack() as stack:
        lora = adapted = None
        if adapter is not None:
            lora, adapted = open_adapter(adapter)
            stack.enter_context(adapted)
        files = stack.enter_context(open_checkpoint(base))
        weights = DequantizedCheckpoint(files)
        stored = [info.dtype for info in weights.quantized.values()]
        kept = dtype_of(config, stored) if dtype is None else np.dtype(dtype)
        edits: dict[str, Edit] = {}
        if lora is not None and adapted is not None:
            edits = plan_edits(lora, adapted, weights)
        lazy = functools.partial(_lazy, weights, adapted, kept)
        tensors = {name: lazy(name, edits.get(name)) for name in weights.names}
        untied = False
        if lora is not None and (ties_embeddings(config) or file_name(HEAD, tensors) is None):
            untied = settle_head(tensors, edits, lazy, lora)
        merged = merged_config(config, kept, untied=untied, rows=rows_of(tensors, weights))
        if four_bits:
            merged = with_quantization(merged, quantization_for(config, tensors), kept)

            def dense(info: QuantizedInfo) -> LazyTensor:
                return _lazy(weights, adapted, info.dtype, info.name, edits.get(info.name))

            tensors = in_4bit(tensors, files, weights.quantized, edits, dense)
        yield MergePlan(
            base=base,
            tensors=tensors,
            config=merged,
            copied=tuple(companions(base, adapter or base)),
        )


def _lazy(
    base: DequantizedCheckpoint,
    adapter: Checkpoint | None,
    dtype: np.dtype,
    name: str,
    edit: Edit | None,
) -> LazyTensor:
    """One tensor of the merged model, not yet computed."""
    owner, source = base, name
    if isinstance(edit, Whole) and adapter is not None:
        owner, source = adapter, edit.tensor
    info = owner.info(source)

    def read() -> np.ndarray:
        array = owner.read(source)
        if info.dtype not in FLOAT_DTYPES:
            return array
        if isinstance(edit, Pair) and adapter is not None:
            a, b = adapter.read(edit.lora_a), adapter.read(edit.lora_b)
            m = None if edit.magnitude is None else adapter.read(edit.magnitude)
            array = merge_linear(array, a, b, edit.scale, dtype, magnitude=m)
        return _finite(name, cast(array, dtype))

    kept = info.dtype if info.dtype not in FLOAT_DTYPES else dtype
    return LazyTensor(shape=info.shape, dtype=kept, read=read)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array, refused where float16, whose range is small, could not hold a weight."""
    if array.dtype == np.float16 and not np.isfinite(array).all():
        raise broken(
            f"The merged weight {shown(name)} must fit the range of float16",
            got="a number beyond 65504, or one that is not finite",
            wanted="finite weights",
            cure="Merge to bfloat16 or float32.",
        )
    return array
