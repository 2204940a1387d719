"""Stacks of 4-bit weights made by bitsandbytes on the CPU, and the values it reads from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels.nf4 import NF4, NestedAbsmax, from_pairs
from tests.pallas_kernels.drawing import normal

functional = pytest.importorskip("bitsandbytes").functional

# Its plain torch code asks for torch.compile, which would cost seconds a shape.
eager = torch.compiler.set_stance("force_eager")
quantize_4bit = eager(functional.quantize_4bit)
dequantize_4bit = eager(functional.dequantize_4bit)
COMPILED = ("xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu))


def drawn(shape, dtype="float32", seed=0):
    """A random torch weight."""
    return torch.tensor(normal(seed)(shape) * 0.05).to(getattr(torch, dtype))


def to_jax(tensor):
    """The same array in JAX; numpy has no bfloat16."""
    return jnp.asarray(tensor.float().numpy().astype(jnp.dtype(name_of(tensor))))


def name_of(tensor):
    """A tensor's dtype as JAX names it."""
    return str(tensor.dtype).removeprefix("torch.")


def four_bits(case, dtype="float32", kind="nf4"):
    """A stack whose layers differ, as bitsandbytes quantises them, and its values as float32."""
    weights = [drawn((case.O, case.I), dtype, seed) for seed in range(case.L)]
    layers = [
        quantize_4bit(
            weight, blocksize=case.block, compress_statistics=case.nested, quant_type=kind
        )
        for weight in weights
    ]
    values = [dequantize_4bit(*layer).float().numpy() for layer in layers]
    return stack_of(layers, case, dtype), np.stack(values)


def stack_of(layers, case, dtype):
    """Pairs of codes and `QuantState` as our stack."""
    states = [state for _, state in layers]
    nested = None
    if case.nested:
        nested = NestedAbsmax(
            absmax=_stacked([state.state2.absmax for state in states]),
            table=jnp.asarray(states[0].state2.code.numpy()),
            offset=_stacked([state.offset for state in states]),
            block=states[0].state2.blocksize,
        )
    return NF4(
        codes=jnp.asarray(np.stack([our_codes(codes) for codes, _ in layers])),
        absmax=_stacked([state.absmax for state in states]),
        table=jnp.asarray(states[0].code.numpy()),
        nested=nested,
        matrix=(case.O, case.I),
        dtype=dtype,
        block=case.block,
    )


def our_codes(codes):
    """The bytes of bitsandbytes in our order."""
    return np.asarray(jax.jit(from_pairs)(codes.numpy().reshape(-1)))


def _stacked(tensors):
    return jnp.asarray(np.stack([tensor.numpy() for tensor in tensors]))
