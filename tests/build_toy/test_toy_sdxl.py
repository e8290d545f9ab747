"""The random SDXL pipeline that users make: diffusers reads it and draws the same pictures."""

import numpy as np
import pytest

from spo_jax.build_toy.tiny_sdxl import write_tiny_sdxl
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.models import open_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny_sdxl"
    write_tiny_sdxl(path)
    return path


def test_diffusers_draws_the_same_pictures(folder, diffusers_pictures):
    """To 1e-4 of [0, 1], as those of `tests/pipeline/test_sdxl.py`."""
    pipeline = open_pipeline(folder)
    assert pipeline.kind == "sdxl" and pipeline.image_size == (64, 64)
    prompts, latents = ["a red star", "a blue moon"], initial_latents(0, 2, pipeline.latent_shape)
    theirs = diffusers_pictures(folder, prompts, latents, 3, 5.0)
    ours = Sampler(pipeline, steps=3, guidance=5.0)(prompts, latents)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(np.clip(ours / 2 + 0.5, 0, 1), theirs, atol=1e-4)


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    write_tiny_sdxl(tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) > 15
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
