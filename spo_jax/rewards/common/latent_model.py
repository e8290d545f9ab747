"""A latent reward model (LRM, arXiv 2502.01051): a diffusion model's own first half that judges noisy latents.

The UNet runs down to its middle block and no further. The outputs of the last layer of every down block and of the
middle block are averaged over space and put side by side. A projection makes an image feature of them, which is
compared with a text feature of the prompt. The middle block's average is guided as a prediction is, by that for the
empty prompt.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, DType, Float, Int, Num, Params
from spo_jax.diffusion.guidance import interleaved
from spo_jax.models.stable_diffusion.conditioning import Conditioning, SizeConditions
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.text import encode_texts
from spo_jax.models.stable_diffusion.unet import UNetEncoder
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.shapes import text_shapes
from spo_jax.rewards.common.lrm_files import GUIDANCE, LatentConfig

ENCODERS = ("text_encoder", "text_encoder_2")
_PIXELS_PER_LATENT = 8  # in the size conditions of SDXL's judge, whatever is judged


class LatentTexts(NamedTuple):
    """Prompts as the model takes them.

    Attributes:
      condition: what the UNet is conditioned on.
      features: projected text features, not normalised.
    """

    condition: Conditioning
    features: Float[Array, "b p"]


@dataclasses.dataclass(frozen=True)
class LatentModel:
    """The networks of a latent reward model; their weights are an argument of its functions.

    Weights are a tree of ``unet`` (the first half), ``text_encoder``, for SDXL ``text_encoder_2``,
    ``visual_projection``, for SD ``text_projection``, and ``logit_scale``.

    Attributes:
      unet: the first half of the UNet.
      text: the text encoders.
      guidance_scale: factor g of the middle block, uncond + g (text - uncond); 1 runs the network only once.
      guides_all: whether the features of down blocks are guided too. The published code for SDXL leaves out the first.
    """

    unet: UNetEncoder
    text: tuple[CLIPTextModel, ...]
    guidance_scale: float = GUIDANCE
    guides_all: bool = False

    @property
    def projects_text(self) -> bool:
        """Whether there is a text projection of its own; SDXL's second text encoder has one already."""
        return len(self.text) == 1

    def encode_text(self, params: Params, ids: Int[Array, "b e l"]) -> LatentTexts:
        """Encodes tokens, one row for each of the e text encoders."""
        texts = encode_texts(self.text, [params[name] for name in ENCODERS[: len(self.text)]], ids)
        if self.projects_text:
            features = _project(params["text_projection"], texts.pooled)
            return LatentTexts(Conditioning(texts.states), features)
        size = self.unet.config.sample_size
        sides = (size, size) if isinstance(size, int) else size
        ids = SizeConditions.uncropped(tuple(_PIXELS_PER_LATENT * side for side in sides)).time_ids
        time_ids = jnp.tile(jnp.asarray([ids], jnp.float32), (len(texts.pooled), 1))
        return LatentTexts(Conditioning(texts.states, texts.pooled, time_ids), texts.pooled)

    def pooled(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Conditioning,
        empty: Conditioning,
    ) -> Float[Array, "b d"]:
        """Computes what `image_features` projects, in float32: the averages of all scales, the middle block's last.

        Args:
          params: the weights.
          x: noisy latents.
          t: their timesteps.
          condition: encoded prompts, a row each.
          empty: the encoded empty prompt, one row.
        """
        if self.guidance_scale == 1:
            return jnp.concatenate(self._averages(params, x, t, condition), axis=-1)
        empty = jax.tree.map(lambda row: jnp.broadcast_to(row, (len(x), *row.shape[1:])), empty)
        averages = self._averages(params, *interleaved((x, t, empty), (x, t, condition)))
        features = []
        for index, both in enumerate(averages):
            without, text = jnp.moveaxis(both.reshape(-1, 2, both.shape[-1]), 1, 0)  # [2b c] -> 2 x [b c]
            is_guided = index == len(averages) - 1 or (self.guides_all and (index > 0 or self.projects_text))
            features.append(without + self.guidance_scale * (text - without) if is_guided else text)
        return jnp.concatenate(features, axis=-1)

    def _averages(
        self, params: Params, x: Float[Array, "b h w c"], t: Num[Array, " b"], condition: Conditioning
    ) -> list[Float[Array, "b _"]]:
        taps, middle = self.unet.apply({"params": params["unet"]}, x, t, *condition)
        return [output.astype(jnp.float32).mean((1, 2)) for output in (*taps, middle)]

    def image_features(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Conditioning,
        empty: Conditioning,
    ) -> Float[Array, "b p"]:
        """Computes image features, not normalised; the arguments are those of `pooled`."""
        return _project(params["visual_projection"], self.pooled(params, x, t, condition, empty))


def _project(params: Params, features: Float[Array, "b d"]) -> Float[Array, "b p"]:
    return features.astype(jnp.float32) @ params["kernel"].astype(jnp.float32)


def make_model(config: LatentConfig, dtype: DType, remat: bool | str = False, **options: float | bool) -> LatentModel:
    """Makes the networks of a config.

    Args:
      config: the config.
      dtype: dtype of activations.
      remat: as in `spo_jax.models.stable_diffusion.unet.UNetEncoder`.
      **options: fields of `LatentModel`; the guidance is otherwise that of the config.
    """
    several = len(config.text) > 1
    text = tuple(
        CLIPTextModel(encoder, projection=several and index == 1, dtype=dtype)
        for index, encoder in enumerate(config.text)
    )
    options = {"guidance_scale": config.guidance_scale, **options}
    return LatentModel(UNetEncoder(config.unet, remat, dtype), text, **options)


def model_shapes(model: LatentModel, projection: int) -> Params:
    """Returns the shapes of the weights.

    Args:
      model: the networks.
      projection: width of the features that are compared.
    """
    shapes = {name: text_shapes(encoder) for name, encoder in zip(ENCODERS, model.text, strict=False)}
    return {"unet": unet_shapes(model.unet), **shapes, **head_shapes(model, projection)}


def head_shapes(model: LatentModel, projection: int) -> Params:
    """Returns the shapes of projections and scale, which are in a file of their own; see `model_shapes`."""
    channels = model.unet.config.block_out_channels
    inputs = {"visual_projection": sum(channels) + channels[-1]}
    if model.projects_text:
        inputs["text_projection"] = model.text[0].config.hidden_size
    kernels = {
        name: {"kernel": jax.ShapeDtypeStruct((width, projection), jnp.float32)} for name, width in inputs.items()
    }
    return {**kernels, "logit_scale": jax.ShapeDtypeStruct((), jnp.float32)}
