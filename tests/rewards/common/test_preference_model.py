"""Reading the preference model, in folders and in the published single-file form."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.rewards.common.clip_score import score_images, text_features
from spo_jax.rewards.common.preference_model import TRAINED_ON, load_spm
from spo_jax.toy import ASSETS
from spo_jax.weights.store import read_file, write_state


@pytest.fixture(scope="module")
def embedded():
    return load_spm("embedded")


def scores(spm, t):
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    text = text_features(spm.clip, spm.params, jnp.asarray(spm.tokenizer(["a red star", "a blue moon"])))
    return score_images(spm.clip, spm.params, images, jnp.full(2, t), text)


def test_scores_know_the_timestep(embedded):
    assert np.abs(scores(embedded, 0) - scores(embedded, 900)).max() > 1e-3


def test_published_layout_with_model_prefix_and_a_tokenizer_elsewhere(embedded, tmp_path):
    state = read_file(ASSETS / "spm" / "model.safetensors")
    write_state(tmp_path / "spm.safetensors", {f"model.{key}": value for key, value in state.items()})
    shutil.copy(ASSETS / "spm" / "config.json", tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_spm(tmp_path / "spm.safetensors")
    again = load_spm(tmp_path / "spm.safetensors", tokenizer=ASSETS / "spm" / "tokenizer")
    np.testing.assert_array_equal(scores(again, 100), scores(embedded, 100))


def test_a_model_trained_on_another_kind_of_pipeline_is_refused_and_its_own_is_not(tmp_path):
    """Weights cannot tell; the config of ours and the names of the published files can."""
    shutil.copytree(ASSETS / "spm", tmp_path / "spm")
    config = json.loads((tmp_path / "spm" / "config.json").read_text())
    (tmp_path / "spm" / "config.json").write_text(json.dumps(config | {TRAINED_ON: "sdxl"}))
    load_spm(tmp_path / "spm", judges="sdxl")
    with pytest.raises(UserError, match="trained on clean predictions of SDXL, but config field model is Stable Diff"):
        load_spm(tmp_path / "spm", judges="sd")
    published = tmp_path / "sd-v1-5_step-aware_preference_model.bin"
    published.write_bytes(b"")
    with pytest.raises(UserError, match="of Stable Diffusion 1.x or 2.x, but config field model is SDXL: name one"):
        load_spm(published, judges="sdxl")


def test_what_is_no_clip_at_all_is_called_by_its_name():
    with pytest.raises(UserError, match="pipeline: this is a diffusion pipeline; expected a preference model"):
        load_spm(ASSETS / "pipeline")
    with pytest.raises(UserError, match="config.json: this is a UNet2DConditionModel; expected a preference model"):
        load_spm(ASSETS / "pipeline" / "unet")


def test_plain_clip_is_refused(tmp_path):
    shutil.copytree(ASSETS / "spm", tmp_path / "spm")
    path = tmp_path / "spm" / "model.safetensors"
    write_state(path, {key: value for key, value in read_file(path).items() if "adaLN" not in key})
    with pytest.raises(UserError, match="adaLN_modulation"):
        load_spm(tmp_path / "spm")
