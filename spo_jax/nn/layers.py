"""NHWC blocks that the UNet and the autoencoders share, under diffusers' names, so that one rule maps the weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spo_jax.core.typing import Array, DType, Float, Num
from spo_jax.nn.attention import dot_product_attention
from spo_jax.nn.convolution import convolve
from spo_jax.nn.given import Conv, Given, LayerNorm
from spo_jax.nn.lora import LoRADense
from spo_jax.nn.remat import keep, recomputed
from spo_jax.parallel.mesh import platform_in_context


def sinusoidal_embedding(
    timesteps: Num[Array, " b"], dim: int, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Array, "b dim"]:
    """diffusers' ``get_timestep_embedding`` (max period 10,000).

    Always in float32: timesteps reach 999, and bfloat16 cannot represent every integer up to there.

    Args:
      timesteps: one timestep per row.
      dim: width of the embedding.
      flip_sin_to_cos: puts the cosines before the sines.
      freq_shift: subtracted from the number of frequencies in the exponent.
    """
    half = dim // 2
    # Computed on the host and rounded in torch's order: an error in the last digit of a frequency, times 999, is an
    # error in the fourth digit of an angle.
    exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * np.exp(exponent)[None]
    first, second = (jnp.cos, jnp.sin) if flip_sin_to_cos else (jnp.sin, jnp.cos)
    return jnp.concatenate([first(angles), second(angles)], axis=-1)


# The least variance, as a share of the mean square, that E[x^2] - E[x]^2 is trusted with in float32. bfloat16 numbers
# that differ at all in more than a sixteenth of their places vary by more than this.
_LEAST_VARIANCE = 2.0**-20


class GroupNorm(Given):
    """torch's GroupNorm with float32 statistics, computed in two passes because E[x^2] - E[x]^2 loses digits.

    Sums run over the pixels first and then over the few channels of a group, so the channels remain the innermost axis.
    flax's GroupNorm reshapes the channels into groups first, which is slower on CPUs (`benchmarks.layers`).

    TPUs take the sums of 16-bit inputs in one pass, which the compiler fuses into the convolution before the norm; a
    second pass, or a first value to subtract, needs the convolution's result and reads it once more from memory. 16-bit
    numbers around M are so far apart that they hardly vary by less than M / 1,000, and the digits that are lost are
    those of the input's own rounding (tests/nn/test_layers.py compares with float64).
    """

    groups: int
    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b = x.shape[0]
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(jnp.float32)

        def average_groups(channel_means):  # [b c] -> [b 1 1 c]
            means = channel_means.reshape(b, self.groups, -1).mean(-1)
            return jnp.repeat(means, c // self.groups, axis=1)[:, None, None]

        in_one_pass = platform_in_context() == "tpu" and x.dtype == jnp.bfloat16
        x = x.astype(jnp.float32)
        mean = average_groups(x.mean((1, 2)))
        centred = x - mean
        if in_one_pass:
            square = average_groups((x**2).mean((1, 2)))
            variance = jnp.maximum(square - mean**2, _LEAST_VARIANCE * square)
        else:
            variance = average_groups((centred**2).mean((1, 2)))
        factor = jax.lax.rsqrt(variance + self.eps) * scale[None, None, None]
        return (centred * factor + bias[None, None, None]).astype(self.dtype)


def layer_norm(eps: float, dtype: DType, name: str) -> LayerNorm:
    """Makes a LayerNorm with float32 statistics."""
    return LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def conv(features: int, kernel: int, dtype: DType, name: str, strides: int = 1, padding=None, use_bias: bool = True):
    """Makes a convolution like torch's ``Conv2d``.

    The padding is k // 2 unless it is given. It is explicit because XLA's SAME pads differently when there are strides.
    """
    padding = ((kernel // 2, kernel // 2),) * 2 if padding is None else padding
    return Conv(
        features, (kernel, kernel), strides, padding, use_bias=use_bias, dtype=dtype, name=name,
        conv_general_dilated=convolve,
    )  # fmt: skip


class TimestepEmbedding(nn.Module):
    """diffusers' TimestepEmbedding: Linear, SiLU, Linear."""

    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        x = nn.silu(LoRADense(self.features, dtype=self.dtype, name="linear_1")(x))
        return LoRADense(self.features, dtype=self.dtype, name="linear_2")(x)


