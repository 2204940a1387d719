"""The training step on a tiny random Llama with LoRA: one window, however it is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import projections
from jaxtune.config import DecoderConfig, LayerSpec, NormSpec, RopeSpec
from jaxtune.data.batch import IGNORE, Batch
from jaxtune.layers.context import LayerContext
from jaxtune.layers.linear import Linear, LoraSpec
from jaxtune.models.build import build
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.training.step import (
    clip_by_global_norm,
    loss,
    make_train_step,
    merge,
    split,
    window_gradient,
)
from tests.tolerances import relative_error, tolerance

LENGTHS = [3, 12, 5, 9, 1, 12, 7, 2]  # two documents of the greatest length, one of one token
WIDTH = 12
VOCABULARY = 48
ROPE = RopeSpec(rope_type="default", rope_theta=100.0)
CONFIG = DecoderConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=4,
    hidden_activation="silu",
    max_position_embeddings=32,
    tie_word_embeddings=False,
    norm=NormSpec(rms_norm_eps=1e-5, unit_offset=False, sandwich=False, qk_norm=False),
    period=(LayerSpec(window=None, rope=ROPE),),
    query_scale=0.5,
    embedding_scale=1.0,
    attention_bias=False,
    mlp_bias=False,
    attn_logit_softcapping=None,
    final_logit_softcapping=4.0,
)
gradient_of = jax.jit(window_gradient, static_argnums=(0, 4))
loss_of = jax.jit(loss, static_argnums=0)


@functools.cache
def parts(dropout=0.0):
    """A split model whose adapters, of ranks 2 and 3, do change its output."""
    model = build(LlamaForCausalLM, CONFIG, "random", initializer_range=0.3)
    spec = LoraSpec(ranks=(2, 3), scales=(0.5, 2.0), dropout=dropout)
    adapted = ("self_attn.q_proj", "mlp.down_proj")
    inject_lora(model, dict.fromkeys(adapted, spec), seed=1)
    for number, path in enumerate(adapted):
        lora_b = projections(model)[path].lora_B
        values = 0.2 * np.random.default_rng(number).normal(size=lora_b.get_value().shape)
        values[0, :, 2] = 0
        lora_b.set_value(jnp.asarray(values, jnp.float32))
    return split(model)


def fresh(tree):
    """A copy that a step may consume."""
    return jax.tree.map(jnp.array, tree)


def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, n).astype(np.int32) for n in LENGTHS]


def padded(rows, **changes):
    ids, labels = np.zeros((len(rows), WIDTH), np.int32), np.full((len(rows), WIDTH), IGNORE)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = labels[place, : len(row)] = row
    values = {"input_ids": ids, "labels": labels.astype(np.int32), "layout": "causal"}
    return Batch(**(values | changes))


def torch_losses(rows):
    """Token losses of each document in float64, from the model's own logits."""
    model = merge(*parts())
    window = padded([*rows, *[[]] * (len(LENGTHS) - len(rows))])  # one shape for all
    logits = torch.tensor(np.asarray(model(window.input_ids), np.float64))
    return [
        torch.nn.functional.cross_entropy(
            logits[place, : len(row) - 1], torch.tensor(row[1:]).long(), reduction="none"
        )
        for place, row in enumerate(rows)
    ]


def worst(actual, expected):
    """The largest relative error over the leaves of two trees."""
    errors = jax.tree.map(relative_error, nnx.to_pure_dict(actual), nnx.to_pure_dict(expected))
    return max(jax.tree.leaves(errors))


def test_split_tells_adapters_from_base_and_merge_undoes_it():
    graphdef, trainable, frozen = parts()
    names = {str(path[-1]) for path, _ in nnx.to_flat_state(trainable)}
    assert names == {"lora_A", "lora_B"}
    assert len(jax.tree.leaves(trainable)) == 2 * 2
    assert not {str(path[-1]) for path, _ in nnx.to_flat_state(frozen)} & names
    again = split(merge(graphdef, trainable, frozen))
    assert again[0] == graphdef
    assert jax.tree.structure(again[1:]) == jax.tree.structure((trainable, frozen))


@pytest.mark.parity
def test_loss_is_torchs_sum_over_the_shifted_labels():
    loss_sum, count = loss_of(*parts(), padded(documents()))
    expected = torch.cat(torch_losses(documents()))
    assert int(count) == len(expected) == sum(n - 1 for n in LENGTHS)
    assert relative_error(loss_sum, expected.sum()) <= tolerance("float32", "window_loss")


