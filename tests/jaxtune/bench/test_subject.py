"""From a name to a configuration; the built-in ones against the real files."""

import json

import pytest

from jaxtune.bench import subject
from jaxtune.bench.configs import BUILT_IN
from jaxtune.bench.subject import check_length, find_subject, read_config
from jaxtune.errors import ModelNotFoundError, UnsupportedModelError
from jaxtune.models import hub_download

REAL = {
    "llama-3-8b": "Meta-Llama-3-8B",
    "llama-3.1-8b": "Llama-3.1-8B",
    "llama-3.2-1b": "Llama-3.2-1B",
    "llama-3.2-3b": "Llama-3.2-3B",
    "mistral-7b-v0.3": "Mistral-7B-v0.3",
    "gemma-2b": "gemma-2b",
    "gemma-2-2b": "gemma-2-2b",
    "gemma-2-9b": "gemma-2-9b",
    "gemma-3-1b": "gemma-3-1b-it",
}


def test_built_in_configurations_are_the_real_ones(assets):
    for name, folder in REAL.items():
        real, ours = find_subject(str(assets / "configs" / folder)), find_subject(name)
        assert (ours.family, ours.config) == (real.family, real.config), name


def test_qwen3_8b_has_the_sizes_of_its_card():
    config = find_subject("qwen3-8b").config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (36, 4096, 151936)
    assert (config.intermediate_size, config.head_dim, config.norm.qk_norm) == (12288, 128, True)
    assert [layer.window for layer in config.period] == [None]


def test_a_folder_and_its_file_are_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BUILT_IN["gemma-2b"]))
    assert find_subject(str(tmp_path)).config == find_subject("gemma-2b").config
    file = str(tmp_path / "config.json")
    assert find_subject(file).config == find_subject("gemma-2b").config


def test_a_built_in_configuration_cannot_be_changed_by_its_reader():
    read_config("llama-3.1-8b")["rope_scaling"]["factor"] = 1.0
    assert BUILT_IN["llama-3.1-8b"]["rope_scaling"]["factor"] == 8.0


def test_of_a_hub_id_the_configuration_alone_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(BUILT_IN["gemma-2b"]))
    asked = []
    monkeypatch.setattr(
        hub_download, "download_config", lambda name: asked.append(name) or tmp_path
    )
    assert find_subject("owner/name").config == find_subject("gemma-2b").config
    assert asked == ["owner/name"]


def test_a_hub_id_without_a_model_is_explained(monkeypatch):
    def missing(name):
        raise ModelNotFoundError(name)

    monkeypatch.setattr(hub_download, "download_config", missing)
    with pytest.raises(ModelNotFoundError, match="owner/name"):
        find_subject("owner/name")


def test_a_folder_without_a_configuration_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json"):
        find_subject(str(tmp_path))


def test_an_unknown_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModelError, match="mamba"):
        find_subject(str(tmp_path))


def test_rows_beyond_the_range_are_refused_unless_packed():
    gemma = find_subject("gemma-2b")
    check_length(gemma, 8192, packing=False)
    subject.check_length(gemma, 8193, packing=True)
    with pytest.raises(ValueError, match=r"--length must be <= 8192, .*gemma-2b; got 8193"):
        check_length(gemma, 8193, packing=False)
