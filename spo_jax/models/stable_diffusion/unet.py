"""UNet2DConditionModel of diffusers: the noise predictor of SD 1.5, SD 2.1 and SDXL."""

import jax.numpy as jnp
from flax import linen as nn

from spo_jax.core.typing import Array, DType, Float, Num
from spo_jax.models.stable_diffusion.config import UNetConfig, per_block
from spo_jax.nn.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    conv,
    sinusoidal_embedding,
)


class _Level(nn.Module):
    """What the down, mid and up blocks of one resolution have in common: how to make their parts."""

    config: UNetConfig
    index: int
    remat: bool = False
    dtype: DType = jnp.float32

    @property
    def features(self) -> int:
        return self.config.block_out_channels[self.index]

    def resnet(self, name: str) -> nn.Module:
        block = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        return block(self.features, self.config.norm_num_groups, self.config.norm_eps, self.dtype, name=name)

    def attention(self, name: str) -> nn.Module:
        config, blocks = self.config, len(self.config.block_out_channels)
        return SpatialTransformer(
            heads=per_block(config.attention_head_dim, blocks)[self.index],
            layers=per_block(config.transformer_layers_per_block, blocks)[self.index],
            groups=config.norm_num_groups,
            use_linear_projection=config.use_linear_projection,
            upcast_attention=bool(config.upcast_attention),
            remat=self.remat,
            dtype=self.dtype,
            name=name,
        )

    @property
    def layers(self) -> int:
        return per_block(self.config.layers_per_block, len(self.config.block_out_channels))[self.index]


class _DownBlock(_Level):
    """DownBlock2D or CrossAttnDownBlock2D; gives the output and the skip connections."""

    @nn.compact
    def __call__(self, x, temb, context):
        skips = []
        for layer in range(self.layers):
            x = self.resnet(f"resnets_{layer}")(x, temb)
            if self.config.down_block_types[self.index].startswith("CrossAttn"):
                x = self.attention(f"attentions_{layer}")(x, context)
            skips.append(x)
        if self.index < len(self.config.block_out_channels) - 1:
            x = Downsample(self.features, dtype=self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class _MidBlock(_Level):
    """UNetMidBlock2DCrossAttn."""

    @nn.compact
    def __call__(self, x, temb, context):
        x = self.resnet("resnets_0")(x, temb)
        x = self.attention("attentions_0")(x, context)
        return self.resnet("resnets_1")(x, temb)


class _UpBlock(_Level):
    """UpBlock2D or CrossAttnUpBlock2D; ``skips`` are its own skip connections, ``size`` that of the next level."""

    @nn.compact
    def __call__(self, x, skips, temb, context, size):
        position = len(self.config.block_out_channels) - 1 - self.index
        for layer, skip in enumerate(reversed(skips)):
            x = self.resnet(f"resnets_{layer}")(jnp.concatenate([x, skip], axis=-1), temb)
            if self.config.up_block_types[position].startswith("CrossAttn"):
                x = self.attention(f"attentions_{layer}")(x, context)
        if size is not None:
            x = Upsample(self.features, dtype=self.dtype, name="upsamplers_0")(x, size)
        return x


class UNet2DConditionModel(nn.Module):
    """Predicts the noise (or v) of latents ``x`` at timesteps ``t`` under text states ``context``.

    Attributes:
      config: network sizes.
      remat: recompute every resnet and transformer block in the backward pass (gradient checkpointing).
      dtype: of activations; timestep features, norms' statistics, softmax and LoRA stay float32.
    """

    config: UNetConfig
    remat: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        context: Float[Array, "b l d"],
        pooled: Float[Array, "b p"] | None = None,
        time_ids: Float[Array, "b 6"] | None = None,
    ) -> Float[Array, "b h w c2"]:
        """
        Args:
          x: noisy latents. t: timesteps in [0, 999]. context: text encoder states.
          pooled, time_ids: SDXL's pooled text and size conditions; given if and only if the config wants them.

        Returns:
          The prediction, in ``dtype``.
        """
        config = self.config
        x, context = x.astype(self.dtype), context.astype(self.dtype)
        temb = self._time_embedding(t, pooled, time_ids)
        x = conv(config.block_out_channels[0], config.conv_in_kernel, self.dtype, "conv_in")(x)
        skips, blocks = [x], len(config.block_out_channels)
        for index in range(blocks):
            x, more = _DownBlock(config, index, self.remat, self.dtype, name=f"down_blocks_{index}")(x, temb, context)
            skips += more
        x = _MidBlock(config, blocks - 1, self.remat, self.dtype, name="mid_block")(x, temb, context)
        for position in range(blocks):
            index = blocks - 1 - position
            block = _UpBlock(config, index, self.remat, self.dtype, name=f"up_blocks_{position}")
            rest = len(skips) - (block.layers + 1)
            size = skips[rest - 1].shape[1:3] if index > 0 else None
            x, skips = block(x, skips[rest:], temb, context, size), skips[:rest]
        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, self.dtype, name="conv_norm_out")(x))
        return conv(config.out_channels, config.conv_out_kernel, self.dtype, "conv_out")(x)

    def _time_embedding(self, t, pooled, time_ids):
        config = self.config
        width = 4 * config.block_out_channels[0]
        sinusoid = lambda values, dim: sinusoidal_embedding(  # noqa: E731
            values, dim, config.flip_sin_to_cos, config.freq_shift
        ).astype(self.dtype)
        temb = TimestepEmbedding(width, self.dtype, name="time_embedding")(sinusoid(t, config.block_out_channels[0]))
        given = (pooled is not None, time_ids is not None)
        if given != (config.wants_size_conditions,) * 2:
            raise ValueError(f"pooled text and time ids: given {given}, {config.addition_embed_type=}")
        if config.wants_size_conditions:
            ids = sinusoid(time_ids.reshape(-1), config.addition_time_embed_dim).reshape(time_ids.shape[0], -1)
            added = jnp.concatenate([pooled.astype(self.dtype), ids], axis=-1)
            temb = temb + TimestepEmbedding(width, self.dtype, name="add_embedding")(added)
        return temb