@pytest.mark.parity
def test_smoothed_loss_is_torchs_and_its_gradient_the_whole_windows():
    batch, (graphdef, trainable, frozen) = padded(documents()), parts()
    model = merge(graphdef, trainable, frozen)
    logits = torch.tensor(np.asarray(model(batch.input_ids))[:, :-1].reshape(-1, VOCABULARY))
    expected = torch.nn.functional.cross_entropy(
        logits.double(),
        torch.tensor(np.asarray(batch.labels)[:, 1:].reshape(-1)).long(),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=0.3,
    )
    found, count = loss(graphdef, trainable, frozen, batch, label_smoothing=0.3)
    assert relative_error(found, expected) <= tolerance("float32", "window_loss")
    _, mean, tokens = window_gradient(graphdef, trainable, frozen, batch, 4, label_smoothing=0.3)
    assert tokens == count
    assert relative_error(mean, expected / int(count)) <= tolerance("float32", "window_loss")
    step = make_train_step(graphdef, optax.sgd(0.1), label_smoothing=0.3)
    *_, metrics = step(fresh(trainable), optax.sgd(0.1).init(trainable), frozen, batch)
    assert relative_error(metrics["loss"], mean) <= tolerance("float32", "window_loss")


@pytest.mark.parity
def test_ignored_labels_do_not_count():
    rows = documents()
    batch = padded(rows)
    batch.labels[:, :3] = IGNORE
    loss_sum, count = loss_of(*parts(), batch)
    # The label at position t is predicted at t - 1: the first two predictions drop out.
    expected = torch.cat([losses[2:] for losses in torch_losses(rows)])
    assert int(count) == len(expected)
    assert relative_error(loss_sum, expected.sum()) <= tolerance("float32", "window_loss")


@pytest.mark.parity
@pytest.mark.parametrize("accumulation", [2, 8])
def test_mean_is_over_all_tokens_of_the_window(accumulation):
    _, mean, tokens = gradient_of(*parts(), padded(documents()), accumulation)
    losses = torch_losses(documents())
    expected = torch.cat(losses).mean()
    assert int(tokens) == sum(n - 1 for n in LENGTHS)
    assert relative_error(mean, expected) <= tolerance("float32", "window_loss")
    of_means = torch.stack([row.mean() for row in losses if len(row)]).mean()
    assert abs(of_means / expected - 1) > 1e-3  # the case tells the two apart


def test_gradient_does_not_depend_on_the_cut():
    """1 x 8 and 2 x 4 rows; 4 x 2 rows are cut by the steps below."""
    whole = gradient_of(*parts(), padded(documents()), 1)
    cut = gradient_of(*parts(), padded(documents()), 2)
    assert worst(cut[0], whole[0]) <= tolerance("float32", "window_gradient")
    assert relative_error(cut[1], whole[1]) <= tolerance("float32", "window_loss")
    assert cut[2] == whole[2]


def test_gradient_is_the_derivative_of_the_mean():
    """Along a random direction, against central differences of the float32 loss."""
    graphdef, trainable, frozen = parts()
    gradient, _, tokens = gradient_of(graphdef, trainable, frozen, padded(documents()), 2)
    key = jax.random.key(7)
    way = jax.tree.map(lambda g: jnp.sign(g) * jax.random.uniform(key, g.shape), gradient)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, w: jnp.vdot(g, w), gradient, way)))

    def mean_at(step):
        moved = jax.tree.map(lambda p, w: p + step * w, trainable, way)
        return float(loss_of(graphdef, moved, frozen, padded(documents()))[0]) / int(tokens)

    h = 2e-3
    differences = (mean_at(h) - mean_at(-h)) / (2 * h)
    assert relative_error(differences, slope) <= tolerance("float32", "finite_difference")


def test_gradient_of_rows_beyond_a_layers_rank_is_zero():
    gradient, _, _ = gradient_of(*parts(), padded(documents()), 1)
    for path, leaf in nnx.to_flat_state(gradient):
        value = np.asarray(leaf.get_value())
        beyond, held = (value[0, 2], value[0, :2])
        if path[-1] == "lora_B":
            beyond, held = value[0, ..., 2], value[0, ..., :2]
        assert not beyond.any()
        assert held.any()


RATE = 0.1


@functools.cache
def make_step(name, accumulation, max_grad_norm):
    """A step and its optimizer; each is compiled once for all tests, as `traces` shows."""
    optimizer = {
        "sgd": optax.sgd(lambda count: RATE / (1 + count)),
        "adamw": optax.adamw(1e-2),
    }[name]
    traces = []

    def update(*arguments):
        traces.append(1)
        return optimizer.update(*arguments)

    tx = optax.GradientTransformation(optimizer.init, update)
    step = make_train_step(parts()[0], tx, accumulation=accumulation, max_grad_norm=max_grad_norm)
    return step, tx, traces


