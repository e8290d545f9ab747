"""Stable Diffusion pipelines: the toy pipeline is the one in diffusers, and damaged folders are refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spo_jax.core.errors import UserError
from spo_jax.models import open_pipeline
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.models.stable_diffusion.conditioning import SizeConditions
from spo_jax.nn.vae import sample_posterior
from spo_jax.toy import ASSETS
from spo_jax.toy.world import PROMPTS
from tests.models.helpers import FOLDER


def nchw(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def test_the_assets_fit_into_a_wheel():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) <= 14e6


def test_weights_are_on_the_device(toy):
    """numpy arrays would be transferred with every call. They have the requested dtype, however they are stored."""
    for leaf in jax.tree.leaves((toy.pipeline.params, toy.spm.params)):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.float32 or leaf.ndim == 0


def test_the_latent_shape_is_the_trained_one(toy, toy_pipe):
    size = toy_pipe.unet.config.sample_size
    assert toy.pipeline.latent_shape == (size, size, toy_pipe.unet.config.in_channels)


def test_sizes_are_multiples_of_what_the_model_halves(toy):
    """There are 4 pixels per latent, and the UNet halves once: multiples of 8."""
    latent_shape_of = toy.pipeline.latent_shape_of
    assert latent_shape_of(None, None) == toy.pipeline.latent_shape == (8, 8, 16)
    assert latent_shape_of(None, 64) == (8, 16, 16) and toy.pipeline.pixels((8, 16, 16)) == (32, 64)
    with pytest.raises(UserError, match="--height=36: expected a multiple of 8, .*; try 32 or 40$"):
        latent_shape_of(36, None)
    with pytest.raises(UserError, match="--width=7: .*; try 8$"):
        latent_shape_of(32, 7)


def test_prompts_are_encoded_as_in_diffusers(toy, toy_pipe):
    """The prompts are empty, of different lengths, and longer than the tokenizer's length."""
    prompts = ["", "a red star", "an orange heart", "Stars, 3 of them! ünd möre", "star " * 40]
    theirs, empty = toy_pipe.encode_prompt(prompts, "cpu", 1, True)
    ours = toy.pipeline.encode_prompts(prompts)
    np.testing.assert_allclose(ours.states, theirs.detach(), atol=1e-5)
    assert ours.pooled is None and ours.time_ids is None
    np.testing.assert_allclose(toy.pipeline.encode_prompts([""]).states, empty.detach()[:1], atol=1e-5)


def test_many_prompts_are_encoded_like_few(toy):
    """There are more of them than are encoded at a time."""
    prompts = list(PROMPTS) * 2
    states = toy.pipeline.encode_prompts(prompts).states
    assert len(states) == len(prompts) > 64
    np.testing.assert_array_equal(states[: len(PROMPTS)], states[len(PROMPTS) :])
    np.testing.assert_allclose(states[-1], toy.pipeline.encode_prompts([PROMPTS[-1]]).states[0], atol=1e-6)


def test_the_unconditional_input_is_the_empty_prompt(toy):
    empty = toy.pipeline.encode_unconditional()
    np.testing.assert_array_equal(empty.states, toy.pipeline.encode_prompts([""]).states)


def test_there_are_no_size_conditions(toy):
    assert toy.pipeline.encode_unconditional().time_ids is None
    assert toy.pipeline.prompt_options(toy.pipeline.latent_shape) == {}
    with pytest.raises(UserError, match=r"takes no size conditions \(crop\): only SDXL models do"):
        toy.pipeline.prompt_options(toy.pipeline.latent_shape, crop=(0, 0))
    with pytest.raises(UserError, match="takes no size conditions: only SDXL models do"):
        toy.pipeline.encode_prompts(["a red star"], SizeConditions((8, 8), (0, 0), (8, 8)))


def test_bfloat16(toy):
    pipeline = open_pipeline("toy", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(pipeline.params)} == {jnp.dtype(jnp.bfloat16)}
    assert pipeline.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == jnp.bfloat16
    states = pipeline.encode_prompts(["a red star"]).states.astype(jnp.float32)
    np.testing.assert_allclose(states, toy.pipeline.encode_prompts(["a red star"]).states, atol=0.1)


