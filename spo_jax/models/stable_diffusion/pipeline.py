"""The Stable Diffusion bundle, SD and SDXL: networks, weights and tokenizers as one, and how it is read."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import Array, DType, Float, Int, Params
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.stable_diffusion.checks import check_parts
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.functions import Conditioning, SizeConditions
from spo_jax.models.stable_diffusion.sources import SCHEDULER_FILE, Source, open_source, open_vae, resolve
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.tiny_vae import AutoencoderTiny, TinyVAEConfig
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered
from spo_jax.parallel.sharding import place_weights
from spo_jax.weights import components as diffusers_weights

TEXT_CHUNK = 64  # prompts encoded at a time, in one compiled shape


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Networks, weights and settings of one Stable Diffusion model, of the first generations or SDXL.

    Attributes:
      folder: where it was read from: a diffusers folder (other files are copied from there on export), or a single
        file. base: the folder of tokenizers and scheduler, where that is another one.
      vae: float32 where SDXL's config says `force_upcast`, whatever the others are, as in diffusers' pipeline.
      params: {"unet", "vae", "text_encoder"} weights, and SDXL's "text_encoder_2".
      text_encoder_2, tokenizer_2: SDXL only.
      zero_unconditional: zeros are the unconditional input, not the encoded empty prompt.
    """

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    scheduler: ScheduleConfig
    params: Params
    text_encoder_2: CLIPTextModel | None = None
    tokenizer_2: Tokenizer | None = None
    zero_unconditional: bool = False
    base: Path | None = None

    @property
    def kind(self) -> str:
        """``sdxl``, or ``sd`` for its predecessors."""
        return "sd" if self.text_encoder_2 is None else "sdxl"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) at the size that the model was trained for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.unet.config.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels at that size."""
        return self.pixels(self.latent_shape)

    def pixels(self, latent_shape: tuple[int, int, int]) -> tuple[int, int]:
        """(height, width) of a picture of latents (h, w, c)."""
        height, width, _ = latent_shape
        return height * self.vae.config.downscale, width * self.vae.config.downscale

    def encode_prompts(self, prompts: Sequence[str], size: SizeConditions | None = None) -> Conditioning:
        """What the UNet is told of prompts, on the host; computed once per prompt and kept by the caller.

        SD takes its text encoder's last states; SDXL both encoders' penultimate ones side by side, the second's
        projected pooled text, and ``size`` (diffusers' `StableDiffusionXLPipeline.encode_prompt`).

        Args:
          size: None is the model's own size, uncropped.

        Raises:
          UserError: a size is given to a model that takes none.
        """
        ids, encoders, params = [self.tokenizer(prompts)], (self.text_encoder,), (self.params["text_encoder"],)
        if self.kind == "sdxl":
            ids.append(self.tokenizer_2(prompts))
            encoders, params = (*encoders, self.text_encoder_2), (*params, self.params["text_encoder_2"])
        encoded = in_chunks(functools.partial(encode_text, encoders, params), np.stack(ids, axis=1), TEXT_CHUNK)
        return encoded._replace(time_ids=self._time_ids(len(prompts), size))

    def encode_unconditional(self, size: SizeConditions | None = None) -> Conditioning:
        """What guidance leads away from, one row: the empty prompt; zeros where the pipeline says so (SDXL).

        Args and raises as `encode_prompts`.
        """
        if not self.zero_unconditional:
            return self.encode_prompts([""], size)
        states = np.zeros((1, self.tokenizer.length, self.unet.config.cross_attention_dim), self.text_encoder.dtype)
        pooled = np.zeros((1, self.text_encoder_2.config.projection_dim), self.text_encoder_2.dtype)
        return Conditioning(states, pooled, self._time_ids(1, size))

    def _time_ids(self, rows: int, size: SizeConditions | None) -> Float[np.ndarray, "b 6"] | None:
        if self.kind != "sdxl":
            if size is not None:
                raise UserError(f"{self.folder} takes no size conditions: only SDXL models do")
            return None
        size = size or SizeConditions.uncropped(self.image_size)
        return np.tile(np.asarray([size.time_ids], np.float32), (rows, 1))


@functools.partial(jax.jit, static_argnums=0)
def encode_text(
    encoders: tuple[CLIPTextModel, ...], params: tuple[Params, ...], ids: Int[Array, "b e l"]
) -> Conditioning:
    """``ids``: e encoders' tokens of each prompt."""
    pairs = zip(encoders, params, strict=True)
    outputs = [encoder.apply({"params": weights}, ids[:, e]) for e, (encoder, weights) in enumerate(pairs)]
    if len(outputs) == 1:
        return gathered(Conditioning(outputs[0][0].last))
    states = jnp.concatenate([output.penultimate for output, _ in outputs], axis=-1)
    return gathered(Conditioning(states, pooled=outputs[-1][1]))


def load_pipeline(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: DType = jnp.float32,
    remat: bool = False,
    mesh: Mesh | None = None,
    vae: str | os.PathLike = "",
    base: str | os.PathLike = "",
) -> Pipeline:
    """Reads a Stable Diffusion or SDXL pipeline: a diffusers folder or a single-file checkpoint.

    Args:
      model: folder, hub id, ``"embedded"``, or a checkpoint in one file.
      dtype: of weights and activations; SDXL's autoencoder is float32 if its config says `force_upcast`.
      remat: gradient checkpointing in the UNet.
      mesh: where the weights go; without one, to the first device.
      vae: folder or hub id of an autoencoder that replaces the model's own.
      base: folder or hub id that lends a single file its tokenizers and scheduler; by default the published model of
        its architecture.

    Raises:
      UserError: what is missing or does not fit, with file and field.
    """
    source = open_source(resolve(model, revision), base)
    vae_source = open_vae(vae) if vae else source
    unet = UNet2DConditionModel(_part_config(UNetConfig, source, "unet"), remat, dtype)
    vae_config = _part_config(VAEConfig, vae_source, "vae")
    upcast = source.kind == "sdxl" and vae_config.force_upcast
    modules = {
        "unet": unet,
        "vae": AutoencoderKL(vae_config, jnp.float32 if upcast else dtype),
        "text_encoder": CLIPTextModel(_part_config(CLIPTextConfig, source, "text_encoder"), dtype=dtype),
    }
    tokenizers = {"tokenizer": Tokenizer(source.base / "tokenizer")}
    if source.kind == "sdxl":
        text_config = _part_config(CLIPTextConfig, source, "text_encoder_2")
        modules["text_encoder_2"] = CLIPTextModel(text_config, projection=True, dtype=dtype)
        tokenizers["tokenizer_2"] = Tokenizer(source.base / "tokenizer_2")
    check_parts(source, vae_source, {name: module.config for name, module in modules.items()}, tokenizers)
    params = {}
    for name, module in modules.items():
        part = vae_source if name == "vae" else source
        params[name] = part.weights(name, _SHAPES[name](module), module.dtype)
    return Pipeline(
        folder=source.path,
        base=source.base,
        **modules,
        **tokenizers,
        scheduler=ScheduleConfig.from_dict(source.scheduler(), str(source.base / "scheduler" / SCHEDULER_FILE)),
        # On the devices once and for all: numpy arrays would travel there with every call.
        params=place_weights(params, mesh, title=str(model)),
        zero_unconditional=source.zero_unconditional,
    )


def _part_config(cls: Any, source: Source, name: str) -> Any:
    return cls.from_dict(source.config(name), source.where(name))


def unet_shapes(unet: UNet2DConditionModel) -> Params:
    """Shapes of the UNet's weights, without allocating them."""
    config = unet.config
    x = jnp.zeros((1, 8, 8, config.in_channels))
    extra = ()
    if config.wants_size_conditions:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        extra = (jnp.zeros((1, pooled)), jnp.zeros((1, 6)))
    states = jnp.zeros((1, 1, config.cross_attention_dim))
    return jax.eval_shape(unet.init, jax.random.key(0), x, jnp.zeros(1), states, *extra)["params"]


def vae_shapes(vae: AutoencoderKL | AutoencoderTiny) -> Params:
    """Shapes of an autoencoder's weights."""
    images = jnp.zeros((1, 64, 64, vae.config.in_channels))
    return jax.eval_shape(vae.init, jax.random.key(0), images)["params"]


def text_shapes(text_encoder: CLIPTextModel) -> Params:
    """Shapes of a text encoder's weights."""
    return jax.eval_shape(text_encoder.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]


_SHAPES = {"unet": unet_shapes, "vae": vae_shapes, "text_encoder": text_shapes, "text_encoder_2": text_shapes}


def load_tiny_vae(
    model: str | os.PathLike, dtype: DType = jnp.float32, mesh: Mesh | None = None
) -> tuple[AutoencoderTiny, Params]:
    """Reads a distilled autoencoder (AutoencoderTiny) from a folder or a hub id.

    Raises:
      UserError: as `load_pipeline`.
    """
    folder = resolve(model)
    config_file = folder / "config.json"
    vae = AutoencoderTiny(TinyVAEConfig.from_dict(read_json_object(config_file), str(config_file)), dtype)
    weights = diffusers_weights.load_vae(folder, vae_shapes(vae), dtype=dtype)
    return vae, place_weights(weights, mesh, title=str(model))
