"""The mesh: its sizes, what it refuses, and batches on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.parallel.mesh import (
    MeshSettings,
    check_divides,
    devices_in_context,
    gathered,
    make_mesh,
    over_batch,
    replicated,
    spread,
)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (MeshSettings(), (8, 1)),
        (MeshSettings(data=1, fsdp=-1), (1, 8)),
        (MeshSettings(data=-1, fsdp=4), (2, 4)),
        (MeshSettings(data=4, fsdp=2), (4, 2)),
        (MeshSettings(data=1), (1, 1)),
        (MeshSettings(data=2, fsdp=2), (2, 2)),
    ],
)
def test_minus_one_takes_what_the_other_leaves_and_fewer_devices_may_be_used(settings, shape):
    mesh = make_mesh(settings)
    assert mesh.axis_names == ("data", "fsdp") and mesh.devices.shape == shape
    assert mesh.devices.flat[0] == jax.devices()[0]


@pytest.mark.parametrize("settings", [{"data": 3, "fsdp": -1}, {"data": 16}, {"data": 4, "fsdp": 4}])
def test_sizes_that_do_not_fit_the_devices_are_refused(settings):
    with pytest.raises(UserError, match="mesh.data = .* do not fit the 8 devices here"):
        make_mesh(MeshSettings(**settings))


@pytest.mark.parametrize("settings", [{"data": 0}, {"fsdp": -2}, {"data": -1, "fsdp": -1}])
def test_sizes_without_a_meaning_are_refused(settings):
    with pytest.raises(UserError, match="expected 1 or more, or -1 for one of the two"):
        MeshSettings(**settings)


def test_a_batch_that_cannot_be_cut_is_refused_with_sizes_that_can():
    check_divides("prompts_per_batch", 16, make_mesh())
    message = "prompts_per_batch = 10: expected a multiple of the 8 devices, such as 8 or 16; .* --config.mesh.data"
    with pytest.raises(UserError, match=message):
        check_divides("prompts_per_batch", 10, make_mesh())
    with pytest.raises(UserError, match="such as 8;"):
        check_divides("prompts_per_batch", 2, make_mesh())


def test_spread_and_gathered_lay_arrays_out_on_the_mesh_in_context():
    mesh = make_mesh(MeshSettings(2, 4))
    x = jnp.arange(48.0).reshape(3, 16)
    assert devices_in_context() == 1
    with jax.set_mesh(mesh):
        assert devices_in_context() == 8
        cut, whole = jax.jit(lambda x: (spread(x + 1, axis=1), gathered(spread(x + 1, axis=1))))(x)
    assert cut.sharding.is_equivalent_to(over_batch(mesh, axis=1), 2)
    assert {shard.data.shape for shard in cut.addressable_shards} == {(3, 2)}
    assert whole.sharding.is_equivalent_to(replicated(mesh), 2)
    np.testing.assert_array_equal(cut, x + 1)


def test_without_a_mesh_nothing_is_laid_out():
    x = jnp.ones((3, 2))
    assert spread(x) is x and gathered(x) is x
