"""Layers for given weights are Linen's, except that they do not look at initialisers of weights that are there."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from spo_jax.nn.given import Conv, Dense, Embed, LayerNorm

X = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
IDS = np.array([[0, 2]])
LAYERS = [
    (Dense(5), nn.Dense(5), X),
    (Conv(5, (3, 3)), nn.Conv(5, (3, 3)), X),
    (LayerNorm(), nn.LayerNorm(), X),
    (Embed(3, 5), nn.Embed(3, 5), IDS),
]


@pytest.mark.parametrize(("ours", "linens", "x"), LAYERS, ids=lambda layer: type(layer).__name__)
def test_weights_are_drawn_and_used_as_linen_does_it(ours, linens, x):
    drawn, expected = (layer.init(jax.random.key(0), x) for layer in (ours, linens))
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    np.testing.assert_array_equal(ours.apply(drawn, x), linens.apply(drawn, x))


def test_the_initialiser_of_a_given_weight_is_not_called():
    def initialiser(*_):
        raise AssertionError("called")

    params = Dense(5).init(jax.random.key(0), X)
    assert Dense(5, kernel_init=initialiser, bias_init=initialiser).apply(params, X).shape == (2, 3, 3, 5)


def test_a_weight_of_another_shape_is_refused():
    params = Dense(6).init(jax.random.key(0), X)
    with pytest.raises(ScopeParamShapeError, match="kernel"):
        Dense(5).apply(params, X)


def test_without_a_key_there_are_shapes_without_numbers():
    for ours, _, x in LAYERS:
        drawn = ours.init(jax.random.key(0), x)
        made = ours.init({}, x)
        assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, drawn)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(made))
