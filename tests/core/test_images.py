"""Images as bytes, grids of them, and PNG files."""

import numpy as np
from PIL import Image

from spo_jax.core.images import above, image_grid, to_uint8, write_png


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


def test_a_png_holds_the_image_and_its_texts(tmp_path):
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    write_png(tmp_path / "deep" / "a.png", image, {"prompt": "a réd star"})
    with Image.open(tmp_path / "deep" / "a.png") as opened:
        assert opened.format == "PNG" and opened.text == {"prompt": "a réd star"}
        np.testing.assert_array_equal(np.asarray(opened), image)
