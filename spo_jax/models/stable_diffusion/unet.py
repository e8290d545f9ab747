"""UNet2DConditionModel of diffusers: the noise predictor of SD 1.5, SD 2.1 and SDXL."""

from typing import NamedTuple

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
from spo_jax.nn.remat import recomputed

# Pattern of torch's names of the weights that only the second half of the network has.
DECODER = r"^(up_blocks|conv_norm_out|conv_out)\."


class _Level(nn.Module):
    """Base of the down, mid and up blocks of one resolution, which makes their parts.

    Attributes:
      config: sizes of the network.
      index: level of the block, counted from the highest resolution.
      remat: what ResNet and transformer blocks keep that are computed again, as in `spo_jax.nn.remat.recomputed`.
      dtype: dtype of the activations.
    """

    config: UNetConfig
    index: int
    remat: bool | str = False
    dtype: DType = jnp.float32

    @property
    def features(self) -> int:
        """The number of channels."""
        return self.config.block_out_channels[self.index]

    def resnet(self, name: str) -> nn.Module:
        """Makes a ResNet block."""
        block = recomputed(ResnetBlock, self.remat)
        return block(self.features, self.config.norm_num_groups, self.config.norm_eps, self.dtype, name=name)

    def attention(self, name: str) -> nn.Module:
        """Makes an attention, which is a stack of transformer blocks."""
        config = self.config
        blocks = len(config.block_out_channels)
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
        """The number of ResNet blocks of the down block."""
        return per_block(self.config.layers_per_block, len(self.config.block_out_channels))[self.index]


class _DownBlock(_Level):
    """DownBlock2D or CrossAttnDownBlock2D; returns the output and the skip connections."""

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
    """UpBlock2D or CrossAttnUpBlock2D; takes its own ``skips`` and the spatial ``size`` of the next level."""

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


class _Encoded(NamedTuple):
    """What the way down gives.

    Attributes:
      middle: output of the middle block.
      skips: what the up blocks take, from the first convolution on.
      taps: output of the last layer of every down block, before it is halved; these are among the skips.
      temb: embedded timesteps, which the up blocks take too.
      context: states of the text encoders in the network's dtype.
    """

    middle: Float[Array, "b h w c"]
    skips: list[Float[Array, "b h w c"]]
    taps: list[Float[Array, "b h w c"]]
    temb: Float[Array, "b d"]
    context: Float[Array, "b l d"]


class _UNet(nn.Module):
    """Base of the whole network and of its first half, which they share.

    Attributes:
      config: sizes of the network.
      remat: what ResNet and transformer blocks keep that are computed again in the backward pass (gradient
        checkpointing), as in `spo_jax.nn.remat.recomputed`.
      dtype: dtype of the activations; timestep features, statistics of norms, softmax and LoRA stay float32.
    """

    config: UNetConfig
    remat: bool | str = False
    dtype: DType = jnp.float32

    def _encode(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        context: Float[Array, "b l d"],
        pooled: Float[Array, "b p"] | None,
        time_ids: Float[Array, "b 6"] | None,
    ) -> _Encoded:
        """Runs the down blocks and the middle block; the arguments are those of `UNet2DConditionModel`."""
        config = self.config
        blocks = len(config.block_out_channels)
        x = x.astype(self.dtype)
        context = context.astype(self.dtype)
        temb = self._time_embedding(t, pooled, time_ids)
        x = conv(config.block_out_channels[0], config.conv_in_kernel, self.dtype, "conv_in")(x)
        # Down blocks; their outputs are kept as skip connections.
        skips, taps = [x], []
        for index in range(blocks):
            block = _DownBlock(config, index, self.remat, self.dtype, name=f"down_blocks_{index}")
            x, outputs = block(x, temb, context)
            skips += outputs
            taps.append(outputs[block.layers - 1])
        x = _MidBlock(config, blocks - 1, self.remat, self.dtype, name="mid_block")(x, temb, context)
        return _Encoded(x, skips, taps, temb, context)

    def _time_embedding(
        self, t: Num[Array, " b"], pooled: Float[Array, "b p"] | None, time_ids: Float[Array, "b 6"] | None
    ) -> Float[Array, "b d"]:
        """Embeds the timesteps and, in SDXL, the pooled text and the size conditions."""
        config = self.config
        width = 4 * config.block_out_channels[0]

        def sinusoid(values, dim):
            return sinusoidal_embedding(values, dim, config.flip_sin_to_cos, config.freq_shift).astype(self.dtype)

        temb = TimestepEmbedding(width, self.dtype, name="time_embedding")(sinusoid(t, config.block_out_channels[0]))
        given = (pooled is not None, time_ids is not None)
        if given != (config.wants_size_conditions,) * 2:
            raise ValueError(f"pooled text and time ids: given {given}, {config.addition_embed_type=}")
        if config.wants_size_conditions:
            ids = sinusoid(time_ids.reshape(-1), config.addition_time_embed_dim)  # [b 6] -> [b*6 d]
            ids = ids.reshape(time_ids.shape[0], -1)  # [b*6 d] -> [b 6*d]
            added = jnp.concatenate([pooled.astype(self.dtype), ids], axis=-1)
            temb = temb + TimestepEmbedding(width, self.dtype, name="add_embedding")(added)
        return temb


class UNet2DConditionModel(_UNet):
    """Predicts the noise (or v) in latents ``x`` at timesteps ``t``, given text states ``context``."""

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
          x: noisy latents.
          t: timesteps in [0, 999].
          context: states of the text encoders.
          pooled: SDXL's pooled text; given if and only if the config asks for it.
          time_ids: SDXL's size conditions; given if and only if the config asks for them.

        Returns:
          The prediction, in ``dtype``.
        """
        config = self.config
        blocks = len(config.block_out_channels)
        x, skips, _, temb, context = self._encode(x, t, context, pooled, time_ids)
        # Up blocks; each takes the last skip connections that are left.
        for position in range(blocks):
            index = blocks - 1 - position
            block = _UpBlock(config, index, self.remat, self.dtype, name=f"up_blocks_{position}")
            rest = len(skips) - (block.layers + 1)
            size = skips[rest - 1].shape[1:3] if index > 0 else None
            x = block(x, skips[rest:], temb, context, size)
            skips = skips[:rest]
        x = nn.silu(GroupNorm(config.norm_num_groups, config.norm_eps, self.dtype, name="conv_norm_out")(x))
        return conv(config.out_channels, config.conv_out_kernel, self.dtype, "conv_out")(x)


class UNetEncoder(_UNet):
    """The first half of the network, down to its middle block: what a judge of noisy latents looks at.

    Its weights are those of a `UNet2DConditionModel` without `DECODER`.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        context: Float[Array, "b l d"],
        pooled: Float[Array, "b p"] | None = None,
        time_ids: Float[Array, "b 6"] | None = None,
    ) -> tuple[list[Float[Array, "b ..."]], Float[Array, "b ..."]]:
        """
        Args:
          x: noisy latents.
          t: timesteps in [0, 999].
          context: states of the text encoders.
          pooled: SDXL's pooled text; given if and only if the config asks for it.
          time_ids: SDXL's size conditions; given if and only if the config asks for them.

        Returns:
          The output of the last layer of every down block, before it is halved, and that of the middle block.
        """
        encoded = self._encode(x, t, context, pooled, time_ids)
        return encoded.taps, encoded.middle
