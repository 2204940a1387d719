"""Which meshes are taken, and what the rules make of real models, without any device."""

import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxtune import FastLanguageModel
from jaxtune.bench.configs import BUILT_IN
from jaxtune.data.batch import Batch
from jaxtune.models.build import build
from jaxtune.models.configuration import hf_form
from jaxtune.models.placement import AXES, batch_specs, mesh_of
from jaxtune.models.registry import find_family
from jaxtune.models.sharding import state_specs
from jaxtune.models.sharding_rules import check_mesh, is_spec, largest_fsdp, names_at


def abstract(**sizes):
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


def llama_8b(bits):
    family = find_family("llama")
    config = family.config_from_hf(hf_form(BUILT_IN["llama-3-8b"]))
    return build(family, config, "abstract", dtype=jax.numpy.bfloat16, bits=bits)


@pytest.mark.parametrize(
    ("mesh", "error", "message"),
    [
        ("all", TypeError, "'auto', a dict of sizes, a jax.sharding.Mesh or None; got 'all'"),
        ({"rows": 2}, ValueError, r"among \['data', 'fsdp', 'tensor'\]; got \['rows'\]"),
        ({}, ValueError, "axes of `mesh` must be among"),
        ({"data": 0}, ValueError, "a whole number >= 1; got data=0"),
        ({"data": 2, "fsdp": 64}, ValueError, "which is 128, and 1 device. Pass sizes"),
        (jax.make_mesh((1, 1), ("data", "model")), ValueError, r"got \['data', 'model'\]"),
    ],
)
def test_another_mesh_is_refused_before_loading(mesh, error, message):
    with pytest.raises(error, match=message):
        FastLanguageModel.from_pretrained("./nowhere", load_in_4bit=False, mesh=mesh)


@pytest.mark.parametrize("axis", ["data", "rows"])
def test_one_axis_of_any_name_is_data(axis):
    mesh = mesh_of(jax.make_mesh((1,), (axis,)))
    assert mesh == mesh_of({"data": 1}) == mesh_of("auto")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_axes_of_a_mesh_stand_in_any_order():
    devices = np.array(jax.devices()).reshape(1, 1)
    assert mesh_of(Mesh(devices, ("fsdp", "data"))).axis_names == AXES


@pytest.mark.parametrize("bits", [4, 16])
def test_each_device_holds_its_part_of_a_real_model(bits):
    state = nnx.state(llama_8b(bits))
    mesh = abstract(data=2, fsdp=8)
    specs = jax.tree.leaves(state_specs(state, mesh), is_leaf=is_spec)
    whole = here = 0
    for leaf, spec in zip(jax.tree.leaves(state), specs, strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        parts = math.prod(mesh.shape[axis] for names in names_at(spec) for axis in names)
        whole, here = whole + size, here + size // parts
    # Norms, tables and offsets are copied.
    assert whole / 8 < here < whole / 8 * 1.001


def test_tensor_splits_outputs_before_attention_and_inputs_behind_it():
    specs = state_specs(nnx.state(llama_8b(16)), abstract(fsdp=4, tensor=2))
    layers = specs["model"]["layers"]
    assert layers["self_attn"]["q_proj"]["weight"].get_value() == PartitionSpec(
        None, "tensor", "fsdp"
    )
    assert layers["self_attn"]["o_proj"]["weight"].get_value() == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert layers["input_layernorm"]["weight"].get_value() == PartitionSpec()


def test_a_mesh_that_does_not_divide_the_model_is_told_what_would():
    config = llama_8b(16).config
    check_mesh(config, abstract(data=3, fsdp=16, tensor=2))
    with pytest.raises(ValueError, match=r'"fsdp" must divide .* got 3 for 4096.*1, 2, 4, 8'):
        check_mesh(config, abstract(fsdp=3, data=4))
    with pytest.raises(ValueError, match='"tensor" must divide the model\'s num_attention_heads'):
        check_mesh(config, abstract(tensor=64))
    assert largest_fsdp(config, 12) == 4


def test_rows_that_do_not_divide_are_told_what_would():
    ids = np.zeros((6, 8), np.int32)
    batch = Batch(input_ids=ids, labels=ids, layout="causal")
    with pytest.raises(
        ValueError, match=r"over the 4 devices that share them; got 6\. Pass 4 or 8"
    ):
        batch_specs(batch, abstract(data=2, fsdp=2, tensor=2))
    assert batch_specs(batch, abstract(data=3)).labels == PartitionSpec(("data", "fsdp"))
