"""The command that makes the shipped files, with trainers that finish at once."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.build_toy import autoencoder, base, build, preference
from spo_jax.models import open_pipeline
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.rewards.common.preference_model import load_spm
from spo_jax.toy import ASSETS
from spo_jax.weights.store import read_file

WHOLE = json.loads((ASSETS / "spm" / "config.json").read_text())


@pytest.fixture
def stages(toy, monkeypatch):
    """Makes networks come out of training as they are shipped; returns the names of those that were trained."""
    trained = []
    pipeline = toy.pipeline

    def train_autoencoder():
        trained.append("autoencoder")
        return pipeline.vae.config, pipeline.params["vae"]

    def train_base(data, empty, text, *, start=None, look=None, **settings):
        weights = {name: pipeline.params[name] for name in ("unet", "text_encoder")}
        if start:
            trained.append("base, further")
            jax.tree.map(np.testing.assert_array_equal, start, earlier_than(weights, 1))
            return weights
        trained.append("base")
        look(base.EARLIER, earlier_than(weights, 2))
        look(base.EARLIER + 1, weights)
        return earlier_than(weights, 1)

    def earlier_than(weights, stages):
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, stages), weights)

    monkeypatch.setattr(autoencoder, "train_autoencoder", train_autoencoder)
    monkeypatch.setattr(base, "encode_scenes", lambda *arguments, **settings: None)
    monkeypatch.setattr(base, "train_base", train_base)
    monkeypatch.setattr(build, "train_latent_judge", lambda *arguments: ASSETS / "lrm_people")
    return trained


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_the_pipeline_is_written_as_it_is_shipped(stages, toy, spm_settings, tmp_path, monkeypatch):
    """A second build finds every stage done."""
    monkeypatch.setattr(preference, "train_preference_model", lambda *arguments: ASSETS / "spm")
    for _ in range(2):
        build.build(tmp_path / "work", tmp_path / "out", spm_settings)
        assert stages == ["autoencoder", "base", "base, further"]
    for part in ("pipeline", "spm", "lrm_people"):
        assert files_in(tmp_path / "out" / part) == files_in(ASSETS / part)
    made = open_pipeline(tmp_path / "out" / "pipeline")
    assert made.unet.config == toy.pipeline.unet.config
    assert made.vae.config == toy.pipeline.vae.config
    jax.tree.map(np.testing.assert_array_equal, made.params, toy.pipeline.params)  # float16 already
    earlier = open_pipeline(tmp_path / "work" / "earlier")
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(earlier.params["unet"]))


@pytest.mark.slow
def test_the_preference_model_is_made_as_a_user_makes_one(stages, spm_settings, tmp_path, monkeypatch):
    """From a config alone; a build that is started again resumes the runs that exist."""
    monkeypatch.setattr(preference, "PAIRS", 10)
    monkeypatch.setattr(preference, "HELD_OUT_PAIRS", 6)
    monkeypatch.setattr(preference, "FURTHER", preference.FURTHER | {"train_steps": 2})
    monkeypatch.setattr(preference, "FURTHER_WARMUP", 1)
    settings = dataclasses.replace(spm_settings, train_steps=2)
    out = tmp_path / "out"
    build.build(tmp_path, out, settings)
    made = load_spm(out / "spm", judges="sd")
    assert made.clip.config == CLIPConfig.from_dict(WHOLE, time_conditioned=True)
    weights = out / "spm" / "model.safetensors"
    assert {x.dtype.name for x in read_file(weights).values() if x.ndim} == {"float16"}
    assert weights.stat().st_size < 2**21

    before = weights.read_bytes()
    runs = [tmp_path / name / "metrics.jsonl" for name in ("spm", "spm_further")]
    curves = [run.read_text() for run in runs]
    assert curves[0] != curves[1]
    build.build(tmp_path, out, settings)
    assert weights.read_bytes() == before and [run.read_text() for run in runs] == curves
