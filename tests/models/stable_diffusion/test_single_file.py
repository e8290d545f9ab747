"""Single files that we write are read by diffusers' own converters, and we read them back exactly.

The converters are an independent source of the names, so that our two directions cannot be wrong together.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file

from spo_jax.models.stable_diffusion import single_file
from spo_jax.models.stable_diffusion.single_file import read_single_file, write_single_file
from spo_jax.weights import store
from tests.weights.checkpoints import KINDS, assert_same, model_of, state_of


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The torch networks of a kind, their states, and the file that we write of them."""
    parts = model_of(request.param)
    components = {name: state_of(part) for name, part in parts.items()}
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    write_single_file(path, request.param, components)
    return SimpleNamespace(kind=request.param, parts=parts, components=components, path=path)


def test_diffusers_converts_a_written_file(model: SimpleNamespace) -> None:
    checkpoint = load_file(model.path)
    unet, vae, text = (model.parts[name] for name in ("unet", "vae", "text_encoder"))
    assert_same(theirs.convert_ldm_unet_checkpoint(checkpoint, unet.config), model.components["unet"])
    assert_same(theirs.convert_ldm_vae_checkpoint(checkpoint, vae.config), model.components["vae"])
    if model.kind == "sd21":
        converted = theirs.convert_open_clip_checkpoint(text, checkpoint)
    else:
        converted = theirs.convert_ldm_clip_checkpoint(checkpoint)
    assert_same(converted, model.components["text_encoder"])
    if model.kind == "sdxl":
        # This is the call in `create_diffusers_clip_model_from_ldm`. It infers the width of q, k and v from the
        # projection, which is as wide as the tower only in the published model, so it gets such a projection here.
        key = "conditioner.embedders.1.model."
        square = checkpoint | {f"{key}text_projection": torch.eye(64)}
        converted = theirs.convert_open_clip_checkpoint(model.parts["text_encoder_2"], square, key)
        expected = model.components["text_encoder_2"]
        assert_same(converted | {"text_projection.weight": expected["text_projection.weight"]}, expected)
        np.testing.assert_array_equal(checkpoint[f"{key}text_projection"].T, expected["text_projection.weight"])


def test_a_written_file_is_read_back(model: SimpleNamespace, tmp_path: Path) -> None:
    read = read_single_file(model.path)
    assert read.kind == model.kind and read.components.keys() == model.components.keys()
    for name, expected in model.components.items():
        assert_same(read.components[name], expected)
    write_single_file(tmp_path / "again.safetensors", read.kind, read.components)
    assert (tmp_path / "again.safetensors").read_bytes() == model.path.read_bytes()


def test_configs_are_the_models(model: SimpleNamespace) -> None:
    read = read_single_file(model.path)
    assert read.configs["scheduler"] == {}
    for name, part in model.parts.items():
        config = part.config if isinstance(part.config, Mapping) else part.config.to_dict()
        ours = {key: tuple(v) if isinstance(v, list) else v for key, v in read.configs[name].items()}
        if name == "unet":
            ours["transformer_layers_per_block"] = config["transformer_layers_per_block"]
            assert read.configs[name]["transformer_layers_per_block"] == [1, 1, 2 if model.kind == "sdxl" else 1]
        assert {key: config[key] for key in ours.keys() - {"_class_name"}} == {
            key: value for key, value in ours.items() if key != "_class_name"
        }
        assert read.shown[name].items() <= read.configs[name].items()


def test_names_are_those_of_the_original_code(model: SimpleNamespace) -> None:
    keys = store.read_file(model.path)
    attention = keys["first_stage_model.encoder.mid.attn_1.q.weight"]
    assert attention.shape == (64, 64, 1, 1)  # It is a convolution there, and a linear layer in diffusers.
    unet = "model.diffusion_model"
    last = 2 if model.kind == "sdxl" else 1
    names = {
        "sd15": ("input_blocks.1.1.proj_in.weight", "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.bias"),
        "sd21": ("input_blocks.1.1.proj_in.weight", "output_blocks.1.1.conv.weight", "output_blocks.3.2.conv.bias"),
        "sdxl": ("input_blocks.4.1.proj_in.weight", "output_blocks.2.2.conv.weight", "label_emb.0.2.bias"),
    }[model.kind]
    for name in (*names, "input_blocks.0.0.weight", "middle_block.1.norm.weight", "out.2.bias"):
        assert f"{unet}.{name}" in keys, name
    assert f"{unet}.middle_block.1.transformer_blocks.{last - 1}.norm1.weight" in keys
    assert f"{unet}.middle_block.1.transformer_blocks.{last}.norm1.weight" not in keys


