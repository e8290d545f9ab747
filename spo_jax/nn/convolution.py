"""Two-dimensional convolutions, NHWC, with a gradient of the input that XLA's CPU compiler finds fast in loops too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from spo_jax.core.typing import Array, Float

_AXES = ("NHWC", "HWIO", "NHWC")
# What ``nn.Conv`` passes beside; other values would be dropped without a word.
_OPTIONS = {
    "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "precision": None,
    "dimension_numbers": jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
}  # fmt: skip


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c e"],
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    **options: Any,
) -> Float[Array, "b h2 w2 e"]:
    """`jax.lax.conv_general_dilated`; what ``nn.Conv`` takes in its place. Differentiable in reverse only.

    Raises:
      ValueError: an option that is not here: dilations, groups, a precision, another layout.
    """
    for name, value in options.items():
        if value != _OPTIONS[name]:
            raise ValueError(f"convolve: {name} = {value!r}, only {_OPTIONS[name]!r} is implemented")
    if tuple(strides) == (1, 1):
        return _convolve(x, kernel, tuple(map(tuple, padding)))
    return _plain(x, kernel, strides, padding)


def _plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_AXES)


def _stride_1(x, kernel, padding):
    return _plain(x, kernel, (1, 1), padding)


# The gradient of the input is a convolution with the kernel's taps reversed and its features swapped. jax leaves the
# swap to the convolution's axes; XLA's fast convolutions on CPUs do not know such axes, and inside of a loop nothing
# mends that (see `benchmarks.layers`). So the swap is written out.
_convolve = jax.custom_vjp(_stride_1, nondiff_argnums=(2,))


def _forward(x, kernel, padding):
    # What is kept is what the gradients that are asked for need: nothing of the input where the kernel is frozen.
    kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return _stride_1(x.value, kernel.value, padding), kept


def _backward(padding, kept, cotangent):
    x, kernel = kept
    of_x = of_kernel = None
    if isinstance(cotangent, SymbolicZero):
        return of_x, of_kernel
    if kernel is not None:
        swapped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        sides = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, padding, strict=False)]
        of_x = _stride_1(cotangent, swapped, sides)
    if x is not None:
        height, width = (x.shape[i + 1] + sum(padding[i]) - cotangent.shape[i + 1] + 1 for i in (0, 1))
        shape = jax.ShapeDtypeStruct((height, width, x.shape[-1], cotangent.shape[-1]), x.dtype)
        (of_kernel,) = jax.linear_transpose(lambda kernel: _stride_1(x, kernel, padding), shape)(cotangent)
    return of_x, of_kernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
