"""Shapes of weights: a network is traced once."""

import jax

from spo_jax.nn.shapes import vae_shapes
from spo_jax.nn.vae import AutoencoderKL
from spo_jax.parallel.mesh import make_mesh
from tests.support.networks import VAE


def test_an_equal_network_is_not_traced_again_and_each_tree_may_be_changed(monkeypatch):
    with jax.set_mesh(make_mesh()):
        first = vae_shapes(AutoencoderKL(VAE))
    monkeypatch.setattr(AutoencoderKL, "init", None)  # it would be called
    second = vae_shapes(AutoencoderKL(VAE))
    assert second == first and {leaf.sharding for leaf in jax.tree.leaves(first)} == {None}
    del first["decoder"]["conv_out"]["kernel"]
    assert vae_shapes(AutoencoderKL(VAE)) == second != first
