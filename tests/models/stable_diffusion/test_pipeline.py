"""Reading pipelines: the embedded one as diffusers reads it, and folders that will not do."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from spo_jax.core.errors import UserError
from spo_jax.models import open_pipeline
from spo_jax.models.stable_diffusion.pipeline import load_tiny_vae
from spo_jax.toy import ASSETS
from spo_jax.toy.world import PROMPTS

FOLDER = ASSETS / "pipeline"


def test_the_assets_fit_into_a_wheel():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) <= 12e6


def test_weights_are_on_the_device(toy):
    """numpy arrays would travel there with every call; and in the asked-for dtype, however they are stored."""
    for leaf in jax.tree.leaves((toy.pipeline.params, toy.spm.params)):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.float32 or leaf.ndim == 0


def test_the_latent_shape_is_the_trained_one(toy):
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    size = pipe.unet.config.sample_size
    assert toy.pipeline.latent_shape == (size, size, pipe.unet.config.in_channels)


def test_encode_prompts_equals_the_torch_text_encoder(toy):
    """The empty prompt, prompts of different lengths, and one that is cut at the tokenizer's length."""
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    prompts = ["", "a red star", "an orange heart", "Stars, 3 of them! ünd möre", "star " * 40]
    theirs, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    ours = toy.pipeline.encode_prompts(prompts)
    np.testing.assert_allclose(ours.states, theirs.detach(), atol=1e-5)
    assert ours.pooled is None and ours.time_ids is None
    np.testing.assert_allclose(toy.pipeline.encode_prompts([""]).states, empty.detach()[:1], atol=1e-5)


def test_many_prompts_are_encoded_as_few(toy):
    """More than a chunk of them."""
    prompts = list(PROMPTS) * 2
    states = toy.pipeline.encode_prompts(prompts).states
    assert len(states) == len(prompts) > 64
    np.testing.assert_array_equal(states[: len(PROMPTS)], states[len(PROMPTS) :])
    np.testing.assert_allclose(states[-1], toy.pipeline.encode_prompts([PROMPTS[-1]]).states[0], atol=1e-6)


def test_bfloat16(toy):
    pipeline = open_pipeline("embedded", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(pipeline.params)} == {jnp.dtype(jnp.bfloat16)}
    states = pipeline.encode_prompts(["a red star"]).states.astype(jnp.float32)
    np.testing.assert_allclose(states, toy.pipeline.encode_prompts(["a red star"]).states, atol=0.1)


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
        (removed("model_index.json"), r"folder: no model_index.json here; expected a diffusers pipeline folder"),
        (edited("model_index.json", _class_name="FluxPipeline"), r"model_index.json: _class_name is 'FluxPipeline'"),
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
        "no index", "another class", "a list", "half an index", "a UNet's list", "no size", "a scheduler's list",
        "a string", "no unet", "no config", "no weights", "no tokenizer",
        "no scheduler", "unknown schedule", "not implemented", "other latents", "other shapes", "cut off",
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_told(tmp_path, damage, message):
    folder = tmp_path / "folder"
    shutil.copytree(FOLDER, folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_pipeline(folder)
    assert "\n" not in str(caught.value)


def test_neither_a_folder_nor_a_hub_id():
    with pytest.raises(UserError, match="no such file or folder: no/such/folder"):
        open_pipeline("no/such/folder")


def test_a_distilled_decoder_equals_diffusers(tmp_path):
    import torch

    torch.manual_seed(0)
    theirs = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                             num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=16)  # fmt: skip
    theirs.save_pretrained(tmp_path / "tiny")
    vae, params = load_tiny_vae(tmp_path / "tiny")
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype(np.float32)
    ours = vae.apply({"params": params}, jnp.asarray(latents), method="decode")
    expected = theirs.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
    (tmp_path / "tiny" / "config.json").unlink()
    with pytest.raises(UserError, match="missing file: .*tiny/config.json"):
        load_tiny_vae(tmp_path / "tiny")
