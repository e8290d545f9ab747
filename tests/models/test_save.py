"""Folders of whole pipelines with an adapter merged into their weights, which appear as a whole or not at all."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.models import open_pipeline
from spo_jax.models import save as saving
from spo_jax.models.save import write_merged
from spo_jax.weights.store import read_state, write_state
from tests.models.helpers import (
    FOLDER,
    IMAGES,
    PROMPTS,
    SCALE,
    assert_same_states,
    merged_states,
    random_adapter,
)


def test_a_merged_folder_is_the_adapted_pipeline(toy, adapter, adapted_images, latents, diffusers_images, tmp_path):
    """diffusers draws the adapted images from it, and only the UNet is changed."""
    out = tmp_path / "merged"
    write_merged(out, toy.pipeline, adapter, SCALE)
    np.testing.assert_allclose(adapted_images, diffusers_images(out, PROMPTS, latents, **IMAGES), atol=2 / 255)
    assert_same_states(merged_states(open_pipeline(out), None), merged_states(toy.pipeline, adapter))
    with pytest.raises(UserError, match="exists already"):
        write_merged(out, toy.pipeline, adapter, 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_a_merged_folder_of_sdxl_is_the_whole_pipeline(sdxl, tiny_sdxl, tmp_path):
    adapter = random_adapter(sdxl.params["unet"])
    out = tmp_path / "merged"
    write_merged(out, sdxl, adapter, SCALE)
    assert_same_states({"unet": read_state(out / "unet", "diffusers")}, {"unet": merged_states(sdxl, adapter)["unet"]})
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "vae"):
        for file in (tiny_sdxl / name).iterdir():
            assert (out / name / file.name).read_bytes() == file.read_bytes(), file
    assert (out / "model_index.json").is_file()


CHECKER = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": True,
}


@pytest.fixture
def hub_base(toy, tmp_path):
    """The toy pipeline as an fp16 pipeline of the hub is downloaded.

    Its weights have the names of the variant, and its index names a safety checker that was not downloaded.
    """
    folder = tmp_path / "base"
    shutil.copytree(FOLDER, folder)
    for weights in folder.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | CHECKER))
    return dataclasses.replace(toy.pipeline, folder=folder)


def test_a_merged_hub_base_loads_in_diffusers(hub_base, adapter, adapted_images, latents, diffusers_images, tmp_path):
    out = tmp_path / "merged"
    write_merged(out, hub_base, adapter, SCALE)
    np.testing.assert_allclose(adapted_images, diffusers_images(out, PROMPTS, latents, **IMAGES), atol=2 / 255)
    assert not list(out.glob("*/*fp16*"))
    index = json.loads((out / "model_index.json").read_text())
    assert {name: index[name] for name in CHECKER} == {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }


def test_a_merged_folder_keeps_the_other_files(hub_base, adapter, tmp_path):
    """It keeps a safety checker, and the names of a variant's shards, which are in their index."""
    for name in ("safety_checker", "feature_extractor"):
        (hub_base.folder / name).mkdir()
        (hub_base.folder / name / "config.json").write_text("{}")
    vae = hub_base.folder / "vae"
    state = read_state(vae, "diffusers")
    (vae / "diffusion_pytorch_model.fp16.safetensors").unlink()
    write_state(vae / "diffusion_pytorch_model.fp16.safetensors", state, max_shard_bytes=200_000)
    out = tmp_path / "merged"
    write_merged(out, hub_base, adapter, SCALE)
    index = json.loads((out / "model_index.json").read_text())
    assert {name: index[name] for name in CHECKER} == CHECKER
    assert (out / "vae" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert len(list((out / "vae").glob("*-of-*.safetensors"))) > 1
    assert_same_states({"vae": read_state(out / "vae", "diffusers")}, {"vae": state})


def test_only_a_pipeline_is_overwritten_and_never_the_base(toy, adapter, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="out exists already: .*--overwrite"):
        write_merged(out, toy.pipeline, adapter, 1.0)
    with pytest.raises(UserError, match="out is not a pipeline's folder"):
        write_merged(out, toy.pipeline, adapter, 1.0, overwrite=True)
    assert (out / "letter.txt").read_text() == "dear"
    (out / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="out is the base model itself"):
        write_merged(out, dataclasses.replace(toy.pipeline, folder=out), adapter, 1.0, overwrite=True)
    write_merged(out, toy.pipeline, adapter, 1.0, overwrite=True)
    assert not (out / "letter.txt").exists() and (out / "unet" / "config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_older_folder_is_kept_if_the_new_one_cannot_be_moved_there(toy, adapter, tmp_path, monkeypatch):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "model_index.json").write_text("{}")
    (out / "letter.txt").write_text("dear")
    real = os.replace
    calls = []

    def full(source, target):
        if target == out and source.name == "copy":
            calls.append(source)
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(saving.os, "replace", full)
    with pytest.raises(UserError, match="cannot write .*merged: No space left"):
        write_merged(out, toy.pipeline, adapter, SCALE, overwrite=True)
    assert calls and (out / "letter.txt").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]

    def broken(source, target):
        if target == out:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(saving.os, "replace", broken)
    with pytest.raises(UserError, match="cannot write .*merged: Input/output error"):
        write_merged(out, toy.pipeline, adapter, SCALE, overwrite=True)
    # Even if the older folder cannot be moved back, it is not deleted.
    assert [path.read_text() for path in tmp_path.glob("*/older/letter.txt")] == ["dear"]


def test_a_pipeline_from_a_single_file_has_no_folder_to_copy(toy, adapter, tmp_path):
    file = tmp_path / "model.safetensors"
    write_state(file, {"a": np.ones(1)})
    pipeline = dataclasses.replace(toy.pipeline, folder=file)
    with pytest.raises(UserError, match="is a single file, not a folder to copy: export with --format=single-file"):
        write_merged(tmp_path / "merged", pipeline, adapter, SCALE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
