"""SDXL from prompts to a LoRA, to pictures and to files of other programs, by the commands.

Merged weights agree with base and LoRA to 1e-6: one float32 sum; and pictures to 2.5/255: 2, and the rounding of a PNG.
"""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from spo_jax import training
from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.models import open_pipeline
from spo_jax.nn.lora import merge
from spo_jax.run.folder import Resume
from spo_jax.run.metrics import read_metrics
from spo_jax.models.lora import read_lora
from spo_jax.weights.store import read_file

FORMS = {
    "diffusers": "lora.safetensors",
    "kohya": "kohya.safetensors",
    "merged": "merged",
    "single-file": "file.safetensors",
}


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
def run_command(command):
    """Gives a command that has to succeed."""

    def run(name, *arguments):
        process = command(name, *arguments)
        assert process.returncode == 0, process.stderr[-4000:]
        assert "Traceback" not in process.stderr and "Warning" not in process.stderr
        return process

    return run


@pytest.fixture(scope="module")
def config(settings, write_config):
    return write_config(settings)


@pytest.fixture(scope="module")
def run(run_command, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdxl") / "run"
    run_command("train", f"--config={config}", f"--out={out}")
    return out


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return open_pipeline(tiny_sdxl)


@pytest.fixture(scope="module")
def adapter(run, base):
    return read_lora(run / "lora.safetensors", base.params["unet"])


@pytest.fixture(scope="module")
def exported(run_command, run, tmp_path_factory):
    """What ``export`` makes of the run, by format."""
    out = tmp_path_factory.mktemp("exported")
    with ThreadPoolExecutor(2) as two:  # most of a command is starting
        calls = [
            two.submit(run_command, "export", f"--run={run}", f"--format={f}", f"--out={out / n}")
            for f, n in FORMS.items()
        ]
        for call, name in zip(calls, FORMS.values(), strict=True):
            assert f"wrote {out / name}" in call.result().stdout
    return {form: out / name for form, name in FORMS.items()}


def test_a_run_leaves_an_adapter_of_the_model(run, adapter):
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:  # two prompts, one pool of two each, whose branches are four steps long
        assert row["valid_pairs"] == 8 and row["train_batches"] == 2
        assert np.isfinite(row["loss"]) and row["grad_norm"] > 0
        assert "spm_score/t0000" in row
    # As the published 560, but for the depth of the transformers: (2 down + 3 up) blocks, 1 and 2 layers, and the
    # middle's 2; 2 attentions of 4 projections each.
    assert len(adapter.modules()) == 8 * (5 * 1 + 5 * 2 + 2)
    assert all(b.any() for _, b in adapter.modules().values())


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(run, run_command, config, tmp_path):
    """Bit for bit: the state is whole after the first batch."""
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("2", "*.html", "summary.json", "*.safetensors"))
    assert "resuming after batch 1" in run_command("train", f"--config={config}", f"--out={out}", "--resume").stderr
    one, other = read_file(out / "lora.safetensors"), read_file(run / "lora.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_another_autoencoder_is_another_run(run, settings):
    with pytest.raises(UserError, match="vae was '', now 'acme/vae'"):
        training.train(dataclasses.replace(settings, vae="acme/vae"), run, Resume(required=True))


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_exported_loras_are_the_run_s(exported, adapter, base, form):
    found = read_lora(exported[form], base.params["unet"])
    assert (found.alpha, found.rank) == (adapter.alpha, adapter.rank)
    assert found.modules().keys() == adapter.modules().keys()
    for name, halves in adapter.modules().items():
        for ours, theirs in zip(found.modules()[name], halves, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", ["merged", "single-file"])
def test_exported_models_are_base_and_lora(exported, adapter, base, tiny_sdxl, form):
    found = open_pipeline(exported[form], base=tiny_sdxl if form == "single-file" else "").params
    expected = merge(base.params["unet"], adapter.tree, adapter.alpha / adapter.rank)
    before, after = flatten(base.params["unet"]), flatten(found["unet"])
    changed = {path for path, weights in flatten(expected).items() if (weights != before[path]).any()}
    assert len(changed) == len(adapter.modules())
    for path, weights in flatten(expected).items():
        np.testing.assert_allclose(after[path], weights, rtol=0, atol=1e-6 if path in changed else 0)
    for name in ("vae", "text_encoder", "text_encoder_2"):
        for path, weights in flatten(base.params[name]).items():
            np.testing.assert_array_equal(flatten(found[name])[path], weights)


def test_pictures_of_other_sizes(exported, run_command, tiny_sdxl, tmp_path):
    """Not square, with sizes that SDXL is told, by another solver; the LoRA's are the merged file's."""
    shape = ["--prompt=a red star", "--steps=2", "--height=32", "--width=64", "--solver=dpm++"]
    sizes = ["--original-size=16x24", "--crop=4x8", "--target-size=64x32"]
    lora = [f"--model={tiny_sdxl}", f"--lora={exported['kohya']}"]
    calls = {
        "lora": lora + sizes,
        "merged": [f"--model={exported['single-file']}", f"--base={tiny_sdxl}", *sizes],
        "uncropped": lora,
    }
    with ThreadPoolExecutor(2) as two:
        made = [two.submit(run_command, "sample", *shape, *more, f"--out={tmp_path / n}") for n, more in calls.items()]
        assert all("wrote 1 pictures" in call.result().stdout for call in made)
    pictures = {name: Image.open(tmp_path / name / "0000.png") for name in calls}
    told = ("height", "width", "solver", "original_size", "crop", "target_size")
    assert [pictures["lora"].text[name] for name in told] == ["32", "64", "dpm++", "16x24", "4x8", "64x32"]
    assert [pictures["uncropped"].text[name] for name in told[3:]] == ["32x64", "0x0", "32x64"]
    values = {name: np.asarray(picture) / 255 for name, picture in pictures.items()}
    assert values["lora"].shape == (32, 64, 3) and values["lora"].std() > 0.05
    np.testing.assert_allclose(values["lora"], values["merged"], atol=2.5 / 255)
    assert (values["lora"] != values["uncropped"]).any()
