import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from convert.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint
from convert.errors import CheckpointError
from convert.header import read_header

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ONES = np.ones((2, 2), np.float32)


def save_shards(folder, shards, weight_map=None):
    """Write shards {file name: tensors} and their index, which may lie."""
    for name, tensors in shards.items():
        safetensors.numpy.save_file(tensors, folder / name)
    truth = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": truth if weight_map is None else weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def refusal(folder):
    """The message with which opening the folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.fixture
def two_shards(tmp_path):
    shards = {"a.safetensors": {"x": ONES}, "b.safetensors": {"y": 2 * ONES}}
    save_shards(tmp_path, shards)
    return tmp_path


@pytest.mark.parity
@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_transformers_saved(tmp_path, llama, dtype, sharded):
    model = llama.to(DTYPES[dtype])
    model.save_pretrained(tmp_path, max_shard_size="2KB" if sharded else "1GB")
    assert (tmp_path / INDEX_FILE).exists() is sharded
    state = model.state_dict()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names == tuple(sorted(state))
        files = {checkpoint.info(name).file for name in checkpoint.names}
        assert (len(files) > 2) is sharded
        for name, tensor in state.items():
            info, array = checkpoint.info(name), checkpoint.read(name)
            assert info.shape == array.shape == tuple(tensor.shape)
            assert info.dtype == array.dtype
            assert array.dtype.name == dtype
            np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())


def test_opening_and_info_read_no_tensor(two_shards, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("os.preadv", fail)
    with open_checkpoint(two_shards) as checkpoint:
        assert checkpoint.info("y").file == two_shards / "b.safetensors"


def test_each_shard_is_opened_once_and_only_when_read(two_shards):
    with open_checkpoint(two_shards) as checkpoint:
        headers_only = open_files(two_shards)
        checkpoint.read("y")
        checkpoint.read("y")
        assert open_files(two_shards) == [two_shards / "b.safetensors"]
    assert headers_only == open_files(two_shards) == []


def open_files(folder):
    """Files of a folder that this process has open."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [path for path in links if path.parent == folder]


@pytest.mark.parametrize("rows", [(0, 7), (0, 3), (3, 6), (6, 7), (2, 2)])
def test_rows_are_read_into_the_callers_memory(tmp_path, rows):
    table = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float16)
    save_shards(tmp_path, {"a.safetensors": {"x": ONES, "table": table}})
    buffer = np.empty(table.nbytes, np.uint8)
    with open_checkpoint(tmp_path) as checkpoint:
        read = checkpoint.read_rows("table", *rows, buffer)
    np.testing.assert_array_equal(read, table[slice(*rows)])
    assert read.size == 0 or np.shares_memory(read, buffer)


def test_a_file_that_lost_its_end_since_is_refused(two_shards):
    with open_checkpoint(two_shards) as checkpoint:
        with (two_shards / "b.safetensors").open("r+b") as stream:
            stream.truncate(checkpoint.info("y").begin + 5)
        with pytest.raises(CheckpointError, match=r"must stay as it was.* 11 bytes more"):
            checkpoint.read("y")


def test_single_file_is_preferred_as_transformers_does(two_shards):
    safetensors.numpy.save_file({"z": ONES}, two_shards / SINGLE_FILE)
    with open_checkpoint(two_shards) as checkpoint:
        assert checkpoint.names == ("z",)


def test_arrays_outlive_the_checkpoint(two_shards):
    with open_checkpoint(two_shards) as checkpoint:
        array = checkpoint.read("x")
    np.testing.assert_array_equal(array, ONES)
    array += 1  # owned: neither the file nor a later read changes
    with open_checkpoint(two_shards) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("x"), ONES)


def test_read_after_the_with_statement_is_refused(two_shards):
    with open_checkpoint(two_shards) as checkpoint:
        pass
    with pytest.raises(CheckpointError, match="has ended"):
        checkpoint.read("x")