def test_images_are_encoded_and_decoded_as_in_diffusers(toy, toy_pipe):
    """Latents are those that the UNet sees, so the scaling factor is applied to the posterior as well."""
    pipeline = toy.pipeline
    params = pipeline.params["vae"]
    scale = toy_pipe.vae.config.scaling_factor
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    mean, logvar = jax.jit(pipeline.encode)(params, images)
    latents = pipeline.scale_latents(mean)
    posterior = toy_pipe.vae.encode(nchw(images)).latent_dist
    np.testing.assert_allclose(latents, nhwc(posterior.mean) * scale, atol=2e-4)
    decoded = jax.jit(pipeline.decode)(params, latents)
    np.testing.assert_allclose(decoded, nhwc(toy_pipe.vae.decode(nchw(latents) / scale).sample), atol=5e-4)
    drawn = pipeline.scale_latents(sample_posterior(jax.random.key(0), mean, logvar))
    deviations = np.asarray(drawn - latents) / (nhwc(posterior.std) * scale)
    assert abs(deviations.std() - 1) < 0.1 and abs(deviations.mean()) < 0.1


@pytest.mark.slow
def test_guided_predictions_are_those_of_diffusers(toy, toy_pipe):
    """Two candidates of each of three prompts are folded into one batch, with one unconditional row for all."""
    pipeline = toy.pipeline
    params = pipeline.params["unet"]
    x = np.random.default_rng(0).normal(size=(2, 3, *pipeline.latent_shape)).astype(np.float32)
    prompts = ["a red star", "a blue moon", "a pink cross"]
    guidance = Guidance(pipeline.encode_prompts(prompts), pipeline.encode_unconditional(), 5.0)
    found = jax.jit(bind_denoise(pipeline, params, None, guidance))(x, jnp.int32(501))
    with torch.no_grad():
        text, empty = toy_pipe.encode_prompt(prompts, "cpu", 1, True)
        for candidate, ours in zip(x, found, strict=True):
            with_text, without = (
                toy_pipe.unet(nchw(candidate), torch.tensor(501), states).sample for states in (text, empty)
            )
            theirs = nhwc(without + 5 * (with_text - without))
            np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


# Damaged folders


def edited(name, **fields):
    def edit(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def removed(name):
    def remove(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def cut_off(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (written("model_index.json", "[]"), r"folder/model_index.json: expected a JSON object, found list"),
        (written("model_index.json", "{"), r"cannot read .*model_index.json as JSON"),
        (written("unet/config.json", "[]"), r"folder/unet/config.json: expected a JSON object, found list"),
        (edited("unet/config.json", sample_size=None), r"folder/unet/config.json: sample_size is missing"),
        (written("scheduler/scheduler_config.json", "[]"), r"scheduler_config.json: expected a JSON object"),
        (edited("scheduler/scheduler_config.json", beta_start="0.001"), r"scheduler_config.json: beta_start = '0.001'"),
        (removed("unet"), r"missing file: .*folder/unet/config.json"),
        (removed("vae/config.json"), r"missing file: .*folder/vae/config.json"),
        (removed("text_encoder/model.safetensors"), r"folder/text_encoder holds no weights: expected model.s"),
        (removed("tokenizer"), r"folder/tokenizer: no tokenizer here"),
        (removed("scheduler/scheduler_config.json"), r"missing file: .*folder/scheduler/scheduler_config.json"),
        (edited("scheduler/scheduler_config.json", beta_schedule="x"), r"scheduler_config.json: beta_schedule = 'x'"),
        (edited("unet/config.json", dual_cross_attention=True), r"folder/unet/config.json.*dual_cross_attention"),
        (edited("vae/config.json", latent_channels=4), r"folder/vae/config.json: latent_channels = 4, but the UNet"),
        (edited("vae/config.json", layers_per_block=3), r"folder/vae: weights do not fit the model: .* missing"),
        (cut_off, r"cannot read .*folder/unet/diffusion_pytorch_model.safetensors as safetensors"),
    ],
    ids=[
        "a list", "half an index", "a UNet's list", "no size", "a scheduler's list",
        "a string", "no unet", "no config", "no weights", "no tokenizer",
        "no scheduler", "unknown schedule", "not implemented", "other latents", "other shapes", "cut off",
    ],
)  # fmt: skip
def test_damaged_folders_are_refused(tmp_path, damage, message):
    folder = tmp_path / "folder"
    shutil.copytree(FOLDER, folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_pipeline(folder)
    assert "\n" not in str(caught.value)
