"""Work cut into chunks: on the host, and batches over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.parallel.chunks import cut, in_chunks, joined
from spo_jax.parallel.mesh import make_mesh, over_batch
from spo_jax.parallel.sizes import even_chunk, padded_chunk


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_chunks_give_what_the_whole_gives_and_compile_once(count):
    """Fewer rows than a chunk are not filled up: one prompt is not the work of many."""
    traced = []

    def function(rows):
        traced.append(rows.shape)
        return {"square": rows**2, "sum": rows.sum(1)}

    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    out = in_chunks(jax.jit(function), rows, chunk=4)
    assert traced == [(min(count, 4), 3)]
    np.testing.assert_array_equal(out["square"], rows**2)
    np.testing.assert_array_equal(out["sum"], jnp.asarray(rows).sum(1))


@pytest.mark.parametrize(
    ("batch", "per_device", "devices", "expected"),
    [
        (24, 10, 1, 8),  # three equal parts
        (24, 10, 2, 12),
        (24, 10, 8, 24),
        (7, 3, 1, 3),  # three parts, the last one padded
        (5, 10, 4, 8),  # never fewer than a row for each device
        (16, 16, 1, 16),
    ],
)
def test_padded_chunks_are_equal_parts(batch, per_device, devices, expected):
    assert padded_chunk(batch, per_device, devices) == expected
    assert expected <= per_device * devices


@pytest.mark.parametrize(
    ("batch", "per_device", "devices", "expected"),
    [(24, 10, 1, 8), (24, 5, 2, 8), (7, 3, 1, 1), (14, 7, 2, 14), (16, 100, 4, 16), (16, 1, 8, 8)],
)
def test_even_chunks_cut_the_batch_without_a_rest(batch, per_device, devices, expected):
    assert even_chunk(batch, per_device, devices) == expected
    assert batch % expected == 0 and expected <= per_device * devices


def test_a_batch_is_cut_and_joined_on_one_device():
    x = jnp.arange(12.0).reshape(6, 2)
    parts = cut({"x": x}, 2)["x"]
    assert parts.shape == (3, 2, 2)
    np.testing.assert_array_equal(joined(parts), x)


def test_every_part_holds_rows_of_every_device():
    """So that no row has to be moved: 32 rows on 8 devices in parts of 16 are two from each device."""
    mesh = make_mesh()
    rows = np.arange(32)
    with jax.set_mesh(mesh):
        x = jax.device_put(rows, over_batch(mesh))
        parts, again = jax.jit(lambda x: (cut(x, 16), joined(cut(x, 16))))(x)
    assert parts.shape == (2, 16)
    assert parts.sharding.is_equivalent_to(over_batch(mesh, axis=1), 2)
    np.testing.assert_array_equal(again, rows)
    for device in range(8):
        mine = np.asarray(parts)[:, 2 * device : 2 * device + 2].ravel()
        assert mine.tolist() == list(range(4 * device, 4 * device + 4))
