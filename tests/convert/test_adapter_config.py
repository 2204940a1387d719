import dataclasses
import json

import peft
import pytest
from peft.utils.other import get_pattern_key

from convert.adapter_config import AdapterConfig, names_module
from convert.errors import CheckpointError

KEYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout"),
    *("bias", "target_modules", "modules_to_save", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("init_lora_weights", "inference_mode", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern"),
}
SMALL = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def config(**changes):
    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    return AdapterConfig(**(values | changes))


def saved_by_peft(folder, **options):
    """The JSON object that this peft writes."""
    options = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    peft.LoraConfig(**options).save_pretrained(folder)
    return json.loads((folder / "adapter_config.json").read_text())


def test_writes_the_18_keys_and_no_other():
    assert set(config().to_json_dict()) == KEYS
    fields = {field.name for field in dataclasses.fields(AdapterConfig)}
    assert fields == KEYS | {"ensure_weight_tying"}


def test_writes_the_tie_of_embedding_and_head_only_where_there_is_one():
    values = config(ensure_weight_tying=True).to_json_dict()
    assert values == config().to_json_dict() | {"ensure_weight_tying": True}
    assert AdapterConfig.from_json_dict(values) == config(ensure_weight_tying=True)


def test_writes_lists_where_json_has_lists():
    values = config(modules_to_save=["lm_head"], layers_to_transform=[0, 1]).to_json_dict()
    assert values["target_modules"] == ["q_proj"]
    assert values["modules_to_save"] == ["lm_head"]
    assert values["layers_to_transform"] == [0, 1]
    assert json.loads(json.dumps(values)) == values


def test_peft_reads_every_key_with_our_value(tmp_path):
    ours = config(
        lora_dropout=0.1,
        bias="lora_only",
        use_rslora=True,
        modules_to_save=["lm_head"],
        layers_to_transform=[0],
        layers_pattern="layers",
        init_lora_weights="gaussian",
        rank_pattern={"v_proj": 2},
        alpha_pattern={"v_proj": 3},
        target_modules=["q_proj", "v_proj"],
    ).to_json_dict()
    (tmp_path / "adapter_config.json").write_text(json.dumps(ours))
    theirs = peft.LoraConfig.from_pretrained(tmp_path).to_dict()
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert {key: theirs[key] for key in KEYS} == ours


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": r"model\.layers\.0\..*_proj"},
        {"use_rslora": True, "bias": "all", "modules_to_save": ["lm_head"], "lora_dropout": 0.1},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 1}},
        {"layers_to_transform": [0], "layers_pattern": ["layers"], "init_lora_weights": "gaussian"},
        {"task_type": None},
        {"layers_to_transform": 0, "layers_pattern": "layers", "exclude_modules": []},
        {"init_lora_weights": "orthogonal", "bias": "lora_only"},
    ],
    ids=["plain", "regex", "rslora", "patterns", "layers", "no-task", "one-layer", "orthogonal"],
)
def test_reads_what_peft_writes(tmp_path, options):
    theirs = saved_by_peft(tmp_path, **options)
    ours = AdapterConfig.from_json_dict(theirs).to_json_dict()
    assert ours == {key: theirs[key] for key in KEYS}


def test_reads_the_tie_that_peft_writes(tmp_path):
    theirs = saved_by_peft(tmp_path, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    ours = AdapterConfig.from_json_dict(theirs)
    assert ours.ensure_weight_tying is True
    assert ours.modules_to_save == ("embed_tokens",)


def test_reads_the_smaller_key_set_of_an_old_peft():
    old = SMALL | {
        "auto_mapping": None,
        "base_model_name_or_path": "huggyllama/llama-7b",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "enable_lora": None,
        "merge_weights": False,
    }
    assert AdapterConfig.from_json_dict(old) == config(
        base_model_name_or_path="huggyllama/llama-7b", lora_dropout=0.05
    )


def test_absent_optional_keys_take_pefts_defaults():
    read, default = AdapterConfig.from_json_dict(SMALL), peft.LoraConfig(task_type="CAUSAL_LM")
    given = {*SMALL, "inference_mode"}  # inference_mode: true is what peft always saves
    for key in KEYS - given:
        assert getattr(read, key) == getattr(default, key), key


def test_eva_initialisation_is_dropped_because_its_effect_is_in_the_tensors():
    eva = SMALL | {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}
    assert AdapterConfig.from_json_dict(eva).init_lora_weights is True


def test_an_empty_list_of_whole_modules_is_none():
    assert AdapterConfig.from_json_dict(SMALL | {"modules_to_save": []}) == config(
        base_model_name_or_path=None
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_bias", True),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 1]]),
        ("fan_in_fan_out", True),
        ("target_parameters", ["experts.gate"]),
        ("use_qalora", True),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("loftq_config", {"loftq_bits": 4}),
        ("trainable_token_indices", [3]),
        ("exclude_modules", ["lm_head"]),
        ("use_bdlora", {"nblocks": 2}),
        ("a_key_of_a_later_peft", 1),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
    ],
)
def test_key_that_would_change_the_result_is_refused_by_name(tmp_path, key, value):
    theirs = saved_by_peft(tmp_path) | {key: value}
    with pytest.raises(CheckpointError, match=f"`{key}`"):
        AdapterConfig.from_json_dict(theirs)


