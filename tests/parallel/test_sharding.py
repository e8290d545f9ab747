"""Which weights are cut, and how arrays move between host and mesh."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch, replicated
from spo_jax.parallel.sharding import (
    abstract_weights,
    make,
    place,
    place_weights,
    shapes_of,
    shardings,
    to_host,
    with_shardings,
)

WEIGHTS = {
    "conv_in": {"kernel": np.ones((3, 3, 4, 16), np.float32), "bias": np.ones(16, np.float32)},
    "to_q": {"kernel": np.arange(128, dtype=np.float32).reshape(8, 16)},
    "conv_out": {"kernel": np.ones((3, 3, 16, 3), np.float32)},
    "tokens": {"embedding": np.ones((10, 8), np.float32)},
    "logit_scale": np.float32(4.6),
}


def specs(mesh, **kwargs):
    return jax.tree.map(lambda sharding: sharding.spec, shardings(WEIGHTS, mesh, **kwargs))


def test_kernels_are_cut_along_their_outputs_and_the_rest_is_whole():
    found = specs(make_mesh(MeshSettings(2, 4)))
    assert found["conv_in"] == {"kernel": P(None, None, None, "fsdp"), "bias": P()}
    assert found["to_q"]["kernel"] == P(None, "fsdp") and found["tokens"]["embedding"] == P(None, "fsdp")
    assert found["conv_out"]["kernel"] == P() and found["logit_scale"] == P()  # 3 outputs for 4 devices: whole


def test_with_one_device_along_fsdp_everything_is_whole():
    assert set(jax.tree.leaves(specs(make_mesh()), is_leaf=lambda x: isinstance(x, P))) == {P()}


def test_the_first_rule_that_matches_decides_and_the_decision_is_logged(caplog):
    rules = ((r"to_q/kernel$", ("fsdp", None)), (r"kernel$", ("fsdp",)), (r"", ()))
    with caplog.at_level(logging.INFO, logger="absl"):
        found = specs(make_mesh(MeshSettings(2, 4)), rules=rules, title="toy")
    assert found["to_q"]["kernel"] == P("fsdp", None) and found["conv_in"]["kernel"] == P(None, None, None, "fsdp")
    assert "toy: 'to_q/kernel$' -> ('fsdp', None): 1 arrays cut, 0 whole" in caplog.text
    assert "toy: 'kernel$' -> ('fsdp',): 1 arrays cut, 1 whole" in caplog.text


def test_weights_go_to_the_mesh_in_parts_and_come_back_whole():
    placed = place_weights(WEIGHTS, make_mesh(MeshSettings(2, 4)))
    assert {shard.data.shape for shard in placed["to_q"]["kernel"].addressable_shards} == {(8, 4)}
    jax.tree.map(np.testing.assert_array_equal, to_host(placed), WEIGHTS)


def test_without_a_mesh_weights_go_to_the_first_device():
    assert {leaf.device for leaf in jax.tree.leaves(place_weights(WEIGHTS, None))} == {jax.devices()[0]}


def test_batches_go_in_parts_and_what_is_made_is_whole():
    mesh = make_mesh()
    x = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    batch = place({"x": x}, over_batch(mesh))["x"]
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[row] for row in x.tolist()]
    made = make(lambda x: {"sum": x.sum()}, mesh, batch)["sum"]
    assert made == x.sum() and made.sharding.is_equivalent_to(replicated(mesh), 0)


def test_abstract_weights_lie_where_placed_ones_do():
    """In the dtype that is asked for; scalars keep theirs."""
    mesh = make_mesh(MeshSettings(2, 4))
    shapes = abstract_weights(jax.eval_shape(lambda: WEIGHTS), jnp.bfloat16, mesh)
    placed = place_weights(WEIGHTS, mesh)
    assert jax.tree.map(lambda x: x.sharding, shapes) == jax.tree.map(lambda x: x.sharding, placed)
    assert shapes["to_q"]["kernel"].dtype == jnp.bfloat16 and shapes["logit_scale"].dtype == jnp.float32
    without = abstract_weights(jax.eval_shape(lambda: WEIGHTS), jnp.bfloat16, None)
    assert {leaf.sharding for leaf in jax.tree.leaves(without)} == {None}


def test_shapes_keep_the_shardings_of_a_mesh():
    mesh = make_mesh()
    batch = place(np.zeros((8, 2), np.float32), over_batch(mesh))
    assert shapes_of(batch).sharding == over_batch(mesh)
    assert shapes_of(batch, replicated(mesh)).sharding == replicated(mesh)
    assert shapes_of(jnp.zeros(3)).sharding is None  # on one device, and nowhere in particular
    again = with_shardings({"x": shapes_of(jnp.zeros(3))}, {"x": replicated(mesh)})
    assert again["x"].sharding == replicated(mesh) and again["x"].shape == (3,)
