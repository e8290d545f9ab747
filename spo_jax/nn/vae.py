"""AutoencoderKL of diffusers: images to latents and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from spo_jax.core.config import JSONConfig, check_divisors, check_levels, limited
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, DType, Float, Key
from spo_jax.nn.attention import dot_product_attention
from spo_jax.nn.given import Conv, Dense
from spo_jax.nn.layers import Downsample, GroupNorm, ResnetBlock, Upsample, conv

_EPS = 1e-6  # diffusers fixes the epsilon of the autoencoder's norms, independently of the UNet's.


@dataclasses.dataclass(frozen=True)
class VAEConfig(JSONConfig):
    """Config of an AutoencoderKL, with diffusers' field names."""

    in_channels: int = limited(3, at_least=1, at_most=64)
    out_channels: int = limited(3, at_least=1, at_most=64)
    block_out_channels: tuple[int, ...] = limited((64,), at_least=1, at_most=2**14)
    layers_per_block: int = limited(1, at_least=1, at_most=16)
    latent_channels: int = limited(4, at_least=1, at_most=256)
    norm_num_groups: int = limited(32, at_least=1, at_most=2**10)
    sample_size: int | tuple[int, int] | None = limited(32, at_least=1, at_most=2**16)
    scaling_factor: float = limited(0.18215, above=0, at_most=1000)
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    FIXED = {
        "act_fn": ("silu",),
        "shift_factor": (None, 0.0),
        "latents_mean": (None,),
        "latents_std": (None,),
        "down_block_types": tuple(("DownEncoderBlock2D",) * n for n in range(1, 7)),
        "up_block_types": tuple(("UpDecoderBlock2D",) * n for n in range(1, 7)),
    }

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        check_levels(where, "block_out_channels", self.block_out_channels)
        blocks = len(self.block_out_channels)
        for field in ("down_block_types", "up_block_types"):
            length = len(raw.get(field, ("one",)))  # diffusers' default is a single block.
            if length != blocks:
                raise UserError(f"{where}: {field} has {length} entries: expected {blocks} as in block_out_channels")
        check_divisors(where, "norm_num_groups", (self.norm_num_groups,) * blocks, self.block_out_channels)

    @property
    def downscale(self) -> int:
        """Number of pixels per latent along a side."""
        return 2 ** (len(self.block_out_channels) - 1)


class _SpatialAttention(nn.Module):
    """diffusers' Attention with a GroupNorm of its own: one head over all pixels, residual."""

    groups: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        def dense(name):
            return Dense(x.shape[-1], dtype=self.dtype, name=name)

        h = GroupNorm(self.groups, _EPS, self.dtype, name="group_norm")(x)
        h = h.reshape(x.shape[0], -1, x.shape[-1])  # [b h w c] -> [b h*w c]
        h = dot_product_attention(dense("to_q")(h), dense("to_k")(h), dense("to_v")(h), heads=1)
        return x + dense("to_out_0")(h).reshape(x.shape)


class _MidBlock(nn.Module):
    """UNetMidBlock2D: attention between two resnets."""

    config: VAEConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        groups = self.config.norm_num_groups
        x = ResnetBlock(x.shape[-1], groups, _EPS, self.dtype, name="resnets_0")(x)
        if self.config.mid_block_add_attention:
            x = _SpatialAttention(groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(x.shape[-1], groups, _EPS, self.dtype, name="resnets_1")(x)


class _Level(nn.Module):
    """DownEncoderBlock2D or UpDecoderBlock2D: resnets, then a change of resolution.

    Attributes:
      features: number of channels.
      layers: number of resnets.
      config: config of the autoencoder.
      resample: ``"down"``, ``"up"``, or None to keep the resolution.
      dtype: dtype of the computation.
    """

    features: int
    layers: int
    config: VAEConfig
    resample: str | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 e"]:
        for layer in range(self.layers):
            x = ResnetBlock(self.features, self.config.norm_num_groups, _EPS, self.dtype, name=f"resnets_{layer}")(x)
        if self.resample == "down":
            x = Downsample(self.features, asymmetric=True, dtype=self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, dtype=self.dtype, name="upsamplers_0")(x)
        return x


class _Encoder(nn.Module):
    config: VAEConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x):
        config = self.config
        widths = config.block_out_channels
        x = conv(widths[0], 3, self.dtype, "conv_in")(x)
        for index, width in enumerate(widths):
            down = "down" if index < len(widths) - 1 else None
            x = _Level(width, config.layers_per_block, config, down, self.dtype, name=f"down_blocks_{index}")(x)
        x = _MidBlock(config, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, _EPS, self.dtype, name="conv_norm_out")(x))
        return conv(2 * config.latent_channels, 3, self.dtype, "conv_out")(x)


class _Decoder(nn.Module):
    config: VAEConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, z):
        config = self.config
        widths = config.block_out_channels[::-1]
        x = conv(widths[0], 3, self.dtype, "conv_in")(z)
        x = _MidBlock(config, self.dtype, name="mid_block")(x)
        for index, width in enumerate(widths):
            up = "up" if index < len(widths) - 1 else None
            x = _Level(width, config.layers_per_block + 1, config, up, self.dtype, name=f"up_blocks_{index}")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, _EPS, self.dtype, name="conv_norm_out")(x))
        return conv(config.out_channels, 3, self.dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """Encoder and decoder. Latents are raw: the pipeline applies ``scaling_factor``."""

    config: VAEConfig
    dtype: DType = jnp.float32

    def setup(self):
        """Makes encoder and decoder."""
        config = self.config
        self.encoder = _Encoder(config, self.dtype)
        self.decoder = _Decoder(config, self.dtype)

        def one_by_one(features):
            return Conv(features, (1, 1), dtype=self.dtype)

        if config.use_quant_conv:
            self.quant_conv = one_by_one(2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = one_by_one(config.latent_channels)

    def encode(self, images: Float[Array, "b H W i"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Returns mean and log variance of the posterior of images in [-1, 1]; the latter is clipped to [-30, 20]."""
        moments = self.encoder(images.astype(self.dtype))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)  # [b h w 2*c] -> 2 x [b h w c]
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W o"]:
        """Returns images, near [-1, 1] but not clipped."""
        latents = latents.astype(self.dtype)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(self, images: Float[Array, "b H W i"]) -> Float[Array, "b H W o"]:
        """Reconstructs the images through the posterior mean; initialises both halves."""
        return self.decode(self.encode(images)[0])


def sample_posterior(
    key: Key, mean: Float[Array, "b h w c"], logvar: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Draws latents as diffusers' ``DiagonalGaussianDistribution.sample`` does."""
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)
