"""The random SDXL pipeline that users write is the same in diffusers and here."""

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from spo_jax.build_toy.toy_sdxl import write_toy_sdxl
from spo_jax.models import open_pipeline
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.weights.components import text_state
from spo_jax.weights.rules import to_state

PROMPTS = ["a red star", "a blue moon"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "toy_sdxl"
    write_toy_sdxl(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder):
    return open_pipeline(folder)


def test_diffusers_reads_the_same_pipeline(folder, pipeline):
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.kind == "sdxl" and pipeline.image_size == (64, 64)
    for name, params in pipeline.params.items():
        is_text = name.startswith("text_encoder")
        ours = text_state(params) if is_text else to_state(params)
        theirs = {key: value.numpy() for key, value in getattr(pipe, name).state_dict().items()}
        if is_text:  # Some versions of transformers leave the prefix out.
            ours = {key.removeprefix("text_model."): array for key, array in ours.items()}
            theirs = {key.removeprefix("text_model."): array for key, array in theirs.items()}
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            np.testing.assert_array_equal(ours[key], array, err_msg=key)
    for name, tokens in zip(("tokenizer", "tokenizer_2"), pipeline.tokenize(PROMPTS).swapaxes(0, 1), strict=True):
        tokenizer = getattr(pipe, name)
        options = {"padding": "max_length", "truncation": True, "max_length": tokens.shape[1]}
        np.testing.assert_array_equal(tokens, tokenizer(PROMPTS, **options)["input_ids"])


@pytest.mark.slow
def test_images_are_those_of_diffusers(folder, pipeline, diffusers_images):
    """They agree to 1e-4 of [0, 1], as in `tests/models/stable_diffusion/test_sdxl.py`."""
    latents = initial_latents(0, 2, pipeline.latent_shape)
    theirs = diffusers_images(folder, PROMPTS, latents, 3, 5.0)
    ours = Sampler(pipeline, steps=3, guidance=5.0)(PROMPTS, latents)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(np.clip(ours / 2 + 0.5, 0, 1), theirs, atol=1e-4)


def test_one_seed_always_writes_the_same_bytes(folder, tmp_path):
    write_toy_sdxl(tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) > 15
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
