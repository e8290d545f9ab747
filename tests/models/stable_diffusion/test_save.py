"""Single files of whole pipelines with an adapter merged into their weights, which appear as a whole or not at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils

from spo_jax.core.errors import UserError
from spo_jax.models.stable_diffusion.save import write_merged_file
from spo_jax.models.stable_diffusion.single_file import read_single_file
from spo_jax.weights.store import read_file, write_state
from tests.models.helpers import FOLDER, SCALE, assert_same_states, merged_states, random_adapter


@pytest.fixture(scope="module")
def sdxl_adapter(sdxl):
    return random_adapter(sdxl.params["unet"])


def cast(states, dtype):
    return {name: {key: array.astype(dtype) for key, array in state.items()} for name, state in states.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_merged_file_holds_the_adapted_pipeline(toy, sdxl, adapter, sdxl_adapter, tmp_path, kind, dtype):
    """We read it back exactly, and diffusers' converter gives the UNet's weights the same names."""
    pipeline, lora = (toy.pipeline, adapter) if kind == "sd15" else (sdxl, sdxl_adapter)
    out = tmp_path / "model.safetensors"
    write_merged_file(out, pipeline, lora, SCALE, dtype)
    read = read_single_file(out)
    expected = cast(merged_states(pipeline, lora), dtype)
    assert read.kind == kind
    assert_same_states(read.components, expected)
    assert {array.dtype for state in read.components.values() for array in state.values()} == {np.dtype(dtype)}
    checkpoint = {key: torch.from_numpy(array.copy()) for key, array in read_file(out).items()}
    config = {"layers_per_block": read.configs["unet"]["layers_per_block"]}
    config |= {"addition_embed_type": "text_time"} if kind == "sdxl" else {}
    converted = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, config)
    assert_same_states({"unet": converted}, {"unet": expected["unet"]})
    with pytest.raises(UserError, match="model.safetensors exists already"):
        write_merged_file(out, pipeline, lora, SCALE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_diffusers_reads_a_merged_file(toy, adapter, tmp_path):
    out = tmp_path / "model.safetensors"
    write_merged_file(out, toy.pipeline, adapter, SCALE)
    options = {"config": str(FOLDER), "local_files_only": True, "safety_checker": None}
    pipe = StableDiffusionPipeline.from_single_file(str(out), **options)
    text = {f"text_model.{key.removeprefix('text_model.')}": x for key, x in pipe.text_encoder.state_dict().items()}
    found = {"unet": pipe.unet.state_dict(), "vae": pipe.vae.state_dict(), "text_encoder": text}
    assert_same_states(found, merged_states(toy.pipeline, adapter))


def test_diffusers_reads_the_unet_of_a_merged_file_of_sdxl(sdxl, sdxl_adapter, tiny_sdxl, tmp_path):
    out = tmp_path / "model.safetensors"
    write_merged_file(out, sdxl, sdxl_adapter, SCALE)
    unet = UNet2DConditionModel.from_single_file(str(out), config=str(tiny_sdxl), subfolder="unet")
    assert_same_states({"unet": unet.state_dict()}, {"unet": merged_states(sdxl, sdxl_adapter)["unet"]})


def test_the_base_model_is_not_overwritten(toy, adapter, tmp_path):
    file = tmp_path / "model.safetensors"
    write_state(file, {"a": np.ones(1)})
    pipeline = dataclasses.replace(toy.pipeline, folder=file)
    with pytest.raises(UserError, match="model.safetensors is the base model itself"):
        write_merged_file(file, pipeline, adapter, SCALE, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_beyond_the_range_of_float16_are_not_written(toy, adapter, tmp_path):
    large = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 300.0), adapter)
    with pytest.raises(UserError, match=r"infinite numbers in float16: .*to_k.*; write float32"):
        write_merged_file(tmp_path / "model.safetensors", toy.pipeline, large, SCALE, "float16")
    assert not list(tmp_path.iterdir())
