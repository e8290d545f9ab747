"""SDXL pipelines are those of diffusers' `StableDiffusionXLPipeline` on the same folder.

Encodings agree to 1e-5 (float32, three layers, values of a few). Images in [0, 1] agree to 1e-4 after four guided steps
and an autoencoder, which is a fortieth of a step of their 8 bits.
"""

import dataclasses
import functools
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
from spo_jax.models import open_pipeline
from spo_jax.models.lora import read_lora, write_lora
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.models.stable_diffusion.conditioning import SizeConditions
from spo_jax.models.stable_diffusion.parts import open_vae
from spo_jax.models.stable_diffusion.single_file import write_single_file
from spo_jax.models.stable_diffusion.sources import open_source
from spo_jax.parallel.sharding import shapes_of
from spo_jax.weights.lora import LoRA
from tests.models.helpers import RANK, merged_states, random_adapter, unit
from tests.support.sdxl import VAE

# The prompts are empty, of different lengths, with letters that the vocabulary spells in bytes, and too long.
PROMPTS = ["", "a red star", "an orange heart", "Stars, 3 of them! ünd möre", "star " * 40]


@pytest.fixture(scope="module")
def pipe(tiny_sdxl):
    """The pipeline in diffusers."""
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)


@pytest.fixture
def copy(tiny_sdxl, tmp_path):
    """A folder that a test may damage."""
    return shutil.copytree(tiny_sdxl, tmp_path / "folder")


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    """The folder of another autoencoder for the same latents that is safe in 16 bits."""
    folder = tmp_path_factory.mktemp("vae") / "fix"
    torch.manual_seed(7)
    AutoencoderKL(**VAE | dict(force_upcast=False, scaling_factor=0.25)).save_pretrained(folder)
    return folder


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_kind_and_sizes(sdxl, pipe, toy):
    assert (sdxl.kind, toy.pipeline.kind) == ("sdxl", "sd")
    assert sdxl.image_size == (8 * pipe.vae_scale_factor,) * 2 == (64, 64)
    assert sdxl.vae.config.scaling_factor == pipe.vae.config.scaling_factor == 0.13025


# Prompts and size conditions


def test_prompts_are_encoded_as_in_diffusers(sdxl, pipe):
    ours = sdxl.encode_prompts(PROMPTS)
    empty = sdxl.encode_unconditional()
    with torch.no_grad():
        states, without, pooled, pooled_without = pipe.encode_prompt(PROMPTS)
    np.testing.assert_allclose(ours.states, states, atol=1e-5)
    np.testing.assert_allclose(ours.pooled, pooled, atol=1e-5)
    for found, expected in ((empty.states, without), (empty.pooled, pooled_without)):
        np.testing.assert_array_equal(found, expected[:1])
        assert not found.any() and found.dtype == np.float32


def test_without_forced_zeros_the_empty_prompt_is_encoded(sdxl, pipe):
    empty = dataclasses.replace(sdxl, zero_unconditional=False).encode_unconditional()
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        with torch.no_grad():
            _, states, _, pooled = pipe.encode_prompt(["a red star"])
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)
    np.testing.assert_allclose(empty.states, states, atol=1e-5)
    np.testing.assert_allclose(empty.pooled, pooled, atol=1e-5)
    assert np.abs(empty.states).max() > 0.1


