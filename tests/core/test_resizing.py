"""Resizes and crops that equal torch's and torchvision's; float32 on both sides. Those of Pillow are tested beside."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spo_jax.core.resizing import (
    center_crop,
    center_crop_floor,
    resize_antialias,
    resize_bicubic,
    shorter_side_size,
    shorter_side_size_cut,
)


@pytest.mark.parametrize("size", [(5, 6), (7, 9), (16, 3), (8, 12), (64, 40), (1, 1)])
def test_resize_equals_torch(size):
    """Up, down, one axis of each, and the identity."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False
    )
    ours = resize_bicubic(jnp.asarray(images), size)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [(5, 6), (16, 3), (4, 12), (31, 45), (1, 1)])
def test_antialiased_resize_equals_torch(size):
    """Torchvision resizes tensors so; made larger, it differs from the other one, because its kernel does."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(tensor, size=size, mode="bicubic", antialias=True, align_corners=False)
    ours = resize_antialias(jnp.asarray(images), size)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=5e-6)
    assert np.abs(ours - resize_bicubic(jnp.asarray(images), size)).max() > 1e-2


def test_resize_keeps_the_dtype_but_not_its_precision():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)), jnp.bfloat16)
    ours = resize_bicubic(images, (5, 5))
    assert ours.dtype == jnp.bfloat16
    expected = resize_bicubic(images.astype(jnp.float32), (5, 5)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(ours.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(512, 512, (224, 224)), (512, 768, (224, 336)), (300, 200, (336, 224))]
)
def test_shorter_side_size(height, width, expected):
    assert shorter_side_size(height, width, 224) == expected


def test_shorter_side_size_rounds_half_up():
    assert shorter_side_size(4, 5, 2) == (2, 3)  # 2.5


@pytest.mark.parametrize(("width", "first"), [(4, 0), (5, 0), (6, 1), (7, 2), (8, 2), (9, 2), (11, 4)])
def test_crop_offset_rounds_half_to_even(width, first):
    """Crops of 4: the offsets of widths 5, 7, 9, 11 are 0.5, 1.5, 2.5 and 3.5."""
    columns = jnp.broadcast_to(jnp.arange(float(width)).reshape(1, 1, width, 1), (1, width, width, 3))
    cropped = center_crop(columns, 4)
    assert cropped.shape == (1, 4, 4, 3)
    assert cropped[0, 0, :, 0].tolist() == [first, first + 1, first + 2, first + 3]
    np.testing.assert_array_equal(center_crop(columns.swapaxes(1, 2), 4), cropped.swapaxes(1, 2))


@pytest.mark.parametrize(("width", "first"), [(4, 0), (5, 0), (6, 1), (7, 1), (8, 2), (9, 2), (11, 3)])
def test_crop_offset_rounds_down(width, first):
    """Of transformers' crop; the other rule gives 2 and 4 for the widths 7 and 11."""
    columns = jnp.broadcast_to(jnp.arange(width).reshape(1, 1, width, 1), (1, width, width, 3))
    cropped = center_crop_floor(columns, 4)
    assert cropped.shape == (1, 4, 4, 3)
    assert cropped[0, 0, :, 0].tolist() == [first, first + 1, first + 2, first + 3]
    np.testing.assert_array_equal(center_crop_floor(columns.swapaxes(1, 2), 4), cropped.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (224, 224)),
        (64, 70, (224, 245)),
        (19, 300, (224, 3536)),
        (130, 90, (323, 224)),
        (224, 225, (224, 225)),
    ],
)
def test_the_longer_side_is_cut_to_a_whole_number(height, width, expected):
    """224 · 300 / 19 is 3536.8, and 224 · 130 / 90 is 323.6."""
    assert shorter_side_size_cut(height, width, 224) == expected
