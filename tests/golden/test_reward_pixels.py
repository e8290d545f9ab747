"""What reward models see of an image, pixel for pixel as Pillow, transformers and torchvision make it.

What Pillow resizes is equal as bytes. torchvision's resize of tensors differs by 1e-4 at most: torch computes the
places of its taps in float32 (2e-5 of the range), and the division by CLIP's deviations makes that 4 times as much.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.resizing import (
    center_crop,
    center_crop_floor,
    resize_antialias,
    resize_bicubic,
    resize_pillow,
    shorter_side_size_cut,
)
from spo_jax.rewards.common.clip_pixels import transformers_pixels
from spo_jax.rewards.common.clip_score import normalise

CROPS = {"tvpil": center_crop, "hf": center_crop_floor}
TENSOR_RESIZES = {"aa": resize_antialias, "noaa": resize_bicubic}


resize = jax.jit(resize_pillow, static_argnums=1)


def pillow(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes bytes [1 h w c] so that the shorter side is ``side``."""
    return np.asarray(resize(image, shorter_side_size_cut(*image.shape[1:3], side)))


def pillow_rgba(image: np.ndarray, side: int) -> np.ndarray:
    """Does what Pillow does around a resize of RGBA: multiplies colours by alpha, and divides afterwards."""
    product = image[..., :3].astype(int) * image[..., 3:] + 128
    colours = ((product >> 8) + product >> 8).astype(np.uint8)
    resized = pillow(np.concatenate([colours, image[..., 3:]], axis=-1), side).astype(int)
    colours, alpha = resized[..., :3], resized[..., 3:]
    divided = np.where((alpha == 0) | (alpha == 255), colours, 255 * colours // np.maximum(alpha, 1))
    return np.clip(divided, 0, 255).astype(np.uint8)


def test_bytes_after_resize_and_crop(golden, reward_inputs):
    """Every image at the true size; where transformers' crop has no array of its own, it is torchvision's."""
    reward_inputs.needs("preprocess_224")
    arrays = golden.arrays("rewards/preprocess_224/golden.npz")
    seen = 0
    for key, expected in arrays.items():
        match = re.fullmatch(r"(tvpil|hf)_u8_(.+)", key)
        if match is None:
            continue
        rule, name = match.groups()
        side = len(expected)
        with_alpha = rule == "tvpil" and name == "rgba"  # transformers drops alpha before, torchvision after
        resized = pillow_rgba(reward_inputs.rgba[None], side) if with_alpha else pillow(reward_inputs.bytes(name), side)
        rules = ("tvpil", "hf") if rule == "tvpil" and f"hf_u8_{name}" not in arrays else (rule,)
        for crop in rules:
            np.testing.assert_array_equal(CROPS[crop](jnp.asarray(resized), side)[0], expected, err_msg=f"{crop} {key}")
        seen += 1
    assert seen


def test_tensors_after_resize_and_crop(golden, reward_inputs):
    """HPSv2 resizes tensors, with or without antialiasing as the version of torchvision has it."""
    reward_inputs.needs("preprocess_224")
    arrays = golden.arrays("rewards/preprocess_224/golden.npz")
    keys = [key for key in arrays if key.startswith("tensor_")]
    assert keys
    for key in keys:
        mode, name = re.fullmatch(r"tensor_(aa|noaa)_(.+)", key).groups()
        expected = np.moveaxis(arrays[key], 0, -1)
        image = jnp.asarray(reward_inputs.bytes(name), jnp.float32) / 255
        side = len(expected)
        resized = TENSOR_RESIZES[mode](image, shorter_side_size_cut(*image.shape[1:3], side))
        np.testing.assert_allclose(normalise(center_crop(resized, side))[0], expected, atol=1e-4, err_msg=key)


def test_the_order_of_pillows_passes(golden, reward_inputs):
    """Up to Pillow 12 the rows come first, as here; Pillow 13 resizes the columns of some tall images first."""
    reward_inputs.needs("pillow_order")
    arrays = golden.arrays("rewards/pillow_order/golden.npz")
    cases = [key.removeprefix("in_") for key in arrays if key.startswith("in_")]
    assert cases
    for case in cases:
        image = jnp.asarray(arrays[f"in_{case}"])[None]
        height, width = arrays[f"hfirst_{case}"].shape[:2]
        rows_first = np.asarray(resize(image, (height, width)))[0]
        np.testing.assert_array_equal(rows_first, arrays[f"hfirst_{case}"], err_msg=case)
        columns_first = np.asarray(resize(image.swapaxes(1, 2), (width, height)))[0].swapaxes(0, 1)
        orders = [np.array_equal(arrays[f"pillow13_{case}"], ours) for ours in (rows_first, columns_first)]
        assert any(orders), case


def test_pixels_of_the_image_with_alpha(golden, reward_inputs):
    """transformers drops alpha before it resizes, and no caller has to do more; OpenAI's transform drops it later."""
    seen = 0
    for folder in ("pickscore", "clipscore", "aesthetic"):
        if not (reward_inputs.folder / folder).is_dir():
            continue
        arrays = golden.arrays(f"rewards/{folder}/golden.npz")
        if "pixel_values_rgba" in arrays:
            expected = golden.nhwc(arrays["pixel_values_rgba"])
            expected = expected.reshape(1, *expected.shape[-3:])
            ours = jax.jit(transformers_pixels, static_argnums=1)(reward_inputs.image("rgba"), expected.shape[1])
            np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=folder)
            seen += 1
        if "pixel_values_openai_rgba" in arrays:
            expected = golden.nhwc(arrays["pixel_values_openai_rgba"])
            side = len(expected)
            cropped = center_crop(jnp.asarray(pillow_rgba(reward_inputs.rgba[None], side)), side)
            np.testing.assert_allclose(normalise(cropped.astype(jnp.float32) / 255)[0], expected, atol=1e-6)
            seen += 1
    if not seen:
        pytest.skip("no array of the image with alpha")
