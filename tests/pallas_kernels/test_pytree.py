"""Dataclasses as pytrees: anything may stand in their leaves, and their paths are their fields."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import quantize_nf4


def test_leaves_may_be_markers_and_shapes() -> None:
    stack = quantize_nf4(jnp.ones((3, 5)))
    leaves, structure = jax.tree.flatten(stack)
    marked = jax.tree.unflatten(structure, [object()] * len(leaves))
    assert (marked.matrix, marked.dtype, marked.block) == ((3, 5), "float32", 64)
    shapes = jax.eval_shape(lambda: quantize_nf4(jnp.ones((3, 5))))
    assert jax.tree.structure(shapes) == structure
    assert shapes.shape == (1, 3, 5)
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.codes, stack.codes)


def test_static_fields_belong_to_the_structure_and_paths_name_fields() -> None:
    stack = quantize_nf4(jnp.ones((3, 5)))
    assert jax.tree.structure(stack) != jax.tree.structure(quantize_nf4(jnp.ones((5, 3))))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(stack)]
    assert paths[:2] == [".codes", ".absmax"]
    assert ".nested.offset" in paths
