"""Image arithmetic that equals torch's, and grids of images."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spo_jax.core.images import above, image_grid, to_uint8
from spo_jax.core.resizing import center_crop, resize_bicubic, shorter_side_size


@pytest.mark.parametrize("size", [(5, 6), (7, 9), (16, 3), (8, 12), (64, 40), (1, 1)])
def test_resize_equals_torch(size):
    """Up, down, one axis of each, and the identity."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False
    )
    ours = resize_bicubic(jnp.asarray(images), size)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=2e-6)


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


def test_to_uint8_clips_and_rounds():
    values = np.array([-1.5, -1.0, 0.0, 1.0, 1.5, 1 / 255 - 1, 1.9 / 255 - 1, 3.1 / 255 - 1]).reshape(1, -1)
    assert to_uint8(values).tolist() == [[0, 0, 128, 255, 255, 0, 1, 2]]  # 127.5 and 0.5 go to the even neighbour


def test_grid_fills_up_with_white():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 2, 2, 3), np.uint8)
    grid = image_grid(images, columns=2, gap=1)
    assert grid.shape == (5, 5, 3) and grid.dtype == np.uint8
    assert [grid[0, 0, 0], grid[0, 3, 0], grid[3, 0, 0]] == [0, 1, 2]
    assert (grid[2] == 255).all() and (grid[:, 2] == 255).all() and (grid[3:, 3:] == 255).all()


def test_one_image_above_another():
    first, second = np.zeros((2, 3, 3), np.uint8), np.ones((4, 3, 3), np.uint8)
    both = above(first, second, gap=1)
    assert both.shape == (7, 3, 3) and both.dtype == np.uint8
    assert both[:, 0, 0].tolist() == [0, 0, 255, 1, 1, 1, 1]
