"""What a file or folder is that was named in place of a model."""

import json

import numpy as np
import pytest

from spo_jax import toy
from spo_jax.weights import store
from spo_jax.weights.kinds import describe

PIPELINE = toy.ASSETS / "pipeline"


@pytest.mark.parametrize(
    ("path", "what"),
    [
        (PIPELINE, "a diffusion pipeline"),
        (PIPELINE / "unet", f"UNet2DConditionModel of diffusers, a part of the pipeline {PIPELINE}"),
        (PIPELINE / "tokenizer", "a tokenizer"),
        (PIPELINE / "unet" / "diffusion_pytorch_model.safetensors", "a network of a diffusers folder"),
        (PIPELINE / "vae" / "diffusion_pytorch_model.safetensors", "an autoencoder"),
        (PIPELINE / "model_index.json", "a file that ends in .json"),
        (toy.ASSETS / "spm", "a CLIP or preference model"),
        (toy.ASSETS / "spm" / "model.safetensors", "a step-aware preference model"),
        (toy.ASSETS / "lrm_people", "a latent reward model"),
        (toy.ASSETS, "a folder without a model"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_the_package_ships(path, what):
    assert describe(path) == what


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("lora_unet_down_blocks_0_attn1_to_q.lora_down.weight", "a LoRA"),
        ("model.diffusion_model.out.2.weight", "a checkpoint of a diffusion model"),
        ("model.text_model.final_layer_norm.weight", "a CLIP"),
        ("visual.transformer.resblocks.0.ln_1.weight", "a CLIP of open_clip, such as HPSv2"),
        ("blip.visual_encoder.cls_token", "an ImageReward"),
        ("layers.0.weight", "the head of LAION's aesthetic predictor"),
        ("something.else", "a safetensors file of unknown content"),
    ],
)
def test_weights_are_known_by_their_names(tmp_path, key, what):
    store.write_state(tmp_path / "file.safetensors", {key: np.ones((2, 2), np.float32)})
    assert describe(tmp_path / "file.safetensors") == what


def test_runs_and_their_results(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "5").mkdir(parents=True)
    assert describe(run) == "the folder of a run"
    assert describe(run / "checkpoints" / "5") == f"a checkpoint of the run {run}"
    (run / "spm").mkdir()
    assert describe(run) == f"the folder of a run, whose preference model is {run}/spm"
    assert describe(run / "spm") == "an empty folder"
    (run / "spm").rmdir()
    (run / "lora.safetensors").write_bytes(b"")
    assert describe(run) == f"the folder of a run, whose LoRA is {run}/lora.safetensors"
    assert describe(run / "lora.safetensors") == "a damaged safetensors file"


def test_folders_of_other_libraries(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert describe(tmp_path) == "a model of transformers (bert)"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert describe(tmp_path) == f"the folder of the LoRA {tmp_path}/adapter_model.safetensors"
