"""Blocks that the UNet and the autoencoders share, NHWC. Names are diffusers' own, so that weights map by rule."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spo_jax.core.typing import Array, DType, Float, Num
from spo_jax.nn.attention import dot_product_attention
from spo_jax.nn.convolution import convolve
from spo_jax.nn.lora import LoRADense


def sinusoidal_embedding(
    timesteps: Num[Array, " b"], dim: int, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Array, "b dim"]:
    """diffusers' ``get_timestep_embedding`` (max period 10,000), always float32: t reaches 999, beyond bfloat16."""
    half = dim // 2
    # On the host, in torch's order of rounding: the last digit of a frequency, times 999, is the fourth of an angle.
    exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * np.exp(exponent)[None]
    first, second = (jnp.cos, jnp.sin) if flip_sin_to_cos else (jnp.sin, jnp.cos)
    return jnp.concatenate([first(angles), second(angles)], axis=-1)


class GroupNorm(nn.Module):
    """torch's GroupNorm with float32 statistics, in two passes: E[x^2] - E[x]^2 loses digits.

    Sums run over pixels first, and then over a group's few channels: the channels stay the innermost axis. flax's
    reshapes them into groups before, and is slower for it on CPUs (`benchmarks.layers`).
    """

    groups: int
    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, c = x.shape[0], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(jnp.float32)

        def of_groups(of_channels):
            means = of_channels.reshape(b, self.groups, -1).mean(-1)
            return jnp.repeat(means, c // self.groups, axis=1)[:, None, None]

        x = x.astype(jnp.float32)
        centred = x - of_groups(x.mean((1, 2)))
        factor = jax.lax.rsqrt(of_groups((centred**2).mean((1, 2))) + self.eps) * scale[None, None, None]
        return (centred * factor + bias[None, None, None]).astype(self.dtype)


def layer_norm(eps: float, dtype: DType, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def conv(features: int, kernel: int, dtype: DType, name: str, strides: int = 1, padding=None, use_bias: bool = True):
    """torch's ``Conv2d``: padding k // 2 unless given; explicit, for XLA's SAME differs with strides."""
    padding = ((kernel // 2, kernel // 2),) * 2 if padding is None else padding
    return nn.Conv(
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
    """diffusers' ResnetBlock2D with SiLU; ``temb`` is added between the convolutions when given."""

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
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = conv(self.features, 3, self.dtype, "conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, "conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """diffusers' Downsample2D: a convolution of stride 2; the autoencoder pads below and right only."""

    features: int
    asymmetric: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 e"]:
        padding = ((0, 1), (0, 1)) if self.asymmetric else ((1, 1), (1, 1))
        return conv(self.features, 3, self.dtype, "conv", strides=2, padding=padding)(x)


class UpsampledConv(nn.Module):
    """Nearest-neighbour doubling and then ``Conv2d`` of kernel 3, padding 1, without the doubled picture.

    Each of the four pixels that come from one sees only 2 x 2 pixels of the input, some of them through two or three
    of the kernel's taps: with those taps added up it is one convolution of kernel 2 with four times the features, and
    4/9 of the operations.
    """

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 e"]:
        """``size`` is the output's, where it is not twice the input's: an odd level is one row or column short."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), jnp.asarray(kernel)
        if size in (None, (2 * x.shape[1], 2 * x.shape[2])):
            out = _depth_to_space(convolve(x, _phase_kernel(kernel).astype(self.dtype)), self.features)
        else:
            out = convolve(_upsample_nearest(x)[:, : size[0], : size[1]], kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out += bias.astype(self.dtype)[None, None, None]
        return out


def _phase_kernel(kernel: Float[Array, "3 3 c e"]) -> Float[Array, "2 2 c 4*e"]:
    """Taps that fall on the same pixel added up, in float32: features of the pixels (0, 0), (0, 1), (1, 0), (1, 1)."""

    def phases(k, axis):
        first, middle, last = jnp.split(k, 3, axis)
        return jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)

    rows = phases(kernel.astype(jnp.float32), 0)
    return jnp.concatenate([k for row in rows for k in phases(row, 1)], axis=-1)


def _depth_to_space(x: Float[Array, "b h1 w1 e4"], features: int) -> Float[Array, "b h2 w2 e"]:
    """Pixel (i, j) of every four is at (i, j) of the windows, of which there is one more than pixels either way."""
    b, h, w = x.shape[0], x.shape[1] - 1, x.shape[2] - 1
    x = x.reshape(b, h + 1, w + 1, 2, 2, features)
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
    """diffusers' Attention: queries from ``x``, keys and values from ``context`` (``x`` itself when None)."""

    heads: int
    use_bias: bool = False
    upcast: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: Float[Array, "b m e"] | None = None) -> Float[Array, "b l d"]:
        context = x if context is None else context
        features = x.shape[-1]
        dense = lambda name: LoRADense(features, use_bias=self.use_bias, dtype=self.dtype, name=name)  # noqa: E731
        q, k, v = dense("to_q")(x), dense("to_k")(context), dense("to_v")(context)
        if self.upcast:  # SD 2.1 overflows 16-bit logits.
            q, k, v = (array.astype(jnp.float32) for array in (q, k, v))
        out = dot_product_attention(q, k, v, self.heads).astype(self.dtype)
        return LoRADense(features, dtype=self.dtype, name="to_out_0")(out)


class _GEGLU(nn.Module):
    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l e"]:
        hidden, gate = jnp.split(LoRADense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return hidden * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """diffusers' FeedForward with GEGLU, four times wide."""

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
        norm = lambda name: layer_norm(1e-5, self.dtype, name)  # noqa: E731
        attention = lambda name: Attention(  # noqa: E731
            self.heads, upcast=self.upcast_attention, dtype=self.dtype, name=name
        )
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
    remat: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b m e"]) -> Float[Array, "b h w c"]:
        b, height, width, channels = x.shape
        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        if self.use_linear_projection:
            h = LoRADense(channels, dtype=self.dtype, name="proj_in")(h.reshape(b, height * width, channels))
        else:
            h = conv(channels, 1, self.dtype, "proj_in")(h).reshape(b, height * width, channels)
        block = nn.remat(BasicTransformerBlock) if self.remat else BasicTransformerBlock
        for layer in range(self.layers):
            h = block(self.heads, self.upcast_attention, self.dtype, name=f"transformer_blocks_{layer}")(h, context)
        if self.use_linear_projection:
            h = LoRADense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)
        else:
            h = conv(channels, 1, self.dtype, "proj_out")(h.reshape(x.shape))
        return x + h
