"""What a pipeline does, as pure functions of its parameters."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Key, Num, Params
from spo_jax.diffusion.guidance import guided
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.lora import scaled
from spo_jax.nn.tiny_vae import AutoencoderTiny
from spo_jax.nn.vae import AutoencoderKL, sample_posterior


class Conditioning(NamedTuple):
    """What the UNet is told about a prompt.

    Attributes:
      states: text encoder states.
      pooled: projected pooled text, SDXL only.
      time_ids: (original height, width, crop top, left, target height, width), SDXL only.
    """

    states: Float[Array, "b l d"]
    pooled: Float[Array, "b p"] | None = None
    time_ids: Float[Array, "b 6"] | None = None

    def repeated(self, copies: int) -> "Conditioning":
        """Every prompt ``copies`` times, one after the other."""
        return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), self)


@dataclasses.dataclass(frozen=True)
class SizeConditions:
    """What SDXL is told of a picture's size, in pixels; diffusers' `_get_add_time_ids`.

    Attributes:
      original: (height, width) of the picture before it was cut; small ones ask for a blurred picture.
      crop: (top, left) of the cut; (0, 0) asks for a centred subject.
      target: (height, width) of the cut, as a rule those of the picture to be made.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def uncropped(cls, size: tuple[int, int]) -> "SizeConditions":
        """Of a whole picture of (height, width)."""
        return cls(size, (0, 0), size)

    @property
    def time_ids(self) -> tuple[float, ...]:
        """The six numbers in the order in which the UNet takes them."""
        return tuple(float(x) for x in (*self.original, *self.crop, *self.target))


class Guidance(NamedTuple):
    """A prompt's conditioning with its unconditional twin (b rows, or one row for all) and the guidance scale."""

    condition: Conditioning
    unconditional: Conditioning
    scale: float


def denoise(
    unet: UNet2DConditionModel,
    params: Params,
    lora: Params | None,
    guidance: Guidance,
    x: Float[Array, "*k b h w c"],
    t: Num[Array, "*b"],
    lora_scale: float = 1.0,
) -> Float[Array, "*k b h w c"]:
    """Guided prediction of the UNet.

    Args:
      params: the UNet's base weights. lora: the adapter's tree; None is the base model.
      x: latents; leading axes before b are copies of the prompts, folded into one batch.
      t: one timestep, or one per row of b (without copies).
      lora_scale: alpha / r, times the strength that a user asks for.
    """
    variables = {"params": params} if lora is None else {"params": params, "lora": scaled(lora, lora_scale)}

    def predict(x, t, condition: Conditioning):
        return unet.apply(variables, x, t, *condition)

    # The prompts' axis first and slowest: where it is cut over devices, all copies of a prompt stay on one.
    by_prompt = jnp.moveaxis(x, -4, 0)
    flat = by_prompt.reshape(-1, *x.shape[-3:])
    copies = len(flat) // len(by_prompt)
    condition = guidance.condition.repeated(copies)
    unconditional = guidance.unconditional.repeated(len(flat) // len(guidance.unconditional.states))
    t = jnp.broadcast_to(t, flat.shape[:1])
    out = guided(predict, flat, t, condition, unconditional, guidance.scale)
    return jnp.moveaxis(out.reshape(by_prompt.shape), 0, -4)


def decode(
    vae: AutoencoderKL | AutoencoderTiny, params: Params, latents: Float[Array, "b h w c"]
) -> Float[Array, "b H W 3"]:
    """Pictures, near [-1, 1] and not clipped, of latents as the diffusion model sees them."""
    return vae.apply({"params": params}, latents / vae.config.scaling_factor, method="decode")


def encode_image(
    vae: AutoencoderKL, params: Params, images: Float[Array, "b H W 3"], key: Key | None = None
) -> Float[Array, "b h w c"]:
    """Latents as the diffusion model sees them; a draw from the posterior with ``key``, its mean without."""
    mean, logvar = vae.apply({"params": params}, images, method="encode")
    latents = mean if key is None else sample_posterior(key, mean, logvar)
    return latents * vae.config.scaling_factor


def bind_denoise(unet: UNet2DConditionModel, params: Params, lora: Any, guidance: Guidance, lora_scale: float = 1.0):
    """`denoise` with everything but (x, t) fixed: what samplers and the resampler take."""
    return lambda x, t: denoise(unet, params, lora, guidance, x, t, lora_scale)
