import json
import shutil
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from convert.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint
from convert.errors import CheckpointError
from convert.merged import merge_adapter, plan_merge
from convert.peft import CONFIG_FILE, TENSORS_FILE, read_adapter, write_adapter
from tests.convert.conftest import FAMILIES, load, logits, names_in, tiny_model, train

# peft warns of a tied base whose embedding is trained alone; that it then parts them is tested.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
F32, F16, BF16 = (np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
KIND = {F16: torch.float16, BF16: torch.bfloat16}


def merged(trained, out, **options):
    """What transformers says of the merged float32 folder."""
    merge_adapter(trained.base, trained.adapter, out, dtype=F32, **options)
    return load(out)


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_model_gives_the_logits_of_peft(tmp_path, bases, family):
    trained = train(bases[family], tmp_path / "lora", target_modules="all-linear", bias="all")
    model = merged(trained, tmp_path / "out")
    base = logits(load(bases[family]))
    assert not torch.allclose(trained.logits, base, atol=0.1)
    torch.testing.assert_close(logits(model), trained.logits, rtol=1e-5, atol=1e-5)
    whole = trained.model.merge_and_unload().state_dict()
    got = model.state_dict()
    assert got.keys() == whole.keys()
    for name, tensor in whole.items():  # the vision tower too, which no text goes through
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


OPTIONS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}},
    "patterns": {
        "rank_pattern": {"v_proj": 2, "1.mlp.down_proj": 5},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 20, "down_proj": 1},
    },
    "layers": {"layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.1\..*(q|up)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": r".*\.1\.mlp.*"},
    "bias-all": {"bias": "all"},
    "bias-lora-only": {"bias": "lora_only"},
    "head-and-embedding": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "norms": {"modules_to_save": ["input_layernorm", "norm"]},
}


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """A llama whose projections have biases."""
    folder = tmp_path_factory.mktemp("biased")
    tiny_model("llama", attention_bias=True, mlp_bias=True).save_pretrained(folder)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_of_an_adapter_is_merged(tmp_path, biased, case):
    trained = train(biased, tmp_path / "lora", **OPTIONS[case])
    model = merged(trained, tmp_path / "out")
    assert not torch.allclose(trained.logits, logits(load(biased)), atol=1e-2)
    torch.testing.assert_close(logits(model), trained.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_16_bit_weights_are_the_float64_sums_that_torch_rounds(tmp_path, bases, dtype):
    trained = train(bases["gemma3"], tmp_path / "lora", modules_to_save=["multi_modal_projector"])
    merge_adapter(trained.base, trained.adapter, tmp_path / "out", dtype=dtype)
    whole = trained.model.double().merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint.names]
    assert {info.dtype for info in infos} == {dtype}
    for name, tensor in load(tmp_path / "out").state_dict().items():
        wanted = whole[name].float() if dtype == BF16 else whole[name]
        assert torch.equal(tensor, wanted.to(KIND[dtype])), name


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gemma", "gemma3"])
@pytest.mark.parametrize(
    ("saved", "tying", "tied"),
    [
        (["embed_tokens", "lm_head"], False, False),
        (["embed_tokens"], False, False),
        (["lm_head"], False, False),
        (["embed_tokens"], True, True),
    ],
    ids=["both", "embedding", "head", "one-matrix"],
)
def test_a_tied_base_stays_tied_only_if_head_and_embedding_agree(
    tmp_path, bases, family, saved, tying, tied
):
    trained = train(
        bases[family], tmp_path / "lora", modules_to_save=saved, ensure_weight_tying=tying
    )
    model = merged(trained, tmp_path / "out")
    torch.testing.assert_close(logits(model), trained.logits, rtol=1e-5, atol=1e-5)
    assert model.config.tie_word_embeddings is tied
    assert model.config.get_text_config().tie_word_embeddings is tied
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert any(name.endswith("lm_head.weight") for name in checkpoint.names) is not tied


