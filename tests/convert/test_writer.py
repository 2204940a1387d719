import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch

from convert.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint
from convert.errors import CheckpointError
from convert.stream import LazyTensor
from convert.writer import write_checkpoint
from tests.convert.conftest import load, names_in, tiny_llama

CONFIG = {"model_type": "llama"}
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def lazy(array):
    return LazyTensor(shape=array.shape, dtype=array.dtype, read=lambda: array)


def small(value=1.0):
    return {name: lazy(np.full(10, value, np.float32)) for name in ("x", "y")}


def dying():
    """Tensors of which the second cannot be read."""

    def die():
        raise OSError("the base went away")

    return small() | {"y": LazyTensor(shape=(10,), dtype=np.dtype(np.float32), read=die)}


def unread():
    def fail():
        raise AssertionError("a tensor was read")

    return {"x": LazyTensor(shape=(10,), dtype=np.dtype(np.float32), read=fail)}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parity
@pytest.mark.parametrize("shard_bytes", [10**9, 4000, 1], ids=["single", "shards", "one-each"])
def test_transformers_loads_what_is_written(tmp_path, shard_bytes):
    model = tiny_llama()
    state = {name: lazy(tensor.numpy()) for name, tensor in model.state_dict().items()}
    out = tmp_path / "out"
    write_checkpoint(out, state, model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]},
                     max_shard_bytes=shard_bytes)  # fmt: skip
    assert (out / INDEX_FILE).exists() is (shard_bytes < 10**9)
    for name, tensor in load(out).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parity
def test_shards_are_named_indexed_and_bounded_as_transformers_does(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "theirs", max_shard_size=4000)
    state = {name: lazy(tensor.numpy()) for name, tensor in model.state_dict().items()}
    write_checkpoint(tmp_path / "ours", state, CONFIG, max_shard_bytes=4000)
    ours, theirs = (json.loads((tmp_path / w / INDEX_FILE).read_text()) for w in ("ours", "theirs"))
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert files == sorted(set(ours["weight_map"].values()))
    assert files[-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    for file in files:
        with safetensors.safe_open(tmp_path / "ours" / file, "numpy") as handle:
            assert handle.metadata() == {"format": "pt"}
            sizes = [handle.get_tensor(name).nbytes for name in handle.keys()]  # noqa: SIM118
        assert sum(sizes) <= 4000 or len(sizes) == 1


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(tmp_path):
    tensors = {
        name: lazy(np.zeros(size, np.uint8))
        for name, size in zip("abcd", (9, 3, 2, 2), strict=True)
    }
    write_checkpoint(tmp_path / "out", tensors, CONFIG, max_shard_bytes=4)
    weight_map = json.loads((tmp_path / "out" / INDEX_FILE).read_text())["weight_map"]
    assert [weight_map[name][6:11] for name in "abcd"] == ["00001", "00002", "00003", "00003"]


def test_config_and_copied_files_stand_beside_the_weights(tmp_path):
    (tmp_path / "blob").write_text("words")
    (tmp_path / "tokenizer.json").symlink_to("blob")
    told = []
    write_checkpoint(
        tmp_path / "deep" / "out",
        small(),
        {"b": 1, "a": 2},
        copied=[tmp_path / "tokenizer.json"],
        progress=lambda name, size: told.append((name, size)),
    )
    out = tmp_path / "deep" / "out"
    assert names_in(out) == ["config.json", SINGLE_FILE, "tokenizer.json"]
    assert (out / "tokenizer.json").read_text() == "words"
    assert not (out / "tokenizer.json").is_symlink()
    assert json.loads((out / "config.json").read_text()) == {"b": 1, "a": 2}
    assert told == [("x", 40), ("y", 40)]
    assert names_in(tmp_path / "deep") == ["out"]


@pytest.fixture
def old(tmp_path):
    """An earlier checkpoint of two shards, with a file of the user's."""
    write_checkpoint(tmp_path / "out", small(), CONFIG, max_shard_bytes=40)
    (tmp_path / "out" / "notes.md").write_text("mine")
    (tmp_path / "out" / "model_notes.safetensors").write_text("mine too")
    return tmp_path / "out"


def test_an_earlier_checkpoint_is_replaced_and_other_files_stay(old):
    write_checkpoint(old, {"z": small(2.0)["x"]}, {"new": 1})
    kept = {"notes.md", "model_notes.safetensors"}
    assert set(names_in(old)) == kept | {SINGLE_FILE, "config.json"}
    with open_checkpoint(old) as checkpoint:
        assert checkpoint.names == ("z",)
    write_checkpoint(old, small(3.0), CONFIG, max_shard_bytes=40)
    assert set(names_in(old)) == kept | {*SHARDS, INDEX_FILE, "config.json"}
    with open_checkpoint(old) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("y"), np.full(10, 3.0))
    assert names_in(old.parent) == ["out"]


def test_weights_come_first_config_last_and_then_the_old_weights_go(old, monkeypatch):
    moved, replace = [], os.replace
    (old / SINGLE_FILE).write_text("older still")

    def record(source, target):
        if Path(target).parent == old or Path(source).parent == old:
            moved.append((Path(target).name, "in" if Path(target).parent == old else "out"))
        replace(source, target)

    monkeypatch.setattr("os.replace", record)
    (old.parent / "merges.txt").write_text("a b")
    write_checkpoint(
        old, small(2.0), CONFIG, max_shard_bytes=40, copied=[old.parent / "merges.txt"]
    )
    assert [name for name, way in moved if way == "in"] == [
        *SHARDS, INDEX_FILE, "merges.txt", "config.json"
    ]  # fmt: skip
    assert moved[-1] == (SINGLE_FILE, "out")


