"""The script that makes the packaged model: same seed, same bytes; loss on the answers alone."""

from pathlib import Path

import numpy as np
import pytest

from convert import read_safetensors
from jaxtune.adapters.counting import count_parameters
from jaxtune.quickstart.pretrain import IGNORE, ROW, examples, new_model, pretrain
from jaxtune.quickstart.tasks import TASKS
from tests.packaged import packaged_model_folder


@pytest.mark.slow
def test_two_short_runs_write_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        pretrain(tmp_path / name, steps=20)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert set(files) == {
        "README.md",  # its card, which the package goes without
        *(file.name for file in packaged_model_folder().iterdir()),
    }
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    shapes = [
        {
            name: tensor.shape
            for name, tensor in read_safetensors(folder / "model.safetensors").items()
        }
        for folder in (tmp_path / "one", packaged_model_folder())
    ]
    assert shapes[0] == shapes[1]


def test_labels_are_the_answer_and_the_end_of_text():
    tokenizer = new_model(seed=0).carried.tokenizer
    seen = set()
    for row in examples(tokenizer, 400, seed=3):
        ids, labels = row["input_ids"], row["labels"]
        assert len(ids) == len(labels) <= ROW
        learned = [label for label in labels if label != IGNORE]
        assert labels == [IGNORE] * (len(ids) - len(learned)) + learned
        assert ids[-len(learned) :] == learned
        assert learned[-1] == tokenizer.eos_token_id
        asked, answer = tokenizer.decode(ids[1 : -len(learned)]), tokenizer.decode(learned[:-1])
        task, word = asked.removesuffix(" =").split(": ")
        assert answer == " " + TASKS[task](word)
        seen.add(task)
    assert seen == set(TASKS)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_leaf_of_the_new_model_is_trained(seed: int):
    model = new_model(seed)
    trainable, total = count_parameters(model)
    assert trainable == total
    weights = np.asarray(model.head_weight())
    assert np.array_equal(weights, np.asarray(new_model(seed).head_weight()))
    assert not np.array_equal(weights, np.asarray(new_model(seed + 5).head_weight()))
