"""SDXL from prompts to LoRA and back through the run's own library: train, stop, go on."""

import dataclasses
import shutil

import numpy as np
import pytest

from spo_jax import training
from spo_jax.core.errors import UserError
from spo_jax.metrics import read_metrics
from spo_jax.pipeline.build import load_pipeline
from spo_jax.run_folder import Resume
from spo_jax.weights.lora import read_lora
from spo_jax.weights.store import read_file


@pytest.fixture(scope="module")
def settings(tiny_settings, tiny_sdxl):
    """The published shape: pools of two that walk three steps alone, no pool at the last, batches accumulated."""
    spo = dataclasses.replace(
        tiny_settings.spo, num_steps=6, num_inner_step=3, branch_at_last_step=False, gradient_accumulation_steps=2,
        train_batch_size=4, decode_chunk=4,
    )  # fmt: skip
    evaluation = dataclasses.replace(tiny_settings.eval, reward="spm", pictures=2, batch=2)
    log = dataclasses.replace(tiny_settings.log, sample_every=0, sample_pictures=2, checkpoint_every=1)
    return dataclasses.replace(
        tiny_settings, model=str(tiny_sdxl), max_batches=2, spo=spo, eval=evaluation, log=log,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdxl") / "run"
    training.train(settings, out)
    return out


def test_a_run_leaves_an_adapter_of_the_model(run, tiny_sdxl):
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:  # two prompts, one pool of two each, whose branches are four steps long
        assert row["valid_pairs"] == 8 and row["train_batches"] == 2
        assert np.isfinite(row["loss"]) and row["grad_norm"] > 0
        assert "spm_score/t0000" in row
    adapter = read_lora(run / "lora.safetensors", load_pipeline(tiny_sdxl).params["unet"])
    # As the published 560, but for the depth of the transformers: (2 down + 3 up) blocks, 1 and 2 layers, and the
    # middle's 2; 2 attentions of 4 projections each.
    assert len(adapter.modules()) == 8 * (5 * 1 + 5 * 2 + 2)
    assert all(b.any() for _, b in adapter.modules().values())


def test_stopped_and_resumed_equals_uninterrupted(run, settings, tmp_path):
    """Bit for bit: the state is whole after the first batch."""
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("2", "*.html", "summary.json", "*.safetensors"))
    training.train(settings, out, Resume(required=True))
    one, other = read_file(out / "lora.safetensors"), read_file(run / "lora.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_another_autoencoder_is_another_run(run, settings):
    with pytest.raises(UserError, match="vae was '', now 'acme/vae'"):
        training.train(dataclasses.replace(settings, vae="acme/vae"), run, Resume(required=True))
