"""SDXL pipelines against diffusers' `StableDiffusionXLPipeline` on the same folder.

Encodings agree to 1e-5 (float32, three layers, values of a few); pictures in [0, 1] to 1e-4 after four guided steps and
an autoencoder, which is a fortieth of a step of their 8 bits.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from transformers import CLIPTextModel

from spo_jax.core.errors import UserError
from spo_jax.methods.spo.settings import LoRASettings
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.models.stable_diffusion.conditioning import SizeConditions
from spo_jax.models.stable_diffusion.functions import decode
from spo_jax.models import open_pipeline
from spo_jax.models.stable_diffusion.single_file import write_single_file
from spo_jax.nn.lora import init_lora
from spo_jax.weights.components import text_state
from spo_jax.models.lora import read_lora, write_lora
from spo_jax.weights.rules import to_state
from tests.sdxl import VAE

# Empty, of different lengths, one with letters that the vocabulary spells in bytes, one that is cut.
PROMPTS = ["", "a red star", "an orange heart", "Stars, 3 of them! ünd möre", "star " * 40]


@pytest.fixture(scope="module")
def pipe(tiny_sdxl):
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl):
    return open_pipeline(tiny_sdxl)


@pytest.fixture
def copy(tiny_sdxl, tmp_path):
    """A folder that a test may damage."""
    return shutil.copytree(tiny_sdxl, tmp_path / "folder")


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    """Another autoencoder of the same latents, that is safe in 16 bits, in a folder of its own."""
    folder = tmp_path_factory.mktemp("vae") / "fix"
    torch.manual_seed(7)
    AutoencoderKL(**VAE | dict(force_upcast=False, scaling_factor=0.25)).save_pretrained(folder)
    return folder


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_kind_and_sizes(pipeline, pipe, toy):
    assert (pipeline.kind, toy.pipeline.kind) == ("sdxl", "sd")
    assert pipeline.image_size == (8 * pipe.vae_scale_factor,) * 2 == (64, 64)
    assert pipeline.vae.config.scaling_factor == pipe.vae.config.scaling_factor == 0.13025


def test_prompts_are_encoded_as_by_diffusers(pipeline, pipe):
    ours, empty = pipeline.encode_prompts(PROMPTS), pipeline.encode_unconditional()
    with torch.no_grad():
        states, without, pooled, pooled_without = pipe.encode_prompt(PROMPTS)
    np.testing.assert_allclose(ours.states, states, atol=1e-5)
    np.testing.assert_allclose(ours.pooled, pooled, atol=1e-5)
    for one, other in ((empty.states, without), (empty.pooled, pooled_without)):
        np.testing.assert_array_equal(one, other[:1])
        assert not one.any() and one.dtype == np.float32


def test_without_forced_zeros_the_empty_prompt_is_encoded(copy, pipe):
    edit(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    empty = open_pipeline(copy).encode_unconditional()
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        with torch.no_grad():
            _, states, _, pooled = pipe.encode_prompt(["a red star"])
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)
    np.testing.assert_allclose(empty.states, states, atol=1e-5)
    np.testing.assert_allclose(empty.pooled, pooled, atol=1e-5)
    assert np.abs(empty.states).max() > 0.1


def test_an_index_that_is_silent_forces_zeros(copy):
    """diffusers' default."""
    index = json.loads((copy / "model_index.json").read_text())
    del index["force_zeros_for_empty_prompt"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert not open_pipeline(copy).encode_unconditional().states.any()


def test_the_second_tokenizer_pads_with_its_own_token(pipeline, pipe):
    ids = pipeline.tokenizer_2(PROMPTS)
    expected = pipe.tokenizer_2(PROMPTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(ids, expected)
    assert ids[1, -1] == 0 and pipeline.tokenizer(PROMPTS)[1, -1] != 0


@pytest.mark.parametrize("size", [None, SizeConditions((96, 48), (8, 4), (64, 80))], ids=["its own", "another"])
def test_time_ids_are_those_of_diffusers(pipeline, pipe, size):
    theirs = size or SizeConditions((64, 64), (0, 0), (64, 64))
    expected = pipe._get_add_time_ids(theirs.original, theirs.crop, theirs.target, torch.float32, 10)
    found = pipeline.encode_prompts(PROMPTS, size).time_ids
    assert found.shape == (len(PROMPTS), 6) and found.dtype == np.float32
    np.testing.assert_array_equal(found, np.repeat(expected.numpy(), len(PROMPTS), 0))
    np.testing.assert_array_equal(pipeline.encode_unconditional(size).time_ids, expected)


def test_an_sd_model_takes_no_size_conditions(toy):
    assert toy.pipeline.encode_unconditional().time_ids is None
    with pytest.raises(UserError, match="takes no size conditions: only SDXL models do"):
        toy.pipeline.encode_prompts(["a red star"], SizeConditions((8, 8), (0, 0), (8, 8)))


def test_the_sd_unconditional_input_is_the_empty_prompt(toy):
    empty = toy.pipeline.encode_unconditional()
    np.testing.assert_array_equal(empty.states, toy.pipeline.encode_prompts([""]).states)


def test_pictures_are_diffusers_pictures(pipeline, tiny_sdxl, diffusers_images):
    prompts, latents = PROMPTS[1:3], initial_latents(3, 2, pipeline.latent_shape)
    ours = Sampler(pipeline, steps=4, guidance=5.0)(prompts, latents)
    theirs = diffusers_images(tiny_sdxl, prompts, latents, 4, 5.0)
    assert theirs.std() > 0.05  # pictures, not grey
    np.testing.assert_allclose(np.clip(ours / 2 + 0.5, 0, 1), theirs, atol=1e-4)


def test_in_16_bits_the_autoencoder_stays_float32_where_its_config_says_so(tiny_sdxl, other_vae):
    """SDXL's own; its replacement is made for 16 bits, and SD's never is upcast, as in diffusers' pipelines."""
    dtypes = lambda tree: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}  # noqa: E731
    own = open_pipeline(tiny_sdxl, dtype=jnp.bfloat16)
    assert own.vae.dtype == jnp.float32 and dtypes(own.params["vae"]) == {"float32"}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        assert getattr(own, name).dtype == jnp.bfloat16 and dtypes(own.params[name]) == {"bfloat16"}
    condition = own.encode_unconditional()
    assert condition.states.dtype == condition.pooled.dtype == own.encode_prompts([""]).states.dtype == jnp.bfloat16
    replaced = open_pipeline(tiny_sdxl, dtype=jnp.bfloat16, vae=other_vae)
    assert replaced.vae.dtype == jnp.bfloat16 and dtypes(replaced.params["vae"]) == {"bfloat16"}
    assert open_pipeline("embedded", dtype=jnp.bfloat16).vae.dtype == jnp.bfloat16


def test_a_replacement_autoencoder_comes_with_its_own_scale(tiny_sdxl, other_vae, tmp_path):
    """From a folder of its own, or out of a whole pipeline's."""
    shutil.copytree(other_vae, tmp_path / "whole" / "vae")
    latents = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
    theirs = AutoencoderKL.from_pretrained(other_vae)
    expected = theirs.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2)) / 0.25).sample.permute(0, 2, 3, 1)
    for folder in (other_vae, tmp_path / "whole"):
        replaced = open_pipeline(tiny_sdxl, vae=folder)
        pictures = decode(replaced.vae, replaced.params["vae"], jnp.asarray(latents))
        np.testing.assert_allclose(pictures, expected.detach(), atol=1e-4)


