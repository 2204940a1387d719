"""Crafted files, each refused before anything is read from what they point at.

One row for each kind; the parsers' own tests have the finer cases. `loot` is a file outside the
folder that nothing may read, and `ran` one that code in a file would make.
"""

import dataclasses
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import AdapterConfig, CheckpointError, open_checkpoint, read_adapter, write_adapter
from convert.__main__ import main
from convert.companions import companions
from convert.gguf_vocabulary import read_vocabulary
from convert.json_object import MAX_BYTES, read_json_object
from jaxtune.data.rendering import ChatTemplate, TemplateRefusal
from jaxtune.models.configuration import read_config_json
from jaxtune.pretrained import Range, Source, load_pretrained
from tests.words import word_tokenizer

HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.ran),))


def safetensors(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    file.write_bytes(size + text + data)


def entries(**tensors: Any) -> dict[str, Any]:
    return {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in tensors.items()
    }


def index(folder: Path, shard: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))


def nested(depth: int = 100_000) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@dataclasses.dataclass(frozen=True)
class Case:
    """Where a crafted file goes, what it would reach for, and what its code would make."""

    folder: Path
    loot: Path
    ran: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


Craft = Callable[[Case], None]


def pickled_model(case: Case) -> None:
    (case.folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(case.ran)))


def pickle_by_another_name(case: Case) -> None:
    case.weights.write_bytes(pickle.dumps(Payload(case.ran)))


def index_of_a_path(case: Case) -> None:
    index(case.folder, f"../{case.loot.name}")


def index_of_an_absolute_path(case: Case) -> None:
    index(case.folder, str(case.loot))


def header_longer_than_the_file(case: Case) -> None:
    safetensors(case.weights, HEADER, b"\0" * 8, length=2**63)


def header_over_every_limit(case: Case) -> None:
    file = case.weights
    safetensors(file, HEADER, length=MAX_BYTES + 1)
    os.truncate(file, MAX_BYTES + 100)


def shape_that_overflows(case: Case) -> None:
    """2^64 elements are none to a reader that counts in 64 bits."""
    safetensors(case.weights, entries(w=("F32", [2**32, 2**32], [0, 0])))


def shape_of_terabytes(case: Case) -> None:
    safetensors(case.weights, entries(w=("F32", [2**40], [0, 2**42])), b"\0" * 8)


def negative_offsets(case: Case) -> None:
    safetensors(case.weights, entries(w=("F32", [2], [-8, 0])), b"\0" * 8)


def overlapping_tensors(case: Case) -> None:
    both = entries(v=("F32", [2], [0, 8]), w=("F32", [2], [4, 12]))
    safetensors(case.weights, both, b"\0" * 12)


def a_tensor_twice(case: Case) -> None:
    one = json.dumps(HEADER["w"]).encode()
    safetensors(case.weights, b'{"w":' + one + b',"w":' + one + b"}", b"\0" * 8)


def a_hidden_gap(case: Case) -> None:
    safetensors(case.weights, entries(w=("F32", [2], [8, 16])), b"\0" * 16)


def header_of_a_hundred_thousand_levels(case: Case) -> None:
    safetensors(case.weights, nested())


def link_to_what_is_no_model(case: Case) -> None:
    case.weights.symlink_to(case.loot)


def pipe_in_place_of_a_file(case: Case) -> None:
    os.mkfifo(case.weights)


MODELS: list[Craft] = [
    pickled_model,
    pickle_by_another_name,
    index_of_a_path,
    index_of_an_absolute_path,
    header_longer_than_the_file,
    header_over_every_limit,
    shape_that_overflows,
    shape_of_terabytes,
    negative_offsets,
    overlapping_tensors,
    a_tensor_twice,
    a_hidden_gap,
    header_of_a_hundred_thousand_levels,
    link_to_what_is_no_model,
    pipe_in_place_of_a_file,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.fixture
def loot(tmp_path: Path) -> Path:
    file = tmp_path / "loot.safetensors"
    file.write_bytes(b"hf_secret" * 100)
    return file


@pytest.mark.parametrize("craft", MODELS, ids=lambda craft: craft.__name__)
def test_weights_are_refused_before_a_tensor_is_read(
    folder: Path, loot: Path, craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = folder.parent / "ran"
    craft(Case(folder, loot, ran))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("memory was taken, or a tensor read")

    monkeypatch.setattr("convert.checkpoint.np.empty", fail)
    monkeypatch.setattr("convert.checkpoint.os.preadv", fail)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "hf_secret" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert not ran.exists()


def test_a_whole_load_ends_before_the_weights(folder: Path, loot: Path) -> None:
    """What `from_pretrained` goes through, with a configuration that is right."""
    from tests.families import SMALL

    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL}))
    word_tokenizer().save_pretrained(folder)
    index_of_a_path(Case(folder, loot, folder))
    with pytest.raises(CheckpointError, match="must name files of its own folder"):
        load_pretrained(Source(name=str(folder)), Range(max_seq_length=None), dtype="float32")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["levels", "size", "pickle"])
