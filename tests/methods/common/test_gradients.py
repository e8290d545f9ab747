"""Gradients that are summed over chunks."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.methods.common.gradients import chunked_gradients

PARAMS = {"w": jnp.array([[0.5, -1.0], [2.0, 0.25]]), "b": jnp.array([0.1, -0.2])}
ROWS = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2), np.float32))


def loss(params, chunk):
    rows, weight = chunk
    values = jnp.tanh(rows @ params["w"] + params["b"].reshape(1, 2)).sum(1) * weight
    return values.sum(), {"loss": values.sum(), "rows": weight.sum()}


def chunked(rows, weight, size, count):
    def chunk_at(index):
        return tuple(jax.lax.dynamic_slice_in_dim(x, index * size, size) for x in (rows, weight))

    zero_metrics = {"loss": jnp.zeros(()), "rows": jnp.zeros(())}
    return jax.jit(lambda params: chunked_gradients(loss, params, chunk_at, count, zero_metrics))(PARAMS)


def test_chunks_add_up_to_the_batch():
    weight = jnp.array([1.0, 0.5, 0.0, 1.0, 2.0, 0.0])
    gradients, metrics = jax.grad(loss, has_aux=True)(PARAMS, (ROWS, weight))
    for size in (2, 3):
        found, sums = chunked(ROWS, weight, size, 6 // size)[::-1]
        for a, b in zip(jax.tree.leaves((found, sums)), jax.tree.leaves((gradients, metrics)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_further_chunks_are_not_computed():
    """They may hold NaN, which would spoil the sums even with weight 0."""
    rows = ROWS.at[4:].set(jnp.nan)
    metrics, gradients = chunked(rows, jnp.ones(6), 2, 2)
    assert metrics["rows"] == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, gradients)))


def test_gradients_are_constrained_in_every_chunk():
    """`constrain` keeps them where their weights lie: it is applied to the sums' start and to every chunk's part."""
    seen = []

    def constrain(tree):
        seen.append(jax.tree.structure(tree))
        return tree

    def chunk_at(index):
        return ROWS, jnp.ones(6)

    zero_metrics = {"loss": jnp.zeros(()), "rows": jnp.zeros(())}
    jax.eval_shape(lambda params: chunked_gradients(loss, params, chunk_at, 2, zero_metrics, constrain), PARAMS)
    assert len(seen) >= 2 and set(seen) == {jax.tree.structure(PARAMS)}
