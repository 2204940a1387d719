"""Scripts' ways to save: sizes in words, and what changes nothing here."""

import inspect
from pathlib import Path

import pytest
from transformers.utils.hub import convert_file_size_to_int

from jaxtune.language_model import LanguageModel
from jaxtune.save_arguments import size_in_bytes
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted
from tests.oracles import make_oracle


@pytest.mark.parametrize("size", ["5GB", "200MB", "3KB", "2GiB", "1MiB", 4096])
def test_a_size_is_transformers(size: int | str) -> None:
    assert size_in_bytes(size) == convert_file_size_to_int(size)


def test_other_sizes() -> None:
    assert size_in_bytes("1.5 gb") == 1_500_000_000
    for size in ("5", "GB", "5 GBs", 0, "0MB", "-1GB"):
        with pytest.raises(ValueError, match="`max_shard_size` must be bytes, or a number"):
            size_in_bytes(size)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    variant = VARIANTS[BY_NAME["llama-untied"]]
    folder = tmp_path_factory.mktemp("arguments")
    return load_adapted(make_oracle(variant, folder, initializer_range=0.3).adapter_folder)


def test_what_unsloth_takes_besides_is_taken(ours: LanguageModel, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "plain")
    ours.save_pretrained(tmp_path / "lora", safe_serialization=None, is_main_process=True)
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "lora" / path.name).read_bytes()
    ours.save_pretrained_merged(
        tmp_path / "merged",
        None,
        maximum_memory_usage=0.5,
        temporary_location="elsewhere",
        save_peft_format=True,
        tags=None,
    )
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    ("verb", "option", "said"),
    [
        ("save_pretrained", {"safe_serialization": False}, "safe_serialization=False. Weights are"),
        ("save_pretrained_merged", {"tags": ["mine"]}, r"got tags=.*others are added on the hub"),
        ("save_pretrained_gguf", {"first_conversion": "f16"}, "first_conversion='f16'. Each file"),
        ("save_pretrained_merged", {"max_shard_bytes": 5}, "Pass max_shard_size"),
        ("push_to_hub_merged", {"privat": True}, "Did you mean private"),
        ("push_to_hub_gguf", {"imatrix_file": "x"}, "llama-quantize takes it"),
    ],
)
def test_what_would_change_something_is_refused(
    ours: LanguageModel, tmp_path: Path, verb: str, option: dict[str, object], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        getattr(ours, verb)(str(tmp_path / "out"), **option)
    assert not (tmp_path / "out").exists()


def test_the_signatures_are_the_functions_own() -> None:
    taken = inspect.signature(LanguageModel.save_pretrained_merged).parameters
    assert list(taken)[:6] == [
        *("self", "save_directory", "tokenizer", "save_method", "push_to_hub", "token")
    ]