def without(adapter, ending):
    """Take one tensor out of an adapter's folder."""
    read = read_adapter(adapter)
    kept = {name: value for name, value in read.tensors.items() if not name.endswith(ending)}
    write_adapter(adapter, kept, read.config)


@pytest.mark.parity
@pytest.mark.parametrize("ending", ["lm_head.weight", "embed_tokens.weight"])
def test_one_of_two_matrices_that_are_one_counts_for_both(tmp_path, bases, ending):
    trained = train(
        bases["gemma"],
        tmp_path / "lora",
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
    )
    without(tmp_path / "lora", ending)
    model = merged(trained, tmp_path / "out")
    torch.testing.assert_close(logits(model), trained.logits, rtol=1e-5, atol=1e-5)
    assert model.config.tie_word_embeddings is True


@pytest.mark.parity
def test_small_shards_load_in_transformers(tmp_path, bases):
    trained = train(bases["gemma2"], tmp_path / "lora")
    told = []
    model = merged(
        trained, tmp_path / "out", max_shard_bytes=3000, progress=lambda *call: told.append(call)
    )
    assert (tmp_path / "out" / INDEX_FILE).is_file()
    torch.testing.assert_close(logits(model), trained.logits, rtol=1e-5, atol=1e-5)
    with plan_merge(trained.base, trained.adapter, dtype=F32) as plan:
        assert sum(size for _, size in told) == plan.nbytes
        assert sorted(name for name, _ in told) == sorted(plan.tensors)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, bases):
    """A base of one projection and a table of numbers, and an adapter; to be copied and changed."""
    folder = tmp_path_factory.mktemp("tiny")
    trained = train(bases["llama"], folder / "lora", target_modules=["q_proj"])
    shutil.copytree(trained.base, folder / "base")
    return folder


