"""What a user may get wrong while saving and loading: one clear error, nothing half-written."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert import CheckpointError, merge_adapter
from jaxtune.errors import HubUploadError, IncompatibleCheckpointError
from jaxtune.language_model import LanguageModel
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle

Save = Callable[[LanguageModel, Path], Any]
SAVES: dict[str, Save] = {
    "adapter": lambda model, folder: model.save_pretrained(folder),
    "merged": lambda model, folder: model.save_pretrained_merged(folder),
    "gguf": lambda model, folder: model.save_pretrained_gguf(folder, quantization_method="f16"),
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    variant = VARIANTS[BY_NAME["llama-untied"]]
    return make_oracle(variant, tmp_path_factory.mktemp("bad"), initializer_range=0.3)


@pytest.fixture(scope="module")
def ours(oracle: Oracle) -> LanguageModel:
    return load_adapted(oracle.adapter_folder)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES.keys())
def test_a_full_disk_leaves_what_was_there(
    ours: LanguageModel, tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever of its writes the disk is full."""
    out = tmp_path / "out"
    save(ours, out)
    before = held(out)
    name = next(path for path in before if path != "README.md")
    from convert import tensors

    sync = tensors._sync
    for last in range(4):
        writes = 0

        def full(path: Path, flags: int, last: int = last) -> None:
            nonlocal writes
            writes += 1
            if path.is_file() and writes > last:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            sync(path, flags)

        with monkeypatch.context() as patch:
            patch.setattr(tensors, "_sync", full)
            try:
                save(ours, out)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017  it may fit, at last
        assert held(out) == before, last
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert before[name]


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES.keys())
def test_a_folder_that_cannot_be_written_is_named(
    ours: LanguageModel, tmp_path: Path, save: Save
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below"):
        with pytest.raises((OSError, CheckpointError), match=str(file)):
            save(ours, place)
    assert held(tmp_path) == {"file": b"mine"}


def test_a_disk_without_room_is_told_before_anything_is_written(
    ours: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    for save in (SAVES["merged"], SAVES["gguf"]):
        with pytest.raises(CheckpointError, match=r"must have room for all of .*; got 0\.000 GB"):
            save(ours, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base_is_refused(
    oracle: Oracle, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Of another width, and of more layers; when it is loaded and when it is merged."""
    for values, message in (
        ({"hidden_size": 48}, "Check that the adapter was"),
        ({"num_hidden_layers": 5}, "Check that the adapter was"),
    ):
        variant = VARIANTS[BY_NAME["llama-untied"]]
        other = make_oracle(
            type(variant)("other", "llama", variant.configured(**values)),
            tmp_path_factory.mktemp("other"),
            initializer_range=0.3,
        )
        config = other.adapter_folder / "adapter_config.json"
        values = json.loads(config.read_text()) | {"base_model_name_or_path": str(oracle.folder)}
        config.write_text(json.dumps(values))
        with pytest.raises(IncompatibleCheckpointError, match=message):
            load_adapted(other.adapter_folder)
        with pytest.raises(CheckpointError, match=message):
            merge_adapter(oracle.folder, other.adapter_folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_wrong_names_of_methods_are_refused_before_anything_is_written(
    ours: LanguageModel, tmp_path: Path
) -> None:
    for method in ("8bit", "q4_k_m", ["f16", "q9"]):
        with pytest.raises(CheckpointError, match="quantization method must be one"):
            ours.save_pretrained_gguf(tmp_path / "out", quantization_method=method)
    with pytest.raises(ValueError, match="`save_method` must be"):
        ours.save_pretrained_merged(tmp_path / "out", save_method="merged_8bit")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("hub")
def test_an_upload_without_a_token_is_refused(ours: LanguageModel) -> None:
    with pytest.raises(HubUploadError, match=r"got none for `owner/mine`.*`hf auth login`"):
        ours.push_to_hub("owner/mine")


def test_what_was_not_trained_is_not_saved(oracle: Oracle, tmp_path: Path) -> None:
    base = load_base(oracle.folder)
    with pytest.raises(ValueError, match="there must be an adapter to save"):
        base.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
