"""Preference models are read from folders and from the published single files, and other models are refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.rewards.common.clip_score import score_images, text_features
from spo_jax.rewards.common.preference_files import resolve_model
from spo_jax.rewards.common.preference_model import TRAINED_ON, abstract_clip, load_spm, write_spm
from spo_jax.toy import ASSETS, PREFERENCE_MODELS, world
from spo_jax.weights.store import read_file, write_state


@pytest.fixture(scope="module")
def scores(toy):
    """A function from a timestep to the toy model's scores of two random images."""
    spm = toy.spm
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    ids = jnp.asarray(spm.tokenizer(["a red star", "a blue moon"]))

    @jax.jit
    def score(t):
        text = text_features(spm.clip, spm.params, ids)
        return score_images(spm.clip, spm.params, images, jnp.full(2, t), text)

    return score


def test_scores_depend_on_the_timestep(scores):
    assert np.abs(scores(0) - scores(900)).max() > 1e-3


def test_the_published_layout_is_read_with_a_tokenizer_of_its_own(toy, tmp_path):
    """Its names have the prefix ``model.``, and no tokenizer is beside it."""
    state = read_file(ASSETS / "spm" / "model.safetensors")
    published = {f"model.{key.removeprefix('model.')}": value for key, value in state.items()}
    write_state(tmp_path / "spm.safetensors", published)
    shutil.copy(ASSETS / "spm" / "config.json", tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_spm(tmp_path / "spm.safetensors")
    again = load_spm(tmp_path / "spm.safetensors", tokenizer=ASSETS / "spm" / "tokenizer")
    assert again.clip == toy.spm.clip
    jax.tree.map(np.testing.assert_array_equal, again.params, toy.spm.params)
    prompts = ["a red star", "star " * 40]
    np.testing.assert_array_equal(again.tokenizer(prompts), toy.spm.tokenizer(prompts))


def test_a_written_model_is_read_back(toy, tmp_path):
    """Its weights have the published names, and its config the kind of pipeline that it judges."""
    config = toy.spm.clip.config
    write_spm(tmp_path, config, jax.device_get(toy.spm.params), ASSETS / "spm" / "tokenizer", trained_on="sdxl")
    assert all(key.startswith("model.") for key in read_file(tmp_path / "model.safetensors"))
    again = load_spm(tmp_path, judges="sdxl")
    assert again.clip == toy.spm.clip
    jax.tree.map(np.testing.assert_array_equal, again.params, toy.spm.params)
    with pytest.raises(UserError, match="a weight of 1e.06 does not fit float16; write float32"):
        write_spm(tmp_path, config, {"kernel": np.full((2, 2), 1e6, np.float32)}, dtype=jnp.float16)


def test_a_model_trained_on_another_kind_of_pipeline_is_refused(tmp_path):
    """Weights do not show the kind, but our config and the names of the published files do."""
    shutil.copytree(ASSETS / "spm", tmp_path / "spm")
    config = json.loads((tmp_path / "spm" / "config.json").read_text())
    (tmp_path / "spm" / "config.json").write_text(json.dumps(config | {TRAINED_ON: "sdxl"}))
    load_spm(tmp_path / "spm", judges="sdxl")
    with pytest.raises(UserError, match="trained on clean predictions of SDXL, but config field model is Stable Diff"):
        load_spm(tmp_path / "spm", judges="sd")
    published = tmp_path / "sd-v1-5_step-aware_preference_model.bin"
    published.write_bytes(b"")
    with pytest.raises(UserError, match="of Stable Diffusion 1.x or 2.x, but config field model is SDXL: name a pref"):
        load_spm(published, judges="sdxl")


def test_models_of_other_classes_are_named():
    with pytest.raises(UserError, match="pipeline: this is a diffusion pipeline; expected a preference model"):
        load_spm(ASSETS / "pipeline")
    with pytest.raises(UserError, match="config.json: this is a UNet2DConditionModel; expected a preference model"):
        load_spm(ASSETS / "pipeline" / "unet")


def test_a_plain_clip_is_refused(tmp_path):
    shutil.copytree(ASSETS / "spm", tmp_path / "spm")
    path = tmp_path / "spm" / "model.safetensors"
    write_state(path, {key: value for key, value in read_file(path).items() if "adaLN" not in key})
    with pytest.raises(UserError, match="adaLN_modulation"):
        load_spm(tmp_path / "spm")


def test_without_weights_the_published_config_is_used():
    """It is that of CLIP ViT-H/14, and known without network."""
    clip = abstract_clip("owner/name/file.bin", jnp.bfloat16)
    assert clip.config == CLIPConfig.from_dict(CLIP_H, time_conditioned=True)


def test_shipped_models_have_names():
    assert set(PREFERENCE_MODELS) == {"toy", "toy_people"}
    for name, folder in PREFERENCE_MODELS.items():
        assert resolve_model(name) == folder and (folder / "model.safetensors").is_file()
        assert abstract_clip(name, jnp.float32).config.time_conditioned


@pytest.mark.parametrize("name", ["toy", "toy_people"])
def test_shipped_models_prefer_clean_drawings(name):
    """Both heard it, one of them from people who disagree."""
    spm = load_spm(name, judges="sd")
    prompts = list(world.TRAIN_PROMPTS)
    factors = world.sample_factors(np.random.default_rng(0), len(prompts))
    low, high = world.FACTORS["grain"]
    scores = []
    for grain in (low, high):
        drawn = world.render(
            np.random.default_rng(1), prompts, factors | {"grain": np.full(len(prompts), grain, np.float32)}
        )
        text = text_features(spm.clip, spm.params, jnp.asarray(spm.tokenizer(prompts)))
        t = jnp.zeros(len(prompts), jnp.int32)
        scores.append(score_images(spm.clip, spm.params, jnp.asarray(drawn), t, text))
    assert (scores[0] > scores[1]).mean() > 0.8