@pytest.fixture
def pair(tiny, tmp_path):
    """Folders `base` and `lora` that a test may spoil."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit_json(file, **changes):
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | changes))


def edit_tensors(file, **changes):
    tensors = safetensors.numpy.load_file(file)
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"dtype": "bfloat16"}, BF16),
        ({"dtype": "float16"}, F16),
        ({"dtype": "float32"}, BF16),
        ({"dtype": None, "torch_dtype": "float16"}, BF16),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, F16),
        ({"dtype": "auto"}, BF16),
    ],
    ids=str,
)
def test_dtype_is_the_bases_where_that_has_16_bits(pair, keys, wanted):
    edit_json(pair / "base" / "config.json", **keys)
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    with open_checkpoint(pair / "out") as checkpoint:
        assert checkpoint.info("model.norm.weight").dtype == wanted
    config = json.loads((pair / "out" / "config.json").read_text())
    assert config["dtype"] == str(wanted)
    assert config.get("torch_dtype", str(wanted)) == str(wanted)
    assert ("torch_dtype" in config) is ("torch_dtype" in keys)


def test_dtype_under_the_older_key_alone_is_read(pair):
    values = json.loads((pair / "base" / "config.json").read_text())
    values["torch_dtype"] = values.pop("dtype").replace("float32", "float16")
    (pair / "base" / "config.json").write_text(json.dumps(values))
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    merged = json.loads((pair / "out" / "config.json").read_text())
    assert merged == values | {"dtype": "float16"}


def test_the_rest_of_the_config_is_the_bases(pair):
    edit_json(pair / "base" / "config.json", a_key_of_later=[1, {"dtype": "float32", "x": 2}])
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    base, out = (json.loads((pair / w / "config.json").read_text()) for w in ("base", "out"))
    assert out == base | {"dtype": "bfloat16"}


def test_tensors_that_are_not_floats_are_copied(pair):
    table = np.arange(5)
    edit_tensors(pair / "base" / SINGLE_FILE, table=table, wide=np.float64([1 / 3]))
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    with open_checkpoint(pair / "out") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("table"), table)
        assert checkpoint.info("table").dtype == np.int64
        assert checkpoint.info("wide").dtype == BF16


Q = "base_model.model.model.layers.0.self_attn.q_proj"
OTHER = "base_model.model.model.layers.7.self_attn.q_proj"
ROW = np.ones((3, 16), np.float32)
BAD_ADAPTERS = {
    "no-place": ({f"{OTHER}.lora_A.weight": ROW, f"{OTHER}.lora_B.weight": ROW.T}, "without one"),
    "no-bias": ({f"{Q}.base_layer.bias": ROW[0]}, "without one"),
    "whole-shape": ({"base_model.model.model.norm.weight": ROW[0, :5].copy()}, r"\(5,\) for"),
    "in": ({f"{Q}.lora_A.weight": np.ones((3, 8), np.float32)}, r"\(16, 8\) for"),
    "out": ({f"{Q}.lora_B.weight": np.ones((8, 3), np.float32)}, r"\(8, 16\) for"),
    "twice": ({f"{Q}.base_layer.weight": np.ones((16, 16), np.float32)}, "one for each"),
}


def refusal(folder, said, **options):
    """Check that a merge is refused with these words before anything is written."""
    before = names_in(folder)
    with pytest.raises(CheckpointError, match=said):
        merge_adapter(folder / "base", folder / "lora", folder / "out", **options)
    assert names_in(folder) == before


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(pair, case):
    changes, said = BAD_ADAPTERS[case]
    edit_tensors(pair / "lora" / TENSORS_FILE, **changes)
    refusal(pair, said)


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_lora_on_head_or_embedding_is_refused(pair, module):
    name = f"base_model.model.{module}.lora_"
    pairs = (
        {f"{name}A.weight": ROW, f"{name}B.weight": np.ones((96, 3), np.float32)}
        if module == "lm_head"
        else {f"{name}embedding_A": np.ones((3, 96), np.float32), f"{name}embedding_B": ROW.T}
    )
    pairs = {key: np.ascontiguousarray(value) for key, value in pairs.items()}
    edit_tensors(pair / "lora" / TENSORS_FILE, **pairs)
    edit_json(pair / "lora" / CONFIG_FILE, target_modules=["q_proj", module])
    refusal(pair, f"not served by a merge; got a LoRA pair of {module}")


def test_an_alpha_behind_a_regular_expression_is_refused(pair):
    edit_json(pair / "lora" / CONFIG_FILE, alpha_pattern={r"q_pro[a-z]": 2})
    refusal(pair, "alpha of model.layers.0.self_attn.q_proj must be plain")


def test_a_rank_behind_a_regular_expression_is_that_of_the_tensors(pair):
    edit_json(pair / "lora" / CONFIG_FILE, r=8, rank_pattern={r"q_pro[a-z]": 3})
    merge_adapter(pair / "base", pair / "lora", pair / "out", dtype=F32)
    edit_json(pair / "lora" / CONFIG_FILE, r=3, rank_pattern={})
    merge_adapter(pair / "base", pair / "lora", pair / "wanted", dtype=F32)
    assert (pair / "out" / SINGLE_FILE).read_bytes() == (pair / "wanted" / SINGLE_FILE).read_bytes()


def test_a_base_quantised_to_other_than_4_bits_is_refused(pair):
    edit_json(pair / "base" / "config.json", quantization_config={"load_in_8bit": True})
    refusal(pair, "must be one that we can read; got load_in_8bit")


def test_a_base_without_config_is_refused(pair):
    (pair / "base" / "config.json").unlink()
    refusal(pair, "no config.json")


@pytest.mark.parametrize("dtype", [np.float64, np.int8], ids=str)
def test_a_dtype_that_weights_do_not_have_is_refused(pair, dtype):
    refusal(pair, "`dtype` of a merged model", dtype=np.dtype(dtype))


def test_a_weight_beyond_float16_is_refused_by_name(pair):
    edit_tensors(pair / "base" / SINGLE_FILE, big=np.float32([1, 1e6]))
    refusal(pair, "'big' must fit the range of float16", dtype=F16)
    merge_adapter(pair / "base", pair / "lora", pair / "out", dtype=BF16)


def test_the_head_of_a_tied_base_must_have_the_embeddings_shape(pair):
    edit_json(pair / "base" / "config.json", tie_word_embeddings=True)
    edit_tensors(pair / "base" / SINGLE_FILE, **{"lm_head.weight": None})
    head = {"base_model.model.lm_head.weight": np.ones((95, 16), np.float32)}
    edit_tensors(pair / "lora" / TENSORS_FILE, **head)
    edit_json(pair / "lora" / CONFIG_FILE, modules_to_save=["lm_head"])
    refusal(pair, r"embedding's shape; got \(95, 16\)")


def test_the_base_is_not_overwritten(pair):
    with pytest.raises(CheckpointError, match="a folder of its own"):
        merge_adapter(pair / "base", pair / "lora", pair / "lora" / ".." / "base")


def test_a_full_disk_is_seen_before_a_weight_is_read(pair, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("os.preadv", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    refusal(pair, "must have room")


def test_a_base_that_goes_away_midway_keeps_the_old_target(pair, monkeypatch):
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    old = {path.name: path.read_bytes() for path in (pair / "out").iterdir()}
    read = open_checkpoint(pair / "base").read.__func__

    def fail(self, name):
        if name == "model.norm.weight":
            raise OSError("gone")
        return read(self, name)

    monkeypatch.setattr("convert.checkpoint.Checkpoint.read", fail)
    with pytest.raises(OSError, match="gone"):
        merge_adapter(pair / "base", pair / "lora", pair / "out", dtype=F16)
    assert {path.name: path.read_bytes() for path in (pair / "out").iterdir()} == old
    assert names_in(pair) == ["base", "lora", "out"]


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
@pytest.mark.parametrize("held", [True, False], ids=["head-in-file", "no-head"])
@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_a_gemma_whose_config_does_not_say_is_tied(pair, model_type, held, same):
    values = json.loads((pair / "base" / "config.json").read_text())
    del values["tie_word_embeddings"]
    (pair / "base" / "config.json").write_text(json.dumps(values | {"model_type": model_type}))
    embedding = safetensors.numpy.load_file(pair / "base" / SINGLE_FILE)[
        "model.embed_tokens.weight"
    ]
    edit_tensors(pair / "base" / SINGLE_FILE, **{"lm_head.weight": embedding if held else None})
    head = {"base_model.model.lm_head.weight": embedding + (0 if same else 1)}
    edit_tensors(pair / "lora" / TENSORS_FILE, **head)
    edit_json(pair / "lora" / CONFIG_FILE, modules_to_save=["lm_head"])
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    config = json.loads((pair / "out" / "config.json").read_text())
    assert config.get("tie_word_embeddings") is (None if same else False)
    with open_checkpoint(pair / "out") as checkpoint:
        assert ("lm_head.weight" in checkpoint.names) is not same


def test_tokenizer_of_the_adapter_counts_before_that_of_the_base(pair):
    for name in ("generation_config.json", "tokenizer.json", "tokenizer.model", "README.md"):
        (pair / "base" / name).write_text(f"base {name}")
    for name in ("tokenizer.json", "preprocessor_config.json", "training_args.json"):
        (pair / "lora" / name).write_text(f"lora {name}")
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    files = {p.name: p.read_text() for p in (pair / "out").iterdir() if p.name != SINGLE_FILE}
    del files["config.json"]
    assert files == {
        "generation_config.json": "base generation_config.json",
        "tokenizer.json": "lora tokenizer.json",
        "tokenizer.model": "base tokenizer.model",
        "preprocessor_config.json": "lora preprocessor_config.json",
    }


def test_the_bases_template_does_not_overrule_a_tokenizer_saved_with_the_adapter(pair):
    (pair / "base" / "chat_template.jinja").write_text("base")
    merge_adapter(pair / "base", pair / "lora", pair / "out")
    assert (pair / "out" / "chat_template.jinja").read_text() == "base"
    (pair / "lora" / "tokenizer_config.json").write_text('{"chat_template": "lora"}')
    merge_adapter(pair / "base", pair / "lora", pair / "other")
    assert not (pair / "other" / "chat_template.jinja").exists()
