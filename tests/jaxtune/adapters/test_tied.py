"""Embedding and head trained whole: one matrix or two, as peft has them and writes them."""

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxtune.adapters.peft_form import peft_names
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import LanguageModel
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import make_oracle, random_rows
from tests.tolerances import relative_error, tolerance

pytestmark = [
    pytest.mark.parity,
    # peft warns of tied models and of ties that are none: not ours to judge.
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
ROWS = random_rows((2, 9))
EMBEDDING = "base_model.model.model.embed_tokens.weight"
HEAD = "base_model.model.lm_head.weight"
BOTH = ["embed_tokens", "lm_head"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tied")
    chosen = {"tied": "llama-tied-llama3-rope", "untied": "llama-untied"}
    return {
        kind: make_oracle(VARIANTS[BY_NAME[name]], folder / kind, initializer_range=0.3).folder
        for kind, name in chosen.items()
    }


@pytest.fixture
def loaded_whole() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        yield


def peft_model(base: Path, saved: list[str], *, moved: bool = True, **more: Any) -> peft.PeftModel:
    """peft's adapter with `saved` trained whole, all of it away from its start if `moved`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=list(saved), task_type="CAUSAL_LM", **more
    )
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad and moved:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    return wrapped.eval()


def their_logits(model: peft.PeftModel) -> np.ndarray:
    with torch.no_grad():
        return model.double()(input_ids=torch.tensor(ROWS)).logits.numpy()


def our_logits(model: LanguageModel) -> np.ndarray:
    return np.asarray(model(ROWS.astype(np.int32)))


def in_peft(base: Path, adapter: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    return their_logits(peft.PeftModel.from_pretrained(model, adapter).eval())


def move(model: LanguageModel) -> None:
    """Every trained array away from its start."""
    draw = np.random.default_rng(5)
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        noise = 0.1 * draw.normal(size=leaf.shape).astype(np.float32)
        leaf.set_value(leaf.get_value() + noise)


def written(folder: Path) -> tuple[set[str], list[str] | None, bool]:
    """Tensor names, `modules_to_save` (peft's is a list or a set) and the tie of an adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    saved = config["modules_to_save"]
    names = set(load_file(folder / "adapter_model.safetensors"))
    return names, saved and sorted(saved), config.get("ensure_weight_tying", False)


def close(actual: Any, expected: Any) -> bool:
    return relative_error(actual, expected) <= tolerance("float32", "logits")


@pytest.mark.usefixtures("loaded_whole")
@pytest.mark.parametrize(
    ("kind", "saved", "targets"),
    [
        ("tied", BOTH, []),
        ("untied", [], BOTH),
        pytest.param("tied", ["embed_tokens"], [], marks=pytest.mark.slow),
        pytest.param("tied", ["lm_head"], [], marks=pytest.mark.slow),
        pytest.param("tied", [], BOTH, marks=pytest.mark.slow),
        pytest.param("untied", BOTH, [], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_whole_matrices_are_those_of_ensure_weight_tying(
    kind: str,
    saved: list[str],
    targets: list[str],
    bases: dict[str, Path],
    tmp_path: Path,
    capsys: Any,
) -> None:
    """The same count, the same file, and peft's logits in both directions."""
    theirs = peft_model(bases[kind], saved + targets, ensure_weight_tying=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = FastLanguageModel.get_peft_model(
        load_base(bases[kind]),
        r=4,
        target_modules=["q_proj", *targets],
        modules_to_save=saved or None,
    )
    printed = io.StringIO()
    with redirect_stdout(printed):
        theirs.print_trainable_parameters()
    capsys.readouterr()
    ours.print_trainable_parameters()
    assert capsys.readouterr().out == printed.getvalue()

    move(ours)
    ours.save_pretrained(tmp_path / "ours")
    names, modules, tied = written(tmp_path / "theirs")
    # Of a model without a tie peft writes the flag as it was given; an older peft refuses it.
    assert written(tmp_path / "ours") == (names, modules, tied and kind == "tied")
    assert close(our_logits(ours), in_peft(bases[kind], tmp_path / "ours"))

    loaded = load_adapted(tmp_path / "theirs")
    assert close(our_logits(loaded), their_logits(theirs))
    assert loaded.config.tie_word_embeddings == (kind == "tied")
    named = peft_names(nnx.state(loaded, nnx.Param))
    assert (named[EMBEDDING] is named[HEAD]) == (kind == "tied")


@pytest.mark.usefixtures("loaded_whole")
@pytest.mark.parametrize(
    "moved", [pytest.param(True, marks=pytest.mark.slow), False], ids=["trained", "new"]
)
def test_pefts_two_copies_stay_two(moved: bool, bases: dict[str, Path], tmp_path: Path) -> None:
    """Its default for a tied model; a new adapter's copies are still equal, and yet two."""
    theirs = peft_model(bases["tied"], BOTH, moved=moved)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapted(tmp_path / "theirs")
    assert close(our_logits(ours), their_logits(theirs))
    assert not ours.config.tie_word_embeddings
    move(ours)  # each by itself
    ours.save_pretrained(tmp_path / "ours")
    assert written(tmp_path / "ours") == written(tmp_path / "theirs")
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert not np.array_equal(tensors[EMBEDDING], tensors[HEAD])
    assert close(our_logits(ours), in_peft(bases["tied"], tmp_path / "ours"))
    again = load_adapted(tmp_path / "ours")
    np.testing.assert_array_equal(our_logits(again), our_logits(ours))


@pytest.mark.parametrize("missing", [EMBEDDING, pytest.param(HEAD, marks=pytest.mark.slow)])
def test_one_matrix_may_stand_under_either_name(
    missing: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    theirs = peft_model(bases["tied"], ["embed_tokens"], ensure_weight_tying=True)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[missing]
    save_file(tensors, file)
    ours = load_adapted(tmp_path)
    assert ours.config.tie_word_embeddings
    assert close(our_logits(ours), their_logits(theirs))


def test_other_whole_modules_say_nothing_of_a_tie(bases: dict[str, Path], tmp_path: Path) -> None:
    """An older peft refuses the key: it is written only where it means something."""
    options = {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}
    FastLanguageModel.get_peft_model(load_base(bases["tied"]), **options).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "ensure_weight_tying" not in config
    assert config["modules_to_save"] == ["norm"]


@pytest.mark.parametrize("kind", ["tied", pytest.param("untied", marks=pytest.mark.slow)])
def test_masters_are_float32_and_the_file_is_of_the_bases_dtype(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(bases[kind], jnp.bfloat16)
    expected = our_logits(base)
    options = {"target_modules": ["q_proj"], "modules_to_save": BOTH}
    model = FastLanguageModel.get_peft_model(base, r=4, **options)
    named = peft_names(nnx.state(model, nnx.Param))
    assert {str(tensor.dtype) for tensor in named.values()} == {"float32"}
    assert {EMBEDDING, HEAD} <= set(named)
    np.testing.assert_array_equal(our_logits(model), expected)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert str(tensors[EMBEDDING].dtype) == str(tensors[HEAD].dtype) == "bfloat16"
