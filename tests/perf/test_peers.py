"""The other libraries compute what ours compute, on our arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import benchmark
from pallas_kernels.attention.cases import ODD_CASES as ATTENTION
from pallas_kernels.attention.cases import make_inputs as attention_inputs
from pallas_kernels.cross_entropy.cases import ODD_CASES as CROSS_ENTROPY
from pallas_kernels.cross_entropy.cases import make_inputs as cross_entropy_inputs
from pallas_kernels.glu.cases import Case as GluCase
from pallas_kernels.glu.cases import make_inputs as glu_inputs
from pallas_kernels.nf4.cases import Case, make_stack
from pallas_kernels.rms_norm.cases import Case as NormCase
from pallas_kernels.rms_norm.cases import make_inputs as norm_inputs
from tests.pallas_kernels.drawing import normal
from tests.perf import peers
from tests.tolerances import relative_error, tolerance

pytest.importorskip("bitsandbytes")


def small(op):
    """A case of an op, two sets of its inputs, and the tolerance of its value."""
    if op == "attention":
        case = next(case for case in ATTENTION if case.name == "prime_gqa")
        draws = [attention_inputs(case, "float32", normal(n)) for n in range(2)]
        sets = [(tuple(d[:3]), tuple(d[3:])) for d in draws]
        return case, sets, tolerance("float32", "attention_forward")
    if op == "cross_entropy":
        case = next(case for case in CROSS_ENTROPY if case.name == "softcap_chunks")
        draws = [cross_entropy_inputs(case, "float32", normal(n)) for n in range(2)]
        sets = [((x,), (head, labels)) for x, head, labels in draws]
        return case, sets, tolerance("float32", "cross_entropy_forward")
    if op == "glu":
        case = GluCase(name="small", M=7, F=24)
        sets = [(glu_inputs(case, "float32", normal(n)), ()) for n in range(2)]
        return case, sets, tolerance("float32", "glu_forward")
    if op == "rms_norm":
        case = NormCase(name="small", M=7, D=24, unit_offset=True)
        draws = [norm_inputs(case, "float32", normal(n)) for n in range(2)]
        sets = [((d.x,), (d.residual, d.weight)) for d in draws]
        return case, sets, tolerance("float32", "rms_norm_forward")
    case = Case(name="small", L=2, O=64, I=128)
    stack = make_stack(case, "bfloat16", normal(0))
    # Quantised again, nested scales move a little.
    sets = [((), (stack, jnp.int32(n))) for n in range(2)]
    return case, sets, tolerance("bfloat16", "double_quantized")


@pytest.mark.parametrize("op", peers.PEERS)
def test_peers_give_our_values_on_each_set(op):
    case, sets, allowed = small(op)
    found = peers.programs(op, case, "forward", sets)
    assert set(found) == set(peers.PEERS[op])
    called = {name: call for name, call in found.items() if not isinstance(call, str)}
    assert called, found
    for n in range(3):
        ours = benchmark.OPS[op].PROVIDERS["ours"](case, *sets[n % 2])
        for call in called.values():
            theirs = call(n)
            theirs = theirs if isinstance(theirs, tuple) else (theirs,)
            for actual, expected in zip(theirs, jax.tree.leaves(ours), strict=True):
                error = relative_error(actual.float().numpy(), np.asarray(expected, np.float32))
                assert error <= allowed


def test_peers_differentiate_like_ours():
    case, sets, _ = small("cross_entropy")
    ours = benchmark.OPS["cross_entropy"].PROVIDERS["ours"]
    found = peers.programs("cross_entropy", case, "forward+backward", sets)
    _, (theirs,) = found["torch"](0)
    dx = jax.grad(lambda x: ours(case, (x,), sets[0][1]))(*sets[0][0])
    assert relative_error(theirs.numpy(), dx) <= tolerance("float32", "cross_entropy_gradient")


def test_absent_library_says_so(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    case, sets, _ = small("cross_entropy")
    found = peers.programs("cross_entropy", case, "forward", sets)
    assert found["liger"].startswith("No module named 'liger_kernel")
    assert callable(found["torch"])
    assert peers.programs("an_op_without_peers", case, "forward", sets) == {}
