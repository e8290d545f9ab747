"""``python -m spo_jax.sample`` and ``export``: other programs draw our pictures from what they write."""

import numpy as np
import pytest
from PIL import Image

from spo_jax import exporting, sampling
from spo_jax.core.errors import UserError
from spo_jax.exporting import export
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.models import open_pipeline
from spo_jax.sampling import sample
from spo_jax.toy import ASSETS
from spo_jax.models.lora import read_lora

FOLDER = ASSETS / "pipeline"
PROMPTS = ["a red star", "a blue moon"]
SETTINGS = dict(steps=10, guidance=5.0)
CLOSE = 2.5 / 255  # 2, and the rounding of a PNG


def pixels(files):
    return np.stack([np.asarray(Image.open(path)) for path in files]) / 255


@pytest.fixture(scope="module")
def latents(embedded):
    return initial_latents(3, len(PROMPTS), embedded.pipeline.latent_shape)


@pytest.fixture(scope="module")
def draw(tmp_path_factory, latents):
    """Our pictures in [0, 1] from the prompts and latents above, by files as the command takes them."""
    folder = tmp_path_factory.mktemp("sample")
    np.save(folder / "latents.npy", latents.transpose(0, 3, 1, 2))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))

    def pictures(model="embedded", lora="", **changes):
        inputs = dict(prompts=str(folder / "prompts.txt"), init_latents=str(folder / "latents.npy"), batch=2)
        given = dict(model=str(model), lora=str(lora), out=folder / "out", overwrite=True)
        return pixels(sample(**given, **SETTINGS, **inputs, **changes))

    return pictures


@pytest.fixture(scope="module")
def base(draw):
    return draw()


@pytest.fixture(scope="module")
def adapted(draw, run_folder):
    return draw(lora=run_folder / "lora.safetensors")


def test_training_can_be_seen(base, adapted):
    """Else the tests below would compare base pictures."""
    assert np.abs(base - adapted).max() > 10 / 255


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_an_exported_lora_gives_our_pictures_in_diffusers(
    run_folder, adapted, draw, latents, diffusers_pictures, tmp_path, form
):
    export(run_folder, form, tmp_path / "lora.safetensors")
    theirs = diffusers_pictures(FOLDER, PROMPTS, latents, lora=tmp_path / "lora.safetensors", **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=CLOSE)
    np.testing.assert_array_equal(draw(lora=tmp_path / "lora.safetensors"), adapted)


def test_a_run_s_own_lora_gives_our_pictures_in_diffusers(run_folder, adapted, latents, diffusers_pictures):
    theirs = diffusers_pictures(FOLDER, PROMPTS, latents, lora=run_folder / "lora.safetensors", **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=CLOSE)


def test_a_merged_pipeline_gives_the_same_pictures(run_folder, adapted, draw, latents, diffusers_pictures, tmp_path):
    export(run_folder, "merged", tmp_path / "merged")
    np.testing.assert_allclose(draw(model=tmp_path / "merged"), adapted, atol=CLOSE)
    theirs = diffusers_pictures(tmp_path / "merged", PROMPTS, latents, **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=CLOSE)
    with pytest.raises(UserError, match="merged exists already"):
        export(run_folder, "merged", tmp_path / "merged")
    (tmp_path / "merged" / "unet" / "config.json").unlink()
    export(run_folder, "merged", tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged" / "unet" / "config.json").is_file()


def modules(path):
    return {name: b for name, (_, b) in read_lora(path).modules().items()}


def test_a_checkpoint_or_a_file_may_be_exported(run_folder, embedded, tmp_path):
    export(run_folder / "checkpoints" / "2", "diffusers", tmp_path / "two.safetensors")
    export(run_folder / "checkpoints" / "3", "diffusers", tmp_path / "three.safetensors")
    export(run_folder / "lora.safetensors", "kohya", tmp_path / "kohya.safetensors", model="embedded")
    last, two = modules(run_folder / "lora.safetensors"), modules(tmp_path / "two.safetensors")
    three = modules(tmp_path / "three.safetensors")
    kohya = read_lora(tmp_path / "kohya.safetensors", embedded.pipeline.params["unet"]).modules()
    for name, b in last.items():
        np.testing.assert_array_equal(three[name], b)
        np.testing.assert_array_equal(kohya[name][1], b)
        assert not (two[name] == b).all()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, ("embedded", "v1")),
        ({"revision": "v2"}, ("embedded", "v2")),
        ({"model": str(FOLDER)}, (str(FOLDER), None)),
        ({"model": str(FOLDER), "revision": "v2"}, (str(FOLDER), "v2")),
    ],
    ids=["the run's", "another revision", "another model", "both"],
)
def test_a_run_s_revision_is_of_the_run_s_model(run_folder, tmp_path, monkeypatch, given, asked):
    saved, calls = exporting.Checkpointer.read_meta, []

    def read_meta(self, step):
        meta = saved(self, step)
        return meta | {"settings": meta["settings"] | {"revision": "v1"}}

    def load(model, revision, base):
        calls.append((model, revision))
        return open_pipeline(model)

    monkeypatch.setattr(exporting.Checkpointer, "read_meta", read_meta)
    monkeypatch.setattr(exporting, "open_pipeline", load)
    export(run_folder, "diffusers", tmp_path / "lora.safetensors", **given)
    assert calls == [asked]


