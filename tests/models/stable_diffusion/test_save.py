"""Whole pipelines with an adapter in their weights: folders and single files, of SD and SDXL, whole or not at all."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.exporting import export
from spo_jax.models.stable_diffusion import save as exports
from spo_jax.models import open_pipeline
from spo_jax.models.save import write_merged
from spo_jax.models.stable_diffusion.save import write_merged_file
from spo_jax.models.stable_diffusion.single_file import read_single_file
from spo_jax.nn.lora import init_lora, merge
from spo_jax.toy import ASSETS
from spo_jax.weights.components import text_state
from spo_jax.weights.lora import LoRA
from spo_jax.models.lora import write_lora
from spo_jax.weights.rules import to_state
from spo_jax.weights.store import read_file, write_state

FOLDER = ASSETS / "pipeline"
RANK, SCALE = 2, 0.5


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl):
    return open_pipeline(tiny_sdxl)


def random_lora(pipeline):
    """On all attentions, and strong enough to be seen."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: init_lora(jax.random.key(0), pipeline.params["unet"], RANK)))
    return unflatten({path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for path, leaf in shapes.items()})


def written(pipeline, lora):
    """What is to be found in the files."""
    states = {"unet": to_state(merge(pipeline.params["unet"], lora, SCALE)), "vae": to_state(pipeline.params["vae"])}
    texts = [name for name in pipeline.params if name.startswith("text_encoder")]
    return states | {name: text_state(pipeline.params[name]) for name in texts}


@pytest.fixture(params=["sd", "sdxl"])
def pipeline(request, toy, sdxl):
    return toy.pipeline if request.param == "sd" else sdxl


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_merged_file_holds_the_adapted_pipeline(pipeline, tmp_path, dtype):
    lora, out = random_lora(pipeline), tmp_path / "model.safetensors"
    write_merged_file(out, pipeline, lora, SCALE, dtype)
    read, expected = read_single_file(out), written(pipeline, lora)
    assert read.kind == ("sd15" if pipeline.kind == "sd" else "sdxl")
    assert read.components.keys() == expected.keys()
    for name, state in expected.items():
        assert read.components[name].keys() == state.keys()
        for key, array in state.items():
            assert read.components[name][key].dtype == dtype
            np.testing.assert_array_equal(read.components[name][key], array.astype(dtype), err_msg=key)
    checkpoint = {key: torch.from_numpy(array.copy()) for key, array in read_file(out).items()}
    config = {"layers_per_block": read.configs["unet"]["layers_per_block"]}
    config |= {"addition_embed_type": "text_time"} if pipeline.kind == "sdxl" else {}
    theirs = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, config)
    assert theirs.keys() == expected["unet"].keys()
    for key, array in expected["unet"].items():
        np.testing.assert_array_equal(theirs[key].numpy(), array.astype(dtype), err_msg=key)
    with pytest.raises(UserError, match="model.safetensors exists already"):
        write_merged_file(out, pipeline, lora, SCALE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_diffusers_reads_a_merged_file(toy, tmp_path):
    lora, out = random_lora(toy.pipeline), tmp_path / "model.safetensors"
    write_merged_file(out, toy.pipeline, lora, SCALE)
    given = dict(config=str(FOLDER), local_files_only=True)
    pipe = StableDiffusionPipeline.from_single_file(str(out), **given, safety_checker=None)
    expected = written(toy.pipeline, lora)
    for name, module in (("unet", pipe.unet), ("vae", pipe.vae)):
        theirs = module.state_dict()
        assert theirs.keys() == expected[name].keys()
        for key, array in expected[name].items():
            np.testing.assert_array_equal(theirs[key].numpy(), array, err_msg=key)
    theirs = {key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
    assert len(theirs) == len(expected["text_encoder"])
    for key, array in expected["text_encoder"].items():
        np.testing.assert_array_equal(theirs[key.removeprefix("text_model.")].numpy(), array, err_msg=key)


def test_diffusers_and_we_read_a_merged_file_of_sdxl(sdxl, tiny_sdxl, tmp_path):
    lora, out = random_lora(sdxl), tmp_path / "model.safetensors"
    write_merged_file(out, sdxl, lora, SCALE)
    unet = UNet2DConditionModel.from_single_file(str(out), config=str(tiny_sdxl), subfolder="unet")
    expected = written(sdxl, lora)
    for key, array in expected["unet"].items():
        np.testing.assert_array_equal(unet.state_dict()[key].numpy(), array, err_msg=key)
    back = open_pipeline(out, base=tiny_sdxl)  # which lends the numbers of heads and groups as well
    assert back.kind == "sdxl" and back.unet.config == sdxl.unet.config
    for name, state in written(back, jax.tree.map(jnp.zeros_like, lora)).items():
        for key, array in state.items():
            np.testing.assert_array_equal(array, expected[name][key], err_msg=key)


def test_a_merged_folder_of_sdxl_is_the_whole_pipeline(sdxl, tiny_sdxl, tmp_path):
    lora, out = random_lora(sdxl), tmp_path / "merged"
    write_merged(out, sdxl, lora, SCALE)
    merged, expected = open_pipeline(out), written(sdxl, lora)
    for name, state in written(merged, jax.tree.map(jnp.zeros_like, lora)).items():
        for key, array in state.items():
            np.testing.assert_array_equal(array, expected[name][key], err_msg=key)
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "vae"):
        for file in (tiny_sdxl / name).iterdir():
            assert (out / name / file.name).read_bytes() == file.read_bytes(), file
    assert (out / "model_index.json").is_file()


def test_an_older_folder_comes_back_when_the_new_one_cannot_be_put_there(toy, tmp_path, monkeypatch):
    out, lora = tmp_path / "merged", random_lora(toy.pipeline)
    out.mkdir()
    (out / "model_index.json").write_text("{}")
    (out / "letter.txt").write_text("dear")
    real, calls = os.replace, []

    def replace(source, target):
        if target == out and source.name == "copy":
            calls.append(source)
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(exports.os, "replace", replace)
    with pytest.raises(UserError, match="cannot write .*merged: No space left"):
        write_merged(out, toy.pipeline, lora, SCALE, overwrite=True)
    assert calls and (out / "letter.txt").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]

    def stuck(source, target):
        if target == out:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(exports.os, "replace", stuck)
    with pytest.raises(UserError, match="cannot write .*merged: Input/output error"):
        write_merged(out, toy.pipeline, lora, SCALE, overwrite=True)
    assert [path.read_text() for path in tmp_path.glob("*/older/letter.txt")] == ["dear"]  # at least not deleted


