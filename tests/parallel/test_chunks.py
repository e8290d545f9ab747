"""Chunks of one shape, whatever the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.parallel.chunks import in_chunks


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_chunks_give_what_the_whole_gives_and_compile_once(count):
    """And fewer rows than a chunk are not filled up: one prompt is not the work of many."""
    traced = []

    def function(rows):
        traced.append(rows.shape)
        return {"square": rows**2, "sum": rows.sum(1)}

    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    out = in_chunks(jax.jit(function), rows, chunk=4)
    assert traced == [(min(count, 4), 3)]
    np.testing.assert_array_equal(out["square"], rows**2)
    np.testing.assert_array_equal(out["sum"], jnp.asarray(rows).sum(1))