@pytest.mark.parametrize("method", ["info", "read"])
def test_unknown_name_is_refused(two_shards, method):
    with open_checkpoint(two_shards) as checkpoint, pytest.raises(CheckpointError, match="'nope'"):
        getattr(checkpoint, method)("nope")


def test_follows_the_links_of_a_hub_cache(two_shards, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate(["a.safetensors", "b.safetensors", INDEX_FILE]):
        (two_shards / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    with open_checkpoint(snapshot) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("y"), 2 * ONES)


@pytest.mark.parametrize(
    "shard",
    [
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "C:a.safetensors",
        "a.safetensors\0.safetensors",
        "pytorch_model.bin",
        "..",
        "",
        7,
        None,
    ],
)
def test_index_that_names_more_than_a_file_of_its_folder_is_refused(tmp_path, shard):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        safetensors.numpy.save_file({"x": ONES}, place / "a.safetensors")
    save_shards(folder, {}, weight_map={"x": shard})
    assert "name files of its own folder" in refusal(folder)


@pytest.mark.parametrize("index", ["[]", '{"weight_map": []}', '{"weight_map": {}}', "{}"])
def test_index_without_a_weight_map_is_refused(tmp_path, index):
    (tmp_path / INDEX_FILE).write_text(index)
    assert INDEX_FILE in refusal(tmp_path)


def test_index_over_the_size_limit_is_refused_unread(tmp_path):
    with (tmp_path / INDEX_FILE).open("wb") as stream:
        stream.truncate(200_000_000)
    assert "200000000 bytes" in refusal(tmp_path)


def test_missing_shard_is_named(two_shards):
    (two_shards / "b.safetensors").unlink()
    assert "b.safetensors must exist" in refusal(two_shards)


def test_truncated_shard_is_named_with_the_cure(two_shards):
    shard = two_shards / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    message = refusal(two_shards)
    assert str(shard) in message
    assert "11 bytes of data; wanted 16 bytes" in message
    assert "download or save it again" in message


@pytest.mark.parametrize("weight_map", [{"x": "b.safetensors"}, {"z": "a.safetensors"}])
def test_name_that_its_shard_lacks_is_refused(two_shards, weight_map):
    truth = {"x": "a.safetensors", "y": "b.safetensors"}
    save_shards(two_shards, {}, weight_map=truth | weight_map)
    assert f"{next(iter(weight_map.values()))} without" in refusal(two_shards)


def test_name_in_two_shards_is_refused(tmp_path):
    shards = {"a.safetensors": {"x": ONES}, "b.safetensors": {"x": ONES, "y": ONES}}
    save_shards(tmp_path, shards, weight_map={"x": "a.safetensors", "y": "b.safetensors"})
    assert "'x' in a.safetensors and b.safetensors" in refusal(tmp_path)


def test_missing_folder_is_refused(tmp_path):
    assert f"no folder at {tmp_path / 'nope'}" in refusal(tmp_path / "nope")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "got []"),
        (["config.json"], "config.json"),
        (["pytorch_model.bin"], "save_pretrained(new_folder)"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickle"),
        (["adapter_model.safetensors", "adapter_config.json"], "open the base model"),
    ],
)
def test_folder_without_weights_is_refused_with_the_cure_for_what_it_holds(tmp_path, files, said):
    for name in files:
        (tmp_path / name).touch()
    assert said in refusal(tmp_path)


def test_file_that_changed_since_it_was_opened_is_refused(two_shards):
    with open_checkpoint(two_shards) as checkpoint:
        (two_shards / "b.safetensors").write_bytes(b"short")
        with pytest.raises(CheckpointError, match=r"b\.safetensors"):
            checkpoint.read("y")


def test_what_our_header_check_accepts_the_library_reads_too(two_shards):
    assert list(read_header(two_shards / "a.safetensors")) == ["x"]
    with safetensors.safe_open(two_shards / "a.safetensors", "numpy") as handle:
        assert list(handle.keys()) == ["x"]
