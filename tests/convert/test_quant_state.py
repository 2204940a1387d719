import json

import numpy as np
import pytest

from convert.errors import CheckpointError
from convert.quant_state import QuantState, parse_quant_state, write_quant_state
from tests.convert.four_bits import NAME, state_of


def parse(**changes):
    values = state_of((3, 64), nested=True, **changes)
    return parse_quant_state(json.dumps(values).encode(), NAME, "nf4")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("block", [32, 64, 4096])
def test_a_state_is_what_its_json_says(dtype, block):
    state = parse(dtype=dtype, blocksize=block, nested_blocksize=128)
    assert state == QuantState(
        shape=(3, 64),
        dtype=np.dtype(dtype),
        quant_type="nf4",
        block=block,
        nested_block=128,
        offset=np.float32(0.25),
    )


def test_absmax_that_was_not_quantised_has_no_offset():
    values = state_of((3, 64), nested=False, quant_type="fp4")
    state = parse_quant_state(json.dumps(values).encode(), NAME, "fp4")
    assert (state.nested_block, state.offset, state.quant_type) == (None, None, "fp4")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("quant_type", value) for value in ("int4", "fp4", 4, ["nf4"])),
        *(("blocksize", value) for value in (16, 63, 96, 8192, 64.0, True, "64")),
        *(("nested_blocksize", value) for value in (0, 3, 2**40, True)),
        *(("dtype", value) for value in ("float64", "int8", 16, ["float16"])),
        *(("nested_dtype", value) for value in ("float16", 32)),
        *(("shape", value) for value in ([], [0, 64], [-3, -64], [3.0], [True], 192, [2**41])),
        ("shape", [1] * 33),
        *(("nested_offset", value) for value in (float("nan"), float("inf"), 10**400, "0", True)),
    ],
    ids=str,
)
def test_a_value_that_bitsandbytes_does_not_write_is_refused(key, value):
    with pytest.raises(CheckpointError, match=rf"{NAME}.*must be one that.*; got `{key}` "):
        parse(**{key: value})


@pytest.mark.parametrize("key", [*state_of((1,), nested=True), "secret"])
def test_a_key_that_is_missing_or_unknown_is_refused(key):
    with pytest.raises(CheckpointError, match=r"got the keys .*wanted quant_type, blocksize"):
        parse(**{key: 1 if key == "secret" else None})


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b'{"shape": [1], "shape": [1]}'])
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(CheckpointError, match=f"The quant_state of '{NAME}' must be "):
        parse_quant_state(data, NAME, "nf4")


@pytest.mark.parametrize("offset", [0, 1e-45, 0.05217230319976807, 1 / 3, 1.0, 12345.678, 2.9e38])
def test_a_written_state_is_read_again_and_its_length_does_not_hang_on_the_offset(offset):
    values = state_of((3, 64), nested=True, nested_offset=float(np.float32(offset)))
    state = parse_quant_state(json.dumps(values).encode(), NAME, "nf4")
    text = write_quant_state(state)
    assert list(json.loads(text).items()) == list(values.items())
    assert parse_quant_state(text, NAME, "nf4") == state
    assert len(text) == len(write_quant_state(parse()))


@pytest.mark.parity
def test_a_written_state_without_double_quantisation_has_the_bytes_of_bitsandbytes():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    _, theirs = functional.quantize_4bit(torch.ones(4, 64, dtype=torch.bfloat16), quant_type="nf4")
    text = theirs.as_dict(packed=True)["quant_state.bitsandbytes__nf4"].numpy().tobytes()
    assert write_quant_state(parse_quant_state(text, NAME, "nf4")) == text
