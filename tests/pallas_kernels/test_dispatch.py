"""The choice of a backend."""

import logging

import jax
import pytest

from pallas_kernels.dispatch import (
    Backend,
    Device,
    Problem,
    Unsupported,
    choose,
    current_device,
)

PROBLEM = Problem(op="an_op", device=Device(platform="cpu"), dtype="float32")


def backend(name, reason=None):
    return Backend(name=name, refuse=lambda _: reason, forward=lambda: None, backward=lambda: None)


def test_auto_takes_the_first_that_serves():
    backends = [backend("triton"), backend("xla")]
    assert choose("auto", backends, PROBLEM) is backends[0]


def test_auto_passes_over_a_refusal_and_logs_it(caplog):
    backends = [backend("triton", "needs a GPU"), backend("xla")]
    with caplog.at_level(logging.INFO, "pallas_kernels"):
        assert choose("auto", backends, PROBLEM) is backends[1]
    assert caplog.messages == ["an_op runs on xla: triton: needs a GPU"]


def test_refusal_is_asked_with_the_problem():
    asked = []
    choose(
        "auto",
        [Backend(name="xla", refuse=asked.append, forward=print, backward=print)],
        PROBLEM,
    )
    assert asked == [PROBLEM]


def test_auto_reports_every_refusal():
    backends = [backend("triton", "needs a GPU"), backend("xla", "no float8")]
    with pytest.raises(Unsupported, match=r"`an_op`.*triton: needs a GPU; xla: no float8"):
        choose("auto", backends, PROBLEM)


def test_a_name_takes_that_backend():
    backends = [backend("triton"), backend("xla"), backend("interpret")]
    assert choose("interpret", backends, PROBLEM) is backends[2]


def test_forced_backend_never_falls_back():
    backends = [backend("triton", "needs a GPU"), backend("xla")]
    with pytest.raises(Unsupported, match=r"`an_op`.*backend='triton'.*triton: needs a GPU"):
        choose("triton", backends, PROBLEM)


def test_forced_backend_that_is_missing_names_those_there_are():
    with pytest.raises(Unsupported, match="`an_op` has no backend 'triton'; it has xla"):
        choose("triton", [backend("xla")], PROBLEM)


def test_unknown_name_is_a_value_error():
    with pytest.raises(ValueError, match="one of auto, xla, triton, interpret; got 'cuda'"):
        choose("cuda", [backend("xla")], PROBLEM)


def test_unsupported_is_not_implemented():
    assert issubclass(Unsupported, NotImplementedError)


def test_current_device_follows_the_default():
    assert current_device().platform == jax.local_devices()[0].platform
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        assert current_device() == Device(platform="cpu")