def test_an_autoencoder_of_other_latents_is_refused(tiny_sdxl):
    with pytest.raises(UserError, match="vae/config.json: latent_channels = 16, but the UNet takes latents of 4: this"):
        open_pipeline(tiny_sdxl, vae="embedded")
    with pytest.raises(UserError, match="no such file or folder: no/such/vae"):
        open_pipeline(tiny_sdxl, vae="no/such/vae")
    with pytest.raises(UserError, match="model_index.json' is a file: expected an autoencoder's folder"):
        open_pipeline(tiny_sdxl, vae=tiny_sdxl / "model_index.json")


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("model_index.json", dict(_class_name="StableDiffusionPipeline"), "embed_type = 'text_time', expected null"),
        ("model_index.json", dict(force_zeros_for_empty_prompt="no"), "_empty_prompt = 'no', expected true"),
        ("unet/config.json", dict(addition_embed_type=None), "addition_embed_type = None, expected 'text_time'"),
        ("unet/config.json", dict(cross_attention_dim=41), "cross_attention_dim = 41, but the text encoders' .* to 40"),
        ("unet/config.json", dict(projection_class_embeddings_input_dim=48), "_input_dim = 48, expected 46: 6 times"),
        ("text_encoder_2/config.json", dict(projection_dim=12), "_input_dim = 46, expected 48: 6 times"),
        ("text_encoder_2/config.json", dict(hidden_act="relu"), "text_encoder_2/config.json: hidden_act = 'relu'"),
        ("tokenizer_2/tokenizer_config.json", dict(model_max_length=12), "tokenizer_2 cut prompts at .*16.*12"),
    ],
    ids=["class", "zeros", "no sizes", "context", "pooled", "projection", "activation", "lengths"],
)  # fmt: skip
def test_parts_that_do_not_belong_together(copy, file, fields, message):
    if file == "model_index.json" and "_class_name" in fields:  # so that the first encoder alone would fit
        edit(copy / "unet" / "config.json", cross_attention_dim=16)
    edit(copy / file, **fields)
    with pytest.raises(UserError, match=message) as caught:
        open_pipeline(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("text_encoder_2", "missing file: .*folder/text_encoder_2/config.json"),
        ("text_encoder_2/model.safetensors", "folder/text_encoder_2 holds no weights"),
        ("tokenizer_2", "folder/tokenizer_2: no tokenizer here"),
        ("vae/config.json", "missing file: .*folder/vae/config.json"),
    ],
)
def test_what_is_missing_is_named(copy, missing, message):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        open_pipeline(copy)


