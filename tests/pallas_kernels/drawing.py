"""Random arrays without a compiled generator, which would cost seconds a shape."""

import numpy as np
import pytest


def normal(seed):
    """Give a function from a shape to standard normal numbers."""
    return np.random.default_rng(seed).standard_normal


# The other half dtype: the same program, so that the slow tests alone try it everywhere.
FLOAT16 = pytest.param("float16", marks=pytest.mark.slow)


def slow(*values):
    """Parameters that only the slow tests try."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
