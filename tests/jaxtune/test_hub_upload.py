"""Uploads to a hub of this machine: what arrives, and what is said when nothing does."""

import io
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import CheckpointError
from jaxtune import FastLanguageModel
from jaxtune.errors import HubUploadError
from jaxtune.hub_upload import repository_of
from jaxtune.language_model import LanguageModel
from tests.fake_hub import FakeHub
from tests.families import VARIANTS
from tests.loaded import load_adapted
from tests.oracles import make_oracle, random_rows
from tests.words import word_tokenizer

# huggingface_hub 2.4 hands httpx2 bytes in the old way where it uploads without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
TOKEN = "hf_ThisMustNeverBeShown"
NAME = "owner/mine"
ROWS = random_rows((2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    oracle = make_oracle(VARIANTS[0], tmp_path_factory.mktemp("push"), initializer_range=0.3)
    return load_adapted(oracle.adapter_folder)


@pytest.fixture
def writable(hub: FakeHub) -> FakeHub:
    hub.tokens[TOKEN] = set()
    return hub


@pytest.fixture(autouse=True)
def _no_token_is_shown(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err
    assert not any(TOKEN in record.getMessage() for record in caplog.records)


def said(error: BaseException) -> str:
    text = io.StringIO()
    traceback.print_exception(error, file=text)
    return text.getvalue()


def test_an_adapter_comes_back_as_it_went(ours: LanguageModel, writable: FakeHub) -> None:
    info = ours.push_to_hub(NAME, token=TOKEN, private=True, commit_message="first")
    assert info.commit_url.startswith(writable.endpoint)
    held = writable.files(NAME)
    assert set(held) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert not any(TOKEN.encode() in content for content in held.values())
    assert writable.is_private(NAME)
    assert writable.messages == [(NAME, "main", "first")]
    storage = [request for request in writable.requests if "/upload/" in request.path]
    assert len(storage) == 1
    assert storage[0].token is None
    with pytest.warns(UserWarning, match="no tokenizer files"):
        model, _ = FastLanguageModel.from_pretrained(
            NAME, token=TOKEN, load_in_4bit=False, dtype="float32", max_seq_length=32
        )
    np.testing.assert_array_equal(model(ROWS), ours(ROWS))


def test_a_merged_model_goes_with_its_tokenizer_and_a_gguf_file_too(
    ours: LanguageModel, writable: FakeHub
) -> None:
    ours.push_to_hub_merged("mine", word_tokenizer(), token=TOKEN)
    held = writable.files(NAME)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(held)
    assert not writable.is_private(NAME)
    ours.push_to_hub_gguf(NAME, quantization_method=["f16", "q8_0"], token=TOKEN)
    assert {"base.F16.gguf", "base.Q8_0.gguf", *held} == set(writable.files(NAME))
    assert len(writable.messages) == 2


def test_saving_uploads_what_it_wrote_and_nothing_else(
    ours: LanguageModel, writable: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/mine").mkdir(parents=True)
    Path("owner/mine/secret.txt").write_text("of mine")
    options = {"push_to_hub": True, "token": TOKEN, "private": True}
    ours.save_pretrained("owner/mine", **options)
    wanted = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert set(writable.files(NAME)) == wanted
    assert {path.name for path in Path("owner/mine").iterdir()} == {*wanted, "secret.txt"}
    assert writable.is_private(NAME)
    # A path's last part; positional, as Unsloth's signature has them.
    merged = (tmp_path / "mine", word_tokenizer(), "merged_16bit", True, TOKEN)
    ours.save_pretrained_merged(*merged, max_shard_size="20KB")
    assert "model.safetensors.index.json" in writable.files(NAME)
    assert (tmp_path / "mine" / "config.json").is_file()
    files = ours.save_pretrained_gguf("mine", quantization_method="f16", **options)
    assert files[0].name in writable.files(NAME)
    assert files[0].is_file()


@pytest.mark.usefixtures("hub")
def test_without_a_token_nothing_is_saved_either(ours: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(HubUploadError, match="got none for `mine`"):
        ours.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("owner/mine", "owner/mine"),
        ("mine", "mine"),
        ("./mine", "mine"),
        ("/a/b/mine", "mine"),
        (Path("a/b/mine"), "mine"),
        ("mine/", "mine"),
    ],
)
def test_the_repository_of_a_folder(folder: str | Path, name: str) -> None:
    assert repository_of(folder) == name


def test_a_pull_request_leaves_the_branch(ours: LanguageModel, writable: FakeHub) -> None:
    ours.push_to_hub(NAME, token=TOKEN)
    before = writable.files(NAME)
    info = ours.push_to_hub_merged(NAME, token=TOKEN, create_pr=True, commit_message="merged")
    assert info.pr_url is not None
    assert writable.files(NAME) == before
    assert "model.safetensors" in writable.files(NAME, "refs/pr/2")
    assert writable.messages[1] == (NAME, "refs/pr/2", "merged")


def test_a_card_of_the_owners_own_stays(
    ours: LanguageModel, writable: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "README.md").write_text("mine")
    writable.add(NAME, tmp_path / "repository")
    writable.tokens[TOKEN].add(NAME)
    ours.push_to_hub(NAME, token=TOKEN)
    assert writable.files(NAME)["README.md"] == b"mine"
    ours.push_to_hub("owner/other", token=TOKEN)
    first = writable.files("owner/other")["README.md"]
    ours.push_to_hub("owner/other", token=TOKEN)
    assert writable.files("owner/other")["README.md"] == first


@pytest.fixture
def nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was written before the hub was asked")

    monkeypatch.setattr("jaxtune.hub_upload.tempfile.TemporaryDirectory", fail)


@pytest.mark.usefixtures("nothing_is_written")
@pytest.mark.parametrize("verb", ["push_to_hub", "push_to_hub_merged", "push_to_hub_gguf"])
def test_without_a_token_nothing_is_written(ours: LanguageModel, hub: FakeHub, verb: str) -> None:
    with pytest.raises(HubUploadError, match="needs a token of the hub; got none for `owner/mine`"):
        getattr(ours, verb)(NAME)
    assert not hub.requests


@pytest.mark.usefixtures("hub", "nothing_is_written")
def test_a_token_that_is_not_valid_is_not_shown(ours: LanguageModel) -> None:
    with pytest.raises(HubUploadError, match=r"the hub refused the token \(401\)") as caught:
        ours.push_to_hub(NAME, token=TOKEN)
    assert TOKEN not in said(caught.value)
    with pytest.raises(ValueError, match="`token` must be one word of ASCII") as malformed:
        ours.push_to_hub(NAME, token=f"{TOKEN}\n")
    assert TOKEN not in said(malformed.value)


@pytest.mark.usefixtures("nothing_is_written")
def test_another_accounts_name_a_bad_name_and_an_outage_are_told_apart(
    ours: LanguageModel, writable: FakeHub
) -> None:
    with pytest.raises(HubUploadError, match=r"refused the token \(403\).*scope to write"):
        ours.push_to_hub("someone/theirs", token=TOKEN)
    with pytest.raises(ValueError, match="a model name must be"):
        ours.push_to_hub("a/b/c", token=TOKEN)
    writable.outage = 418
    with pytest.raises(HubUploadError, match="the hub answered 418"):
        ours.push_to_hub(NAME, token=TOKEN)


def test_an_upload_that_breaks_off_is_told(ours: LanguageModel, writable: FakeHub) -> None:
    ours.push_to_hub(NAME, token=TOKEN)
    writable.refused_uploads = True
    with pytest.raises(HubUploadError, match="the upload broke off"):
        ours.push_to_hub_merged(NAME, token=TOKEN)
    assert len(writable.messages) == 1


def test_what_cannot_be_saved_is_not_uploaded(ours: LanguageModel, writable: FakeHub) -> None:
    with pytest.raises(CheckpointError, match="llama-quantize"):
        ours.push_to_hub_gguf(NAME, quantization_method="q4_k_m", token=TOKEN)
    with pytest.raises(ValueError, match="`save_method` must be"):
        ours.push_to_hub_merged(NAME, save_method="16bit", token=TOKEN)
    assert not writable.messages
