"""Scores of the step-aware preference model (c), pixels first.

float32 on both sides. Scores are about ±10 (logit scale 100 times a cosine), so 1e-4 relative is 1e-3 of a point;
the smallest gap between scores in the rollouts is 1e-3.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.resizing import resize_bicubic, shorter_side_size
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.nn.layers import sinusoidal_embedding
from spo_jax.rewards.common.clip_score import pixel_values, score_images, text_features
from spo_jax.rewards.common.preference_model import write_spm
from spo_jax.weights.store import read_file


@pytest.fixture(scope="module")
def programs(golden):
    """The model's towers and its score, compiled once for each shape."""
    clip = golden.spm.clip

    def tower(method):
        return jax.jit(functools.partial(clip.apply, method=method))

    return {
        "image": tower("encode_image"),
        "text": tower("encode_text"),
        "unit text": jax.jit(functools.partial(text_features, clip)),
        "score": jax.jit(functools.partial(score_images, clip)),
    }


@pytest.mark.parametrize("size", ["64x64", "96x64", "64x96", "66x64", "30x30", "24x24"])
def test_scores(golden, programs, size):
    c = golden.arrays("c_spm_score.npz")
    spm = golden.spm
    images = golden.nhwc(c[f"{size}/images"])
    ids = jnp.asarray(c[f"{size}/input_ids"])
    t = jnp.asarray(c[f"{size}/timesteps"])
    side = spm.clip.config.vision.image_size
    variables = {"params": spm.params}

    resized = resize_bicubic(images, shorter_side_size(*images.shape[1:3], side))
    assert golden.relative_error(resized, golden.nhwc(c[f"{size}/resized"])) < 1e-5
    pixels = pixel_values(images, side)
    assert golden.relative_error(pixels, golden.nhwc(c[f"{size}/pixel_values"])) < 1e-5

    assert golden.relative_error(programs["image"](variables, pixels, t), c[f"{size}/image_features"]) < 1e-4
    assert golden.relative_error(programs["text"](variables, ids), c[f"{size}/text_features"]) < 1e-4
    scores = programs["score"](spm.params, images, t, programs["unit text"](spm.params, ids))
    assert golden.relative_error(scores, c[f"{size}/scores"]) < 1e-4


def test_sweep_of_timesteps(golden, programs):
    c = golden.arrays("c_spm_score.npz")
    spm = golden.spm
    t = jnp.asarray(c["sweep/timesteps"])
    assert golden.relative_error(sinusoidal_embedding(t, 256), c["sweep/t_embedding_sinusoid"]) < 1e-4
    images = jnp.tile(golden.nhwc(c["sweep/images"]), (len(t), 1, 1, 1))
    text = programs["unit text"](spm.params, jnp.asarray(c["sweep/input_ids"]))
    scores = programs["score"](spm.params, images, t, jnp.tile(text, (len(t), 1)))
    assert golden.relative_error(scores, c["sweep/scores"]) < 1e-4
    scale = spm.clip.apply({"params": spm.params}, method="scale")
    np.testing.assert_allclose(scale, c["logit_scale_exp"], rtol=1e-6)


def test_a_written_model_is_what_the_reference_s_class_loads(golden, golden_dir, tmp_path):
    """The class holds the network as ``model`` and loads strictly: exactly its names, shapes and values."""
    folder = golden_dir / "models" / "spm"
    config = CLIPConfig.from_dict(json.loads((folder / "config.json").read_text()), time_conditioned=True)
    write_spm(tmp_path / "spm", config, jax.device_get(golden.spm.params))
    theirs = read_file(folder / "model.safetensors")
    ours = read_file(tmp_path / "spm" / "model.safetensors")
    assert ours.keys() == {f"model.{name}" for name in theirs}
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[f"model.{name}"], value)
