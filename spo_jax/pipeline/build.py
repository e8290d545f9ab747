"""Reading a Stable Diffusion pipeline from a diffusers folder or a hub id."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from spo_jax.core.batching import in_chunks
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.typing import Array, DType, Int, Params
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.clip import CLIPTextModel
from spo_jax.models.config import CLIPTextConfig, TinyVAEConfig, UNetConfig, VAEConfig
from spo_jax.models.tiny_vae import AutoencoderTiny
from spo_jax.models.unet import UNet2DConditionModel
from spo_jax.models.vae import AutoencoderKL
from spo_jax.pipeline.functions import Conditioning
from spo_jax.weights import clip as clip_weights
from spo_jax.weights import diffusers as diffusers_weights
from spo_jax.weights import hub

EMBEDDED = "embedded"  # The name by which configs and flags ask for the pipeline in the package.
ASSETS = Path(__file__).parent / "assets"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # what is read; no safety checker
TEXT_CHUNK = 64  # prompts encoded at a time, in one compiled shape


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Networks, weights and settings of one Stable Diffusion model.

    Attributes:
      folder: where it was read from (other files, such as the tokenizer, are copied from there on export).
      params: {"unet", "vae", "text_encoder"} weights.
    """

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    scheduler: ScheduleConfig
    params: Params

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) at the size that the model was trained for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.unet.config.in_channels

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Text states of prompts; computed once per prompt and kept by the caller."""
        encode = functools.partial(_encode_text, self.text_encoder, self.params["text_encoder"])
        return in_chunks(encode, self.tokenizer(prompts), TEXT_CHUNK)


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(text_encoder: CLIPTextModel, params: Params, ids: Int[Array, "b l"]) -> Conditioning:
    return Conditioning(text_encoder.apply({"params": params}, ids)[0].last)


def resolve(model: str | os.PathLike, revision: str | None = None) -> Path:
    """The local folder of a model: the embedded one, a folder, or a hub id (downloaded and cached).

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`.
    """
    return ASSETS / "pipeline" if str(model) == EMBEDDED else hub.resolve(model, revision, components=COMPONENTS)


def load_pipeline(
    model: str | os.PathLike, *, revision: str | None = None, dtype: DType = jnp.float32, remat: bool = False
) -> Pipeline:
    """Reads a Stable Diffusion pipeline in diffusers layout.

    Args:
      model: folder, hub id, or ``"embedded"``.
      dtype: of weights and activations.
      remat: gradient checkpointing in the UNet.

    Raises:
      UserError: what is missing or does not fit, with file and field.
    """
    folder = resolve(model, revision)
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(f"{folder}: no model_index.json here; expected a diffusers pipeline folder or a hub id of one")
    index = read_json(index_file)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind != "StableDiffusionPipeline":
        raise UserError(f"{index_file}: _class_name is {kind!r}, expected 'StableDiffusionPipeline'")
    config = lambda name: (read_json(folder / name / "config.json"), str(folder / name / "config.json"))  # noqa: E731
    unet = UNet2DConditionModel(UNetConfig.from_dict(*config("unet")), remat, dtype)
    vae = AutoencoderKL(VAEConfig.from_dict(*config("vae")), dtype)
    text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(*config("text_encoder")), dtype=dtype)
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    shapes = {"unet": unet_shapes(unet), "vae": vae_shapes(vae), "text_encoder": text_shapes(text_encoder)}
    return Pipeline(
        folder=folder,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=Tokenizer(folder / "tokenizer"),
        scheduler=ScheduleConfig.from_dict(read_json(scheduler_file), str(scheduler_file)),
        # On the device once and for all: numpy arrays would travel there with every call.
        params=jax.device_put(
            {
                "unet": diffusers_weights.load_unet(folder / "unet", shapes["unet"], dtype=dtype),
                "vae": diffusers_weights.load_vae(folder / "vae", shapes["vae"], dtype=dtype),
                "text_encoder": clip_weights.load_text(folder / "text_encoder", shapes["text_encoder"], dtype=dtype),
            }
        ),
    )


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


def load_tiny_vae(model: str | os.PathLike, dtype: DType = jnp.float32) -> tuple[AutoencoderTiny, Params]:
    """Reads a distilled autoencoder (AutoencoderTiny) from a folder or a hub id.

    Raises:
      UserError: as `load_pipeline`.
    """
    folder = resolve(model)
    config_file = folder / "config.json"
    vae = AutoencoderTiny(TinyVAEConfig.from_dict(read_json(config_file), str(config_file)), dtype)
    return vae, jax.device_put(diffusers_weights.load_vae(folder, vae_shapes(vae), dtype=dtype))
