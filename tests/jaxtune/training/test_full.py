"""Full fine-tuning: every leaf trained, against torch's AdamW over transformers' groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx

from jaxtune.data.batch import IGNORE, Batch
from jaxtune.models.build import build
from jaxtune.models.naming import tensor_names
from jaxtune.models.registry import find_family
from jaxtune.optim.registry import create_optimizer
from jaxtune.optim.schedules import create_schedule
from jaxtune.training.step import make_train_step, split, window_gradient
from tests.families import SMALL
from tests.tolerances import relative_error, tolerance

STEPS, PEAK, DECAY, CLIP = 5, 1e-2, 0.1, 0.5
SIZES = {**SMALL, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}
MODELS = {
    "untied": ("llama", {**SIZES, "tie_word_embeddings": False}),
    "tied": (
        "gemma2",
        {
            **SIZES,
            "tie_word_embeddings": True,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 3.0,
        },
    ),
}


def hf_model(name):
    """transformers' model, norms drawn at random."""
    torch.manual_seed(0)
    model_type, options = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **options, initializer_range=0.3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "norm" in n):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.float()


def our_model(theirs, dtype=jnp.float32):
    """The same weights, every leaf an nnx.Param."""
    family = find_family(theirs.config.model_type)
    config = family.config_from_hf(theirs.config.to_dict())
    model = build(family, config, "random", dtype=dtype)
    held = theirs.state_dict()
    state = nnx.state(model)
    for path, leaf in nnx.to_flat_state(state):
        tensors = [held[name].numpy() for _, name in tensor_names(path, config.num_hidden_layers)]
        stacked = np.stack(tensors).reshape(leaf.get_value().shape)
        leaf.set_value(jnp.asarray(stacked, dtype))
    nnx.update(model, state)
    return model


def batches():
    """Ragged rows, padded on the right to one shape."""
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = draw.integers(3, SIZES["vocab_size"], (4, 12)).astype(np.int32)
        labels = ids.copy()
        for row, length in enumerate(draw.integers(2, 13, 4)):
            labels[row, length:] = IGNORE
        yield ids, labels


def their_run(model):
    """Losses, and parameters by name, of torch's own loop."""
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decayed) == wanted]}
        for wanted in (True, False)
    ]
    groups[1]["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(groups, PEAK, weight_decay=DECAY)
    scheduler = transformers.get_scheduler("cosine", optimizer, 1, STEPS)
    losses = []
    for ids, labels in batches():
        logits = model(input_ids=torch.tensor(ids).long()).logits
        targets = torch.tensor(labels[:, 1:]).long()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(MODELS))
def test_five_steps_equal_torchs(name):
    theirs = hf_model(name)
    graphdef, trainable, frozen = split(our_model(theirs))
    assert not jax.tree.leaves(frozen)
    rate = create_schedule("cosine", PEAK, 1, STEPS)
    tx = create_optimizer("adamw_torch", rate, weight_decay=DECAY)
    step = make_train_step(graphdef, tx, accumulation=2, max_grad_norm=CLIP)
    opt_state, losses = tx.init(trainable), []
    for ids, labels in batches():
        batch = Batch(input_ids=ids, labels=labels, layout="causal")
        trainable, opt_state, metrics = step(trainable, opt_state, frozen, batch)
        losses.append(float(metrics["loss"]))
    before = {name: p.detach().numpy().copy() for name, p in theirs.named_parameters()}
    expected_losses, expected = their_run(theirs)
    assert relative_error(losses, expected_losses) <= tolerance("float32", "full_loss")
    named = {
        name: leaf.get_value() if layer is None else leaf.get_value()[layer]
        for path, leaf in nnx.to_flat_state(trainable)
        for layer, name in tensor_names(path, SIZES["num_hidden_layers"])
    }
    assert set(named) == set(expected)
    for name, tensor in expected.items():
        error = relative_error(named[name], tensor)
        assert error <= tolerance("float32", "full_parameters"), name
        assert relative_error(before[name], tensor) > 1e-3  # it did move


def test_sums_of_a_bfloat16_leafs_gradients_are_float32():
    """Many micro-batches must not lose what one keeps; leaf and optimizer stay as they are."""
    graphdef, trainable, frozen = split(our_model(hf_model("untied"), jnp.bfloat16))
    ids, labels = next(iter(batches()))
    batch = Batch(input_ids=ids, labels=labels, layout="causal")
    gradient, _, _ = jax.eval_shape(
        lambda *trees: window_gradient(graphdef, *trees, 4), trainable, frozen, batch
    )
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(gradient)} == {"float32"}
    tx = optax.adam(1e-3)
    state = tx.init(trainable)
    made = jax.eval_shape(make_train_step(graphdef, tx), trainable, state, frozen, batch)[:2]
    for mine, given in zip(jax.tree.leaves(made), jax.tree.leaves((trainable, state)), strict=True):
        assert mine.dtype == given.dtype
