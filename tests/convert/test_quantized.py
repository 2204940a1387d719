import ml_dtypes
import numpy as np
import pytest

from convert.errors import CheckpointError
from convert.quantized import QuantizedInfo, part_names, quantized_infos, read_quantized
from tests.convert.four_bits import NAME, opened, parts_of


@pytest.mark.parametrize("nested", [True, False])
def test_infos_and_parts_are_what_the_files_hold(tmp_path, nested):
    parts = parts_of((5, 171), nested=nested)
    others = {"model.norm.weight": np.ones(3, np.float32), "a.absmaximum": np.ones(1, np.uint8)}
    with opened(tmp_path, parts | others) as checkpoint:
        infos = quantized_infos(checkpoint)
        tensor = read_quantized(checkpoint, infos[NAME])
    assert infos == {
        NAME: QuantizedInfo(
            name=NAME,
            shape=(5, 171),
            dtype=np.dtype(ml_dtypes.bfloat16),
            quant_type="nf4",
            block=64,
            nested_block=256 if nested else None,
            nbytes=sum(array.nbytes for array in parts.values()),
        )
    }
    assert part_names(infos[NAME])[0] == NAME
    assert sorted(part_names(infos[NAME])) == sorted(parts)
    assert tensor.info == infos[NAME]
    np.testing.assert_array_equal(tensor.codes, parts[NAME][:, 0])
    np.testing.assert_array_equal(tensor.absmax, parts[f"{NAME}.absmax"])
    np.testing.assert_array_equal(tensor.table, parts[f"{NAME}.quant_map"])
    if nested:
        np.testing.assert_array_equal(tensor.nested_absmax, parts[f"{NAME}.nested_absmax"])
        np.testing.assert_array_equal(tensor.nested_table, parts[f"{NAME}.nested_quant_map"])
        assert (tensor.offset, type(tensor.offset)) == (0.25, np.float32)
    else:
        assert (tensor.nested_absmax, tensor.nested_table, tensor.offset) == (None, None, None)


def test_a_checkpoint_without_4_bit_weights_has_no_infos(tmp_path):
    with opened(tmp_path, {NAME: np.ones(3, np.float32)}) as plain:
        assert quantized_infos(plain) == {}


@pytest.mark.parametrize("shape", [(430,), (430, 1)], ids=str)
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
)
def test_codes_may_be_stored_as_any_dtype(tmp_path, shape, dtype):
    parts = parts_of((43, 80))  # 1720 bytes
    wanted = parts[NAME].reshape(-1)
    stored = wanted.view(dtype)
    parts[NAME] = stored.reshape((-1,) if len(shape) == 1 else (-1, 1))
    with opened(tmp_path, parts) as checkpoint:
        tensor = read_quantized(checkpoint, quantized_infos(checkpoint)[NAME])
    np.testing.assert_array_equal(tensor.codes, wanted)


def test_an_info_of_another_checkpoint_is_refused(tmp_path):
    with opened(tmp_path, parts_of((5, 172))) as checkpoint:
        info = quantized_infos(checkpoint)[NAME]
    refused = pytest.raises(CheckpointError, match=r"\(172, 5\).* in the files; wanted .*5, 172")
    with opened(tmp_path, parts_of((172, 5))) as checkpoint, refused:
        read_quantized(checkpoint, info)
