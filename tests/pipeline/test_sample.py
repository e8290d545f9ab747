"""Our pictures are diffusers', with and without an adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.models.lora import init_lora
from spo_jax.pipeline.build import ASSETS, load_pipeline
from spo_jax.pipeline.export import write_merged
from spo_jax.pipeline.sample import Sampler, initial_latents, read_latents
from spo_jax.weights.lora import LoRA, write_lora

FOLDER = ASSETS / "pipeline"
PROMPTS = ["a red star", "a blue moon", "an orange heart"]
SETTINGS = dict(steps=20, guidance=5.0)
RANK, ALPHA = 4, 2.0


def unit(images):
    """Near [-1, 1] to [0, 1]."""
    return np.clip(images / 2 + 0.5, 0, 1)


@pytest.fixture(scope="module")
def latents(embedded):
    return initial_latents(0, len(PROMPTS), embedded.pipeline.latent_shape)


@pytest.fixture(scope="module")
def lora(embedded):
    """Random, and strong enough to be seen."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: init_lora(jax.random.key(0), embedded.pipeline.params["unet"], RANK)))
    flat = {path: rng.normal(0, 0.15, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return LoRA(unflatten(flat), ALPHA, RANK)


@pytest.fixture(scope="module")
def sampler(embedded):
    """Two pictures at a time: the last batch of three is padded."""
    return Sampler(embedded.pipeline, lora_scale=ALPHA / RANK, batch=2, **SETTINGS)


@pytest.fixture(scope="module")
def base(sampler, latents):
    return unit(sampler(PROMPTS, latents))


@pytest.fixture(scope="module")
def adapted(sampler, latents, lora):
    return unit(sampler(PROMPTS, latents, jax.tree.map(jnp.asarray, lora.tree)))


def test_base_pictures_are_diffusers(base, latents, diffusers_pictures):
    np.testing.assert_allclose(base, diffusers_pictures(FOLDER, PROMPTS, latents, **SETTINGS), atol=2 / 255)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_adapted_pictures_are_diffusers(base, adapted, lora, latents, diffusers_pictures, tmp_path, form):
    write_lora(tmp_path / "lora.safetensors", lora, form)
    theirs = diffusers_pictures(FOLDER, PROMPTS, latents, lora=tmp_path / "lora.safetensors", **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=2 / 255)
    assert np.abs(adapted - base).max() > 0.1


def test_a_merged_folder_is_the_adapted_pipeline(embedded, adapted, lora, latents, diffusers_pictures, tmp_path):
    out = tmp_path / "merged"
    write_merged(out, embedded.pipeline, jax.tree.map(jnp.asarray, lora.tree), ALPHA / RANK)
    np.testing.assert_allclose(adapted, diffusers_pictures(out, PROMPTS, latents, **SETTINGS), atol=2 / 255)
    merged = load_pipeline(out)
    for name in ("vae", "text_encoder"):
        for a, b in zip(*(jax.tree.leaves(p.params[name]) for p in (merged, embedded.pipeline)), strict=True):
            np.testing.assert_array_equal(a, b)
    ours = unit(Sampler(merged, batch=2, **SETTINGS)(PROMPTS, latents))
    np.testing.assert_allclose(ours, adapted, atol=2 / 255)
    with pytest.raises(UserError, match="exists already"):
        write_merged(out, embedded.pipeline, jax.tree.map(jnp.asarray, lora.tree), 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_a_picture_does_not_depend_on_its_neighbours(sampler, latents, base):
    alone = unit(sampler(PROMPTS[1:2], latents[1:2]))
    assert alone.shape == (1, *base.shape[1:])
    np.testing.assert_allclose(alone[0], base[1], atol=1e-4)


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
    (tmp_path / "latents.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot read initial latents"):
        read_latents(path, (3, 5, 4))
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="holds several arrays"):
        read_latents(str(tmp_path / "several.npz"), (3, 5, 4))
