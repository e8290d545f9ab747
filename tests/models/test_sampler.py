"""Images are those of diffusers, with and without an adapter, and latents are read strictly.

They agree to 2/255 of [0, 1] on the toy weights, and to 1e-3 or better on random weights.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from spo_jax.core.errors import UserError
from spo_jax.models import open_pipeline
from spo_jax.models import sampler as sampler_module
from spo_jax.models.lora import write_lora
from spo_jax.models.sampler import LatentsFile, Sampler, initial_latents, latents_of
from tests.models.helpers import FOLDER, IMAGES, PROMPTS, unit

SCHEDULERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler}


def images_of_diffusers(folder, solver, latents, *, steps, changes=None, **inputs):
    """Draws images [b H W 3] in [0, 1] with another scheduler made from the pipeline's own config, as users do it."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = SCHEDULERS[solver].from_config(pipe.scheduler.config, **(changes or {}))
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.moveaxis(latents, -1, 1).copy())  # [b h w c] -> [b c h w]
    inputs |= {"num_inference_steps": steps, "guidance_scale": IMAGES["guidance"]}
    return pipe(prompt=PROMPTS[: len(latents)], latents=latents, output_type="np", **inputs).images


def test_images_are_those_of_diffusers(base_images, latents, diffusers_images):
    np.testing.assert_allclose(base_images, diffusers_images(FOLDER, PROMPTS, latents, **IMAGES), atol=2 / 255)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_adapted_images_are_those_of_diffusers(
    base_images, adapted_images, lora, latents, diffusers_images, tmp_path, form
):
    write_lora(tmp_path / "lora.safetensors", lora, form)
    theirs = diffusers_images(FOLDER, PROMPTS, latents, lora=tmp_path / "lora.safetensors", **IMAGES)
    np.testing.assert_allclose(adapted_images, theirs, atol=2 / 255)
    assert np.abs(adapted_images - base_images).max() > 0.1


def test_an_image_does_not_depend_on_its_neighbours(sampler, latents, base_images):
    alone = unit(sampler(PROMPTS[1:2], latents[1:2]))
    assert alone.shape == (1, *base_images.shape[1:])
    np.testing.assert_allclose(alone[0], base_images[1], atol=1e-4)


def test_images_that_are_streamed_are_the_same_to_the_bit(sampler, latents):
    batches = list(sampler.stream(PROMPTS, lambda rows: latents_of(0, rows, latents.shape[1:])))
    assert [len(batch) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), sampler(PROMPTS, latents))


def test_some_images_of_many_are_the_same_to_the_bit(sampler, latents):
    whole = sampler(PROMPTS, latents)
    some = sampler.stream(PROMPTS, lambda rows: latents[rows], rows=np.array([0, 2]))
    np.testing.assert_array_equal(np.concatenate(list(some)), whole[[0, 2]])


def test_another_guidance_needs_no_other_program(toy, sampler, latents):
    own = sampler(PROMPTS[:2], latents[:2])
    programs = sampler._program._cache_size()
    (drawn,) = sampler.stream(PROMPTS[:2], lambda rows: latents[rows], guidance=1.5)
    assert sampler._program._cache_size() == programs
    other = Sampler(toy.pipeline, steps=IMAGES["steps"], guidance=1.5, batch=2)
    np.testing.assert_array_equal(drawn, other(PROMPTS[:2], latents[:2]))
    assert np.abs(drawn - own).max() > 0.01


