"""Greedy generation against transformers, token for token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jaxtune.language_model import LanguageModel
from tests.families import BY_NAME, VARIANTS, Variant
from tests.loaded import load_adapted
from tests.oracles import Oracle, make_oracle, random_rows

pytestmark = pytest.mark.parity

Pair = tuple[Oracle, LanguageModel]
LENGTHS = (9, 4, 13)  # Gemma's window is 7: prompts on both sides of it
NEW = 12


@pytest.fixture(scope="module", params=["gemma2-five-layers", "gemma3-multimodal"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("generate")
    oracle = make_oracle(VARIANTS[BY_NAME[request.param]], folder, initializer_range=0.3)
    return oracle, load_adapted(oracle.adapter_folder)


def prompts() -> list[list[int]]:
    return [random_rows((1, n), seed=n)[0].tolist() for n in LENGTHS]


def alone(oracle: Oracle, prompt: list[int], **options: object) -> np.ndarray:
    """transformers' new tokens for one prompt without padding."""
    out = oracle.model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        **options,
    )
    return out[0, len(prompt) :].numpy()


def check(oracle: Oracle, new: np.ndarray, **options: object) -> None:
    for prompt, row in zip(prompts(), new, strict=True):
        expected = alone(oracle, prompt, **options)
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert (row[len(expected) :] == 0).all()  # padded after its end


def test_lists_of_unequal_length_continue_as_alone(pair: Pair) -> None:
    oracle, model = pair
    out = model.generate(prompts(), max_new_tokens=NEW, eos_token_id=-1)
    check(oracle, out[:, max(LENGTHS) :], eos_token_id=None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_padding_on_either_side_changes_nothing(pair: Pair, side: str, kind: str) -> None:
    oracle, model = pair
    width = max(LENGTHS)
    ids = np.full((len(LENGTHS), width), 5)  # a real token as padding: only the mask tells
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts()):
        place = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    given = (torch.tensor(ids), torch.tensor(mask)) if kind == "torch" else (ids, mask)
    out = model.generate(*given, max_new_tokens=NEW, eos_token_id=-1)
    np.testing.assert_array_equal(out[:, :width], ids)
    check(oracle, out[:, width:], eos_token_id=None)


def test_rows_stop_at_eos_and_are_padded(pair: Pair) -> None:
    oracle, model = pair
    stop = int(alone(oracle, prompts()[1], eos_token_id=None)[3])
    out = model.generate(prompts(), max_new_tokens=NEW, eos_token_id=[stop], pad_token_id=0)
    check(oracle, out[:, max(LENGTHS) :], eos_token_id=stop, pad_token_id=0)


def test_all_rows_stopped_ends_early(pair: Pair) -> None:
    oracle, model = pair
    prompt = prompts()[:1]
    first = int(alone(oracle, prompt[0], eos_token_id=None)[0])
    out = model.generate(prompt, max_new_tokens=NEW, eos_token_id=first)
    assert out.shape == (1, len(prompt[0]) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_family_continues_as_transformers(variant: Variant, tmp_path: Path) -> None:
    oracle = make_oracle(variant, tmp_path, initializer_range=0.3, seed=1)
    model = load_adapted(oracle.adapter_folder)
    out = model.generate(prompts(), max_new_tokens=NEW, eos_token_id=-1)
    check(oracle, out[:, max(LENGTHS) :], eos_token_id=None)
    penalised = model.generate(
        prompts(), max_new_tokens=NEW, eos_token_id=-1, repetition_penalty=1.5
    )
    check(oracle, penalised[:, max(LENGTHS) :], eos_token_id=None, repetition_penalty=1.5)
    assert (penalised != out).any()


def test_bad_prompts_are_refused(pair: Pair) -> None:
    _, model = pair
    with pytest.raises(ValueError, match=r"at least one token"):
        model.generate([[3, 4], []])
    with pytest.raises(ValueError, match=r"ids must be in \[0, 97\)"):
        model.generate([[3, 97]])
    with pytest.raises(ValueError, match=r"range of 128 tokens; got 4 \+ 125"):
        model.generate([[3, 4, 5, 6]], max_new_tokens=125)
    with pytest.raises(ValueError, match=r"shape \[batch, length\]"):
        model.generate([3, 4, 5])
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate([[3]], max_new_tokens=0)
