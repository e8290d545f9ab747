"""The smallest networks of the right structure, with random weights: a training step compiles in seconds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.data.tokenizer import Tokenizer
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion, unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from spo_jax.nn.shapes import clip_shapes, text_shapes, vae_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.parallel.sharding import place_weights
from spo_jax.rewards.common.preference_model import PreferenceModel
from spo_jax.toy import ASSETS
from tests.support.pairs import MemoryPairs, noise_pairs

SIDE = 16  # pixels
WORDS = 569  # of the toy world's vocabulary
LENGTH = 16  # tokens of a prompt
TEXT = CLIPTextConfig(
    vocab_size=WORDS, hidden_size=16, intermediate_size=16, projection_dim=16, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=LENGTH, eos_token_id=WORDS - 1,
)  # fmt: skip
CLIP = CLIPConfig(
    dataclasses.replace(TEXT, hidden_size=32, intermediate_size=32, projection_dim=24, hidden_act="gelu"),
    CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, projection_dim=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4, hidden_act="gelu",
    ),
    projection_dim=24, time_conditioned=True,
)  # fmt: skip
UNET = UNetConfig(
    sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), norm_num_groups=4,
    cross_attention_dim=16, attention_head_dim=2,
)  # fmt: skip
VAE = VAEConfig(
    block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=SIDE,
    scaling_factor=0.5, force_upcast=False,
)  # fmt: skip
SCHEDULE = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def random_weights(seed, shapes):
    """Weights that keep the size of activations; no bias or norm is at rest, where a mistake would not show."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return values / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return (path[-1].key == "scale") + np.float32(0.3) * values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def small_pipeline(mesh=None, dtype=jnp.float32):
    """A Stable Diffusion pipeline for images of 16 pixels, with the toy world's tokenizer; ``dtype`` is the UNet's."""
    return _pipeline(mesh, UNET, {"text_encoder": CLIPTextModel(TEXT)}, dtype)


def small_sdxl():
    """The same pipeline with SDXL's second text encoder and size conditions."""
    unet = dataclasses.replace(
        UNET, cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=TEXT.projection_dim + 6 * 4,
    )  # fmt: skip
    encoders = {"text_encoder": CLIPTextModel(TEXT), "text_encoder_2": CLIPTextModel(TEXT, projection=True)}
    return _pipeline(None, unet, encoders)


def _pipeline(mesh, unet_config, encoders, dtype=jnp.float32):
    unet = UNet2DConditionModel(unet_config, dtype=dtype)
    vae = AutoencoderKL(VAE)
    shapes = {"unet": unet_shapes(unet), "vae": vae_shapes(vae)}
    shapes |= {name: text_shapes(encoder) for name, encoder in encoders.items()}
    tokenizer = Tokenizer(ASSETS / "pipeline" / "tokenizer")
    parts = {"unet": unet, "vae": vae, **encoders, "tokenizer": tokenizer}
    if len(encoders) == 2:
        parts["tokenizer_2"] = tokenizer
    params = random_weights(0, shapes)
    params["unet"] = jax.tree.map(lambda x: x.astype(dtype), params["unet"])
    params = place_weights(params, mesh)
    return StableDiffusion(ASSETS / "pipeline", **parts, scheduler=SCHEDULE, params=params)


def small_clip(mesh=None):
    """A time-conditioned CLIP as (module, weights); no part of it is at rest."""
    clip = CLIPModel(CLIP)
    params = random_weights(1, clip_shapes(clip)) | {"logit_scale": jnp.float32(2.0)}
    return clip, place_weights(params, mesh)


def small_spm(mesh=None):
    """The same CLIP as a preference model, with the toy world's tokenizer."""
    return PreferenceModel(*small_clip(mesh), Tokenizer(ASSETS / "pipeline" / "tokenizer"))


def labelled_pairs(count, prompts=("a red star", "a blue moon", "a green disc")) -> MemoryPairs:
    """Pairs of noise images with labels of all three kinds; the last pair has no label."""
    pairs = noise_pairs(count, prompts=prompts)
    pairs.labels = np.asarray([[1, 0], [0, 1], [0.5, 0.5]], np.float32)[np.arange(count) % 3]
    pairs.count = np.arange(1, count + 1, dtype=np.int32)
    pairs.has_label = np.arange(count) < count - 1
    return pairs