def test_the_index_decides_on_zeros(copy):
    """They are the default, as in diffusers."""
    index = json.loads((copy / "model_index.json").read_text())
    del index["force_zeros_for_empty_prompt"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert open_source(copy).zero_unconditional
    edit(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    assert not open_source(copy).zero_unconditional


def test_the_second_tokenizer_pads_with_its_own_token(sdxl, pipe):
    ids = sdxl.tokenizer_2(PROMPTS)
    expected = pipe.tokenizer_2(PROMPTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(ids, expected)
    assert ids[1, -1] == 0 and sdxl.tokenizer(PROMPTS)[1, -1] != 0


@pytest.mark.parametrize("size", [None, SizeConditions((96, 48), (8, 4), (64, 80))], ids=["its own", "another"])
def test_time_ids_are_those_of_diffusers(sdxl, pipe, size):
    theirs = size or SizeConditions((64, 64), (0, 0), (64, 64))
    expected = pipe._get_add_time_ids(theirs.original, theirs.crop, theirs.target, torch.float32, 10)
    found = sdxl.encode_prompts(PROMPTS, size).time_ids
    assert found.shape == (len(PROMPTS), 6) and found.dtype == np.float32
    np.testing.assert_array_equal(found, np.repeat(expected.numpy(), len(PROMPTS), 0))
    np.testing.assert_array_equal(sdxl.encode_unconditional(size).time_ids, expected)


def test_the_default_size_conditions_are_those_of_the_images(sdxl):
    shape = sdxl.latent_shape_of(32, 96)
    assert sdxl.prompt_options(shape) == {"size": SizeConditions((32, 96), (0, 0), (32, 96))}
    given = {"original": (40, 72), "crop": (4, 8)}
    assert sdxl.prompt_options(shape, **given) == {"size": SizeConditions((40, 72), (4, 8), (32, 96))}


@pytest.mark.slow
def test_images_are_those_of_diffusers(sdxl, tiny_sdxl, diffusers_images):
    """`tests/models/test_sampler.py` compares images under size conditions."""
    prompts = PROMPTS[1:3]
    latents = initial_latents(3, 2, sdxl.latent_shape)
    theirs = diffusers_images(tiny_sdxl, prompts, latents, 4, 5.0)
    assert theirs.std() > 0.05  # They are not grey.
    np.testing.assert_allclose(unit(Sampler(sdxl, steps=4, guidance=5.0)(prompts, latents)), theirs, atol=1e-4)


# The autoencoder


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def test_in_16_bits_the_autoencoder_is_float32_if_its_config_says_so(tiny_sdxl, other_vae):
    """SDXL's own is, and a replacement that is safe in 16 bits is not, as in diffusers' pipelines."""
    own = open_pipeline(tiny_sdxl, dtype=jnp.bfloat16, abstract=True)
    assert own.vae.dtype == jnp.float32 and dtypes(own.params["vae"]) == {"float32"}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        assert getattr(own, name).dtype == jnp.bfloat16 and dtypes(own.params[name]) == {"bfloat16"}
    condition = own.encode_unconditional()
    encoded = jax.eval_shape(own.encode_tokens, own.text_params, jnp.zeros((1, *own.token_shape), jnp.int32))
    assert condition.states.dtype == condition.pooled.dtype == encoded.states.dtype == jnp.bfloat16
    replaced = open_pipeline(tiny_sdxl, dtype=jnp.bfloat16, vae=other_vae, abstract=True)
    assert replaced.vae.dtype == jnp.bfloat16 and dtypes(replaced.params["vae"]) == {"bfloat16"}


def test_a_replacement_autoencoder_has_its_own_scale(tiny_sdxl, other_vae, tmp_path):
    """It may be in a folder of its own, or in that of a whole pipeline."""
    replaced = open_pipeline(tiny_sdxl, vae=other_vae)
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    theirs = AutoencoderKL.from_pretrained(other_vae)
    expected = theirs.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2)) / 0.25).sample.permute(0, 2, 3, 1)
    decoded = jax.jit(replaced.decode)(replaced.params["vae"], latents)
    np.testing.assert_allclose(decoded, expected.detach(), atol=1e-4)
    shutil.copytree(other_vae, tmp_path / "whole" / "vae")
    in_pipeline = open_vae(tmp_path / "whole")
    assert in_pipeline.path == tmp_path / "whole" / "vae" and open_vae(other_vae).path == other_vae
    assert in_pipeline.config("vae") == open_vae(other_vae).config("vae")