def test_the_commands(run_folder, adapted, command, tmp_path):
    """As a user gives them: export, then pictures with the settings written into them."""
    (tmp_path / "kohya.safetensors").write_text("older")
    process = command(
        "export", f"--run={run_folder}", "--format=kohya", f"--out={tmp_path}/kohya.safetensors", "--overwrite"
    )
    assert process.returncode == 0 and f"wrote {tmp_path}/kohya.safetensors" in process.stdout, process.stderr[-4000:]
    process = command(
        "sample", "--prompt=ein grüner Mond", f"--lora={tmp_path}/kohya.safetensors", "--lora-scale=0.5", "--count=2",
        "--seed=7", "--steps=2", "--guidance=3", "--batch=2", f"--out={tmp_path}/pictures",
    )  # fmt: skip
    assert process.returncode == 0 and "wrote 2 pictures" in process.stdout, process.stderr[-4000:]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0000.png", "0001.png"]
    picture = Image.open(tmp_path / "pictures" / "0001.png")
    assert picture.size == (32, 32) and picture.mode == "RGB"
    expected = dict(prompt="ein grüner Mond", index="1", model="embedded", lora=f"{tmp_path}/kohya.safetensors")
    expected |= dict(lora_scale="0.5", solver="ddim", karras="False", steps="2", guidance="3.0", seed="7")
    assert picture.text == expected | dict(height="32", width="32")


def test_solver_and_size_of_pictures(tmp_path):
    how = dict(solver="dpm++", karras=True, steps=2, height=24, width=40)
    [path] = sample(model="embedded", prompt="a red star", out=tmp_path, **how)
    picture = Image.open(path)
    assert picture.size == (40, 24)
    assert {name: picture.text[name] for name in how} == {name: str(value) for name, value in how.items()}


def test_size_conditions_of_pictures(tiny_sdxl, tmp_path):
    """What is not given is the pictures' size, uncropped."""
    how = dict(model=str(tiny_sdxl), prompt="a red star", steps=1, height=32, width=64)
    [path] = sample(out=tmp_path, original_size="16x24", **how)
    told = [Image.open(path).text[name] for name in ("original_size", "crop", "target_size")]
    assert told == ["16x24", "0x0", "32x64"]


def test_the_strength_of_a_lora(run_folder, draw, base, adapted):
    half = draw(lora=run_folder / "lora.safetensors", lora_scale=0.5)
    assert np.abs(half - base).max() > 2 / 255 and np.abs(half - adapted).max() > 2 / 255


def test_seeds_and_counts(tmp_path):
    """Pictures come prompt by prompt; each picture's noise is its index's."""
    (tmp_path / "prompts.json").write_text('["a red star", "a blue moon"]')
    prompts = str(tmp_path / "prompts.json")
    draw = lambda out, **how: sample(model="embedded", out=tmp_path / out, steps=2, batch=2, **how)  # noqa: E731
    files = draw("a", prompts=prompts, count=2)
    assert [Image.open(path).text["prompt"] for path in files] == ["a red star"] * 2 + ["a blue moon"] * 2
    first, second, *_ = pixels(files)
    other = pixels(draw("b", prompt="a red star", seed=1))[0]
    assert (first != second).any() and (first != other).any() and (second != other).any()


def test_numbers_that_are_not_finite_are_no_pictures(tmp_path):
    """They would be written as black ones."""
    with pytest.raises(UserError, match=r"--guidance=1e\+38 are not finite numbers: check the guidance, the LoRA"):
        sample(model="embedded", prompt="a red star", out=tmp_path, steps=2, guidance=1e38)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 2), (3, 2)])
def test_a_batch_is_no_larger_than_what_is_wanted(tmp_path, monkeypatch, count, batch):
    class Recorder(Sampler):
        def draw(self, condition, init_latents, lora=None):
            assert self.batch == batch
            return np.zeros((len(init_latents), 4, 4, 3), np.float32)

    monkeypatch.setattr(sampling, "Sampler", Recorder)
    assert len(sample(model="embedded", prompt="a red star", out=tmp_path, count=count, batch=2, steps=2)) == count
