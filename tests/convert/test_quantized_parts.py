import numpy as np
import pytest

from convert.errors import CheckpointError
from convert.quantized import quantized_infos, read_quantized
from tests.convert.four_bits import NAME, STATE, opened, packed, parts_of, state_of

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
FP4 = STATE.replace("nf4", "fp4")


def refusal(folder, parts, match, *, read=False):
    """The checkpoint is refused as soon as it is looked at, or when the weight is read."""
    with opened(folder, parts) as checkpoint:
        if read:
            info = quantized_infos(checkpoint)[NAME]
            with pytest.raises(CheckpointError, match=match):
                read_quantized(checkpoint, info)
        else:
            with pytest.raises(CheckpointError, match=match) as caught:
                quantized_infos(checkpoint)
            assert NAME in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_named(tmp_path, part):
    parts = parts_of()
    del parts[f"{NAME}.{part}"]
    refusal(tmp_path, parts, f"got no '{NAME}.{part}'; wanted all the parts")


def test_codes_that_are_missing_are_said(tmp_path):
    parts = parts_of()
    del parts[NAME]
    refusal(tmp_path, parts, "got its quant_state alone")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["longer", "shorter", "matrix", "dtype"])
def test_a_part_of_another_length_or_dtype_is_refused(tmp_path, part, how):
    parts = parts_of()
    array = parts[f"{NAME}.{part}"]
    changed = {
        "longer": np.append(array, array[:1]),
        "shorter": array[:-1],
        "matrix": array[:, None],
        "dtype": array.astype(np.float16),
    }
    refusal(tmp_path, parts | {f"{NAME}.{part}": changed[how]}, "as its quant_state says")


def test_scales_of_16_bits_without_double_quantisation_are_refused(tmp_path):
    parts = parts_of(nested=False)
    parts[f"{NAME}.absmax"] = parts[f"{NAME}.absmax"].astype(np.float16)
    refusal(tmp_path, parts, "absmax' of float16")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_a_state_that_needs_it_is_refused(tmp_path, part):
    parts = parts_of()
    del parts[STATE]
    kept = {NAME: parts[NAME], f"{NAME}.{part}": parts[f"{NAME}.{part}"]}
    refusal(tmp_path, kept, f"got '{NAME}.{part}'; wanted no part without a quant_state")


def test_nested_parts_beside_a_state_that_knows_of_none_are_refused(tmp_path):
    nested = {name: part for name, part in parts_of().items() if ".nested_" in name}
    refusal(tmp_path, parts_of(nested=False) | nested, "wanted no part without")


@pytest.mark.parametrize(
    "shape", [[5, 171 - 1], [5, 173], [2**40] * 32, [1], [860, 860]], ids=lambda s: str(s[:2])
)
def test_a_shape_that_does_not_fit_the_codes_is_refused(tmp_path, shape):
    parts = parts_of() | {STATE: packed(state_of((5, 172), nested=True, shape=shape))}
    refusal(tmp_path, parts, r"got codes of uint8 \(430, 1\) for the shape \(")


@pytest.mark.parametrize("form", [(1, 430), (215, 2), (430, 1, 1)], ids=str)
def test_codes_are_one_column(tmp_path, form):
    parts = parts_of()
    refusal(tmp_path, parts | {NAME: parts[NAME].reshape(form)}, "wanted one column of 430 bytes")


def test_codes_of_whole_numbers_wider_than_a_byte_are_refused(tmp_path):
    parts = parts_of()
    wide = parts[NAME].reshape(-1).view(np.uint16)
    refusal(tmp_path, parts | {NAME: wide}, "got codes of uint16 .*one column of 430 bytes")


@pytest.mark.parametrize("kind", ["bitsandbytes__int4", "bitsandbytes__", "nf4", "other__nf4"])
def test_another_kind_of_state_is_refused(tmp_path, kind):
    parts = parts_of()
    parts[f"{NAME}.quant_state.{kind}"] = parts.pop(STATE)
    refusal(tmp_path, parts, f"got '{NAME}.quant_state.{kind}'; wanted bitsandbytes__nf4 or ")


def test_two_states_of_one_weight_are_refused(tmp_path):
    parts = parts_of()
    parts[FP4] = packed(state_of((5, 172), nested=True, quant_type="fp4"))
    refusal(tmp_path, parts, "one for each weight")


@pytest.mark.parametrize(
    "state",
    [
        np.zeros(2**16 + 1, np.uint8),
        np.zeros((2, 3), np.uint8),
        np.zeros(3, np.int8),
        np.zeros((), np.uint8),
    ],
    ids=["long", "matrix", "int8", "scalar"],
)
def test_a_state_that_is_no_short_run_of_bytes_is_not_read(tmp_path, state, monkeypatch):
    monkeypatch.setattr("convert.quantized_parts.parse_quant_state", None)
    refusal(tmp_path, parts_of() | {STATE: state}, "wanted JSON as uint8")


def test_a_state_that_is_no_json_is_refused(tmp_path):
    refusal(tmp_path, parts_of() | {STATE: np.full(9, 7, np.uint8)}, "must be JSON")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("part", "nested"), [("absmax", False), *((part, True) for part in PARTS[1:])]
)
def test_a_number_that_is_not_finite_is_refused_when_it_is_read(tmp_path, part, nested, value):
    parts = parts_of(nested=nested)
    parts[f"{NAME}.{part}"][-1] = value
    refusal(tmp_path, parts, f"not finite in '{NAME}.{part}'", read=True)


def test_a_negative_nested_scale_is_refused_when_it_is_read(tmp_path):
    parts = parts_of(nested=True)
    parts[f"{NAME}.nested_absmax"][-1] *= -1
    refusal(tmp_path, parts, "a negative number in nested_absmax", read=True)


@pytest.mark.parametrize(
    ("part", "nested"), [("absmax", False), ("nested_absmax", True), ("nested_quant_map", True)]
)
def test_scales_whose_product_passes_float32_are_refused(tmp_path, part, nested):
    parts = parts_of(nested=nested)
    parts[f"{NAME}.{part}"][0] = -3e30
    parts[f"{NAME}.quant_map"][3] = 1e10
    refusal(tmp_path, parts, "got scales up to .*; wanted elements below 3e", read=True)


def test_an_offset_that_makes_elements_pass_float32_is_refused(tmp_path):
    parts = parts_of() | {STATE: packed(state_of((5, 172), nested=True, nested_offset=-2e38))}
    parts[f"{NAME}.quant_map"][3] = 2
    refusal(tmp_path, parts, r"got scales up to 2.0e\+38; wanted elements below 3e", read=True)