def test_a_pipeline_from_a_single_file_has_no_folder_to_copy(toy, tmp_path):
    file = tmp_path / "model.safetensors"
    write_state(file, {"a": np.ones(1)})
    pipeline = dataclasses.replace(toy.pipeline, folder=file)
    with pytest.raises(UserError, match="is a single file, not a folder to copy: export with --format=single-file"):
        write_merged(tmp_path / "merged", pipeline, random_lora(pipeline), SCALE)
    with pytest.raises(UserError, match="model.safetensors is the base model itself"):
        write_merged_file(file, pipeline, random_lora(pipeline), SCALE, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_numbers_beyond_float16_are_not_written(toy, tmp_path):
    lora = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 300.0), random_lora(toy.pipeline))
    with pytest.raises(UserError, match=r"infinite numbers in float16: .*to_k.*; write float32"):
        write_merged_file(tmp_path / "model.safetensors", toy.pipeline, lora, SCALE, "float16")
    assert not list(tmp_path.iterdir())


def test_the_command_s_function_writes_single_files_and_sgm_names(toy, sdxl, tiny_sdxl, tmp_path):
    tree = random_lora(sdxl)
    write_lora(tmp_path / "lora.safetensors", LoRA(jax.tree.map(np.asarray, tree), 1.0, RANK))
    given = dict(source=tmp_path / "lora.safetensors", model=str(tiny_sdxl))
    export(form="single-file", out=tmp_path / "model.safetensors", dtype="float16", **given)
    read = read_single_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        read.components["unet"]["mid_block.attentions.0.transformer_blocks.1.attn2.to_v.weight"],
        written(sdxl, tree)["unet"]["mid_block.attentions.0.transformer_blocks.1.attn2.to_v.weight"].astype("float16"),
    )
    export(form="kohya", out=tmp_path / "kohya.safetensors", **given)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.alpha" in read_file(
        tmp_path / "kohya.safetensors"
    )
    with pytest.raises(UserError, match="model.safetensors exists already: .*--overwrite"):
        export(form="single-file", out=tmp_path / "model.safetensors", **given)
    with pytest.raises(UserError, match="--dtype=float16: only --format=single-file has a choice"):
        export(form="merged", out=tmp_path / "merged", dtype="float16", **given)
    with pytest.raises(UserError, match="--out=.*model: the name of a checkpoint has to end in .safetensors"):
        export(form="single-file", out=tmp_path / "model", **given)
    shutil.copy(tmp_path / "kohya.safetensors", tmp_path / "sdxl.safetensors")
    with pytest.raises(UserError, match="sdxl.safetensors is a LoRA of SDXL, and this model is SD 1.x or 2.x"):
        export(tmp_path / "sdxl.safetensors", "diffusers", tmp_path / "x.safetensors", model="embedded")
