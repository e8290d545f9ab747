"""AutoencoderTiny of diffusers (TAESD, TAESDXL): a distilled autoencoder, about eighteen times cheaper to decode."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from spo_jax.core.config import JSONConfig, check_levels, limited
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, DType, Float
from spo_jax.nn.layers import UpsampledConv, conv


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig(JSONConfig):
    """Config of an AutoencoderTiny, with diffusers' field names."""

    in_channels: int = limited(3, at_least=1, at_most=64)
    out_channels: int = limited(3, at_least=1, at_most=64)
    encoder_block_out_channels: tuple[int, ...] = limited((64, 64, 64, 64), at_least=1, at_most=2**12)
    decoder_block_out_channels: tuple[int, ...] = limited((64, 64, 64, 64), at_least=1, at_most=2**12)
    latent_channels: int = limited(4, at_least=1, at_most=256)
    num_encoder_blocks: tuple[int, ...] = limited((1, 3, 3, 3), at_least=1, at_most=16)
    num_decoder_blocks: tuple[int, ...] = limited((3, 3, 3, 1), at_least=1, at_most=16)
    scaling_factor: float = limited(1.0, above=0, at_most=1000)

    FIXED = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "shift_factor": (0.0, None),
        "upsampling_scaling_factor": (2,),
    }
    # latent_magnitude and latent_shift belong to diffusers' 8-bit storage of latents, not to encode or decode.
    IGNORED = frozenset({"latent_magnitude", "latent_shift", "force_upcast", "block_out_channels"})

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        for side in ("encoder", "decoder"):
            widths = getattr(self, f"{side}_block_out_channels")
            blocks = getattr(self, f"num_{side}_blocks")
            check_levels(where, f"{side}_block_out_channels", widths)
            # diffusers builds networks of several widths but then cannot run them.
            if len(widths) != len(blocks) or len(set(widths)) != 1:
                raise UserError(
                    f"{where}: {side}_block_out_channels = {list(widths)} is not implemented: "
                    f"expected the same width {len(blocks)} times, once for each entry of num_{side}_blocks"
                )


# The published config of TAESD and TAESDXL, 2.4 M parameters.
TAESD: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}


class _Block(nn.Module):
    """AutoencoderTinyBlock. The indices in the names are those of torch's Sequential, which counts the activations."""

    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = nn.relu(conv(self.features, 3, self.dtype, "conv_0")(x))
        h = nn.relu(conv(self.features, 3, self.dtype, "conv_2")(h))
        return nn.relu(conv(self.features, 3, self.dtype, "conv_4")(h) + x)


class _Encoder(nn.Module):
    config: TinyVAEConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images):
        config = self.config
        layer = 0
        x = images / 2 + 0.5  # TAESD works on [0, 1].
        for index, blocks in enumerate(config.num_encoder_blocks):
            width = config.encoder_block_out_channels[index]
            first = index == 0
            strides = 1 if first else 2
            x = conv(width, 3, self.dtype, f"layers_{layer}", strides=strides, use_bias=first)(x)
            for offset in range(blocks):
                x = _Block(width, self.dtype, name=f"layers_{layer + 1 + offset}")(x)
            layer += 1 + blocks
        return conv(config.latent_channels, 3, self.dtype, f"layers_{layer}")(x)


class _Decoder(nn.Module):
    config: TinyVAEConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, latents):
        config = self.config
        layer = 2  # after the first convolution and its activation
        x = jnp.tanh(latents / 3) * 3
        x = nn.relu(conv(config.decoder_block_out_channels[0], 3, self.dtype, "layers_0")(x))
        for index, blocks in enumerate(config.num_decoder_blocks):
            width = config.decoder_block_out_channels[index]
            last = index == len(config.num_decoder_blocks) - 1
            for offset in range(blocks):
                x = _Block(width, self.dtype, name=f"layers_{layer + offset}")(x)
            layer += blocks
            if last:
                x = conv(config.out_channels, 3, self.dtype, f"layers_{layer}")(x)
            else:  # Torch has two layers here: the upsampling and the convolution.
                x = UpsampledConv(width, use_bias=False, dtype=self.dtype, name=f"layers_{layer + 1}")(x)
                layer += 2
        return x * 2 - 1


class AutoencoderTiny(nn.Module):
    """Encoder and decoder. Latents are already scaled as the diffusion model expects them (``scaling_factor`` 1)."""

    config: TinyVAEConfig
    dtype: DType = jnp.float32

    def setup(self):
        """Makes encoder and decoder."""
        self.encoder = _Encoder(self.config, self.dtype)
        self.decoder = _Decoder(self.config, self.dtype)

    def encode(self, images: Float[Array, "b H W i"]) -> Float[Array, "b h w c"]:
        """Returns the latents of images in [-1, 1]."""
        return self.encoder(images.astype(self.dtype))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W o"]:
        """Returns images, near [-1, 1] but not clipped."""
        return self.decoder(latents.astype(self.dtype))

    def __call__(self, images: Float[Array, "b H W i"]) -> Float[Array, "b H W o"]:
        """Reconstructs the images; initialises both halves."""
        return self.decode(self.encode(images))