def trained(name, accumulation, *batches, max_grad_norm=None):
    """What comes of a step on each batch: (parameters, state, metrics of the last)."""
    step, tx, _ = make_step(name, accumulation, max_grad_norm)
    _, trainable, frozen = parts()
    trainable, state, metrics = fresh(trainable), tx.init(trainable), None
    for batch in batches:
        trainable, state, metrics = step(trainable, state, frozen, batch)
    return trainable, state, metrics


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_five_steps_do_not_depend_on_the_cut(name):
    """1x8, 2x4 and 4x2 rows: at each step the same loss and gradient, and the same parameters."""
    batches = [padded(documents()), padded(documents()[::-1])] * 2 + [padded(documents())]
    tx = optax.sgd(RATE) if name == "sgd" else optax.adamw(RATE)
    graphdef, start, frozen = parts()
    runs = {cut: (start, tx.init(start)) for cut in (8, 4, 2)}
    for batch in batches:
        here = runs[8][0]
        whole, mean, _ = gradient_of(graphdef, here, frozen, batch, 8)
        for cut, (trainable, state) in runs.items():
            same, same_mean, _ = gradient_of(graphdef, here, frozen, batch, cut)
            assert worst(same, whole) <= tolerance("float32", "window_gradient")
            assert relative_error(same_mean, mean) <= tolerance("float32", "window_loss")
            own, _, _ = gradient_of(graphdef, trainable, frozen, batch, cut)
            updates, state = tx.update(own, state, trainable)
            runs[cut] = (optax.apply_updates(trainable, updates), state)
    for cut in (4, 2):
        assert worst(runs[cut][0], runs[8][0]) <= tolerance("float32", f"{name}_steps")
    assert worst(runs[8][0], start) > 0.02  # they did move


@pytest.mark.parametrize("max_grad_norm", [None, 1e-2])
def test_step_descends_the_clipped_gradient_and_reports_the_whole_norm(max_grad_norm):
    batch = padded(documents())
    gradient, mean, tokens = gradient_of(*parts(), batch, 1)
    after, _, metrics = trained("sgd", 4, batch, max_grad_norm=max_grad_norm)
    tensors = [torch.zeros(g.shape, requires_grad=True) for g in jax.tree.leaves(gradient)]
    for tensor, leaf in zip(tensors, jax.tree.leaves(gradient), strict=True):
        tensor.grad = torch.tensor(np.asarray(leaf))
    norm = torch.nn.utils.clip_grad_norm_(tensors, max_grad_norm or float("inf"))
    torch_steps = zip(jax.tree.leaves(parts()[1]), tensors, strict=True)
    expected = [np.asarray(p) - RATE * tensor.grad.numpy() for p, tensor in torch_steps]
    for found, wanted in zip(jax.tree.leaves(after), expected, strict=True):
        assert relative_error(found, wanted) <= tolerance("float32", "sgd_steps")
    assert relative_error(metrics["grad_norm"], norm) <= tolerance("float32", "gradient_norm")
    assert relative_error(metrics["loss"], mean) <= tolerance("float32", "window_loss")
    assert metrics["tokens"] == tokens


@pytest.mark.parity
@pytest.mark.parametrize("max_grad_norm", [1e-5, 0.1, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0])
def test_clipping_equals_torchs(max_grad_norm, scale):
    rng = np.random.default_rng(0)
    leaves = {"a": scale * rng.normal(size=(3, 4)), "b": scale * rng.normal(size=7)}
    tensors = [torch.zeros(leaf.shape, requires_grad=True) for leaf in leaves.values()]
    for tensor, leaf in zip(tensors, leaves.values(), strict=True):
        tensor.grad = torch.tensor(leaf, dtype=torch.float32)
    norm = torch.nn.utils.clip_grad_norm_(tensors, max_grad_norm)
    gradient = nnx.State({k: nnx.Param(jnp.asarray(v, jnp.float32)) for k, v in leaves.items()})
    clipped = clip_by_global_norm(gradient, jnp.float32(norm.item()), max_grad_norm)
    for name, tensor in zip(leaves, tensors, strict=True):
        error = relative_error(clipped[name].get_value(), tensor.grad)
        assert error <= tolerance("float32", "gradient_norm")


def test_schedule_counts_steps_and_not_micro_batches():
    state = trained("sgd", 4, *[padded(documents())] * 3)[1]
    assert [int(leaf) for leaf in jax.tree.leaves(state)] == [3]