def test_json_is_refused_by_depth_size_and_form(folder: Path, name: str, content: str) -> None:
    file, ran = folder / name, folder.parent / "ran"
    if content == "levels":
        file.write_bytes(nested())
    elif content == "pickle":
        file.write_bytes(pickle.dumps(Payload(ran)))
    else:
        file.touch()
        os.truncate(file, MAX_BYTES + 1)
    (folder / "adapter_model.safetensors").touch()
    read = {
        "config.json": read_config_json,
        "adapter_config.json": read_adapter,
        "tokenizer.json": lambda folder: read_vocabulary(folder, 10),
    }[name]
    with pytest.raises(CheckpointError, match=r"must be (a )?JSON|must be read whole"):
        read(folder)
    assert not ran.exists()


def adapter(folder: Path, **config: Any) -> Path:
    """A whole adapter, with other values in its configuration."""
    module = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {
        f"{module}.lora_A.weight": np.zeros((2, 4), np.float32),
        f"{module}.lora_B.weight": np.zeros((4, 2), np.float32),
    }
    plain = AdapterConfig(
        r=2, lora_alpha=2, target_modules=["up_proj"], base_model_name_or_path="base"
    )
    write_adapter(folder, tensors, plain)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def test_an_adapter_of_pickle_is_refused(folder: Path) -> None:
    ran = folder.parent / "ran"
    adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(CheckpointError, match="pickle, can run code and is never read"):
        read_adapter(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"auto_mapping": {"base_model_class": "os"}, "custom_code": "evil.py"},
        {"r": 2**64},
        {"r": True},
        {"lora_alpha": 10**400},
        {"target_modules": []},
        {"rank_pattern": {"up_proj": -1}},
        {"base_model_name_or_path": {"path": "/"}},
    ],
    ids=str,
)
def test_an_adapters_configuration_is_checked(folder: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        read_adapter(adapter(folder, **config))


def test_an_adapters_expression_is_not_run(folder: Path) -> None:
    """Exponential in the length of a module's name, if it were."""
    evil = r"(\w+\.?)+!"
    read = read_adapter(adapter(folder, rank_pattern={evil: 3}, alpha_pattern={evil: 3}))
    assert read.config.rank_for("a" * 40) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja"])
@pytest.mark.parametrize("which", ["base", "adapter"])
def test_a_link_out_of_the_folder_is_not_copied(
    tmp_path: Path, folder: Path, loot: Path, name: str, which: str
) -> None:
    """A merged model may be pushed to the hub, and with it whatever a link names."""
    other = tmp_path / "other"
    other.mkdir()
    (folder / name).symlink_to(loot)
    pair = (folder, other) if which == "base" else (other, folder)
    with pytest.raises(CheckpointError, match="must be a file of its own folder; got a link"):
        companions(*pair)


def test_links_of_the_hubs_cache_are_copied(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0f").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0f")
    assert companions(snapshot, snapshot) == [snapshot / "tokenizer.json"]


def test_the_command_line_says_so_in_one_line(
    folder: Path, loot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(folder)
    (folder / "tokenizer.json").symlink_to(loot)
    assert main(["peft", str(folder), str(tmp_path / "out")]) == 2
    assert "got a link to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


TEMPLATES = {
    "globals": "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "import": "{{ namespace.__init__.__builtins__.__import__('os').mkdir('RAN') }}",
    "writes": "{% set _ = messages.append(messages[0]) %}{{ messages }}",
    "endless": "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_chat_template_cannot_touch_the_system(template: str, tmp_path: Path) -> None:
    tokenizer, ran = word_tokenizer(), tmp_path / "ran"
    tokenizer.chat_template = template.replace("RAN", str(ran))
    with pytest.raises(TemplateRefusal):
        ChatTemplate(tokenizer).render([{"role": "user", "content": "w1"}], {})
    assert not ran.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"type": "BPE", "vocab": {"a": -1}, "byte_fallback": True}},
        {"model": {"type": "BPE", "vocab": {"a": "1"}, "byte_fallback": True}},
        {"model": {"type": "BPE", "vocab": {"a": 2**70}, "byte_fallback": True}},
        {"model": {"type": "BPE", "vocab": {"a": 1}, "byte_fallback": True, "merges": [3]}},
        {"model": {"type": "BPE", "vocab": {}, "byte_fallback": True}, "added_tokens": [{}]},
        {"model": {"type": "BPE", "vocab": {}}, "pre_tokenizer": {"pretokenizers": [1]}},
        {"model": []},
    ],
    ids=str,
)
def test_a_tokenizer_for_gguf_is_checked(folder: Path, values: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"must be one that llama\.cpp can run"):
        read_vocabulary(folder, 10)


def test_a_card_with_yaml_tags_is_not_read(folder: Path) -> None:
    """No YAML of a model's folder is: its README is written, never parsed."""
    ran = folder.parent / "ran"
    (folder / "README.md").write_text(f"---\na: !!python/object/apply:os.mkdir ['{ran}']\n---\n")
    adapter(folder)
    read_adapter(folder)
    assert not ran.exists()
    assert read_json_object(folder / "adapter_config.json")
