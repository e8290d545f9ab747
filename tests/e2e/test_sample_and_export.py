"""``python -m spo_jax.sample`` and ``export``: other programs draw our images from what the commands write."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.export import export
from spo_jax.models import drawing, open_pipeline
from spo_jax.models.lora import read_lora
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.sample import sample
from spo_jax.work.export import source as export_module

PROMPTS = ["a red star", "a blue moon"]
SETTINGS = dict(steps=4, guidance=5.0)
CLOSE = 2.5 / 255  # 2, and the rounding of a PNG


def pixels(files):
    return np.stack([np.asarray(Image.open(path)) for path in files]) / 255


@pytest.fixture(scope="module")
def pipeline(micro):
    return open_pipeline(micro.sd)


@pytest.fixture(scope="module")
def latents(pipeline):
    return initial_latents(3, len(PROMPTS), pipeline.latent_shape)


@pytest.fixture(scope="module")
def draw(micro, tmp_path_factory, latents):
    """Draws our images in [0, 1] from the prompts and latents above, from files as the command takes them."""
    folder = tmp_path_factory.mktemp("sample")
    np.save(folder / "latents.npy", latents.transpose(0, 3, 1, 2))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))

    def images(model=micro.sd, lora="", **changes):
        inputs = dict(prompts=str(folder / "prompts.txt"), init_latents=str(folder / "latents.npy"), batch=2)
        given = dict(model=str(model), lora=str(lora), out=folder / "out", overwrite=True)
        return pixels(sample(**given, **SETTINGS, **inputs, **changes))

    return images


@pytest.fixture(scope="module")
def base(draw):
    return draw()


@pytest.fixture(scope="module")
def adapted(draw, micro_run):
    return draw(lora=micro_run / "lora.safetensors")


def test_training_is_visible(base, adapted):
    """Otherwise the tests below would compare images of the base model."""
    assert np.abs(base - adapted).max() > 10 / 255


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_draws_our_images_with_an_exported_lora(
    micro, micro_run, adapted, draw, latents, diffusers_images, tmp_path, form
):
    export(micro_run, form, tmp_path / "lora.safetensors")
    theirs = diffusers_images(micro.sd, PROMPTS, latents, lora=tmp_path / "lora.safetensors", **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=CLOSE)
    np.testing.assert_array_equal(draw(lora=tmp_path / "lora.safetensors"), adapted)


def test_diffusers_draws_our_images_with_the_lora_of_a_run(micro, micro_run, adapted, latents, diffusers_images):
    theirs = diffusers_images(micro.sd, PROMPTS, latents, lora=micro_run / "lora.safetensors", **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=CLOSE)


def test_a_merged_pipeline_draws_the_same_images(micro_run, adapted, draw, latents, diffusers_images, tmp_path):
    export(micro_run, "merged", tmp_path / "merged")
    np.testing.assert_allclose(draw(model=tmp_path / "merged"), adapted, atol=CLOSE)
    theirs = diffusers_images(tmp_path / "merged", PROMPTS, latents, **SETTINGS)
    np.testing.assert_allclose(adapted, theirs, atol=CLOSE)
    with pytest.raises(UserError, match="merged exists already"):
        export(micro_run, "merged", tmp_path / "merged")
    (tmp_path / "merged" / "unet" / "config.json").unlink()
    export(micro_run, "merged", tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged" / "unet" / "config.json").is_file()


def modules(path):
    return {name: b for name, (_, b) in read_lora(path).modules().items()}


def test_a_checkpoint_or_a_file_may_be_exported(micro, micro_run, pipeline, tmp_path):
    export(micro_run / "checkpoints" / "2", "diffusers", tmp_path / "two.safetensors")
    export(micro_run / "checkpoints" / "3", "diffusers", tmp_path / "three.safetensors")
    export(micro_run / "lora.safetensors", "kohya", tmp_path / "kohya.safetensors", model=str(micro.sd))
    last = modules(micro_run / "lora.safetensors")
    two = modules(tmp_path / "two.safetensors")
    three = modules(tmp_path / "three.safetensors")
    kohya = read_lora(tmp_path / "kohya.safetensors", pipeline.params["unet"]).modules()
    for name, b in last.items():
        np.testing.assert_array_equal(three[name], b)
        np.testing.assert_array_equal(kohya[name][1], b)
        assert not (two[name] == b).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("RUN'S", "v1")),
        ({"revision": "v2"}, ("RUN'S", "v2")),
        ({"model": "acme/model"}, ("acme/model", None)),
        ({"model": "acme/model", "revision": "v2"}, ("acme/model", "v2")),
    ],
    ids=["the run's", "another revision", "another model", "both"],
)
def test_the_revision_of_a_run_belongs_to_the_model_of_the_run(
    micro, micro_run, tmp_path, monkeypatch, given, expected
):
    read = export_module.CheckpointReader.read_meta
    calls = []

    def read_meta(self, step):
        meta = read(self, step)
        return meta | {"settings": meta["settings"] | {"revision": "v1"}}

    def open_micro(model, revision, base):
        calls.append((model.replace(str(micro.sd), "RUN'S"), revision))
        return open_pipeline(micro.sd)

    monkeypatch.setattr(export_module.CheckpointReader, "read_meta", read_meta)
    monkeypatch.setattr(export_module, "open_pipeline", open_micro)
    export(micro_run, "merged", tmp_path / "merged", **given)
    assert calls == [expected]


@pytest.mark.parametrize("form", ["diffusers", "merged"])
def test_a_checkpoint_that_diverged_is_not_exported(micro_run, tmp_path, monkeypatch, form):
    read = export_module.CheckpointReader.read_item

    def diverged(self, step, name):
        return jax.tree.map(lambda leaf: leaf * np.nan, read(self, step, name))

    monkeypatch.setattr(export_module.CheckpointReader, "read_item", diverged)
    with pytest.raises(UserError, match=f"--run={micro_run}: the LoRA of .*to_k holds values that are not finite, bec"):
        export(micro_run, form, tmp_path / ("out" if form == "merged" else "out.safetensors"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def orphan(micro, micro_run, tmp_path):
    """A copy of the run in which the settings name a base model that is not there, as after its deletion."""
    missing = micro.sd.with_name("gone-sd")
    shutil.copytree(micro_run, tmp_path / "orphan")
    for file in (tmp_path / "orphan").glob("checkpoints/*/meta/metadata"):
        # The list of a checkpoint's files holds their sizes, so the new path is as long as the old one.
        file.write_text(file.read_text().replace(str(micro.sd), str(missing)))
        assert str(missing) in file.read_text() and len(str(missing)) == len(str(micro.sd))
    return tmp_path / "orphan"


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_is_exported_without_its_base_model(orphan, micro_run, command, pipeline, tmp_path, form):
    out = tmp_path / "lora.safetensors"
    process = command("export", f"--run={orphan}", f"--format={form}", f"--out={out}")
    assert process.returncode == 0, process.stderr[-4000:]
    found = read_lora(out, pipeline.params["unet"]).modules()
    expected = read_lora(micro_run / "lora.safetensors").modules()
    assert found.keys() == expected.keys()
    for name, halves in expected.items():
        for ours, theirs in zip(found[name], halves, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_model_is_not_exported_without_its_base_model(orphan, command, tmp_path):
    process = command("export", f"--run={orphan}", "--format=merged", f"--out={tmp_path}/merged")
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: no such file or folder: ")
    assert "gone-sd" in process.stderr and not (tmp_path / "merged").exists()


def test_the_commands(micro, micro_run, command, tmp_path):
    """As a user runs them: export, then images with the settings written into them."""
    (tmp_path / "kohya.safetensors").write_text("older")
    process = command(
        "export", f"--run={micro_run}", "--format=kohya", f"--out={tmp_path}/kohya.safetensors", "--overwrite"
    )
    assert process.returncode == 0 and f"wrote {tmp_path}/kohya.safetensors" in process.stdout, process.stderr[-4000:]
    process = command(
        "sample", f"--model={micro.sd}", "--prompt=ein grüner Mond", f"--lora={tmp_path}/kohya.safetensors",
        "--lora-scale=0.5", "--count=2", "--seed=7", "--steps=2", "--guidance=3", "--batch=2",
        f"--out={tmp_path}/images",
    )  # fmt: skip
    assert process.returncode == 0 and "wrote 2 images" in process.stdout, process.stderr[-4000:]
    assert "wrote 2 images and grid.png to" in process.stdout and "2/2" in process.stderr
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["0000.png", "0001.png", "grid.png"]
    sheet = Image.open(tmp_path / "images" / "grid.png")
    assert sheet.text == {name: "ein grüner Mond" for name in ("0000.png", "0001.png")} and sheet.size[0] > 2 * 100
    image = Image.open(tmp_path / "images" / "0001.png")
    assert image.size == (16, 16) and image.mode == "RGB"
    expected = dict(prompt="ein grüner Mond", index="1", model=str(micro.sd), lora=f"{tmp_path}/kohya.safetensors")
    expected |= dict(lora_scale="0.5", solver="ddim", karras="False", steps="2", guidance="3.0", seed="7")
    assert image.text == expected | dict(height="16", width="16")


def test_solver_and_size_of_images(micro, tmp_path):
    how = dict(solver="dpm++", karras=True, steps=2, height=24, width=40)
    [path] = sample(model=str(micro.sd), prompt="a red star", out=tmp_path, **how)
    image = Image.open(path)
    assert image.size == (40, 24)
    assert {name: image.text[name] for name in how} == {name: str(value) for name, value in how.items()}


def test_the_strength_of_a_lora(micro_run, draw, base, adapted):
    half = draw(lora=micro_run / "lora.safetensors", lora_scale=0.5)
    assert np.abs(half - base).max() > 2 / 255 and np.abs(half - adapted).max() > 2 / 255


def test_seeds_and_counts(micro, tmp_path):
    """Images come prompt by prompt, and each image's noise is that of its index."""
    (tmp_path / "prompts.json").write_text('["a red star", "a blue moon"]')

    def draw(out, **how):
        return sample(model=str(micro.sd), out=tmp_path / out, steps=2, batch=2, **how)

    files = draw("a", prompts=str(tmp_path / "prompts.json"), count=2)
    assert [Image.open(path).text["prompt"] for path in files] == ["a red star"] * 2 + ["a blue moon"] * 2
    first, second, *_ = pixels(files)
    other = pixels(draw("b", prompt="a red star", count=2, seed=1))[0]
    assert (first != second).any() and (first != other).any() and (second != other).any()


