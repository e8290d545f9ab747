"""Reading a Stable Diffusion pipeline from a diffusers folder or a hub id."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax.core.batching import in_chunks
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import Array, DType, Int, Params
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.clip import CLIPTextModel
from spo_jax.models.config import CLIPTextConfig, TinyVAEConfig, UNetConfig, VAEConfig
from spo_jax.models.tiny_vae import AutoencoderTiny
from spo_jax.models.unet import UNet2DConditionModel
from spo_jax.models.vae import AutoencoderKL
from spo_jax.parallel.mesh import gathered
from spo_jax.parallel.sharding import place_weights
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

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels at that size."""
        height, width, _ = self.latent_shape
        return height * self.vae.config.downscale, width * self.vae.config.downscale

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Text states of prompts, on the host; computed once per prompt and kept by the caller."""
        encode = functools.partial(_encode_text, self.text_encoder, self.params["text_encoder"])
        return in_chunks(encode, self.tokenizer(prompts), TEXT_CHUNK)


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(text_encoder: CLIPTextModel, params: Params, ids: Int[Array, "b l"]) -> Conditioning:
    return gathered(Conditioning(text_encoder.apply({"params": params}, ids)[0].last))


def resolve(model: str | os.PathLike, revision: str | None = None) -> Path:
    """The local folder of a model: the embedded one, a folder, or a hub id (downloaded and cached).

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`.
    """
    return ASSETS / "pipeline" if str(model) == EMBEDDED else hub.resolve(model, revision, components=COMPONENTS)


def load_pipeline(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: DType = jnp.float32,
    remat: bool = False,
    mesh: Mesh | None = None,
) -> Pipeline:
    """Reads a Stable Diffusion pipeline in diffusers layout.

    Args:
      model: folder, hub id, or ``"embedded"``.
      dtype: of weights and activations.
      remat: gradient checkpointing in the UNet.
      mesh: where the weights go; without one, to the first device.

    Raises:
      UserError: what is missing or does not fit, with file and field.
    """
    folder = resolve(model, revision)
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(f"{folder}: no model_index.json here; expected a diffusers pipeline folder or a hub id of one")
    kind = read_json_object(index_file).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(f"{index_file}: _class_name is {kind!r}, expected 'StableDiffusionPipeline'")
    unet = UNet2DConditionModel(_read_config(UNetConfig, folder / "unet"), remat, dtype)
    if unet.config.sample_size is None:
        raise UserError(f"{folder / 'unet' / 'config.json'}: sample_size is missing: it is the size of the pictures")
    vae = AutoencoderKL(_read_config(VAEConfig, folder / "vae"), dtype)
    text_encoder = CLIPTextModel(_read_config(CLIPTextConfig, folder / "text_encoder"), dtype=dtype)
    shapes = {"unet": unet_shapes(unet), "vae": vae_shapes(vae), "text_encoder": text_shapes(text_encoder)}
    return Pipeline(
        folder=folder,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=Tokenizer(folder / "tokenizer"),
        scheduler=_read_config(ScheduleConfig, folder / "scheduler", "scheduler_config.json"),
        # On the devices once and for all: numpy arrays would travel there with every call.
        params=place_weights(
            {
                "unet": diffusers_weights.load_unet(folder / "unet", shapes["unet"], dtype=dtype),
                "vae": diffusers_weights.load_vae(folder / "vae", shapes["vae"], dtype=dtype),
                "text_encoder": clip_weights.load_text(folder / "text_encoder", shapes["text_encoder"], dtype=dtype),
            },
            mesh,
            title=str(model),
        ),
    )


def _read_config(cls: Any, folder: Path, name: str = "config.json") -> Any:
    return cls.from_dict(read_json_object(folder / name), str(folder / name))


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


def load_tiny_vae(
    model: str | os.PathLike, dtype: DType = jnp.float32, mesh: Mesh | None = None
) -> tuple[AutoencoderTiny, Params]:
    """Reads a distilled autoencoder (AutoencoderTiny) from a folder or a hub id.

    Raises:
      UserError: as `load_pipeline`.
    """
    folder = resolve(model)
    vae = AutoencoderTiny(_read_config(TinyVAEConfig, folder), dtype)
    weights = diffusers_weights.load_vae(folder, vae_shapes(vae), dtype=dtype)
    return vae, place_weights(weights, mesh, title=str(model))