@pytest.mark.parametrize(("count", "batch"), [(3, 2), (9, 2), (9, 7), (10, 20), (8, 3)])
def test_prompts_are_encoded_in_the_chunks_of_all_prompts_at_once(monkeypatch, count, batch):
    """The last chunk is filled up with the last prompt, and a chunk is encoded once."""
    monkeypatch.setattr(sampler_module, "TEXT_CHUNK", 4)
    calls = []

    def encode(texts):
        calls.append([int(text) for text in texts])
        return {"states": np.array(calls[-1])}

    conditions = sampler_module._Conditions(encode, [str(number) for number in range(count)])
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        np.testing.assert_array_equal(conditions.take(rows)["states"], rows)
        assert len(conditions._chunks) <= batch // 4 + 2
    np.testing.assert_array_equal(conditions.take(np.array([0, count - 1]))["states"], [0, count - 1])
    calls = calls[: -(-count // min(4, count))]
    starts = range(0, count, min(4, count))
    assert calls == [[min(row, count - 1) for row in range(start, start + min(4, count))] for start in starts]


SLOW = pytest.mark.slow  # for further solvers and sizes, which take the same path through our code


@pytest.mark.parametrize(
    ("solver", "karras", "height", "width"),
    [
        ("euler", True, 24, 40),
        pytest.param("euler", False, 32, 32, marks=SLOW),
        pytest.param("dpm++", False, 32, 32, marks=SLOW),
        pytest.param("ddim", False, 48, 32, marks=SLOW),
    ],
)
def test_images_of_other_solvers_and_sizes_are_those_of_diffusers(toy, solver, karras, height, width):
    shape = toy.pipeline.latent_shape_of(height, width)
    latents = initial_latents(0, 2, shape)
    sampler = Sampler(
        toy.pipeline, steps=6, guidance=5.0, batch=2, solver=solver, karras=karras, latent_shape=shape
    )  # fmt: skip
    ours = unit(sampler(PROMPTS[:2], latents))
    assert ours.shape == (2, height, width, 3)
    size = {"height": height, "width": width}
    changes = {"use_karras_sigmas": karras} if solver != "ddim" else {}
    theirs = images_of_diffusers(FOLDER, solver, latents, steps=6, changes=changes, **size)
    np.testing.assert_allclose(ours, theirs, atol=2 / 255)
    if solver != "ddim":
        assert np.abs(ours - images_of_diffusers(FOLDER, "ddim", latents, steps=6, **size)).max() > 5 / 255


def test_latents_of_another_size_raise(sampler):
    with pytest.raises(ValueError, match="latents of .6, 10, 16. for a sampler of .8, 8, 16."):
        sampler(PROMPTS[:2], initial_latents(0, 2, (6, 10, 16)))


@pytest.mark.parametrize("solver", ["ddim", pytest.param("euler", marks=pytest.mark.slow)])
def test_images_of_a_v_model_with_zero_snr_are_those_of_diffusers(latents, tmp_path, solver):
    """The scheduler's file alone decides on the process.

    These weights predict noise, so that the images mean little. But if the file were ignored, noise would be read as
    noise, and the images would be others.
    """
    shutil.copytree(FOLDER, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    pipeline = open_pipeline(tmp_path / "model")
    ours = unit(Sampler(pipeline, steps=6, guidance=5.0, batch=3, solver=solver)(PROMPTS, latents))
    theirs = images_of_diffusers(tmp_path / "model", solver, latents, steps=6)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert ours.std() > 0.03


# diffusers' names of the size conditions.
NAMES = {"original": "original_size", "crop": "crops_coords_top_left", "target": "target_size"}


def images_under(sdxl, folder, conditions):
    """Draws images of 32 x 96 with size conditions, here and with diffusers."""
    shape = sdxl.latent_shape_of(32, 96)
    latents = initial_latents(0, 2, shape)
    options = sdxl.prompt_options(shape, **conditions) if conditions else None
    sampler = Sampler(
        sdxl, steps=2, guidance=5.0, batch=2, solver="euler", latent_shape=shape, prompt_options=options
    )  # fmt: skip
    inputs = {NAMES[name]: pair for name, pair in conditions.items()} | {"height": 32, "width": 96}
    return unit(sampler(PROMPTS[:2], latents)), images_of_diffusers(folder, "euler", latents, steps=2, **inputs)


CONDITIONS = {"original": (40, 72), "crop": (4, 8), "target": (32, 96)}


def test_images_under_size_conditions_are_those_of_diffusers(sdxl, tiny_sdxl):
    ours, theirs = images_under(sdxl, tiny_sdxl, CONDITIONS)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_the_default_size_conditions_are_those_of_the_images(sdxl, tiny_sdxl):
    """They are visible in the images of random weights."""
    ours, theirs = images_under(sdxl, tiny_sdxl, {})
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - images_under(sdxl, tiny_sdxl, CONDITIONS)[0]).max() > 1e-3


def test_the_noise_of_an_image_does_not_depend_on_their_number():
    few, many, other = (initial_latents(seed, count, (2, 3, 4)) for seed, count in ((7, 3), (7, 5), (8, 3)))
    assert few.shape == (3, 2, 3, 4) and few.dtype == np.float32
    np.testing.assert_array_equal(many[:3], few)
    assert not (few == other).any() and not (few[0] == few[1]).any()


def test_latents_in_a_file_have_the_layout_of_torch(tmp_path):
    latents = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    np.save(tmp_path / "latents.npy", latents)
    read = LatentsFile(str(tmp_path / "latents.npy"), 2, (3, 5, 4))(np.array([1, 0, 0]))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, latents.transpose(0, 2, 3, 1)[[1, 0, 0]], rtol=1e-6)


def test_latents_that_do_not_fit_are_refused(tmp_path):
    path = str(tmp_path / "latents.npy")
    with pytest.raises(UserError, match="cannot read initial latents from .*latents.npy"):
        LatentsFile(path, 2, (3, 5, 4))
    for array in (np.zeros((2, 3, 5, 4)), np.zeros((4, 3, 5)), np.zeros((2, 4, 3, 5), int)):
        np.save(path, array)
        with pytest.raises(UserError, match=r"latents.npy: .*expected floats \[b, \(4, 3, 5\) as c, h, w\]"):
            LatentsFile(path, 2, (3, 5, 4))
    np.save(path, np.full((2, 4, 3, 5), np.nan))
    with pytest.raises(UserError, match="latents.npy: holds values that are not finite"):
        LatentsFile(path, 2, (3, 5, 4))
    np.save(path, np.zeros((1, 4, 3, 5)))
    with pytest.raises(UserError, match="latents.npy holds 1 row for 2 images"):
        LatentsFile(path, 2, (3, 5, 4))
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="holds several arrays"):
        LatentsFile(str(tmp_path / "several.npz"), 2, (3, 5, 4))


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        b"PK\x03\x04 cut off",
        npy_header("{"),
        npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},), }}"),
        npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**12}, 4, 3, 5), }}") + bytes(480),
    ],
    ids=["no array", "half a zip", "half a header", "more than memory", "more than the file"],
)
def test_files_that_are_not_arrays_are_refused(tmp_path, content):
    """numpy raises an error of another type for each of them."""
    (tmp_path / "latents.npy").write_bytes(content)
    with pytest.raises(UserError, match="cannot read initial latents from .*latents.npy"):
        LatentsFile(str(tmp_path / "latents.npy"), 2, (3, 5, 4))
