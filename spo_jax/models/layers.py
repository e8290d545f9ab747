"""Blocks that the UNet and the autoencoders share, NHWC. Names are diffusers' own, so that weights map by rule."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from spo_jax.core.typing import Array, DType, Float, Num
from spo_jax.models.attention import dot_product_attention
from spo_jax.models.lora import LoRADense


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


def group_norm(groups: int, eps: float, dtype: DType, name: str) -> nn.GroupNorm:
    """GroupNorm with float32 statistics; two passes over the data, for E[x^2] - E[x]^2 loses digits."""
    return nn.GroupNorm(num_groups=groups, epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def layer_norm(eps: float, dtype: DType, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def conv(features: int, kernel: int, dtype: DType, name: str, strides: int = 1, padding=None, use_bias: bool = True):
    """torch's ``Conv2d``: padding k // 2 unless given; explicit, for XLA's SAME differs with strides."""
    padding = ((kernel // 2, kernel // 2),) * 2 if padding is None else padding
    return nn.Conv(features, (kernel, kernel), strides, padding, use_bias=use_bias, dtype=dtype, name=name)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by repetition."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


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
        h = nn.silu(group_norm(self.groups, self.eps, self.dtype, "norm1")(x))
        h = conv(self.features, 3, self.dtype, "conv1")(h)
        if temb is not None:
            h = h + LoRADense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))[:, None, None, :]
        h = nn.silu(group_norm(self.groups, self.eps, self.dtype, "norm2")(h))
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


class Upsample(nn.Module):
    """diffusers' Upsample2D: nearest neighbour, then a convolution."""

    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 e"]:
        x = upsample_nearest(x)
        if size is not None:  # The skip connection of an odd level is one row or column short of the double.
            x = x[:, : size[0], : size[1]]
        return conv(self.features, 3, self.dtype, "conv")(x)


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
        h = group_norm(self.groups, 1e-6, self.dtype, "norm")(x)
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