def test_a_link_to_a_folder_is_followed_and_the_new_files_are_made_on_its_disk(old):
    elsewhere = old.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to("../out")
    seen = []

    def read():
        seen.extend([len(names_in(elsewhere)), len(names_in(old.parent))])
        return np.zeros(10, np.float32)

    tensor = LazyTensor(shape=(10,), dtype=np.dtype(np.float32), read=read)
    write_checkpoint(elsewhere / "link", {"x": tensor}, {"new": 1})
    assert seen == [1, 3]
    assert (elsewhere / "link").is_symlink()
    assert json.loads((old / "config.json").read_text()) == {"new": 1}


@pytest.mark.parametrize("exists", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("failure", ["read", "interrupt", "disk", "move", "json"])
def test_a_failure_leaves_everything_as_it_was(old, monkeypatch, failure, exists):
    before = contents(old.parent)
    out, tensors, config = old if exists else old.parent / "a" / "b" / "c", small(9.0), CONFIG
    if failure == "read":
        tensors, error = dying(), OSError
    elif failure == "interrupt":
        error = KeyboardInterrupt
        monkeypatch.setattr("convert.writer.write_lazy_safetensors", fail_with(error))
    elif failure == "disk":
        error = OSError
        monkeypatch.setattr("os.fsync", fail_with(error))
    elif failure == "json":
        config, error = {"x": object()}, TypeError
    else:
        error = OSError
        monkeypatch.setattr("os.rename", fail_with(error))
        fail_at(monkeypatch, old / "config.json")
    with pytest.raises(error):
        write_checkpoint(out, tensors, config)
    assert contents(old.parent) == before
    assert names_in(old.parent) == ["out"]


def fail_with(error):
    def fail(*_, **__):
        raise error("injected")

    return fail


def fail_at(monkeypatch, target):
    """Fail the move to a place once; moving the old file back there works."""
    replace, failed = os.replace, []

    def fail(source, place):
        if Path(place) == target and not failed:
            failed.append(place)
            raise OSError("injected")
        replace(source, place)

    monkeypatch.setattr("os.replace", fail)


def test_a_failure_while_old_weights_go_brings_them_back(old, monkeypatch):
    before = contents(old)
    replace = os.replace

    def fail(source, place):
        if Path(source) == old / SHARDS[1]:
            raise OSError("injected")
        replace(source, place)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="injected"):
        write_checkpoint(old, small(9.0), CONFIG)
    assert contents(old) == before
    assert names_in(old.parent) == ["out"]


def test_a_full_disk_is_seen_before_a_tensor_is_read(tmp_path, monkeypatch):
    places = []

    def usage(place):
        places.append(place)
        return SimpleNamespace(free=1_000_000)

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(CheckpointError, match=r"got 0\.001 GB free; wanted 0\.001 GB"):
        write_checkpoint(tmp_path / "a" / "b", unread(), CONFIG)
    assert places == [tmp_path]
    assert list(tmp_path.iterdir()) == []


def test_space_is_asked_for_all_that_is_written(tmp_path, monkeypatch):
    (tmp_path / "vocab.json").write_bytes(bytes(3 * 2**20))
    tensors = {"x": lazy(np.zeros(10**6, np.uint8))}
    needed = 10**6 + 3 * 2**20

    def usage(_):
        return SimpleNamespace(free=needed + room)

    monkeypatch.setattr("shutil.disk_usage", usage)
    room = 0
    with pytest.raises(CheckpointError, match="have room"):
        write_checkpoint(tmp_path / "out", tensors, CONFIG, copied=[tmp_path / "vocab.json"])
    room = 2 * 2**20
    write_checkpoint(tmp_path / "out", tensors, CONFIG, copied=[tmp_path / "vocab.json"])
    monkeypatch.undo()
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert needed < written < needed + room
    assert shutil.disk_usage(tmp_path).free > 0


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("must exist and have a name of its own", {"copied": ["missing.json"]}),
        ("must exist and have a name of its own", {"copied": ["config.json"]}),
        ("must exist and have a name of its own", {"copied": [SINGLE_FILE]}),
        ("must exist and have a name of its own", {"copied": ["a.json", "a.json"]}),
        ("shards that can hold some", {"max_shard_bytes": 0}),
    ],
)
def test_bad_arguments_are_refused_before_a_tensor_is_read(tmp_path, said, options):
    for name in ("config.json", SINGLE_FILE, "a.json"):
        (tmp_path / name).write_text("{}")
    options = options | {"copied": [tmp_path / name for name in options.get("copied", [])]}
    with pytest.raises(CheckpointError, match=said):
        write_checkpoint(tmp_path / "out", unread(), CONFIG, **options)
    assert not (tmp_path / "out").exists()


def test_no_tensors_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="0 tensors"):
        write_checkpoint(tmp_path / "out", {}, CONFIG)


def test_a_file_as_target_is_refused_and_kept(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="must be written to a folder"):
        write_checkpoint(tmp_path / "out", unread(), CONFIG)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_with_an_adapter_is_refused_since_transformers_would_add_it_again(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="share a folder with an adapter"):
        write_checkpoint(tmp_path, unread(), CONFIG)


def test_new_folders_have_the_permissions_of_any_new_folder(tmp_path):
    write_checkpoint(tmp_path / "out", small(), CONFIG)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_parts_of_a_weight_share_its_shard(tmp_path):
    names = ("a", "a.absmax", "a.map", "ab", "b")
    tensors = {name: lazy(np.zeros(2, np.uint8)) for name in names}
    write_checkpoint(tmp_path / "out", tensors, CONFIG, max_shard_bytes=4)
    weight_map = json.loads((tmp_path / "out" / INDEX_FILE).read_text())["weight_map"]
    assert [weight_map[name][6:11] for name in names] == ["00001"] * 3 + ["00002"] * 2
