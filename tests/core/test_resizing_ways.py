"""Pillow's resize is computed in two ways, one for CPUs and one for accelerators: both give Pillow's bytes."""

import jax
import numpy as np
import pytest
from PIL import Image

from spo_jax.core import resizing

# Made smaller, larger, very much smaller, and one axis as it is; none is tall, which Pillow 13 resizes otherwise.
SIZES = [((48, 64), (21, 28)), ((5, 7), (32, 45)), ((40, 700), (3, 52)), ((32, 64), (32, 50))]


@pytest.mark.parametrize("way", ["_tap_by_tap", "_digit_by_digit"])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_both_ways_give_the_bytes_of_pillow(monkeypatch, way, before, after):
    """Extreme values too, where sums leave 0 to 255 and are clipped."""
    chosen = getattr(resizing, way)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda images, cpu, default: chosen(images, **cpu.keywords))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*before, 3), np.uint8)
    extreme = (255 * rng.integers(0, 2, (*before, 3))).astype(np.uint8)
    expected = [Image.fromarray(image).resize(after[::-1], Image.Resampling.BICUBIC) for image in (noise, extreme)]
    resized = jax.jit(resizing.resize_pillow, static_argnums=1)(np.stack([noise, extreme]), after)
    np.testing.assert_array_equal(resized, np.stack([np.asarray(image) for image in expected]))


def test_an_accelerator_picks_no_pixels():
    """The program for a GPU has matrix products instead of gathers, and that for a CPU the other way round."""
    images = jax.ShapeDtypeStruct((1, 48, 64, 3), np.uint8)
    traced = jax.jit(resizing.resize_pillow, static_argnums=1).trace(images, (21, 28))
    for platform, has, has_not in (("cuda", "dot_general", "gather"), ("cpu", "gather", "dot_general")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert f"stablehlo.{has}" in text and f"stablehlo.{has_not}" not in text
