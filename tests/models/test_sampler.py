"""Our pictures are diffusers', with and without an adapter."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.models.sampler import Sampler, initial_latents, read_latents, shape_of_latents
from spo_jax.models.stable_diffusion.conditioning import SizeConditions
from spo_jax.models import open_pipeline
from spo_jax.models.save import write_merged
from spo_jax.nn.lora import init_lora
from spo_jax.toy import ASSETS
from spo_jax.weights.lora import LoRA
from spo_jax.models.lora import write_lora
from spo_jax.weights.store import read_state, write_state

FOLDER = ASSETS / "pipeline"
PROMPTS = ["a red star", "a blue moon", "an orange heart"]
SETTINGS = dict(steps=20, guidance=5.0)
RANK, ALPHA = 4, 2.0


def unit(images):
    """Near [-1, 1] to [0, 1]."""
    return np.clip(images / 2 + 0.5, 0, 1)


@pytest.fixture(scope="module")
def latents(toy):
    return initial_latents(0, len(PROMPTS), toy.pipeline.latent_shape)


@pytest.fixture(scope="module")
def lora(toy):
    """Random, and strong enough to be seen."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: init_lora(jax.random.key(0), toy.pipeline.params["unet"], RANK)))
    flat = {path: rng.normal(0, 0.15, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return LoRA(unflatten(flat), ALPHA, RANK)


@pytest.fixture(scope="module")
def sampler(toy):
    """Two pictures at a time: the last batch of three is padded."""
    return Sampler(toy.pipeline, lora_scale=ALPHA / RANK, batch=2, **SETTINGS)


@pytest.fixture(scope="module")
def base(sampler, latents):
    return unit(sampler(PROMPTS, latents))


@pytest.fixture(scope="module")
def adapted(sampler, latents, lora):
    return unit(sampler(PROMPTS, latents, jax.tree.map(jnp.asarray, lora.tree)))


def test_base_pictures_are_diffusers(base, latents, diffusers_images):
    np.testing.assert_allclose(base, diffusers_images(FOLDER, PROMPTS, latents, **SETTINGS), atol=2 / 255)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_adapted_pictures_are_diffusers(base, adapted, lora, latents, diffusers_images, tmp_path, form):
    write_lora(tmp_path / "lora.safetensors", lora, form)
    theirs = diffusers_images(FOLDER, PROMPTS, latents, lora=tmp_path / "lora.safetensors", **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=2 / 255)
    assert np.abs(adapted - base).max() > 0.1


def test_a_merged_folder_is_the_adapted_pipeline(toy, adapted, lora, latents, diffusers_images, tmp_path):
    out = tmp_path / "merged"
    write_merged(out, toy.pipeline, jax.tree.map(jnp.asarray, lora.tree), ALPHA / RANK)
    np.testing.assert_allclose(adapted, diffusers_images(out, PROMPTS, latents, **SETTINGS), atol=2 / 255)
    merged = open_pipeline(out)
    for name in ("vae", "text_encoder"):
        for a, b in zip(*(jax.tree.leaves(p.params[name]) for p in (merged, toy.pipeline)), strict=True):
            np.testing.assert_array_equal(a, b)
    ours = unit(Sampler(merged, batch=2, **SETTINGS)(PROMPTS, latents))
    np.testing.assert_allclose(ours, adapted, atol=2 / 255)
    with pytest.raises(UserError, match="exists already"):
        write_merged(out, toy.pipeline, jax.tree.map(jnp.asarray, lora.tree), 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


CHECKER = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": True,
}


@pytest.fixture
def hub_base(toy, tmp_path):
    """The pipeline as the hub's fp16 ones are fetched: one naming, and an index that names a checker not fetched."""
    folder = tmp_path / "base"
    shutil.copytree(FOLDER, folder)
    for weights in folder.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | CHECKER))
    return dataclasses.replace(toy.pipeline, folder=folder)


def test_a_merged_hub_base_loads_in_diffusers(hub_base, adapted, lora, latents, diffusers_images, tmp_path):
    out = tmp_path / "merged"
    write_merged(out, hub_base, jax.tree.map(jnp.asarray, lora.tree), ALPHA / RANK)
    np.testing.assert_allclose(adapted, diffusers_images(out, PROMPTS, latents, **SETTINGS), atol=2 / 255)
    assert not list(out.glob("*/*fp16*"))
    index = json.loads((out / "model_index.json").read_text())
    assert {name: index[name] for name in CHECKER} == {
        "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False
    }  # fmt: skip


