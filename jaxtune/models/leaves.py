"""A leaf of the model and the tensors of the files that fill it: dense, 4 bits, or both."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from convert import Checkpoint, QuantizedInfo, file_name, part_names
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.models.naming import Path, is_stacked, tensor_names
from jaxtune.models.placement import held_at, replicated
from jaxtune.models.quantized import empty_stack, in_our_order, is_finite, put_layer
from jaxtune.models.read_ahead import Job, ReadAhead
from jaxtune.models.sharding import place_of
from jaxtune.models.upload import Uploads, bytes_of, pieces
from pallas_kernels import NF4, quantize_nf4
from pallas_kernels.nf4 import Bank

Advance = Callable[[int], object]


class Leaf:
    """One leaf and its tensors, looked up by name; nothing is read until `fill`.

    Attributes:
      path: Of the leaf in the model.
      value: Its shape and dtype, as if it were dense.
      tensors: (layer, wanted name, name in the files or None) of each tensor.
      quantize: For each tensor, whether it becomes 4-bit, or stays it.
    """

    def __init__(
        self,
        path: Path,
        value: jax.ShapeDtypeStruct,
        *,
        layers: int,
        decoder_name: str,
        checkpoint: Checkpoint,
        infos: Mapping[str, QuantizedInfo],
        keeps_4bit: bool,
        quantizes: bool,
    ) -> None:
        """Look the tensors up.

        Args:
          path: Of the leaf.
          value: Its shape and dtype.
          layers: L of the model.
          decoder_name: Of the family.
          checkpoint: Open.
          infos: Its 4-bit weights.
          keeps_4bit: Weights of 4 bits stay so; else they are dequantised.
          quantizes: Other weights become 4-bit.
        """
        self.path, self.value = path, value
        self.checkpoint, self.infos = checkpoint, infos
        names = tensor_names(path, layers, decoder_name)
        self.tensors = [(layer, name, file_name(name, checkpoint.names)) for layer, name in names]
        self.quantize = [keeps_4bit if held in infos else quantizes for _, _, held in self.tensors]

    @property
    def missing(self) -> list[str]:
        """Names that the files lack."""
        return [name for _, name, held in self.tensors if held is None]

    @property
    def held(self) -> list[tuple[int | None, str]]:
        """(layer, name in the files) of each tensor."""
        return [(layer, held) for layer, _, held in self.tensors if held is not None]

    @property
    def parts(self) -> list[str]:
        """Every name of the files that belongs to this leaf."""
        return [
            part
            for _, name in self.held
            for part in (part_names(self.infos[name]) if name in self.infos else (name,))
        ]

    @property
    def bytes_in_files(self) -> int:
        """Bytes to read."""
        return sum(self._bytes(name) for _, name in self.held)

    def shape_in_files(self, name: str) -> tuple[int, ...]:
        """Shape of the weight that a tensor stands for."""
        info = self.infos.get(name)
        return self.checkpoint.info(name).shape if info is None else info.shape

    @property
    def _order(self) -> tuple[list[str], list[str]]:
        """Names of the tensors that stay dense and of those of 4 bits, each in layer order."""
        pairs = list(zip(self.held, self.quantize, strict=True))
        dense = [name for (_, name), quantize in pairs if not quantize]
        return dense, [name for (_, name), quantize in pairs if quantize]

    def jobs(self, uploads: Uploads) -> list[Job]:
        """What to bring to the device, in the order in which `fill` takes it."""
        dense, small = self._order
        return [job for name in dense for job in self._jobs(uploads, name, keeps_4bit=False)] + [
            job for name in small for job in self._jobs(uploads, name, keeps_4bit=True)
        ]

    def _jobs(self, uploads: Uploads, name: str, *, keeps_4bit: bool) -> list[Job]:
        if name in self.infos:
            info = self.infos[name]
            read = uploads.four_bits if keeps_4bit else uploads.dequantized
            return [Job(nbytes=info.nbytes, read=functools.partial(read, info))]
        info = self.checkpoint.info(name)
        return [
            Job(
                nbytes=bytes_of(info) * (stop - start) // max(info.shape[0], 1),
                read=functools.partial(uploads.rows, name, start, stop),
            )
            for start, stop in pieces(info)
        ]

    def fill(self, source: ReadAhead, mesh: Mesh | None, advance: Advance) -> Any:
        """The leaf on the device; a stack is filled in place, a layer at a time.

        Args:
          source: Of the jobs.
          mesh: Over whose devices it is spread; None: JAX's default device.
          advance: Told of the bytes that were read.

        Returns:
          An array, `NF4` or `Bank`.
        """
        dense, small = self._order
        if not small:
            return self._fill_dense(dense, source, mesh, advance)
        if not dense:
            return self._fill_4bit(small, source, mesh, advance)
        slots = tuple(self.quantize[:i].count(kind) for i, kind in enumerate(self.quantize))
        return Bank(
            dense=self._fill_dense(dense, source, mesh, advance),
            quantized=self._fill_4bit(small, source, mesh, advance),
            kinds=tuple(self.quantize),
            slots=slots,
        )

    def _fill_dense(
        self, names: list[str], source: ReadAhead, mesh: Mesh | None, advance: Advance
    ) -> jax.Array:
        shape, dtype = self.value.shape, self.value.dtype
        place = place_of(self.path, self.value, mesh)
        if not is_stacked(self.path):
            whole, row = jnp.zeros(shape, dtype, device=place), 0
            for piece in self._pieces(names[0], source, advance):
                whole = _put_rows(whole, piece, np.int32(row), place)
                row += piece.shape[0]
            return whole.block_until_ready()
        stack = jnp.zeros((len(names), *shape[1:]), dtype, device=place)
        for slot, name in enumerate(names):
            stack = _put_dense(stack, self._pieces(name, source, advance), np.int32(slot), place)
            stack.block_until_ready()
        return stack

    def _fill_4bit(
        self, names: list[str], source: ReadAhead, mesh: Mesh | None, advance: Advance
    ) -> NF4:
        stack: NF4 | None = None
        for slot, name in enumerate(names):
            if name in self.infos:
                one = in_our_order(source.take())
                advance(self._bytes(name))
            else:
                # As in transformers, the weight takes the model's dtype before it is quantised.
                parts = self._pieces(name, source, advance)
                one = _quantized(parts, self.value.dtype, replicated(mesh))
            if stack is None:
                stack = empty_stack(one, len(names), mesh)
            _check_alike(name, stack, one, names[0])
            stack = put_layer(stack, one, np.int32(slot), mesh)
            jax.block_until_ready(stack)
        if stack is None:
            raise ValueError("a 4-bit stack needs a tensor at least; got none")
        for name, finite in zip(names, is_finite(stack), strict=True):
            if not finite:
                raise IncompatibleCheckpointError(
                    f"a weight must be finite to be quantised; tensor `{name}` holds NaN or "
                    "infinity. The checkpoint is damaged, or its training diverged."
                )
        return stack

    def _pieces(self, name: str, source: ReadAhead, advance: Advance) -> list[jax.Array]:
        """A dense tensor on the device, as ranges of its rows."""
        if name in self.infos:
            advance(self._bytes(name))
            return [source.take()]
        found = []
        for _ in pieces(self.checkpoint.info(name)):
            found.append(source.take())
            advance(found[-1].nbytes)
        return found

    def _bytes(self, name: str) -> int:
        if name in self.infos:
            return self.infos[name].nbytes
        return bytes_of(self.checkpoint.info(name))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantized(parts: list[jax.Array], dtype: np.dtype, place: NamedSharding | None) -> NF4:
    """A matrix in 4 bits; each device quantises all of it, so that all agree with one alone."""
    whole = held_at(jnp.concatenate(parts), place)
    made = quantize_nf4(whole.astype(dtype))
    return jax.tree.map(lambda array: held_at(array, place), made)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _put_dense(
    stack: jax.Array, parts: list[jax.Array], slot: jax.Array, place: NamedSharding | None
) -> jax.Array:
    """Write one layer's tensor into its stack, in the stack's memory."""
    value = jnp.concatenate(parts).astype(stack.dtype)
    return held_at(lax.dynamic_update_index_in_dim(stack, value, slot, 0), place)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _put_rows(
    whole: jax.Array, rows: jax.Array, start: jax.Array, place: NamedSharding | None
) -> jax.Array:
    """Write some rows of a tensor, in the tensor's memory."""
    rows = rows.astype(whole.dtype)
    return held_at(lax.dynamic_update_slice_in_dim(whole, rows, start, 0), place)


def _check_alike(name: str, stack: NF4, one: NF4, first: str) -> None:
    """Refuse layers of one stack that are quantised in different ways."""
    same = jax.tree.structure(stack) == jax.tree.structure(one)
    tables = [stack.table, one.table]
    if same and stack.nested is not None and one.nested is not None:
        tables += [stack.nested.table, one.nested.table]
    pairs = zip(tables[::2], tables[1::2], strict=True)
    if not same or not all(np.array_equal(left, right) for left, right in pairs):
        raise IncompatibleCheckpointError(
            f"the 4-bit layers of one projection must be quantised alike; `{name}` and `{first}` "
            "differ in block, dtype, table or nesting. Quantise the model again in one way."
        )
