"""The plan "least" keeps an untied frozen embedding in host memory; nothing else changes."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jaxtune.api import FastLanguageModel
from jaxtune.generation import generate
from jaxtune.layers.host_memory import in_host_memory
from jaxtune.models import host_embedding, placement
from jaxtune.models.build import freeze, train_all
from jaxtune.models.host_embedding import place_embedding
from jaxtune.training import offload_check
from jaxtune.training.memory_plan import free_bytes
from jaxtune.training.sizes import nbytes, nbytes_here
from jaxtune.training.step import split
from tests.families import VARIANTS
from tests.jaxtune.generation.tiny import CONFIG, tiny_model
from tests.jaxtune.training.runs import adapted, records_of, trainer_of
from tests.oracles import Oracle, make_oracle


def frozen_model(plan):
    model = tiny_model()
    freeze(model)
    model.model.remat = plan
    return model


def weight_of(model):
    return model.model.embed_tokens.weight.get_value()


def test_the_plan_says_where_the_embedding_is():
    model = frozen_model("least")
    before = np.asarray(weight_of(model))
    place_embedding(model)
    assert in_host_memory(weight_of(model))
    _, _, frozen = split(model)
    assert nbytes(frozen) - nbytes_here(frozen) == before.nbytes
    np.testing.assert_array_equal(weight_of(model), before)
    model.model.remat = "offload"
    place_embedding(model)
    assert not in_host_memory(weight_of(model))
    np.testing.assert_array_equal(weight_of(model), before)


@pytest.mark.parametrize("case", ["tied", "trained", "mesh"])
def test_an_embedding_that_the_device_needs_stays(case):
    model = frozen_model("least")
    if case == "tied":
        family = type(model)
        config = family.config_from_hf({**CONFIG, "tie_word_embeddings": True})
        model = family(config, rngs=nnx.Rngs(0))
        freeze(model)
        model.model.remat = "least"
    if case == "trained":
        train_all(model)
    if case == "mesh":
        model.carried.mesh = placement.mesh_of({"data": 1})
    place_embedding(model)
    assert not in_host_memory(weight_of(model))


def test_what_is_in_host_memory_takes_nothing_of_the_device():
    model = frozen_model("least")
    stats = {"bytes_limit": 10**9, "bytes_in_use": 5 * 10**8}
    whole = free_bytes(stats, split(model)[1:])
    place_embedding(model)
    assert whole - free_bytes(stats, split(model)[1:]) == weight_of(model).nbytes


def test_an_answer_has_it_on_the_device_and_leaves_it_where_it_was(monkeypatch):
    model = frozen_model("least")
    ids = [[3, 5, 7]]
    expected = model.generate(ids, max_new_tokens=3, eos_token_id=-1)
    place_embedding(model)
    seen = []
    right = generate.decode

    def decode(graphdef, state, *rest):
        seen.extend(jax.tree.leaves(state))
        return right(graphdef, state, *rest)

    monkeypatch.setattr(generate, "decode", decode)
    found = model.generate(ids, max_new_tokens=3, eos_token_id=-1)
    np.testing.assert_array_equal(found, expected)
    assert seen
    assert not any(map(in_host_memory, seen))
    assert in_host_memory(weight_of(model))


def test_rows_that_arrive_changed_are_refused(monkeypatch):
    model = frozen_model("least")
    place_embedding(model)
    ids = np.array([[3, 5]], np.int32)
    offload_check.check_rows(model, ids)
    right = offload_check.rows_of
    monkeypatch.setattr(offload_check, "rows_of", lambda matrix, index: right(matrix, index + 1))
    with pytest.raises(RuntimeError, match=r'must arrive as they are.*"unsloth"'):
        offload_check.check_rows(model, ids)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("least"), initializer_range=0.3)


@pytest.fixture(scope="module")
def runs(oracle, tmp_path_factory):
    """A run with the plan "least", and the same with the embedding on the device."""
    found = []
    for name, plans in (("host", ("least",)), ("device", ())):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host_embedding, "EMBEDDING_ON_HOST", plans)
            model, folder = adapted(oracle), tmp_path_factory.mktemp(name)
            FastLanguageModel.for_training(model, "least")
            trainer = trainer_of(
                model, max_steps=3, save_steps=2, save_strategy="steps", output_dir=str(folder)
            )
            trainer.train()
        found.append((trainer, model, folder))
    return found


@pytest.mark.slow
def test_a_run_is_that_with_the_embedding_on_the_device(runs):
    (host, model, _), (device, other, _) = runs
    assert in_host_memory(weight_of(model))
    assert not in_host_memory(weight_of(other))
    assert records_of(host) == records_of(device)


@pytest.mark.slow
def test_the_model_answers_is_called_and_saved_as_before(runs, tmp_path):
    (_, model, _), (_, other, _) = runs
    ids = [[3, 5, 7, 11]]
    np.testing.assert_array_equal(model(np.array(ids)), other(np.array(ids)))
    answers = [m.generate(ids, max_new_tokens=5) for m in (model, other)]
    np.testing.assert_array_equal(*answers)
    assert in_host_memory(weight_of(model))  # an answer does not move it for good
    for name, one in (("host", model), ("device", other)):
        one.save_pretrained(tmp_path / name)
        one.save_pretrained_merged(tmp_path / f"{name}-merged")
    for kind, file in (("", "adapter_model"), ("-merged", "model")):
        here, there = (
            load_file(tmp_path / f"{name}{kind}" / f"{file}.safetensors")
            for name in ("host", "device")
        )
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            np.testing.assert_array_equal(tensor, there[name])


@pytest.mark.slow
def test_it_is_resumed_and_evaluated(oracle, runs):
    (host, _, folder), _ = runs
    model = adapted(oracle)
    FastLanguageModel.for_training(model, "least")
    trainer = trainer_of(
        model,
        max_steps=3,
        save_steps=2,
        save_strategy="steps",
        output_dir=str(folder),
        eval_dataset=host.train_dataset,
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert records_of(trainer)[-1] == records_of(host)[-1]
    assert np.isfinite(trainer.evaluate()["eval_loss"])