def test_a_merged_folder_keeps_what_is_there(hub_base, lora, tmp_path):
    """A safety checker, and shards of a variant, which their index names."""
    for name in ("safety_checker", "feature_extractor"):
        (hub_base.folder / name).mkdir()
        (hub_base.folder / name / "config.json").write_text("{}")
    vae = hub_base.folder / "vae"
    state = read_state(vae, "diffusers")
    (vae / "diffusion_pytorch_model.fp16.safetensors").unlink()
    write_state(vae / "diffusion_pytorch_model.fp16.safetensors", state, max_shard_bytes=200_000)
    out = tmp_path / "merged"
    write_merged(out, hub_base, jax.tree.map(jnp.asarray, lora.tree), ALPHA / RANK)
    index = json.loads((out / "model_index.json").read_text())
    assert {name: index[name] for name in CHECKER} == CHECKER
    assert (out / "vae" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert len(list((out / "vae").glob("*-of-*.safetensors"))) > 1
    copied = read_state(out / "vae", "diffusers")
    assert copied.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(copied[name], array)


def test_only_a_pipeline_is_overwritten_and_never_the_base(toy, lora, tmp_path):
    out, tree = tmp_path / "out", jax.tree.map(jnp.asarray, lora.tree)
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="out exists already: .*--overwrite"):
        write_merged(out, toy.pipeline, tree, 1.0)
    with pytest.raises(UserError, match="out is no pipeline's folder"):
        write_merged(out, toy.pipeline, tree, 1.0, overwrite=True)
    assert (out / "letter.txt").read_text() == "dear"
    (out / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="out is the base model itself"):
        write_merged(out, dataclasses.replace(toy.pipeline, folder=out), tree, 1.0, overwrite=True)
    write_merged(out, toy.pipeline, tree, 1.0, overwrite=True)
    assert not (out / "letter.txt").exists() and (out / "unet" / "config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_picture_does_not_depend_on_its_neighbours(sampler, latents, base):
    alone = unit(sampler(PROMPTS[1:2], latents[1:2]))
    assert alone.shape == (1, *base.shape[1:])
    np.testing.assert_allclose(alone[0], base[1], atol=1e-4)


def pictures_of_diffusers(folder, scheduler, latents, changes={}, **inputs):  # noqa: B006
    """[b H W 3] in [0, 1], with another scheduler made from the pipeline's own config, as its users do it."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.moveaxis(latents, -1, 1).copy())
    return pipe(prompt=PROMPTS[: len(latents)], latents=latents, output_type="np", **inputs).images


SOLVERS = {"euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler}


@pytest.mark.parametrize(("solver", "karras"), [("euler", False), ("euler", True), ("dpm++", False)])
def test_pictures_of_other_solvers_are_diffusers(toy, latents, base, solver, karras):
    sampler = Sampler(toy.pipeline, steps=10, guidance=5.0, batch=3, solver=solver, karras=karras)
    theirs = pictures_of_diffusers(
        FOLDER, SOLVERS[solver], latents, {"use_karras_sigmas": karras}, num_inference_steps=10, guidance_scale=5.0
    )
    ours = unit(sampler(PROMPTS, latents))
    np.testing.assert_allclose(ours, theirs, atol=2 / 255)
    assert np.abs(ours - base).max() > 5 / 255


@pytest.mark.parametrize(("height", "width"), [(24, 40), (48, 32)])
def test_pictures_that_are_not_square_are_diffusers(toy, height, width):
    shape = shape_of_latents(toy.pipeline, height, width)
    latents = initial_latents(0, 2, shape)
    sampler = Sampler(toy.pipeline, steps=5, guidance=5.0, batch=2, latent_shape=shape)
    ours = unit(sampler(PROMPTS[:2], latents))
    assert ours.shape == (2, height, width, 3)
    theirs = pictures_of_diffusers(
        FOLDER, DDIMScheduler, latents, num_inference_steps=5, guidance_scale=5.0, height=height, width=width
    )
    np.testing.assert_allclose(ours, theirs, atol=2 / 255)
    with pytest.raises(ValueError, match="latents of .8, 8, 16. for a sampler of"):
        sampler(PROMPTS[:2], initial_latents(0, 2, toy.pipeline.latent_shape))


def test_sizes_that_cannot_be_halved(toy):
    """4 pixels a latent, and a UNet that halves once: multiples of 8."""
    assert shape_of_latents(toy.pipeline, None, None) == toy.pipeline.latent_shape == (8, 8, 16)
    assert shape_of_latents(toy.pipeline, None, 64) == (8, 16, 16)
    with pytest.raises(UserError, match="--height=36: expected a multiple of 8, .*; try 32 or 40$"):
        shape_of_latents(toy.pipeline, 36, None)
    with pytest.raises(UserError, match="--width=7: .*; try 8$"):
        shape_of_latents(toy.pipeline, 32, 7)


@pytest.mark.parametrize("solver", ["ddim", "euler"])
def test_pictures_of_a_v_model_with_zero_snr_are_diffusers(latents, tmp_path, solver):
    """What the scheduler's file says of the process is all that is needed. These weights predict the noise, so the
    pictures mean little; but noise, read as v, is another picture than noise read as noise, which would be refused."""
    shutil.copytree(FOLDER, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    pipeline = open_pipeline(tmp_path / "model")
    ours = unit(Sampler(pipeline, steps=10, guidance=5.0, batch=3, solver=solver)(PROMPTS, latents))
    scheduler = {"ddim": DDIMScheduler, **SOLVERS}[solver]
    theirs = pictures_of_diffusers(
        tmp_path / "model", scheduler, latents, num_inference_steps=10, guidance_scale=5.0
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert ours.std() > 0.03


def test_size_conditions_are_diffusers(tiny_sdxl):
    """Random weights, in whose pictures the conditions are seen. Without any, they are the pictures' own size."""
    pipeline = open_pipeline(tiny_sdxl)
    shape = shape_of_latents(pipeline, 32, 96)
    latents, drawn = initial_latents(0, 2, shape), []
    names = {"original": "original_size", "crop": "crops_coords_top_left", "target": "target_size"}
    for given in ({}, {"original": (40, 72), "crop": (4, 8), "target": (32, 96)}):
        how = dict(steps=3, guidance=5.0, batch=2, solver="euler", latent_shape=shape)
        ours = unit(Sampler(pipeline, size=SizeConditions(**given) if given else None, **how)(PROMPTS[:2], latents))
        theirs = pictures_of_diffusers(
            tiny_sdxl, EulerDiscreteScheduler, latents, num_inference_steps=3, guidance_scale=5.0,
            height=32, width=96, **{names[key]: pair for key, pair in given.items()},
        )  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
        drawn.append(ours)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2


def test_the_noise_of_a_picture_does_not_depend_on_their_number():
    few, many, other = (initial_latents(seed, count, (2, 3, 4)) for seed, count in ((7, 3), (7, 5), (8, 3)))
    assert few.shape == (3, 2, 3, 4) and few.dtype == np.float32
    np.testing.assert_array_equal(many[:3], few)
    assert not (few == other).any() and not (few[0] == few[1]).any()


def test_latents_from_a_file_are_torch_s(tmp_path):
    latents = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    np.save(tmp_path / "latents.npy", latents)
    read = read_latents(str(tmp_path / "latents.npy"), (3, 5, 4))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, latents.transpose(0, 2, 3, 1), rtol=1e-6)


