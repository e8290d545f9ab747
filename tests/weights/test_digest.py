"""A digest changes with everything that would change the results of a network, and with nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import place_weights
from spo_jax.weights.digest import weights_digest

TREE = {"a": {"kernel": np.arange(16, dtype=np.float32).reshape(2, 8)}, "b": np.float32(2)}


def test_order_and_placement_do_not_matter():
    reordered = {"b": TREE["b"], "a": {"kernel": np.asfortranarray(TREE["a"]["kernel"])}}
    sharded = place_weights(jax.tree.map(jnp.asarray, TREE), make_mesh(MeshSettings(1, 8)))
    assert len(sharded["a"]["kernel"].addressable_shards[0].data[0]) == 1
    assert weights_digest(TREE) == weights_digest(reordered) == weights_digest(sharded)


@pytest.mark.parametrize(
    "other",
    [
        {**TREE, "b": np.float32(2.0000002)},
        {**TREE, "b": np.asarray([2], np.float32)},
        {**TREE, "a": {"kernel": TREE["a"]["kernel"].astype(jnp.bfloat16)}},
        {**TREE, "a": {"kernel": TREE["a"]["kernel"].reshape(8, 2)}},
        {**TREE, "a": {"bias": TREE["a"]["kernel"]}},
        {"a": TREE["a"]},
    ],
)
def test_values_types_shapes_and_names_matter(other):
    assert weights_digest(other) != weights_digest(TREE)
