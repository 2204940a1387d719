import pytest
import safetensors

from convert.names import file_name
from tests.convert.conftest import FAMILIES, load


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_model_is_found_in_the_files_that_transformers_wrote(bases, family):
    with safetensors.safe_open(bases[family] / "model.safetensors", "numpy") as file:
        held = set(file.keys())
    state = load(bases[family]).state_dict()
    found = {name: file_name(name, held) for name in state}
    if family.startswith("gemma"):
        assert found.pop("lm_head.weight") is None  # tied
    assert set(found.values()) == held
    assert len(found) == len(held)


@pytest.mark.parametrize(
    ("tensor", "held"),
    [
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.vision_tower.encoder.x", "vision_tower.vision_model.encoder.x"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
    ],
)
def test_names_of_other_releases_are_found(tensor, held):
    assert file_name(tensor, {held, "other"}) == held


def test_the_modules_own_name_comes_first():
    held = {"lm_head.weight", "language_model.lm_head.weight"}
    assert file_name("lm_head.weight", held) == "lm_head.weight"


def test_a_name_that_the_files_lack_is_none():
    assert file_name("model.norm.weight", {"language_model.model.norm.weight"}) is None