@pytest.fixture
def drawn(monkeypatch):
    """Replaces what samplers draw by a function of (sampler, number of the batch, its rows)."""

    def replace(function):
        class Fake(Sampler):
            def _draw_rows(self, condition, latents, lora, guidance):
                self.number = getattr(self, "number", -1) + 1
                return function(self, self.number, len(latents))

        monkeypatch.setattr(drawing, "Sampler", Fake)

    return replace


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_images_that_are_not_finite_are_named_at_the_end(micro, tmp_path, drawn, capsys):
    """They would become black images; all others are written."""

    def one_bad(_, number, rows):
        images = np.zeros((rows, 4, 4, 3), np.float32)
        images[1] = np.nan if number == 0 else 0
        return images

    drawn(one_bad)
    message = (
        r"^1 of 5 images .*--guidance=5.0 .*not finite and were not written: index 1 \('a red star'\); check the g"
    )
    with pytest.raises(UserError, match=message):
        sample(model=str(micro.sd), prompt="a red star", out=tmp_path, batch=2, count=5)
    assert names(tmp_path) == ["0000.png", "0002.png", "0003.png", "0004.png", "grid.png"]
    assert Image.open(tmp_path / "0002.png").text["index"] == "2"
    assert f"wrote 4 of 5 images and grid.png to {tmp_path}" in capsys.readouterr().out


