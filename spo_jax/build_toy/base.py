"""Trains the toy diffusion model: a UNet on 8 x 8 latents, together with its text encoder."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.build_toy.fit import fit
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.clip import CLIPTextModel
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.vae import AutoencoderKL, VAEConfig, sample_posterior
from spo_jax.toy import world

UNET = UNetConfig(
    sample_size=8, in_channels=16, out_channels=16, block_out_channels=(48, 96), layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    norm_num_groups=8, cross_attention_dim=96, attention_head_dim=4,
)  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "epsilon", "timestep_spacing": "leading",
}  # fmt: skip
IMAGES = 30_000
STEPS = 4000
EARLIER = 1000  # steps after which an earlier checkpoint is kept, whose images are worse
BATCH = 64
LEARNING_RATE = 1.5e-3
# The second run, on other images: shapes of held-out prompts need more steps than their colours.
FURTHER_STEPS = 1200
FURTHER_LEARNING_RATE = 8e-4
CAPTION_DROPOUT = 0.1  # share of images seen with the empty caption, for guidance
# Cap of the min-SNR weighting (arXiv 2303.09556), without which low noise would dominate the gradient. The cap is 5 for
# data of unit variance; ours has LATENT_STD² = 1/4.
SNR_CAP = 20.0


def text_config(vocab_size: int, length: int, end_token: int) -> CLIPTextConfig:
    """Returns the config of a text encoder with two layers for the toy world's short captions."""
    return CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=96, intermediate_size=192, projection_dim=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=length, eos_token_id=end_token,
    )  # fmt: skip


class Batch(NamedTuple):
    """Encoded images with their captions.

    Attributes:
      mean: means of the posterior of scaled latents.
      logvar: log variances of the posterior of scaled latents.
      ids: token ids of the captions.
    """

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]
    ids: Int[Array, "b l"]


def encode_scenes(
    vae: Params, config: VAEConfig, ids: dict[str, Int[np.ndarray, " l"]], count: int, seed: int
) -> Batch:
    """Draws ``count`` images of training prompts and encodes them once, as float16 because they stay in memory.

    Args:
      vae: weights of the autoencoder.
      config: config of the autoencoder.
      ids: token ids of each prompt.
      count: number of images.
      seed: seed of the images.
    """
    model = AutoencoderKL(config)
    rng = np.random.default_rng(seed)
    encode = jax.jit(lambda images: model.apply({"params": vae}, images, method="encode"))
    prompts = rng.choice(world.TRAIN_PROMPTS, count)
    means = []
    logvars = []
    for start in range(0, count, 500):
        images, _ = world.draw(rng, prompts[start : start + 500])
        mean, logvar = encode(images)
        means.append(np.asarray(mean * config.scaling_factor, np.float16))
        logvars.append(np.asarray(logvar + 2 * np.log(config.scaling_factor), np.float16))
    return Batch(np.concatenate(means), np.concatenate(logvars), np.stack([ids[prompt] for prompt in prompts]))


def batches(data: Batch, empty: Int[np.ndarray, " l"], seed: int) -> Iterator[Batch]:
    """Yields shuffled batches without end; some captions are replaced by the empty one."""
    rng = np.random.default_rng(seed)
    count = len(data.ids)
    while True:
        for rows in rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH):
            dropped = rng.random((BATCH, 1)) < CAPTION_DROPOUT
            yield Batch(data.mean[rows], data.logvar[rows], np.where(dropped, empty, data.ids[rows]))


def train_base(
    data: Batch,
    empty: Int[np.ndarray, " l"],
    text: CLIPTextConfig,
    *,
    seed: int = 0,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    start: dict[str, Params] | None = None,
    look: Callable[[int, Params], None] | None = None,
) -> dict[str, Params]:
    """Trains UNet and text encoder together to predict noise, with min-SNR weighting.

    Args:
      data: encoded images with their captions.
      empty: token ids of the empty caption.
      text: config of the text encoder.
      seed: seed of weights, batches and noise.
      steps: number of training steps.
      learning_rate: peak learning rate.
      start: weights of an earlier run, from which this one goes on; None starts from random weights.
      look: as in `fit`.

    Returns:
      The weights under "unet" and "text_encoder".
    """
    unet = UNet2DConditionModel(UNET)
    encoder = CLIPTextModel(text)
    process = make_ddpm(ScheduleConfig.from_dict(SCHEDULER), 20)
    alphas = jnp.asarray(process.alphas_cumprod)

    def loss(params: Params, batch: Batch, key: Key):
        posterior_key, noise_key, t_key = jax.random.split(key, 3)
        mean = batch.mean.astype(jnp.float32)
        logvar = batch.logvar.astype(jnp.float32)
        x0 = sample_posterior(posterior_key, mean, logvar)
        noise = jax.random.normal(noise_key, x0.shape)
        # One timestep is drawn from each of b equal strata, which has the same expectation and less variance.
        strata = (jnp.arange(len(x0)) + jax.random.uniform(t_key, (len(x0),))) / len(x0)
        t = (strata * len(alphas)).astype(jnp.int32)
        text_states = encoder.apply({"params": params["text_encoder"]}, batch.ids)[0].last
        eps = unet.apply({"params": params["unet"]}, process.add_noise(x0, noise, t), t, text_states)
        snr = alphas[t] / (1 - alphas[t])
        error = jnp.square(eps - noise).mean((1, 2, 3))
        weighted = (error * jnp.minimum(snr, SNR_CAP) / snr).mean()
        return weighted, {"loss": weighted, "error": error.mean()}

    source = batches(data, empty, seed)
    params = start or _random_weights(next(source), unet, encoder, seed)
    key = jax.random.key(seed + 1)
    return fit(loss, params, source, steps=steps, learning_rate=learning_rate, key=key, title="base", look=look)


def _random_weights(batch: Batch, unet: UNet2DConditionModel, encoder: CLIPTextModel, seed: int) -> dict[str, Params]:
    """Draws the weights of both networks."""
    unet_key, text_key = jax.random.split(jax.random.key(seed))
    text = encoder.config
    states = jnp.zeros((1, text.max_position_embeddings, text.hidden_size))
    latents = jnp.zeros((1, UNET.sample_size, UNET.sample_size, UNET.in_channels))
    return {
        "unet": jax.jit(unet.init)(unet_key, latents, jnp.zeros(1), states)["params"],
        "text_encoder": jax.jit(encoder.init)(text_key, batch.ids)["params"],
    }