def test_latents_that_do_not_fit(tmp_path):
    path = str(tmp_path / "latents.npy")
    with pytest.raises(UserError, match="cannot read initial latents from .*latents.npy"):
        read_latents(path, (3, 5, 4))
    for array in (np.zeros((2, 3, 5, 4)), np.zeros((4, 3, 5)), np.zeros((2, 4, 3, 5), int)):
        np.save(path, array)
        with pytest.raises(UserError, match=r"latents.npy: .*expected floats \[b, \(4, 3, 5\) as c, h, w\]"):
            read_latents(path, (3, 5, 4))
    np.save(path, np.full((2, 4, 3, 5), np.nan))
    with pytest.raises(UserError, match="latents.npy: holds numbers that are not finite"):
        read_latents(path, (3, 5, 4))
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="holds several arrays"):
        read_latents(str(tmp_path / "several.npz"), (3, 5, 4))


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        b"PK\x03\x04 cut off",
        npy_header("{"),
        npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},), }}"),
    ],
    ids=["no array", "half a zip", "half a header", "more than memory"],
)
def test_files_that_are_no_array(tmp_path, content):
    """numpy answers each of them with an error of another kind."""
    (tmp_path / "latents.npy").write_bytes(content)
    with pytest.raises(UserError, match="cannot read initial latents from .*latents.npy"):
        read_latents(str(tmp_path / "latents.npy"), (3, 5, 4))
