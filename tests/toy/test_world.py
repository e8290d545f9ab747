"""The toy world draws what its captions and hidden factors say."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.toy import world


def _factors(count, **values):
    """Returns the factors of clean images in the middle of their ranges, except those in ``values``."""
    middle = {name: np.full(count, sum(ends) / 2, np.float32) for name, ends in world.FACTORS.items()}
    flaws = {"edge_width": 1, "raggedness": 0, "mottle": 0, "grain": 0, "dullness": 0}
    clean = flaws | {"background": 0} | values
    return middle | {name: np.full(count, value, np.float32) for name, value in clean.items()}


def test_every_caption_is_parsed_back():
    assert [world.caption(*world.parse_prompt(prompt)) for prompt in world.PROMPTS] == list(world.PROMPTS)
    assert len(set(world.PROMPTS)) == len(world.COLOURS) * len(world.SHAPES)
    assert "an orange heart" in world.PROMPTS and world.parse_prompt("A Orange  heart") == ("orange", "heart")


@pytest.mark.parametrize("prompt", ["", "a red", "red star", "a mauve star", "a red cat", "a red star on grey"])
def test_an_error_names_a_prompt_outside_the_toy_world(prompt):
    with pytest.raises(UserError, match=f"prompt {prompt!r} is outside"):
        world.draw(np.random.default_rng(0), [prompt])


def test_held_out_prompts_leave_each_word_with_many_partners_in_training():
    assert len(world.HELD_OUT_PROMPTS) == 10
    assert set(world.HELD_OUT_PROMPTS) | set(world.TRAIN_PROMPTS) == set(world.PROMPTS)
    assert not set(world.HELD_OUT_PROMPTS) & set(world.TRAIN_PROMPTS)
    seen = Counter(word for prompt in world.TRAIN_PROMPTS for word in world.parse_prompt(prompt))
    held = Counter(word for prompt in world.HELD_OUT_PROMPTS for word in world.parse_prompt(prompt))
    assert min(seen[word] for word in world.COLOURS + world.SHAPES) >= 5
    assert min(held[word] for word in world.COLOURS + world.SHAPES) >= 1


def test_the_palette_leaves_room_on_both_sides():
    assert np.abs(list(world.PALETTE.values())).max() <= 0.8


def test_the_same_seed_draws_the_same_images_and_another_seed_different_ones():
    first, factors = world.draw(np.random.default_rng(7), world.PROMPTS)
    again, _ = world.draw(np.random.default_rng(7), world.PROMPTS)
    other, _ = world.draw(np.random.default_rng(8), world.PROMPTS)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.05
    assert first.shape == (56, 32, 32, 3) and first.dtype == np.float32 and np.abs(first).max() <= 1
    assert {name: values.shape for name, values in factors.items()} == dict.fromkeys(world.FACTORS, (56,))


def test_factors_fill_their_ranges_and_are_independent():
    factors = world.sample_factors(np.random.default_rng(0), 4000)
    for name, (low, high) in world.FACTORS.items():
        assert low <= factors[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < factors[name].max() <= high
    correlations = np.corrcoef(list(factors.values())) - np.eye(len(factors))
    assert np.abs(correlations).max() < 0.06


def test_a_clean_image_has_the_palette_colour_inside_and_grey_outside():
    images = world.render(np.random.default_rng(0), world.PROMPTS, _factors(56))
    shapes = [world.parse_prompt(prompt)[1] for prompt in world.PROMPTS]
    distance = world.signed_distance(shapes, _factors(56))
    for image, away, prompt in zip(images, distance, world.PROMPTS, strict=True):
        colour = np.float32(world.PALETTE[world.parse_prompt(prompt)[0]])
        np.testing.assert_allclose(image[away < -1], np.broadcast_to(colour, image[away < -1].shape), atol=1e-5)
        outside = image[away > 1]
        np.testing.assert_allclose(outside, outside[:, :1].repeat(3, 1), atol=1e-5)
        assert outside.std() > 0.005, "the background has to vary within the image"


@pytest.mark.parametrize("shape", world.SHAPES)
def test_distances_grow_by_one_per_pixel_and_shapes_fit_the_image(shape):
    poses = world.sample_factors(np.random.default_rng(1), 200)
    distance = world.signed_distance([shape] * 200, poses)
    down, right = np.gradient(distance, axis=(1, 2))
    slope = np.hypot(down, right)[np.abs(distance) < 2]
    assert np.mean(np.abs(slope - 1) < 0.1) > 0.75  # the rest lies at corners and creases
    assert slope.max() < 1.1
    frame = np.ones((32, 32), bool)
    frame[1:-1, 1:-1] = False
    assert np.mean(distance[:, frame] < 0) < 0.02
    area = (distance < 0).sum((1, 2)) / (np.pi * poses["scale"] ** 2)
    assert 0.75 < area.min() and area.max() < 1.1


def test_shift_and_tilt_move_the_shape_as_they_say():
    count = 5
    shifts = np.linspace(-2, 2, count, dtype=np.float32)
    inside = world.signed_distance(["square"] * count, _factors(count, tilt=0) | {"shift_x": shifts}) < 0
    centres = (inside.sum(1) @ np.arange(32)) / inside.sum((1, 2)) - 15.5
    np.testing.assert_allclose(centres, shifts, atol=0.3)
    upright, tilted = world.signed_distance(["moon"] * 2, _factors(2) | {"tilt": np.float32([0, 90])})
    np.testing.assert_allclose(np.rot90(upright, -1), tilted, atol=1e-3)


def test_grain_is_coarser_than_a_pixel_and_has_unit_strength():
    grain = world._blobs(np.random.default_rng(0), np.full(64, 1.1, np.float32))
    assert abs(grain.std() - 1) < 0.03
    assert np.mean(grain[:, :, 1:] * grain[:, :, :-1]) > 0.6


def test_each_flaw_is_where_it_belongs():
    """Differences from the clean image, drawn from the same random numbers."""
    shapes = [world.parse_prompt(prompt)[1] for prompt in world.PROMPTS]
    distance = world.signed_distance(shapes, _factors(56))
    deep = distance < -2
    away = distance > 2

    def change(**flaw):
        images = [
            world.render(np.random.default_rng(0), world.PROMPTS, _factors(56, **values)) for values in ({}, flaw)
        ]
        return np.abs(images[1] - images[0]).max(-1)

    mottle = change(mottle=0.2)
    assert mottle[deep].mean() > 0.1 and mottle[away].max() < 1e-6
    grain = change(grain=0.17)
    assert grain[away].mean() > 0.1 and grain[deep].max() < 1e-6
    ragged = change(raggedness=0.3)
    assert ragged[~deep & ~away].mean() > 0.03 and max(ragged[deep].max(), ragged[away].max()) < 1e-6


def test_the_toy_world_needs_neither_jax_nor_torch():
    code = "import sys, spo_jax.toy.truth; sys.exit(bool({'jax', 'torch', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
