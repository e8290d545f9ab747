"""Two-dimensional NHWC convolutions whose input gradient XLA's CPU compiler runs fast inside loops too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from spo_jax.core.typing import Array, Float
from spo_jax.parallel.mesh import platform_in_context, spread_rows

_AXES = ("NHWC", "HWIO", "NHWC")
# The other options that ``nn.Conv`` passes. Any other value would be dropped silently, so it is refused.
_OPTIONS = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "feature_group_count": 1,
    "precision": None,
    "dimension_numbers": jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
}


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c e"],
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    **options: Any,
) -> Float[Array, "b h2 w2 e"]:
    """Replaces `jax.lax.conv_general_dilated` in ``nn.Conv``; differentiable in reverse mode only.

    Raises:
      ValueError: an option has a value that is not implemented: dilations, groups, a precision, another layout.
    """
    for name, value in options.items():
        if value != _OPTIONS[name]:
            raise ValueError(f"convolve: {name} = {value!r} is not implemented: expected {_OPTIONS[name]!r}")
    if tuple(strides) == (1, 1):
        return _convolve(x, kernel, tuple(map(tuple, padding)))
    return _plain(x, kernel, strides, padding)


# XLA's library of convolutions for CPUs has fast kernels for multiples of 16 features. With 56 it takes twice as long
# as with 64 (`python -m benchmarks.layers`).
_CPU_FEATURES = 16


def _plain(x, kernel, strides, padding):
    features = kernel.shape[-1]
    if platform_in_context() == "cpu" and features > _CPU_FEATURES:
        kernel = jnp.pad(kernel, ((0, 0),) * 3 + ((0, -features % _CPU_FEATURES),))
    # The rows stay apart, or a kernel that is cut over devices would make them hold parts of all images' features
    # (docs/parallel.md says what that costs).
    out = spread_rows(jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_AXES))
    return out[..., :features]


def _stride_1(x, kernel, padding):
    return _plain(x, kernel, (1, 1), padding)


# The gradient of the input is a convolution with the kernel's taps reversed and its features swapped. jax expresses the
# swap through the convolution's axes. XLA's fast convolutions on CPUs do not support such axes, and inside a loop no
# later pass repairs that (see `benchmarks.layers`). So the swap is written out here.
_convolve = jax.custom_vjp(_stride_1, nondiff_argnums=(2,))


def _forward(x, kernel, padding):
    # Keep only what the requested gradients need: if the kernel is frozen, the input is not kept.
    kept_x = x.value if kernel.perturbed else None
    kept_kernel = kernel.value if x.perturbed else None
    return _stride_1(x.value, kernel.value, padding), (kept_x, kept_kernel)


def _backward(padding, kept, cotangent):
    x, kernel = kept
    x_gradient = None
    kernel_gradient = None
    if isinstance(cotangent, SymbolicZero):
        return x_gradient, kernel_gradient
    if kernel is not None:
        swapped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # [k l c e] -> [k l e c]
        sides = [(size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, padding, strict=False)]
        x_gradient = _stride_1(cotangent, swapped, sides)
    if x is not None:
        height, width = (x.shape[i + 1] + sum(padding[i]) - cotangent.shape[i + 1] + 1 for i in (0, 1))
        shape = jax.ShapeDtypeStruct((height, width, x.shape[-1], cotangent.shape[-1]), x.dtype)
        transposed = jax.linear_transpose(lambda kernel: _stride_1(x, kernel, padding), shape)
        (kernel_gradient,) = transposed(cotangent)
    return x_gradient, kernel_gradient


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