def test_an_encoder_without_its_projection_is_refused(copy, pipe):
    """A CLIPTextModel where a CLIPTextModelWithProjection belongs."""
    CLIPTextModel(pipe.text_encoder_2.config).save_pretrained(copy / "text_encoder_2")
    with pytest.raises(UserError, match="folder/text_encoder_2: .* 1 missing: text_projection.weight"):
        open_pipeline(copy)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_an_adapter_of_the_other_family_is_refused(pipeline, toy, form, tmp_path):
    """Both ways: they have modules that the other has not."""
    unets = {"sd": toy.pipeline.params["unet"], "sdxl": pipeline.params["unet"]}
    for kind, other in (("sd", "sdxl"), ("sdxl", "sd")):
        path = tmp_path / f"{kind}.safetensors"
        adapter = LoRASettings(rank=2).adapter(init_lora(jax.random.key(0), unets[kind], 2))
        write_lora(path, adapter, form, module_shapes=unets[kind])
        assert read_lora(path, unets[kind]).rank == 2
        with pytest.raises(UserError, match=f"{path.name}( is a LoRA of|: only LoRA on linear)"):
            read_lora(path, unets[other])


def _as_single_file(pipeline, path):
    components = {
        name: text_state(tree) if name.startswith("text_encoder") else to_state(tree)
        for name, tree in pipeline.params.items()
    }
    write_single_file(path, "sdxl" if pipeline.kind == "sdxl" else "sd15", components)
    return path


def test_a_checkpoint_in_one_file(pipeline, tiny_sdxl, tmp_path):
    """With its base's tokenizers, scheduler and what weights do not show, the same pipeline."""
    path = _as_single_file(pipeline, tmp_path / "model.safetensors")
    found = open_pipeline(path, base=tiny_sdxl)
    assert (found.kind, found.folder, found.base) == ("sdxl", path, tiny_sdxl)
    assert (found.unet, found.vae, found.scheduler) == (pipeline.unet, pipeline.vae, pipeline.scheduler)
    jax.tree.map(np.testing.assert_array_equal, found.params, pipeline.params)
    jax.tree.map(np.testing.assert_array_equal, found.encode_prompts(PROMPTS), pipeline.encode_prompts(PROMPTS))
    assert not found.encode_unconditional().states.any()


def test_the_base_of_a_checkpoint_has_to_be_of_its_kind(pipeline, toy, tiny_sdxl, tmp_path):
    path = _as_single_file(pipeline, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="base = 'embedded' is another kind of model than .*model.safetensors, an sdxl"):
        open_pipeline(path, base="embedded")
    with pytest.raises(UserError, match="no model_index.json here"):
        open_pipeline(path, base=tmp_path)
    with pytest.raises(UserError, match="has its own tokenizer and scheduler: leave base = 'embedded' out"):
        open_pipeline(tiny_sdxl, base="embedded")