def test_nothing_is_written_if_no_image_is_finite(micro, tmp_path):
    """Noise of this size overflows in the network's norms."""
    noise = tmp_path / "noise.npy"
    np.save(noise, np.full((1, 4, 8, 8), 3e38, np.float32))
    with pytest.raises(UserError, match=r"^1 of 1 image .*--guidance=5.0 .*not finite"):
        sample(model=str(micro.sd), prompt="a red star", out=tmp_path / "out", steps=2, init_latents=str(noise))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (MemoryError, UserError)])
def test_images_that_were_drawn_stay(micro, tmp_path, drawn, capsys, error, raised):
    """Whatever ends the command, and one line says how many there are."""

    def stopped(_, number, rows):
        if number == 2:
            raise error
        return np.zeros((rows, 4, 4, 3), np.float32)

    drawn(stopped)
    with pytest.raises(raised):
        sample(model=str(micro.sd), prompt="a red star", out=tmp_path, batch=3, count=8)
    assert names(tmp_path) == [f"000{index}.png" for index in range(6)] + ["grid.png"]
    assert f"wrote 6 of 8 images and grid.png to {tmp_path}" in capsys.readouterr().out


def test_another_prompt_needs_no_other_folder(micro, tmp_path, drawn):
    drawn(lambda _, number, rows: np.zeros((rows, 4, 4, 3), np.float32))
    how = dict(model=str(micro.sd), out=tmp_path)
    first = sample(prompt="a red star", count=2, **how)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    second = sample(prompt="a blue moon", count=2, **how)
    assert [path.name for path in first + second] == ["0000.png", "0001.png", "0002.png", "0003.png"]
    assert before == {path: path.read_bytes() for path in before} and "grid-0002.png" in names(tmp_path)
    # The noise is that of the index, whatever the file is called.
    assert [Image.open(path).text["index"] for path in second] == ["0", "1"]
    again = sample(prompt="a green square", overwrite=True, **how)
    assert again == first[:1] and Image.open(first[0]).text["prompt"] == "a green square"


