"""The command that makes the shipped files, with trainers that are done at once."""

import dataclasses
import json

import jax
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
    """Networks come out of training as they are shipped; the names of those trained."""
    trained, pipeline = [], toy.pipeline

    def train_autoencoder():
        trained.append("autoencoder")
        return pipeline.vae.config, pipeline.params["vae"]

    def train_base(data, empty, text):
        trained.append("base")
        return {name: pipeline.params[name] for name in ("unet", "text_encoder")}

    monkeypatch.setattr(autoencoder, "train_autoencoder", train_autoencoder)
    monkeypatch.setattr(base, "encode_scenes", lambda *arguments, **settings: None)
    monkeypatch.setattr(base, "train_base", train_base)
    return trained


def test_the_pipeline_is_written_as_it_is_shipped(stages, toy, spm_settings, tmp_path, monkeypatch):
    """A second build finds every stage done."""
    monkeypatch.setattr(preference, "train_preference_model", lambda *arguments: ASSETS / "spm")
    for _ in range(2):
        build.build(tmp_path / "work", tmp_path / "out", spm_settings)
        assert stages == ["autoencoder", "base"]
    for part in ("pipeline", "spm"):
        names = lambda folder: sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())  # noqa: E731
        assert names(tmp_path / "out" / part) == names(ASSETS / part)
    made = open_pipeline(tmp_path / "out" / "pipeline")
    assert (made.unet.config, made.vae.config) == (toy.pipeline.unet.config, toy.pipeline.vae.config)
    jax.tree.map(np.testing.assert_array_equal, made.params, toy.pipeline.params)  # float16 already


@pytest.mark.slow
def test_the_preference_model_is_made_as_a_users(stages, spm_settings, tmp_path, monkeypatch):
    """From a config alone; a build that is started again goes on with the run that is there."""
    monkeypatch.setattr(preference, "PAIRS", 10)
    monkeypatch.setattr(preference, "HELD_OUT_PAIRS", 6)
    monkeypatch.setattr(preference, "FURTHER", preference.FURTHER | {"num_steps": 2, "warmup_steps": 1})
    settings, out = dataclasses.replace(spm_settings, num_steps=2), tmp_path / "out"
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