class ResnetBlock(nn.Module):
    """diffusers' ResnetBlock2D with SiLU; ``temb``, if given, is added between the convolutions."""

    features: int
    groups: int
    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Float[Array, "b d"] | None = None) -> Float[Array, "b h w e"]:
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = conv(self.features, 3, self.dtype, "conv1")(h)
        if temb is not None:
            h = h + LoRADense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(keep(h)))
        h = conv(self.features, 3, self.dtype, "conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, "conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """diffusers' Downsample2D: a convolution of stride 2, padded only below and right if ``asymmetric`` (the VAE)."""

    features: int
    asymmetric: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 e"]:
        padding = ((0, 1), (0, 1)) if self.asymmetric else ((1, 1), (1, 1))
        return conv(self.features, 3, self.dtype, "conv", strides=2, padding=padding)(x)


class UpsampledConv(Given):
    """Nearest-neighbour doubling followed by ``Conv2d`` with kernel 3 and padding 1, without the doubled image.

    Each of the four pixels that come from one input pixel sees only 2 x 2 pixels of the input, some of them through
    several taps of the kernel. With those taps added up, the whole is one convolution with kernel 2 and four times the
    features, which takes 4/9 of the operations.

    TPUs convolve the doubled image. Interleaving the four pixels costs them more in copies than the operations save, by
    their compiler's estimates: decoding an image of SD 1.5 on a v5e takes 37 ms with four pixels and 32 ms without.
    """

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 e"]:
        """Upsamples and convolves.

        Args:
          x: the input.
          size: height and width of the output if they are not twice those of the input: a level of odd size is one row
            or column short.
        """
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        kernel = jnp.asarray(kernel)
        height, width = size or (2 * x.shape[1], 2 * x.shape[2])
        if (height, width) == (2 * x.shape[1], 2 * x.shape[2]) and platform_in_context() != "tpu":
            out = _depth_to_space(convolve(x, _phase_kernel(kernel).astype(self.dtype)), self.features)
        else:
            out = convolve(_upsample_nearest(x)[:, :height, :width], kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out += bias.astype(self.dtype)[None, None, None]
        return out


def _phase_kernel(kernel: Float[Array, "3 3 c e"]) -> Float[Array, "2 2 c 4*e"]:
    """Adds up, in float32, the taps that fall on the same pixel.

    The features are those of the pixels (0, 0), (0, 1), (1, 0) and (1, 1) of the doubled image, in this order.
    """

    def phases(k, axis):  # 3 taps -> 2 taps for the even pixel, 2 taps for the odd pixel
        first, middle, last = jnp.split(k, 3, axis)
        return jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)

    rows = phases(kernel.astype(jnp.float32), 0)
    return jnp.concatenate([k for row in rows for k in phases(row, 1)], axis=-1)


def _depth_to_space(x: Float[Array, "b h1 w1 e4"], features: int) -> Float[Array, "b h2 w2 e"]:
    """Interleaves the four pixels that `_phase_kernel` packs into the features.

    There is one window more than pixels along each side; pixel (i, j) of every four starts at window (i, j).
    """
    b = x.shape[0]
    h = x.shape[1] - 1
    w = x.shape[2] - 1
    x = x.reshape(b, h + 1, w + 1, 2, 2, features)  # [b h1 w1 4*e] -> [b h1 w1 i j e]
    # One [b h w e] for each (i, j), stacked to [b h i w j e].
    rows = [jnp.stack([x[:, i : i + h, j : j + w, i, j] for j in (0, 1)], axis=3) for i in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, features)


def _upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Upsample(nn.Module):
    """diffusers' Upsample2D: nearest neighbour, then a convolution."""

    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 e"]:
        return UpsampledConv(self.features, dtype=self.dtype, name="conv")(x, size)


class Attention(nn.Module):
    """diffusers' Attention: queries from ``x``, keys and values from ``context``, or from ``x`` if that is None."""

    heads: int
    use_bias: bool = False
    upcast: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: Float[Array, "b m e"] | None = None) -> Float[Array, "b l d"]:
        context = x if context is None else context
        features = x.shape[-1]

        def dense(name):
            return LoRADense(features, use_bias=self.use_bias, dtype=self.dtype, name=name)

        q = keep(dense("to_q")(x), "products")
        k = keep(dense("to_k")(context), "products")
        v = keep(dense("to_v")(context), "products")
        if self.upcast:  # The attention logits of SD 2.1 overflow in 16 bits.
            q, k, v = (array.astype(jnp.float32) for array in (q, k, v))
        out = dot_product_attention(q, k, v, self.heads).astype(self.dtype)
        return keep(LoRADense(features, dtype=self.dtype, name="to_out_0")(out), "products")


class _GEGLU(nn.Module):
    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l e"]:
        # On TPUs two products, because the compiler fuses the gate into the second one: by its estimates the layers of
        # a feed-forward of 320 channels take 17.4 ms on a v5e instead of 24.9. CPUs are faster with a single product.
        halves = platform_in_context() == "tpu"
        proj = LoRADense(2 * self.features, dtype=self.dtype, halves=halves, name="proj")(x)
        hidden, gate = (keep(x, "products") for x in (proj if halves else jnp.split(proj, 2, axis=-1)))
        return hidden * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """diffusers' FeedForward with GEGLU and a hidden layer of four times the width."""

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        h = _GEGLU(4 * x.shape[-1], dtype=self.dtype, name="net_0")(x)
        return LoRADense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class BasicTransformerBlock(nn.Module):
    """diffusers' BasicTransformerBlock: self-attention, cross-attention, feed-forward, each after a LayerNorm."""

    heads: int
    upcast_attention: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: Float[Array, "b m e"]) -> Float[Array, "b l d"]:
        def norm(name):
            return layer_norm(1e-5, self.dtype, name)

        def attention(name):
            return Attention(self.heads, upcast=self.upcast_attention, dtype=self.dtype, name=name)

        x = x + attention("attn1")(norm("norm1")(x))
        x = x + attention("attn2")(norm("norm2")(x), context)
        return x + FeedForward(dtype=self.dtype, name="ff")(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """diffusers' Transformer2DModel on continuous input."""

    heads: int
    layers: int
    groups: int
    use_linear_projection: bool
    upcast_attention: bool = False
    remat: bool | str = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b m e"]) -> Float[Array, "b h w c"]:
        b, height, width, channels = x.shape
        # [b h w c] -> [b h*w c]; a linear projection comes after the reshape, a convolution before.
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        if self.use_linear_projection:
            h = LoRADense(channels, dtype=self.dtype, name="proj_in")(h.reshape(b, height * width, channels))
        else:
            h = conv(channels, 1, self.dtype, "proj_in")(h).reshape(b, height * width, channels)
        block = recomputed(BasicTransformerBlock, self.remat)
        for layer in range(self.layers):
            h = block(self.heads, self.upcast_attention, self.dtype, name=f"transformer_blocks_{layer}")(h, context)
        # [b h*w c] -> [b h w c]
        if self.use_linear_projection:
            h = LoRADense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)
        else:
            h = conv(channels, 1, self.dtype, "proj_out")(h.reshape(x.shape))
        return x + h