def test_prompts_that_are_cut_and_words_that_the_toy_does_not_know_are_named(tmp_path, drawn, caplog):
    drawn(lambda _, number, rows: np.zeros((rows, 4, 4, 3), np.float32))
    with caplog.at_level("WARNING"):
        sample(model="toy", prompt="a red star", out=tmp_path / "a", count=3)
    assert not caplog.text
    with caplog.at_level("WARNING"):
        sample(model="toy", prompt="a red star " * 5 + "on Mars", out=tmp_path / "b", count=3)
    assert len(caplog.messages) == 2  # not once per image
    assert caplog.messages[0].startswith("the toy knows shapes and colours only, as in 'a red star'")
    assert caplog.messages[0].endswith("it does not know: on, mars")
    assert caplog.messages[1].startswith("prompt 'a red star a red star ")
    assert caplog.messages[1].endswith("is longer than 16 tokens; cut off: 'star on Mars'")


@pytest.mark.parametrize("place", ["run", "file"])
def test_the_lora_of_a_run_is_found_in_its_folder(micro, micro_run, tmp_path, drawn, place):
    drawn(lambda _, number, rows: np.zeros((rows, 4, 4, 3), np.float32))
    lora = micro_run if place == "run" else micro_run / "lora.safetensors"
    [path] = sample(model=str(micro.sd), prompt="a red star", out=tmp_path, lora=str(lora))
    assert Image.open(path).text["lora"] == str(lora)


def test_what_is_no_lora_is_named(micro, tmp_path):
    for lora, message in (
        (micro.sd, "is a whole model .a pipeline's folder., not a LoRA: name it with --model"),
        (micro.sd / "unet", "holds the weights of a whole UNet, not a LoRA: name its pipeline's folder with --model"),
    ):
        with pytest.raises(UserError, match=message):
            sample(model=str(micro.sd), prompt="a red star", out=tmp_path / "out", lora=str(lora))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 2), (3, 2)])
def test_a_batch_is_not_larger_than_the_number_of_images(micro, tmp_path, drawn, count, batch):
    def blank(sampler, number, rows):
        assert sampler.batch == rows == batch
        return np.zeros((rows, 4, 4, 3), np.float32)

    drawn(blank)
    how = dict(model=str(micro.sd), prompt="a red star", out=tmp_path, batch=2, steps=2)
    assert len(sample(**how, count=count)) == count