def test_the_first_two_arguments_are_consumed_and_no_other():
    _, trainable, frozen = parts()
    step, tx, _ = make_step("adamw", 1, None)
    given = (fresh(trainable), tx.init(trainable))
    step(*given, frozen, padded(documents()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


def test_equal_shapes_compile_once():
    trained("sgd", 1, padded(documents()), padded(documents()[::-1]))
    assert make_step("sgd", 1, None)[2] == [1]


@pytest.mark.parametrize("accumulation", [3, 16])
def test_rows_that_do_not_divide_are_refused(accumulation):
    message = rf"must divide into {accumulation} micro-batches; got 8 rows\. Fill"
    with pytest.raises(ValueError, match=message):
        trained("sgd", accumulation, padded(documents()))


def test_a_window_without_labels_changes_nothing():
    batch = padded(documents())
    batch.labels[:] = IGNORE
    after, _, metrics = trained("sgd", 4, batch, max_grad_norm=1e-2)
    assert {k: float(v) for k, v in metrics.items()} == {"loss": 0, "grad_norm": 0, "tokens": 0}
    assert worst(after, parts()[1]) == 0


@pytest.mark.parity
def test_a_micro_batch_without_labels_weighs_nothing():
    """The remainder of an epoch is filled with empty rows."""
    rows = documents()[:4]
    _, mean, tokens = gradient_of(*parts(), padded([*rows, *[[]] * 4]), 2)
    expected = torch.cat(torch_losses(rows)).mean()
    assert relative_error(mean, expected) <= tolerance("float32", "window_loss")
    assert int(tokens) == sum(len(row) - 1 for row in rows)


def packed(rows):
    """The documents in two rows of 32 tokens, padding at the end."""
    tokens = {name: np.zeros((2, 32), np.int32) for name in ("ids", "segments")}
    labels = np.full((2, 32), IGNORE, np.int32)
    for place, group in enumerate((rows[:3], rows[3:7])):
        start = 0
        for number, row in enumerate(group, 1):
            span = (place, slice(start, start + len(row)))
            tokens["ids"][span] = labels[span] = row
            tokens["segments"][span] = number
            start += len(row)
    return Batch(
        input_ids=tokens["ids"],
        labels=labels,
        segment_ids=tokens["segments"],
        layout="packed",
    )


def test_packed_documents_learn_what_they_learn_alone():
    rows = documents()[:7]
    alone = gradient_of(*parts(), padded([*rows, []]), 1)
    together = gradient_of(*parts(), packed(rows), 2)
    assert worst(together[0], alone[0]) <= tolerance("float32", "window_gradient")
    assert relative_error(together[1], alone[1]) <= tolerance("float32", "window_loss")
    assert together[2] == alone[2]


def test_a_batch_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="must have `segment_ids`"):
        trained("sgd", 1, padded(documents(), layout="packed"))


def test_dropout_without_a_key_is_refused():
    graphdef, trainable, frozen = parts(0.5)
    tx = optax.sgd(1.0)
    step = make_train_step(graphdef, tx)
    with pytest.raises(ValueError, match=r"need `Batch.dropout_key` .*got None\. Pass a key"):
        step(fresh(trainable), tx.init(trainable), frozen, padded(documents()))


def mean_with_dropout(rows, seed):
    batch = padded(rows, dropout_key=jax.random.key(seed))
    return float(gradient_of(*parts(0.5), batch, 2)[1])


def test_dropout_follows_its_key():
    means = [mean_with_dropout(documents(), seed) for seed in (0, 0, 1, 2)]
    assert means[0] == means[1]
    assert len(set(means)) == 3


def test_each_micro_batch_drops_inputs_of_its_own():
    """The same rows in the first and in the second micro-batch of a window, beside empty ones."""
    rows, empty = documents()[:4], [[]] * 4
    first, second = [mean_with_dropout(w, 0) for w in ([*rows, *empty], [*empty, *rows])]
    assert abs(first - second) > 1e-3


def test_dropout_keeps_the_expected_share_and_the_expectation():
    """A = B = 1: what the branch adds is the dropped input itself."""
    linear = Linear(4, 4, layers=None, bias=False, std=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    linear.lora = LoraSpec(ranks=(4,), scales=(1.0,), dropout=0.25)
    linear.lora_A, linear.lora_B = nnx.LoRAParam(jnp.eye(4)), nnx.LoRAParam(jnp.eye(4))
    table = jnp.zeros((1, 1, 4))
    context = LayerContext(
        layer=0,
        spec=CONFIG.period[0],
        cos=table,
        sin=table,
        segment_ids=None,
        cache=None,
        adapters=True,
        dropout_key=jax.random.key(5),
        kernels="auto",
        row_kernels="auto",
        split_kernels="auto",
        prepared={},
        middle_kept=False,
        mlp_pieces=1,
    )
    n = 40_000
    y = np.asarray(linear(jnp.ones((1, n // 4, 4)), context, 0))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    deviation = (0.25 * 0.75 / n) ** 0.5
    assert abs((y > 0).mean() - 0.75) < 4 * deviation
    assert abs(y.mean() - 1) < 4 * deviation / 0.75
