"""What a pipeline does, against diffusers' parts on the embedded weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from spo_jax.core.trees import take_rows
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.models.stable_diffusion.functions import decode, encode_image
from spo_jax.nn.lora import init_lora
from spo_jax.toy import ASSETS

RNG = np.random.default_rng(0)


def to_torch(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def unoptimised(function):
    """Most of a small network's seconds are LLVM's."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusionPipeline.from_pretrained(ASSETS / "pipeline", local_files_only=True)


def test_guided_predictions_of_a_pool(toy, pipe):
    """Two candidates of each of three prompts, folded into one batch; one unconditional row for all."""
    pipeline, (h, w, c) = toy.pipeline, toy.pipeline.latent_shape
    x = RNG.normal(size=(2, 3, h, w, c)).astype(np.float32)
    prompts = ["a red star", "a blue moon", "a pink cross"]
    condition, unconditional = pipeline.encode_prompts(prompts), pipeline.encode_prompts([""])
    lora = init_lora(jax.random.key(0), pipeline.params["unet"], 2)  # lora_B is 0: the base model

    def predict(x, t):
        return bind_denoise(pipeline.unet, pipeline.params["unet"], lora, Guidance(condition, unconditional, 5.0))(x, t)

    found = unoptimised(predict)(jnp.asarray(x), jnp.int32(501))
    with torch.no_grad():
        text, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
        for candidate, ours in zip(x, found, strict=True):
            with_text, without = (
                pipe.unet(to_torch(candidate), torch.tensor(501), states).sample for states in (text, empty)
            )
            theirs = nhwc(without + 5 * (with_text - without))
            np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_decode_and_encode(toy, pipe):
    """Latents as the UNet sees them: the scaling factor is inside."""
    pipeline, scale = toy.pipeline, pipe.vae.config.scaling_factor
    images = RNG.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    vae, params = pipeline.vae, pipeline.params["vae"]
    latents = unoptimised(lambda x: encode_image(vae, params, x))(jnp.asarray(images))
    posterior = pipe.vae.encode(to_torch(images)).latent_dist
    np.testing.assert_allclose(latents, nhwc(posterior.mean) * scale, atol=2e-4)
    pictures = unoptimised(lambda x: decode(vae, params, x))(latents)
    np.testing.assert_allclose(pictures, nhwc(pipe.vae.decode(to_torch(latents) / scale).sample), atol=5e-4)
    drawn = unoptimised(lambda x: encode_image(vae, params, x, jax.random.key(0)))(jnp.asarray(images))
    deviations = np.asarray(drawn - latents) / (nhwc(posterior.std) * scale)
    assert abs(deviations.std() - 1) < 0.1 and abs(deviations.mean()) < 0.1


def test_rows_and_copies_of_a_conditioning():
    """The copies of a prompt stand together, so that they stay on its device."""
    condition = Conditioning(jnp.arange(3.0).reshape(3, 1, 1), None, jnp.arange(18.0).reshape(3, 6))
    assert take_rows(condition, np.array([2, 0])).states.ravel().tolist() == [2, 0]
    repeated = condition.repeated(2)
    assert repeated.states.ravel().tolist() == [0, 0, 1, 1, 2, 2]
    assert repeated.pooled is None and repeated.time_ids.shape == (6, 6)
