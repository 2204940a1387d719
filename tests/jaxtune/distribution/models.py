"""Tiny models and batches for runs over many devices; each call gives the same ones."""

import numpy as np
from flax import nnx

from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import projections
from jaxtune.data.batch import IGNORE, Batch, MicroBatches
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.layers.linear import Linear, LoraSpec
from jaxtune.layers.variables import Frozen
from jaxtune.models.build import build, freeze, train_all
from jaxtune.models.registry import find_family
from pallas_kernels import quantize_nf4
from pallas_kernels.nf4 import Bank

VOCABULARY = 97
# The MLP's weights have two nested blocks of absmax, 256 rows each, which cross every shard; the
# vocabulary divides over no mesh.
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "attention_bias": False,
    "mlp_bias": False,
}


def tiny_model(kind: str, layers: int = 2, dropout: float = 0.0) -> LanguageModel:
    """A random Llama.

    Args:
      kind: "dense" or "nf4" weights under LoRA, "bank", of which one layer is dense, or "full",
        where every weight is trained.
      layers: L.
      dropout: Of the adapters.
    """
    family = with_verbs(find_family("llama"))
    config = family.config_from_hf({**CONFIG, "num_hidden_layers": layers})
    model = build(family, config, "random", initializer_range=0.2)
    freeze(model)
    model.carried.hf_config = CONFIG
    if kind in ("nf4", "bank"):
        for _, module in nnx.iter_modules(model.model.layers):
            if isinstance(module, Linear):
                module.weight = Frozen(_quantized(module.weight.get_value(), kind))
    if kind == "full":
        train_all(model)
        return model
    spec = LoraSpec(ranks=(3,) * layers, scales=(2.0,) * layers, dropout=dropout)
    inject_lora(model, dict.fromkeys(projections(model), spec), seed=0, init_lora_weights=False)
    return model


def _quantized(stack, kind):
    layers = [quantize_nf4(matrix) for matrix in stack]
    if kind == "bank":
        last = len(layers) - 1
        return Bank(
            dense=stack[last:],
            quantized=_stacked(layers[:last]),
            kinds=(True,) * last + (False,),
            slots=(*range(last), 0),
        )
    return _stacked(layers)


def _stacked(layers):
    from jaxtune.models.quantized import empty_stack, put_layer

    stack = empty_stack(layers[0], len(layers))
    for slot, one in enumerate(layers):
        stack = put_layer(stack, one, np.int32(slot))
    return stack


def padded(rows: int, length: int = 16) -> Batch:
    """Rows of ragged lengths, padded on the right."""
    draw = np.random.default_rng(rows)
    ids = draw.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
    lengths = draw.integers(1, length + 1, rows)
    labels = np.where(np.arange(length) < lengths[:, None], ids, IGNORE).astype(np.int32)
    return Batch(input_ids=ids, labels=labels, layout="causal")


def packed(rows: int, slots: int = 2, length: int = 16) -> MicroBatches:
    """Micro-batches of packed rows; the last slot is not used."""
    draw = np.random.default_rng(rows)
    shape = (slots, rows, length)
    ids = draw.integers(0, VOCABULARY, shape).astype(np.int32)
    borders = draw.integers(1, length, (slots, rows, 1))
    segments = np.where(np.arange(length) < borders, 1, 2).astype(np.int32)
    segments[0, 0, length - 3 :] = 0
    stack = Batch(input_ids=ids, labels=ids, segment_ids=segments)
    return MicroBatches(stacks=(stack,), used=(np.int32(slots - 1),))
