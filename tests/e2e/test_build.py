"""The command that makes the shipped preference model, with few pairs and steps."""

import dataclasses
import json

import pytest

from spo_jax.embedded import preference
from spo_jax.models.config import CLIPConfig
from spo_jax.pipeline.build import ASSETS
from spo_jax.spm.model import load_spm
from spo_jax.weights.store import read_file

WHOLE = json.loads((ASSETS / "spm" / "config.json").read_text())


@pytest.mark.slow
def test_the_embedded_preference_model_is_made_as_a_users(spm_settings, tmp_path):
    """From a config alone; a build that is started again goes on with the run that is there."""
    config = CLIPConfig.from_dict(WHOLE, time_conditioned=True)
    text = config.text
    assert preference.clip_config(text.vocab_size, text.max_position_embeddings, text.eos_token_id) == config
    settings = dataclasses.replace(spm_settings, num_steps=2)
    folder = preference.train_preference_model(settings, config, tmp_path, pairs=10, held_out=6)
    made = load_spm(folder, judges="sd")
    assert made.clip.config == config
    weights = folder / "model.safetensors"
    assert {x.dtype.name for x in read_file(weights).values() if x.ndim} == {"float16"}
    assert weights.stat().st_size < 2**21

    before = weights.read_bytes()
    curves = (tmp_path / "spm" / "metrics.jsonl").read_text()
    assert preference.train_preference_model(settings, config, tmp_path, pairs=10, held_out=6) == folder
    assert weights.read_bytes() == before and (tmp_path / "spm" / "metrics.jsonl").read_text() == curves
