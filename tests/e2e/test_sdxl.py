"""SDXL from prompts to a LoRA, to images and to files of other programs, by the commands.

Merged weights agree with base and LoRA to 1e-6, the rounding of one float32 sum. Images agree to 2.5/255: to 2, and the
rounding of a PNG.
"""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.methods.common.settings import JudgeSettings
from spo_jax.models import drawing, open_pipeline
from spo_jax.models.lora import read_lora
from spo_jax.models.sampler import Sampler
from spo_jax.nn.lora import merge
from spo_jax.run.folder import Resume
from spo_jax.run.metrics import read_metrics
from spo_jax.sample import sample
from spo_jax.train import train
from spo_jax.weights.store import read_file

FORMS = {
    "diffusers": "lora.safetensors",
    "kohya": "kohya.safetensors",
    "merged": "merged",
    "single-file": "file.safetensors",
}


@pytest.fixture(scope="module")
def settings(micro_settings, micro):
    """The published shape: pools of two that walk three plain steps, no pool at the last step, accumulated batches."""
    return dataclasses.replace(
        micro_settings,
        model=str(micro.sdxl),
        max_batches=2,
        spm=JudgeSettings(model=str(micro.spm_sdxl)),
        spo=dataclasses.replace(
            micro_settings.spo,
            num_steps=6,
            divert_start_step=2,
            num_inner_step=3,
            branch_at_last_step=False,
            train_batch_size=4,
        ),
        optimizer=dataclasses.replace(micro_settings.optimizer, learning_rate=1e-3, gradient_accumulation_steps=2),
        log=dataclasses.replace(micro_settings.log, eval_every=0, checkpoint_every=1),
    )


@pytest.fixture(scope="module")
def config(settings, write_config):
    return write_config(settings)


@pytest.fixture(scope="module")
def run(succeed, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdxl") / "run"
    succeed("train", f"--config={config}", f"--out={out}")
    return out


@pytest.fixture(scope="module")
def base(micro):
    return open_pipeline(micro.sdxl)


@pytest.fixture(scope="module")
def adapter(run, base):
    return read_lora(run / "lora.safetensors", base.params["unet"])


@pytest.fixture(scope="module")
def exported(succeed, run, tmp_path_factory):
    """The files that ``export`` makes of the run, by format."""
    out = tmp_path_factory.mktemp("exported")
    with ThreadPoolExecutor(2) as two:
        calls = [
            two.submit(succeed, "export", f"--run={run}", f"--format={form}", f"--out={out / name}")
            for form, name in FORMS.items()
        ]
        for call, name in zip(calls, FORMS.values(), strict=True):
            assert f"wrote {out / name}" in call.result().stdout
    return {form: out / name for form, name in FORMS.items()}


def test_a_run_leaves_an_adapter_of_the_model(run, adapter):
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:  # two prompts, one pool of two each, whose branches are four steps long
        assert row["valid_pairs"] == 8 and row["train_batches"] == 2
        assert np.isfinite(row["loss"]) and row["grad_norm"] > 0
        assert "judge_score/t0000" in row
    # One attention on the way down, two on the way up and one in the middle, each two transformer blocks deep; every
    # block has 2 attentions of 4 projections.
    assert len(adapter.modules()) == 8 * 2 * (1 + 2 + 1)
    assert all(b.any() for _, b in adapter.modules().values())


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(run, succeed, config, tmp_path):
    """The LoRA is equal bit for bit: the state is complete after the first batch."""
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("2", "*.html", "summary.json", "*.safetensors"))
    assert "resuming after batch 1" in succeed("train", f"--config={config}", f"--out={out}", "--resume").stderr
    found = read_file(out / "lora.safetensors")
    expected = read_file(run / "lora.safetensors")
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_run_is_not_resumed_with_another_autoencoder(run, settings):
    with pytest.raises(UserError, match="vae was '', now 'acme/vae'"):
        train(dataclasses.replace(settings, vae="acme/vae"), run, Resume(required=True))


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_exported_loras_are_those_of_the_run(exported, adapter, base, form):
    found = read_lora(exported[form], base.params["unet"])
    assert (found.alpha, found.rank) == (adapter.alpha, adapter.rank)
    assert found.modules().keys() == adapter.modules().keys()
    for name, halves in adapter.modules().items():
        for ours, theirs in zip(found.modules()[name], halves, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", ["merged", "single-file"])
def test_exported_models_are_base_and_lora(exported, adapter, base, micro, form):
    found = open_pipeline(exported[form], base=micro.sdxl if form == "single-file" else "").params
    expected = merge(base.params["unet"], adapter.tree, adapter.alpha / adapter.rank)
    before = flatten(base.params["unet"])
    after = flatten(found["unet"])
    changed = {path for path, weights in flatten(expected).items() if (weights != before[path]).any()}
    assert len(changed) == len(adapter.modules())
    for path, weights in flatten(expected).items():
        np.testing.assert_allclose(after[path], weights, rtol=0, atol=1e-6 if path in changed else 0)
    for name in ("vae", "text_encoder", "text_encoder_2"):
        for path, weights in flatten(base.params[name]).items():
            np.testing.assert_array_equal(flatten(found[name])[path], weights)


def test_images_of_other_sizes(exported, succeed, micro, tmp_path):
    """Images that are not square, with size conditions and another solver; LoRA and merged file draw the same."""
    flags = ["--prompt=a red star", "--steps=2", "--height=16", "--width=24", "--solver=dpm++"]
    flags += ["--original-size=16x24", "--crop=4x8", "--target-size=24x16"]
    models = {
        "lora": [f"--model={micro.sdxl}", f"--lora={exported['kohya']}"],
        "merged": [f"--model={exported['single-file']}", f"--base={micro.sdxl}"],
    }
    with ThreadPoolExecutor(2) as two:
        calls = [two.submit(succeed, "sample", *flags, *more, f"--out={tmp_path / n}") for n, more in models.items()]
        assert all("wrote 1 image to" in call.result().stdout for call in calls)
    images = {name: Image.open(tmp_path / name / "0000.png") for name in models}
    written = ("height", "width", "solver", "original_size", "crop", "target_size")
    assert [images["lora"].text[name] for name in written] == ["16", "24", "dpm++", "16x24", "4x8", "24x16"]
    values = {name: np.asarray(image) / 255 for name, image in images.items()}
    assert values["lora"].shape == (16, 24, 3) and values["lora"].std() > 0.05
    np.testing.assert_allclose(values["lora"], values["merged"], atol=2.5 / 255)


@pytest.mark.parametrize(
    ("given", "time_ids", "written"),
    [
        ({}, [16, 24, 0, 0, 16, 24], ["16x24", "0x0", "16x24"]),
        ({"original_size": "8x12"}, [8, 12, 0, 0, 16, 24], ["8x12", "0x0", "16x24"]),
    ],
)
def test_size_conditions_default_to_those_of_uncropped_images(micro, tmp_path, monkeypatch, given, time_ids, written):
    class Recorder(Sampler):
        def _draw_rows(self, condition, latents, lora, guidance):
            np.testing.assert_array_equal(condition.time_ids, [time_ids])
            return np.zeros((len(latents), 16, 24, 3), np.float32)

    monkeypatch.setattr(drawing, "Sampler", Recorder)
    how = dict(model=str(micro.sdxl), prompt="a red star", steps=1, height=16, width=24)
    [path] = sample(out=tmp_path, **given, **how)
    assert [Image.open(path).text[name] for name in ("original_size", "crop", "target_size")] == written
