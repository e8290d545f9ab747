"""Resizing and cropping of images on the devices, which has to equal torch's, torchvision's or Pillow's.

A judge has to see images as its original does, because the bicubic filters of torch (without antialiasing), torchvision
(with it) and Pillow (with it, in bytes) give other pixels, and other scores, where an image is made smaller.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Num, UInt8

_FRACTION = 22  # bits of the fraction of Pillow's weights (PRECISION_BITS in its Resample.c)
_SUPPORT = 2.0  # of the cubic kernel, in source pixels of an image that is not made smaller


def resize_bicubic(images: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Resizes images bicubically with a = -0.75, half-pixel centres and no antialiasing.

    The result equals ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`` up to float32 rounding.

    Args:
      images: images of any float dtype.
      size: (height, width) of the result.

    Returns:
      The resized images in the dtype of ``images``; values can leave their range, because nothing is clipped.
    """
    return _resize(images, size, "cubic-pytorch", antialias=False)


def resize_antialias(images: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Resizes images bicubically with a = -0.5, half-pixel centres and antialiasing.

    The result equals ``torch.nn.functional.interpolate(mode="bicubic", antialias=True)`` up to float32 rounding, which
    is what torchvision does to tensors from version 0.17 on. It is Pillow's filter without Pillow's rounding.

    Args:
      images: images of any float dtype.
      size: (height, width) of the result.

    Returns:
      The resized images in the dtype of ``images``; values can leave their range, because nothing is clipped.
    """
    return _resize(images, size, "cubic", antialias=True)


def _resize(images: Float[Array, "b h w c"], size: tuple[int, int], method: str, antialias: bool) -> Array:
    shape = (images.shape[0], *size, images.shape[3])
    # In float32, because bfloat16 sums of four taps are visible in the score of the preference model.
    return jax.image.resize(images.astype(jnp.float32), shape, method, antialias=antialias).astype(images.dtype)


# Pillow


def to_bytes(images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Converts images in [-1, 1] to 0..255 on the devices, as `spo_jax.core.images.to_uint8` does on the host."""
    unit = jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return jnp.round(unit * 255).astype(jnp.uint8)


def resize_pillow(images: UInt8[Array, "b h w c"], size: tuple[int, int]) -> UInt8[Array, "b h2 w2 c"]:
    """Resizes images as ``PIL.Image.resize(size, BICUBIC)`` does, bit for bit.

    Pillow computes in integers: the weights of its antialiased cubic kernel (a = -0.5) have a fraction of 22 bits; the
    rows are resized first and rounded to 8 bits, then the columns; an axis whose size does not change is left alone.
    The same is done here, so that the bytes are equal and not just near.

    Pillow 13.0 changed the order for some tall images (of more than about twice the height than width, which become
    less tall): it resizes their columns first, and because of the rounding in between single bytes differ by up to 19.
    Published scores are older than that, so here the rows are always first, as in Pillow up to 12.

    Args:
      images: images of any number of channels. Pillow multiplies colours by alpha before it resizes RGBA, and divides
        afterwards; here every channel is resized on its own, so alpha has to be dropped or blended before.
      size: (height, width) of the result.
    """
    return _pillow_pass(_pillow_pass(images, 2, size[1]), 1, size[0])


def _pillow_pass(images: UInt8[Array, "b h w c"], axis: int, size: int) -> UInt8[Array, "b h2 w2 c"]:
    """Resizes one axis, as one of the two passes of Pillow."""
    if images.shape[axis] == size:
        return images
    sums = {"axis": axis, "before": images.shape[axis], "after": size}
    # Pillow's sums fit into 32 bits: that is why its weights have 22.
    total = jax.lax.platform_dependent(
        images, cpu=functools.partial(_tap_by_tap, **sums), default=functools.partial(_digit_by_digit, **sums)
    )
    return jnp.clip((total + (1 << (_FRACTION - 1))) >> _FRACTION, 0, 255).astype(jnp.uint8)


def _tap_by_tap(images: UInt8[Array, "b h w c"], axis: int, before: int, after: int) -> Int[Array, "b h2 w2 c"]:
    """Adds up the weighted pixels, tap after tap, because all taps at once would take that much more memory."""
    first, weights = _pillow_weights(before, after)
    shape = [1] * images.ndim
    shape[axis] = after
    total = jnp.zeros((), jnp.int32)
    for tap in range(weights.shape[1]):
        taken = jnp.take(images, np.minimum(first + tap, before - 1), axis=axis).astype(jnp.int32)
        total = total + taken * jnp.asarray(weights[:, tap].reshape(shape))
    return total


def _digit_by_digit(images: UInt8[Array, "b h w c"], axis: int, before: int, after: int) -> Int[Array, "b h2 w2 c"]:
    """Computes the same sums as products of matrices, because accelerators are slow at picking single pixels.

    Matrix units take floats of as few as 8 bits. So the weights are cut into three digits of 8 bits, whose products
    with a byte and their sums are whole numbers that float32 holds exactly, and there are three products. As compiled
    for a TPU v5e, 25 images of 512 pixels move 0.5 GB of memory instead of 12.
    """
    first, weights = _pillow_weights(before, after)
    rest = np.zeros((after, before), np.int32)
    rows = np.arange(after)[:, None]
    np.add.at(rest, (rows, np.minimum(first[:, None] + np.arange(weights.shape[1]), before - 1)), weights)
    total = jnp.zeros((), jnp.int32)
    for shift in (0, 8, 16):
        digit = (rest + 128) % 256 - 128 if shift < 16 else rest  # -128 to 127, and what is left at the end
        rest = (rest - digit) // 256
        terms = "an,bhnc->bhac" if axis == 2 else "an,bnwc->bawc"
        product = jnp.einsum(
            terms, digit.astype(np.float32), images.astype(jnp.float32), precision=jax.lax.Precision.DEFAULT
        )
        total = total + (product.astype(jnp.int32) << shift)
    return total


@functools.lru_cache(maxsize=64)
def _pillow_weights(before: int, after: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n taps"]]:
    """Computes the first source pixel of every pixel, and the weights of the pixels from there on.

    They are those of ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` in Pillow's Resample.c, in float64 and in the
    order of its sums.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centre = (np.arange(after) + 0.5) * scale
    # Casts truncate towards 0, as in C; what would be negative is cut off at the border.
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    stop = np.minimum((centre + support + 0.5).astype(int), before)
    taps = int((stop - first).max())
    place = first[:, None] + np.arange(taps)
    weights = np.where(place < stop[:, None], _cubic((place - centre[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds from the left, np.sum in pairs
    fixed = weights * (1 << _FRACTION)
    return first, np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)


def _cubic(x: Float[np.ndarray, "n taps"]) -> Float[np.ndarray, "n taps"]:
    """Keys' cubic kernel with a = -0.5, in the form of Pillow's ``bicubic_filter``."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# Sizes and crops


def shorter_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Scales a size to a shorter side of ``side``; the longer side rounds half up, as in the SPO reference."""
    scale = side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def shorter_side_size_cut(height: int, width: int, side: int) -> tuple[int, int]:
    """Scales a size to a shorter side of ``side``; the longer side is cut to a whole number, as in torchvision.

    transformers' processors of CLIP compute the same.
    """
    longer = int(side * max(height, width) / min(height, width))
    return (side, longer) if height <= width else (longer, side)


def center_crop(images: Num[Array, "b h w c"], side: int) -> Num[Array, "b side side c"]:
    """Cuts out the middle ``side`` x ``side`` square; half-pixel offsets round half to even, as torchvision does."""
    return _crop(images, side, *(round((length - side) / 2) for length in images.shape[1:3]))


def center_crop_floor(images: Num[Array, "b h w c"], side: int) -> Num[Array, "b side side c"]:
    """Cuts out the middle ``side`` x ``side`` square; half-pixel offsets round down, as in transformers' processors.

    The two rules differ, by one pixel, where the longer side is 3, 7, 11, ... pixels longer than ``side``.
    """
    return _crop(images, side, *((length - side) // 2 for length in images.shape[1:3]))


def _crop(images: Num[Array, "b h w c"], side: int, top: int, left: int) -> Num[Array, "b side side c"]:
    return images[:, top : top + side, left : left + side]
