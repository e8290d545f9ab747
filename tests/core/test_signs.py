"""The signs of reward hacking, on images whose values are known by hand."""

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.images import to_uint8
from spo_jax.core.signs import SIGN_MEANINGS, image_signs


def _grey(brightness: np.ndarray) -> np.ndarray:
    """Makes grey images of values in [0, 1]."""
    return np.repeat(np.atleast_3d(brightness)[None], 3, -1) * 2 - 1


def _sign(name: str, images: np.ndarray) -> list[float]:
    return image_signs(images)[name].tolist()


def _wave(size: int, index: int) -> np.ndarray:
    """The cosine of ``index`` / 2 cycles per side, along x, around 1/2."""
    row = np.cos(np.pi * (np.arange(size) + 0.5) * index / size) / 4 + 0.5
    return np.tile(row, (size, 1))


def test_every_sign_has_a_meaning_and_one_value_an_image():
    signs = image_signs(np.zeros((3, 8, 6, 3), np.float32))
    assert signs.keys() == SIGN_MEANINGS.keys()
    for values in signs.values():
        assert values.shape == (3,) and values.dtype == np.float64 and not values.any(), "flat grey has no sign"


@pytest.mark.parametrize(
    ("colour", "saturation"),
    [((1, 0, 0), 1), ((1, 0.5, 0.5), 0.5), ((0.2, 0.1, 0.15), 0.5), ((0.7, 0.7, 0.7), 0), ((0, 0, 0), 0)],
)
def test_saturation_of_one_colour(colour, saturation):
    image = np.broadcast_to(np.asarray(colour, np.float64) * 2 - 1, (1, 4, 4, 3))
    assert _sign("saturation", image) == pytest.approx([saturation])


def test_saturation_is_the_mean_over_pixels_of_what_is_shown():
    image = np.full((1, 2, 2, 3), -1.0)
    image[0, 0, 0] = (3, -2, -1)  # clipped: pure red
    assert _sign("saturation", image) == [0.25]


def test_saturation_is_that_of_pillow():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3))
    theirs = [np.asarray(Image.fromarray(image).convert("HSV"))[..., 1].mean() / 255 for image in to_uint8(images)]
    np.testing.assert_allclose(_sign("saturation", images), theirs, atol=0.004)  # Pillow rounds down to 8 bits


def test_out_of_range_counts_values_of_single_channels():
    image = np.ones((1, 2, 5, 3))
    image[0, 0, 0] = (1.01, -1.5, 0)
    image[0, 1, 1, 2] = np.nan
    assert _sign("out_of_range", image) == pytest.approx([3 / 30])
    assert np.isfinite(list(image_signs(image).values())).all()


@pytest.mark.parametrize("size", [16, 64])
def test_high_frequency_begins_at_waves_of_four_pixels(size):
    """Index size / 2 is a quarter of a cycle per pixel; the sign is the same for both axes and for every size."""
    for index, share in ((1, 0), (size // 2 - 1, 0), (size // 2, 1), (size - 1, 1)):
        for wave in (_wave(size, index), _wave(size, index).T):
            assert _sign("high_frequency", _grey(wave)) == pytest.approx([share], abs=1e-12)


def test_high_frequency_is_a_share_of_the_variance():
    """A fine wave of half the amplitude of a coarse one has a quarter of its variance, whatever the contrast."""
    coarse, fine = _wave(32, 2) - 0.5, (_wave(32, 30) - 0.5) / 2
    for contrast in (1, 0.1):
        assert _sign("high_frequency", _grey(0.5 + contrast * (coarse + fine))) == pytest.approx([0.2])


def test_high_frequency_of_noise_is_three_quarters():
    noise = np.random.default_rng(0).uniform(0, 1, (256, 256))
    assert _sign("high_frequency", _grey(noise)) == pytest.approx([0.75], abs=0.01)


def test_high_frequency_weighs_colours_by_their_brightness():
    """A fine wave of blue and a coarse one of red, of equal amplitude."""
    image = np.zeros((1, 32, 32, 3))
    image[..., 2] = _wave(32, 30) * 2 - 1
    image[..., 0] = _wave(32, 2) * 2 - 1
    assert _sign("high_frequency", image) == pytest.approx([0.114**2 / (0.114**2 + 0.299**2)])


def test_what_8_bits_cannot_show_is_no_detail():
    image = _grey(0.5 + (_wave(16, 15) - 0.5) * 1e-5)
    assert _sign("high_frequency", image)[0] < 1e-4


def test_borders_that_differ_are_no_edge():
    """A ramp has no fine detail, although its left border is black and its right one white."""
    assert _sign("high_frequency", _grey(np.tile(np.linspace(0, 1, 64), (64, 1))))[0] < 1e-4
