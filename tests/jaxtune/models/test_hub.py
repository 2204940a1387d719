"""Hub ids: what is downloaded, from where, and what is said when it cannot be."""

import json
import logging
import shutil
import traceback
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from convert import CheckpointError, open_checkpoint, read_adapter
from jaxtune.errors import ModelNotFoundError
from jaxtune.models.hub import resolve_folder
from jaxtune.models.hub_download import download_config
from tests.base_install import write_model
from tests.fake_hub import FakeHub

NAME = "owner/tiny"
TOKEN = "hf_ThisMustNeverBeShown"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", INDEX}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two shards, and beside them what real repositories hold and nobody reads."""
    folder = tmp_path_factory.mktemp("written")
    write_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard_of = {name: SHARDS[n % 2] for n, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        held = {name: tensors[name] for name in tensors if shard_of[name] == shard}
        save_file(held, folder / shard, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    save_file(tensors, folder / "consolidated.safetensors")
    for file in (
        *("pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "tiny-q4.gguf"),
        *("original/consolidated.00.pth", "original/params.json", "onnx/model.onnx"),
        *("onnx/config.json", "onnx/model.safetensors", "README.md", ".gitattributes"),
    ):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"not read")
    return folder


@pytest.fixture
def source(written: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed."""
    return shutil.copytree(written, tmp_path / "source")


def holding(folder: Path, *files: str) -> Path:
    """A new folder of files without meaning."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    return folder


def said(error: BaseException) -> str:
    """All that a user would see of an error, its causes too."""
    return "".join(traceback.format_exception(error))


def no_weights_sent(hub: FakeHub) -> bool:
    return not any(file.endswith(("safetensors", "bin", "gguf")) for file in hub.sent)


def test_a_repository_becomes_a_folder_that_convert_reads(hub: FakeHub, written: Path) -> None:
    hub.add(NAME, written)
    with open_checkpoint(resolve_folder(NAME)) as checkpoint:
        expected = load_file(written / "consolidated.safetensors")
        assert set(checkpoint.names) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)


def test_only_what_is_read_is_downloaded_and_once(hub: FakeHub, written: Path) -> None:
    hub.add(NAME, written)
    resolve_folder(NAME)
    wanted = SMALL | set(SHARDS)
    assert hub.sent == {file: (written / file).stat().st_size for file in wanted}
    hub.forget()
    resolve_folder(NAME)
    assert not hub.sent
    assert [request.method for request in hub.requests] == ["GET"]


def test_a_configuration_comes_alone(hub: FakeHub, written: Path) -> None:
    hub.add(NAME, written)
    folder = download_config(NAME)
    assert set(hub.sent) == {"config.json"}
    assert (folder / "config.json").read_bytes() == (written / "config.json").read_bytes()
    with pytest.raises(ModelNotFoundError, match="owner/none"):
        download_config("owner/none")


def test_the_single_file_is_preferred_as_convert_does(hub: FakeHub, source: Path) -> None:
    shutil.copy(source / "consolidated.safetensors", source / "model.safetensors")
    hub.add(NAME, source)
    resolve_folder(NAME)
    weights = {file for file in hub.sent if file.endswith(".safetensors")}
    assert weights == {"model.safetensors"}


def test_a_shards_name_is_no_pattern(hub: FakeHub, source: Path) -> None:
    odd = "model[1-9].safetensors"
    index = (source / INDEX).read_text()
    (source / INDEX).write_text(index.replace(SHARDS[0], odd).replace(SHARDS[1], odd))
    (source / SHARDS[0]).rename(source / odd)
    hub.add(NAME, source)
    assert (resolve_folder(NAME) / odd).is_file()


def test_an_adapter_repository(hub: FakeHub, tmp_path: Path) -> None:
    folder = holding(tmp_path / "adapter", "training_args.bin", "checkpoint-9/config.json")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    sides = {f"{at}.lora_A.weight": (1, 4), f"{at}.lora_B.weight": (4, 1)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in sides.items()}
    save_file(arrays, folder / "adapter_model.safetensors")
    hub.add(NAME, folder)
    assert set(read_adapter(resolve_folder(NAME)).tensors) == set(sides)
    assert set(hub.sent) == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_cache_alone_is_enough(
    hub: FakeHub, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, written)
    folder = resolve_folder(NAME)
    hub.forget()
    assert resolve_folder(NAME, local_files_only=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_folder(NAME) == folder
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.outage = 503
    assert resolve_folder(NAME) == folder


def test_a_copy_made_file_by_file_is_enough(hub: FakeHub, written: Path) -> None:
    hub.add(NAME, written)
    for file in ("config.json", INDEX, *SHARDS):
        huggingface_hub.hf_hub_download(NAME, file)
        hub.forget()
        if file != SHARDS[-1]:
            with pytest.raises(ModelNotFoundError, match="its weights are missing"):
                resolve_folder(NAME, local_files_only=True)
    folder = resolve_folder(NAME, local_files_only=True)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.names
    assert hub.requests == []


def test_a_revision_is_that_revision(hub: FakeHub, written: Path, source: Path) -> None:
    (source / "config.json").write_text('{"model_type": "old"}')
    hub.add(NAME, written)
    hub.add(NAME, source, revision="refs/pr/1")
    for options in ({}, {"local_files_only": True}):
        folder = resolve_folder(NAME, revision="refs/pr/1", **options)
        assert json.loads((folder / "config.json").read_text()) == {"model_type": "old"}
    assert resolve_folder(NAME) != folder
    assert resolve_folder(NAME, revision=folder.name) == folder


def test_weights_and_configuration_are_of_one_commit(
    hub: FakeHub, written: Path, source: Path
) -> None:
    hub.add(NAME, written)
    shutil.copy(source / SHARDS[1], source / SHARDS[0])
    folder = resolve_folder(NAME, before_weights=lambda _: hub.add(NAME, source))
    for shard in SHARDS:
        assert (folder / shard).read_bytes() == (written / shard).read_bytes()


def test_the_caller_may_refuse_before_any_weight_is_sent(hub: FakeHub, written: Path) -> None:
    seen: list[Path] = []

    def refuse(folder: Path) -> None:
        seen.append(folder)
        raise ZeroDivisionError(json.loads((folder / "config.json").read_text())["model_type"])

    hub.add(NAME, written)
    with pytest.raises(ZeroDivisionError, match="llama"):
        resolve_folder(NAME, before_weights=refuse)
    assert no_weights_sent(hub)
    with pytest.raises(ZeroDivisionError, match="llama"):
        resolve_folder(str(written), before_weights=refuse)
    assert seen[1:] == [written]


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: FakeHub, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    hub.tokens[TOKEN] = {NAME}
    hub.add(NAME, written, private=True)
    home = resolve_folder(NAME, token=TOKEN).parents[3]
    shown = {(request.host.split(":")[0], request.token) for request in hub.requests}
    assert shown == {("127.0.0.1", TOKEN), ("localhost", None)}
    assert "huggingface_hub" in {record.name.split(".")[0] for record in caplog.records}
    assert not any(TOKEN in record.getMessage() for record in caplog.records)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert files
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_an_empty_token_is_none(hub: FakeHub, written: Path) -> None:
    hub.add(NAME, written)
    resolve_folder(NAME, token="")
    assert {request.token for request in hub.requests} == {None}


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} ", f"{TOKEN}é", f"Bearer {TOKEN}"])
def test_a_malformed_token_is_refused_and_not_shown(hub: FakeHub, token: str) -> None:
    with pytest.raises(ValueError, match=r"one word of ASCII.*\(not shown\).*Strip it") as caught:
        resolve_folder(NAME, token=token)
    assert TOKEN not in said(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("private", [False, True])
def test_a_missing_repository_and_a_private_one_look_the_same(
    hub: FakeHub, written: Path, token: str | None, private: bool
) -> None:
    hub.tokens[TOKEN] = set()
    if private:
        hub.add(NAME, written, private=True)
    words = "is no folder here .* does not exist, or it is private .* pass token="
    with pytest.raises(ModelNotFoundError, match=f"`{NAME}`, which {words}") as caught:
        resolve_folder(NAME, token=token)
    assert isinstance(caught.value.__cause__, huggingface_hub.errors.RepositoryNotFoundError)
    assert TOKEN not in said(caught.value)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_gated_repository_says_where_its_licence_is(
    hub: FakeHub, written: Path, token: str | None
) -> None:
    hub.tokens[TOKEN] = set()
    hub.add(NAME, written, gated=True)
    cure = f"Accept the licence at https://huggingface.co/{NAME}, then pass token= or run `hf auth"
    with pytest.raises(ModelNotFoundError, match=cure) as caught:
        resolve_folder(NAME, token=token)
    assert isinstance(caught.value.__cause__, huggingface_hub.errors.GatedRepoError)
    assert TOKEN not in said(caught.value)
    assert not hub.sent
    hub.tokens[TOKEN] = {NAME}
    assert resolve_folder(NAME, token=TOKEN).is_dir()


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_the_hub_refuses(hub: FakeHub, written: Path, status: int) -> None:
    hub.add(NAME, written)
    if status == 403:  # What a token without the right to read is answered.
        hub.tokens[TOKEN], hub.outage = set(), 403
    words = (
        rf"refused `{NAME}` \({status}\).*settings/tokens and pass token= or run `hf auth login`"
    )
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        resolve_folder(NAME, token=TOKEN)
    assert caught.value.__cause__ is not None
    assert TOKEN not in said(caught.value)


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_a_missing_revision(hub: FakeHub, written: Path, revision: str) -> None:
    hub.add(NAME, written)
    with pytest.raises(ModelNotFoundError, match=f"`revision` must .* got '{revision}', which"):
        resolve_folder(NAME, revision=revision)


@pytest.mark.parametrize(
    ("way", "revision", "reason"),
    [
        ("argument", None, "local_files_only=True keeps off the network"),
        ("argument", "v2", "local_files_only=True keeps off the network"),
        ("argument", "0" * 40, "local_files_only=True keeps off the network"),
        ("environment", None, r"HF_HUB_OFFLINE \(or TRANSFORMERS_OFFLINE\) is set"),
        ("environment", "0" * 40, r"HF_HUB_OFFLINE \(or TRANSFORMERS_OFFLINE\) is set"),
        # With a commit huggingface_hub tries again for 23 s before it gives up on these two.
        ("unreachable", None, r"the hub cannot be reached \(ConnectError\)"),
        ("outage", "v2", "the hub answered 503"),
    ],
)
def test_offline_without_a_copy(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, way: str, revision: str | None, reason: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", way == "environment")
    if way == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.outage = 503
    option = f" --revision {revision}" if revision else ""
    words = f"holds no whole copy, and {reason}.*run `hf download {NAME}{option}`"
    with pytest.raises(ModelNotFoundError, match=words):
        resolve_folder(NAME, revision=revision, local_files_only=way == "argument")


def test_offline_with_a_part_of_a_copy(hub: FakeHub, written: Path) -> None:
    hub.add(NAME, written)
    folder = resolve_folder(NAME)
    for file in (SHARDS[1], "config.json"):
        (folder / file).unlink()
        with pytest.raises(ModelNotFoundError, match="no whole copy, and local_files_only=True"):
            resolve_folder(NAME, local_files_only=True)
    hub.forget()
    resolve_folder(NAME)
    assert (folder / SHARDS[1]).is_file()
    assert not hub.sent  # The files were still there, only their names were not.


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["pytorch_model-00001-of-00001.bin", "config.json", "pytorch_model.bin.index.json"],
            rf"only pickle .*pytorch_model-0.*never read.*Auto.*pretrained\('{NAME}'\)\.save_p",
        ),
        (
            ["adapter_model.bin", "adapter_config.json", "training_args.bin"],
            rf"only pickle \('adapter_model.bin'\).*Peft.*base_model, '{NAME}'\)\.save_pretrained",
        ),
        (["tiny-q4.gguf", "README.md"], r"only GGUF \('tiny-q4.gguf'\).*it was made from"),
        (["consolidated.safetensors", "params.json"], r"holds \['consolidated.safeten.*in Hugging"),
        (["config.json", "onnx/model.safetensors"], r"holds \['config.json', .*Look for a repos"),
        ([], r"which is empty; wanted model\.safetensors"),
        (["model.safetensors", "tokenizer.json"], "must have a config.json"),
    ],
)
def test_a_repository_without_what_is_read(
    hub: FakeHub, tmp_path: Path, files: list[str], words: str
) -> None:
    (tmp_path / "source").mkdir()
    hub.add(NAME, holding(tmp_path / "source", *files))
    with pytest.raises(ModelNotFoundError, match=words):
        resolve_folder(NAME)
    assert no_weights_sent(hub)


def test_an_index_that_names_missing_files(hub: FakeHub, source: Path) -> None:
    (source / SHARDS[0]).unlink()
    hub.add(NAME, source)
    with pytest.raises(ModelNotFoundError, match=rf"'{SHARDS[0]}' \(1 of 2 are missing\)"):
        resolve_folder(NAME)
    assert no_weights_sent(hub)


@pytest.mark.parametrize("file", ["../../model.safetensors", "pytorch_model.bin", "/etc/passwd"])
def test_an_index_that_names_a_path_or_pickle(hub: FakeHub, source: Path, file: str) -> None:
    (source / INDEX).write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": file}}))
    hub.add(NAME, source)
    with pytest.raises(CheckpointError, match="must name files of its own folder"):
        resolve_folder(NAME)
    assert no_weights_sent(hub)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "./tiny",
            "../tiny",
            "~/no/such/tiny",
            "~nobody-of-this-name/tiny",
            "/no/such/tiny",
            "/no",
        ),
        *("runs/lora/checkpoint-9", r"runs\lora", "outputs/", ".", ".."),
    ],
)
def test_a_path_is_never_asked_of_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name.strip("."):
        with pytest.raises(FileNotFoundError, match="is a path must be an existing folder"):
            resolve_folder(name)
    else:
        assert resolve_folder(name).samefile(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    ["", " ", "two words", "a/b:c", "owner--name", "x.git", "-x/y", "https://huggingface.co/x/y"],
)
def test_a_name_that_is_neither(hub: FakeHub, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be an? .*folder or a hub id; got") as caught:
        resolve_folder(name)
    assert not isinstance(caught.value, CheckpointError)
    assert hub.requests == []


def test_a_file_is_no_folder(hub: FakeHub, written: Path) -> None:
    with pytest.raises(NotADirectoryError, match=f"which is a file.* Pass '{written}'"):
        resolve_folder(str(written / "config.json"))
    assert hub.requests == []


def test_a_local_folder_needs_no_hub(
    hub: FakeHub, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_folder(str(written), revision="any", token=TOKEN) == written
    monkeypatch.setenv("HOME", str(written.parent))
    assert resolve_folder(f"~/{written.name}") == written
    assert hub.requests == []