def test_an_autoencoder_of_other_latents_is_refused(tiny_sdxl):
    with pytest.raises(UserError, match="vae/config.json: latent_channels = 16, but the UNet takes latents of 4: this"):
        open_pipeline(tiny_sdxl, vae="toy")
    with pytest.raises(UserError, match="no such file or folder: no/such/vae"):
        open_pipeline(tiny_sdxl, vae="no/such/vae")
    with pytest.raises(UserError, match="model_index.json' is a file: expected an autoencoder's folder"):
        open_pipeline(tiny_sdxl, vae=tiny_sdxl / "model_index.json")


# Damaged folders


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
def test_parts_that_do_not_belong_together_are_refused(copy, file, fields, message):
    if file == "model_index.json" and "_class_name" in fields:  # The first encoder alone would fit.
        edit(copy / "unet" / "config.json", cross_attention_dim=16)
    edit(copy / file, **fields)
    with pytest.raises(UserError, match=message) as caught:
        open_pipeline(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("text_encoder_2", "missing file: .*folder/text_encoder_2/config.json"),
        ("tokenizer_2", "folder/tokenizer_2: no tokenizer here"),
        ("vae/config.json", "missing file: .*folder/vae/config.json"),
    ],
)
def test_missing_parts_are_named(copy, missing, message):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        open_pipeline(copy)


def test_the_weights_of_the_second_encoder_are_checked(copy, pipe, sdxl):
    """They may be missing, or those of a CLIPTextModel where a CLIPTextModelWithProjection is needed."""
    source = open_source(copy)
    read = functools.partial(source.weights, "text_encoder_2", shapes_of(sdxl.params["text_encoder_2"]), jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, read(), sdxl.params["text_encoder_2"])
    CLIPTextModel(pipe.text_encoder_2.config).save_pretrained(copy / "text_encoder_2")
    with pytest.raises(UserError, match="folder/text_encoder_2: .* 1 missing: text_projection.weight"):
        read()
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="folder/text_encoder_2 holds no weights"):
        read()


# Adapters and single files


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_an_adapter_of_the_other_kind_is_refused(sdxl, toy, form, tmp_path):
    """This holds in both directions, because each kind has modules that the other does not have."""
    unets = {"sd": toy.pipeline.params["unet"], "sdxl": sdxl.params["unet"]}
    for kind, other in (("sd", "sdxl"), ("sdxl", "sd")):
        path = tmp_path / f"{kind}.safetensors"
        tree = jax.tree.map(np.asarray, random_adapter(unets[kind]))
        write_lora(path, LoRA(tree, RANK, RANK), form, module_shapes=unets[kind])
        assert read_lora(path, unets[kind]).rank == RANK
        with pytest.raises(UserError, match=f"{path.name}( is a LoRA of|: only LoRA on linear)"):
            read_lora(path, unets[other])


@pytest.fixture(scope="module")
def single_file(sdxl, tmp_path_factory):
    """The pipeline as a single file."""
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    write_single_file(path, "sdxl", merged_states(sdxl, None))
    return path


def test_a_single_file_is_the_same_pipeline(sdxl, tiny_sdxl, single_file):
    """Its base provides tokenizers, the scheduler, and the fields that weights do not show."""
    found = open_pipeline(single_file, base=tiny_sdxl)
    assert (found.kind, found.folder, found.base) == ("sdxl", single_file, tiny_sdxl)
    assert (found.unet, found.vae, found.scheduler) == (sdxl.unet, sdxl.vae, sdxl.scheduler)
    jax.tree.map(np.testing.assert_array_equal, found.params, sdxl.params)
    jax.tree.map(np.testing.assert_array_equal, found.encode_prompts(PROMPTS), sdxl.encode_prompts(PROMPTS))
    assert not found.encode_unconditional().states.any()


def test_the_base_of_a_single_file_must_be_of_its_kind(single_file, tiny_sdxl, tmp_path):
    with pytest.raises(UserError, match="base = 'toy' is another kind of model than .*model.safetensors, an sdxl"):
        open_pipeline(single_file, base="toy")
    with pytest.raises(UserError, match="no model_index.json here"):
        open_pipeline(single_file, base=tmp_path)
    with pytest.raises(UserError, match="has its own tokenizer and scheduler: remove base = 'toy'"):
        open_pipeline(tiny_sdxl, base="toy")