LEFTOVERS = {
    "model_ema.decay": np.float32(0.999),
    "model_ema.diffusion_modelinput_blocks00weight": np.ones(3, np.float32),
    "betas": np.ones(3, np.float32),
    "alphas_cumprod": np.ones(3, np.float32),
    "alphas_cumprod_prev": np.ones(3, np.float32),
    "sqrt_one_minus_alphas_cumprod": np.ones(3, np.float32),
    "posterior_variance": np.ones(3, np.float32),
    "first_stage_model.loss.logvar": np.ones((), np.float32),
    "denoiser.sigmas": np.ones(3, np.float32),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": np.ones((1, 3), np.int64),
    "conditioner.embedders.1.model.logit_scale": np.ones((), np.float32),
}


def test_leftovers_of_training_are_ignored(model: SimpleNamespace, tmp_path: Path) -> None:
    foreign = {"sd15": "conditioner.", "sd21": ("cond_stage_model.transformer.", "conditioner."), "sdxl": "cond_stage_"}
    extra = {key: array for key, array in LEFTOVERS.items() if not key.startswith(foreign[model.kind])}
    if model.kind == "sd21":  # SD 2.x does not use this block.
        prefix = "cond_stage_model.model"
        extra |= {f"{prefix}.transformer.resblocks.23.ln_1.weight": np.ones(64, np.float32)}
        extra |= {f"{prefix}.text_projection": np.ones((64, 64), np.float32)}
    if model.kind == "sdxl":
        extra |= {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    store.write_state(tmp_path / "x.safetensors", store.read_file(model.path) | extra)
    read = read_single_file(tmp_path / "x.safetensors")
    for name, expected in model.components.items():
        assert_same(read.components[name], expected)
    marked = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert read.configs["scheduler"] == (marked if model.kind == "sdxl" else {})


def test_marks_of_v_prediction_are_written(tmp_path: Path) -> None:
    components = {name: state_of(part) for name, part in model_of("sdxl").items()}
    marked = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    write_single_file(tmp_path / "x.safetensors", "sdxl", components, {"beta_start": 0.1} | marked)
    assert read_single_file(tmp_path / "x.safetensors").configs["scheduler"] == marked
    write_single_file(tmp_path / "x.safetensors", "sdxl", components, {"prediction_type": "epsilon"})
    assert not {"v_pred", "ztsnr"} & store.read_file(tmp_path / "x.safetensors").keys()


def test_checkpoints_of_torch_are_read(tmp_path: Path) -> None:
    """The first models were published as torch's zip files, with fp16 weights under state_dict beside a counter."""
    components = {name: state_of(part) for name, part in model_of("sd15").items()}
    write_single_file(tmp_path / "x.safetensors", "sd15", components)
    state = {key: value.half() for key, value in load_file(tmp_path / "x.safetensors").items()}
    # The names are older than transformers' text_model, and a moving average counts in 32-bit integers.
    state = {key.replace("transformer.text_model.", "transformer."): value for key, value in state.items()}
    state["model_ema.num_updates"] = torch.tensor(3, dtype=torch.int32)
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "x.ckpt")
    read = read_single_file(tmp_path / "x.ckpt")
    for name, expected in components.items():
        assert_same(read.components[name], {key: array.astype(np.float16) for key, array in expected.items()})


def test_arrays_are_not_copied(tmp_path: Path) -> None:
    """A copy of SDXL would take 7 GB, so contiguous arrays are written as they are."""
    speck = np.ones((2, 2), np.float32)
    state = {"down_blocks.0.resnets.0.norm1.weight": speck, "down_blocks.1.resnets.0.norm1.weight": speck}
    converted = single_file._to_ldm("sd15", "unet", state)
    assert all(np.shares_memory(array, speck) for array in converted.values()) and len(converted) == 2
