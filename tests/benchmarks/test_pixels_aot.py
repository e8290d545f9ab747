"""The bounds of preparing images: both ways prepare the same, and the network's work is that of its layers."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import pixels_aot
from spo_jax.rewards.common.clip_pixels import transformers_pixels


@pytest.mark.parametrize("way", pixels_aot.WAYS.values())
def test_the_way_that_is_named_is_compiled(way):
    images = np.random.default_rng(0).uniform(-1, 1, (1, 300, 260, 3)).astype(np.float32)
    prepared = jax.jit(functools.partial(pixels_aot._prepare, way))
    expected = jax.jit(transformers_pixels, static_argnums=1)(images, 224)
    np.testing.assert_array_equal(prepared(images), expected)
    has_products = "dot_general" in prepared.trace(images).lower().as_text()
    assert has_products == (way is pixels_aot.WAYS["products of matrices"])


def test_the_work_of_a_layer(monkeypatch):
    """Products of one layer, the patches and the projection, by hand."""
    towers = {name: pixels_aot.CLIP_H[name] | {"num_hidden_layers": 1} for name in ("text_config", "vision_config")}
    monkeypatch.setattr(pixels_aot, "CLIP_H", pixels_aot.CLIP_H | towers)
    tokens, width, inner = 16 * 16 + 1, 1280, 5120
    layer = 4 * tokens * width**2 + 2 * tokens * width * inner + 2 * tokens**2 * width
    expected = layer + 16 * 16 * 14 * 14 * 3 * width + width * 1024
    assert pixels_aot.tower_operations(2) / 2 == pytest.approx(2 * expected, rel=0.01)


@pytest.mark.slow
def test_the_tower_s_work():
    """The usual 167 GMAC of ViT-H/14 at 224 pixels."""
    assert pixels_aot.tower_operations(2) / 2 == pytest.approx(2 * 167.3e9, rel=0.01)
