"""Quick compilation, and what the compiled program of a function holds."""

import math
import re
from functools import partial

import jax

# Small programs run once: unoptimised code compiles in half the time.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# XLA may otherwise leave out a cast to a half dtype and back.
exact_jit = partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})


def array_sizes(function, *arguments):
    """Number of elements of every array in the optimised program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
    return {math.prod(int(n) for n in shape.split(",")) for shape in shapes}


def temporary_bytes(function, *arguments):
    """Bytes that the program needs besides its arguments and outputs."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