@pytest.mark.parametrize("key", SMALL)
def test_missing_required_key_is_named(key):
    with pytest.raises(CheckpointError, match=f"must have `{key}`"):
        AdapterConfig.from_json_dict({k: v for k, v in SMALL.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", True),
        ("r", 4.0),
        ("r", "4"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", True),
        ("lora_alpha", 10**400),
        ("lora_alpha", None),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [""]),
        ("target_modules", ["q_proj", 1]),
        ("target_modules", ""),
        ("base_model_name_or_path", 1),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("bias", "some"),
        ("ensure_weight_tying", 1),
        ("modules_to_save", "lm_head"),
        ("use_rslora", 1),
        ("inference_mode", None),
        ("init_lora_weights", 1),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", [True]),
        ("layers_pattern", [1]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", []),
        ("alpha_pattern", {"q_proj": "8"}),
    ],
)
def test_bad_value_is_refused_by_name(key, value):
    with pytest.raises(CheckpointError, match=f"`{key}` of a LoRA adapter"):
        AdapterConfig.from_json_dict(SMALL | {key: value})


def test_config_does_not_share_the_callers_lists():
    names, ranks = ["q_proj"], {"q_proj": 2}
    ours = config(target_modules=names, rank_pattern=ranks)
    names.append("v_proj")
    ranks["q_proj"] = 3
    assert ours == config(target_modules=["q_proj"], rank_pattern={"q_proj": 2})


def test_rank_of_a_module_is_the_first_pattern_that_names_it():
    ours = config(rank_pattern={"0.mlp.up_proj": 2, "up_proj": 3, "^lm_head": 5})
    assert ours.rank_for("model.layers.0.mlp.up_proj") == 2
    assert ours.rank_for("model.layers.1.mlp.up_proj") == 3
    assert ours.rank_for("model.layers.1.mlp.gate_up_proj") == 4
    assert ours.rank_for("lm_head") == 5
    assert ours.rank_for("model.lm_head") == 4


def test_alpha_of_a_module_is_the_first_pattern_that_names_it():
    ours = config(alpha_pattern={"0.mlp.up_proj": 2.5, "up_proj": 3})
    assert ours.alpha_for("model.layers.0.mlp.up_proj") == 2.5
    assert ours.alpha_for("model.layers.1.mlp.up_proj") == 3
    assert ours.alpha_for("model.layers.1.mlp.down_proj") == 8
    assert config(alpha_pattern={"up_.*": 3}).alpha_for("up_proj") is None


def test_scale_is_alpha_over_the_rank_or_its_root():
    ours = config(alpha_pattern={"up_proj": 3, "down_.*": 1})
    assert ours.scale_for("model.layers.0.mlp.up_proj", 4) == 0.75
    assert ours.scale_for("model.layers.0.mlp.down_proj", 4) is None
    assert config(use_rslora=True).scale_for("q_proj", 16) == 2.0


def test_rank_is_unknown_under_a_regular_expression():
    assert config(rank_pattern={r"(a+)+$": 2}).rank_for("a" * 10_000 + "b") is None


@pytest.mark.parametrize("pattern", ["q_proj", "attn.q_proj", "proj", "^model.q_proj", "^q_proj"])
@pytest.mark.parametrize("module", ["q_proj", "model.q_proj", "model.attn.q_proj", "my_q_proj"])
def test_literal_names_match_as_in_peft(pattern, module):
    theirs = get_pattern_key([pattern], module) == pattern
    assert names_module(pattern, module) is (theirs or pattern == module)
