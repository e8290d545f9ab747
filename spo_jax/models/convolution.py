"""Two-dimensional convolutions, NHWC, with a gradient of the input that XLA finds fast in loops as well."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float

_AXES = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c e"],
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    **options: Any,
) -> Float[Array, "b h2 w2 e"]:
    """`jax.lax.conv_general_dilated`; also what ``nn.Conv`` takes in its place, which passes the rest as options.

    Options are other than XLA's defaults nowhere in this package, but for the dilations, which are all 1.
    """
    if tuple(strides) == (1, 1):
        return _convolve(x, kernel, tuple(map(tuple, padding)))
    return _plain(x, kernel, strides, padding)


def _plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_AXES)


def _stride_1(x, kernel, padding):
    return _plain(x, kernel, (1, 1), padding)


# The gradient of the input is a convolution with the kernel's taps reversed and its features swapped. jax leaves the
# swap to the convolution's axes; XLA's fast convolutions on CPUs do not know such axes, and inside of a loop nothing
# mends that: 61 milliseconds in place of 4 (32 x 8 x 8 x 144 to 48 features, two cores). So the swap is written out.
_convolve = jax.custom_vjp(_stride_1, nondiff_argnums=(2,))


def _forward(x, kernel, padding):
    # Symbolic zeros tell that a kernel is frozen: then the input need not be kept for it, nor its gradient computed.
    kept = x.value if kernel.perturbed else None
    return _stride_1(x.value, kernel.value, padding), (kept, kernel.value)


def _backward(padding, kept, cotangent):
    x, kernel = kept
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return cotangent, None
    swapped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    sides = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, padding, strict=False)]
    of_kernel = jnp.zeros_like(kernel)
    if x is not None:
        (of_kernel,) = jax.linear_transpose(lambda kernel: _stride_1(x, kernel, padding), kernel)(cotangent)
    return _stride_1(cotangent, swapped, sides), of_kernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
