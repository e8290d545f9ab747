"""Single-file checkpoints: diffusers' own converters read what we write, and reading gives it back, number by number.

The converters are an independent statement of the names, so our two directions cannot be wrong together.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file

from spo_jax.core.errors import UserError
from spo_jax.models import presets
from spo_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig, per_block
from spo_jax.weights import single_file, store
from spo_jax.weights.single_file import read_single_file, write_single_file

KINDS = ("sd15", "sd21", "sdxl")
_UP, _DOWN, _PLAIN = "CrossAttnUpBlock2D", "CrossAttnDownBlock2D", ("DownBlock2D", "UpBlock2D")
# Widths that the published numbers of groups and heads divide: a file does not tell those.
UNETS = {
    "sd15": dict(
        block_out_channels=(32, 32, 64),
        down_block_types=(_DOWN, _DOWN, _PLAIN[0]),
        up_block_types=(_PLAIN[1], _UP, _UP),
        attention_head_dim=8,
        sample_size=64,
    ),
    "sdxl": dict(
        block_out_channels=(32, 64, 64),
        down_block_types=(_PLAIN[0], _DOWN, _DOWN),
        up_block_types=(_UP, _UP, _PLAIN[1]),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=40 + 6 * 256,
        sample_size=128,
    ),
}
UNETS["sd21"] = UNETS["sd15"] | dict(
    attention_head_dim=(1, 1, 1), use_linear_projection=True, upcast_attention=True, sample_size=96
)


def _text(act: str, projection: int | None = None) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, vocab_size=60, hidden_act=act,
        max_position_embeddings=12, bos_token_id=0, eos_token_id=2, pad_token_id=1, projection_dim=projection or 64,
    )  # fmt: skip
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return cls(config)


def _model(kind: str) -> dict[str, Any]:
    torch.manual_seed(KINDS.index(kind))
    layers = 2 if kind != "sd21" else 1
    vae = dict(
        block_out_channels=(32, 32, 64), layers_per_block=2, scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=8 * UNETS[kind]["sample_size"], force_upcast=kind == "sdxl",
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(cross_attention_dim=24, layers_per_block=layers, **UNETS[kind])
    parts = {"unet": unet, "vae": diffusers.AutoencoderKL(**vae)}
    parts["text_encoder"] = _text("gelu" if kind == "sd21" else "quick_gelu")
    return parts | ({"text_encoder_2": _text("gelu", 40)} if kind == "sdxl" else {})


def _state(module: Any) -> dict[str, np.ndarray]:
    prefixed = isinstance(module, transformers.CLIPTextModel)
    return {
        f"text_model.{name.removeprefix('text_model.')}" if prefixed else name: value.numpy()
        for name, value in module.state_dict().items()
    }


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Torch's networks of a kind, their states, and the file that we write of them."""
    parts = _model(request.param)
    components = {name: _state(part) for name, part in parts.items()}
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    write_single_file(path, request.param, components)
    return SimpleNamespace(kind=request.param, parts=parts, components=components, path=path)


def _assert_same(state: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(state[name]), array, err_msg=name)


def test_diffusers_converts_what_we_wrote(model: SimpleNamespace) -> None:
    checkpoint = load_file(model.path)
    unet, vae, text = (model.parts[name] for name in ("unet", "vae", "text_encoder"))
    _assert_same(theirs.convert_ldm_unet_checkpoint(checkpoint, unet.config), model.components["unet"])
    _assert_same(theirs.convert_ldm_vae_checkpoint(checkpoint, vae.config), model.components["vae"])
    if model.kind == "sd21":
        converted = theirs.convert_open_clip_checkpoint(text, checkpoint)
    else:
        converted = theirs.convert_ldm_clip_checkpoint(checkpoint)
    _assert_same(converted, model.components["text_encoder"])
    if model.kind == "sdxl":
        # As `create_diffusers_clip_model_from_ldm` calls it; it tells the width of q, k and v from the projection,
        # which is as wide as the tower in the published model only, so it gets one that is.
        key = "conditioner.embedders.1.model."
        square = checkpoint | {f"{key}text_projection": torch.eye(64)}
        converted = theirs.convert_open_clip_checkpoint(model.parts["text_encoder_2"], square, key)
        expected = model.components["text_encoder_2"]
        _assert_same(converted | {"text_projection.weight": expected["text_projection.weight"]}, expected)
        np.testing.assert_array_equal(checkpoint[f"{key}text_projection"].T, expected["text_projection.weight"])


def test_reading_gives_back_what_was_written(model: SimpleNamespace, tmp_path: Path) -> None:
    read = read_single_file(model.path)
    assert read.kind == model.kind and read.components.keys() == model.components.keys()
    for name, expected in model.components.items():
        _assert_same(read.components[name], expected)
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


def test_names_that_the_original_code_has(model: SimpleNamespace) -> None:
    keys = store.read_file(model.path)
    attention = keys["first_stage_model.encoder.mid.attn_1.q.weight"]
    assert attention.shape == (64, 64, 1, 1)  # a convolution there, a linear layer in diffusers
    unet, last = "model.diffusion_model", 2 if model.kind == "sdxl" else 1
    names = {
        "sd15": ("input_blocks.1.1.proj_in.weight", "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.bias"),
        "sd21": ("input_blocks.1.1.proj_in.weight", "output_blocks.1.1.conv.weight", "output_blocks.3.2.conv.bias"),
        "sdxl": ("input_blocks.4.1.proj_in.weight", "output_blocks.2.2.conv.weight", "label_emb.0.2.bias"),
    }[model.kind]
    for name in (*names, "input_blocks.0.0.weight", "middle_block.1.norm.weight", "out.2.bias"):
        assert f"{unet}.{name}" in keys, name
    assert f"{unet}.middle_block.1.transformer_blocks.{last - 1}.norm1.weight" in keys
    assert f"{unet}.middle_block.1.transformer_blocks.{last}.norm1.weight" not in keys


def _meta(kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The published networks with one number for all weights, in the types of diffusers and transformers."""
    vae = presets.SDXL_VAE if kind == "sdxl" else presets.SD15_VAE
    texts = {"text_encoder": presets.SD15_TEXT}
    if kind == "sd21":
        texts["text_encoder"] = presets.CLIP_H["text_config"] | {"num_hidden_layers": 23}
    with torch.device("meta"):
        unet = {"sd15": presets.SD15_UNET, "sd21": presets.SD21_UNET, "sdxl": presets.SDXL_UNET}[kind]
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_config(unet),
            "vae": diffusers.AutoencoderKL.from_config(vae),
        }
        for name, config in texts.items():
            parts[name] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
        if kind == "sdxl":
            config = transformers.CLIPTextConfig(**presets.SDXL_TEXT_2)
            parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(config)
    number = np.zeros((), np.int8)
    return {
        name: {
            key if key.startswith("text_projection") or not name.startswith("text") else (
                f"text_model.{key.removeprefix('text_model.')}"
            ): np.broadcast_to(number, tuple(value.shape))
            for key, value in part.state_dict().items()
        }
        for name, part in parts.items()
    }  # fmt: skip


def _normal(config: UNetConfig) -> UNetConfig:
    """With the fields written out that may be one value or one per block."""
    blocks = len(config.block_out_channels)
    fields = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim")
    return dataclasses.replace(
        config,
        upcast_attention=bool(config.upcast_attention),
        **{field: per_block(getattr(config, field), blocks) for field in fields},
    )


@pytest.mark.parametrize(("kind", "inferred"), [("sd15", "v1"), ("sd21", "v2"), ("sdxl", "xl_base")])
def test_published_sizes(kind: str, inferred: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of these sizes is written: the states hold one number, seen from everywhere."""
    components, written = _meta(kind), {}
    monkeypatch.setattr(store, "write_state", lambda path, state: written.update(state))
    write_single_file("x.safetensors", kind, components)
    shapes = {key: torch.empty(array.shape, device="meta") for key, array in written.items()}
    assert theirs.infer_diffusers_model_type(shapes) == inferred
    monkeypatch.setattr(store, "read_file", lambda path: written)
    read = read_single_file("x.safetensors")
    assert read.kind == kind
    for name, state in components.items():
        ours = {key: array.shape for key, array in read.components[name].items()}
        assert ours == {key: array.shape for key, array in state.items()}
    assert len(read.components["unet"]) == (1680 if kind == "sdxl" else 686)
    preset = {"sd15": presets.SD15_UNET, "sd21": presets.SD21_UNET, "sdxl": presets.SDXL_UNET}[kind]
    unet = UNetConfig.from_dict(read.configs["unet"])
    heads = (5, 5, 10, 20)[1:] if kind == "sdxl" else unet.attention_head_dim
    assert heads == unet.attention_head_dim
    assert _normal(unet) == _normal(UNetConfig.from_dict(preset))
    vae = VAEConfig.from_dict(read.configs["vae"])
    expected = VAEConfig.from_dict(presets.SDXL_VAE if kind == "sdxl" else presets.SD15_VAE)
    assert vae == dataclasses.replace(expected, sample_size=vae.sample_size, force_upcast=kind == "sdxl")
    texts = {"text_encoder": presets.SD15_TEXT, "text_encoder_2": presets.SDXL_TEXT_2}
    if kind == "sd21":
        texts["text_encoder"] = presets.CLIP_H["text_config"] | {"num_hidden_layers": 23}
    for name in components.keys() & texts.keys():
        assert CLIPTextConfig.from_dict(read.configs[name]) == CLIPTextConfig.from_dict(texts[name])


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


def test_what_training_left_behind_is_ignored(model: SimpleNamespace, tmp_path: Path) -> None:
    foreign = {"sd15": "conditioner.", "sd21": ("cond_stage_model.transformer.", "conditioner."), "sdxl": "cond_stage_"}
    extra = {key: array for key, array in LEFTOVERS.items() if not key.startswith(foreign[model.kind])}
    if model.kind == "sd21":  # the block that SD 2.x does not use
        prefix = "cond_stage_model.model"
        extra |= {f"{prefix}.transformer.resblocks.23.ln_1.weight": np.ones(64, np.float32)}
        extra |= {f"{prefix}.text_projection": np.ones((64, 64), np.float32)}
    if model.kind == "sdxl":
        extra |= {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    store.write_state(tmp_path / "x.safetensors", store.read_file(model.path) | extra)
    read = read_single_file(tmp_path / "x.safetensors")
    for name, expected in model.components.items():
        _assert_same(read.components[name], expected)
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert read.configs["scheduler"] == (told if model.kind == "sdxl" else {})


def test_marks_of_v_prediction_are_written(tmp_path: Path) -> None:
    components = {name: _state(part) for name, part in _model("sdxl").items()}
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    write_single_file(tmp_path / "x.safetensors", "sdxl", components, {"beta_start": 0.1} | told)
    assert read_single_file(tmp_path / "x.safetensors").configs["scheduler"] == told
    write_single_file(tmp_path / "x.safetensors", "sdxl", components, {"prediction_type": "epsilon"})
    assert not {"v_pred", "ztsnr"} & store.read_file(tmp_path / "x.safetensors").keys()


def test_torch_s_checkpoints_are_read(tmp_path: Path) -> None:
    """fp16 in a zip of torch, under state_dict with a counter beside it, as the first models were published."""
    components = {name: _state(part) for name, part in _model("sd15").items()}
    write_single_file(tmp_path / "x.safetensors", "sd15", components)
    state = {key: value.half() for key, value in load_file(tmp_path / "x.safetensors").items()}
    # Names from before transformers' text_model; a moving average counts in 32-bit integers.
    state = {key.replace("transformer.text_model.", "transformer."): value for key, value in state.items()}
    state["model_ema.num_updates"] = torch.tensor(3, dtype=torch.int32)
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "x.ckpt")
    read = read_single_file(tmp_path / "x.ckpt")
    for name, expected in components.items():
        _assert_same(read.components[name], {key: array.astype(np.float16) for key, array in expected.items()})


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (
            "input_blocks.1.0.in_layers.2.bias",
            None,
            "1 missing: model.diffusion_model.input_blocks.1.0.in_la.*bias$",
        ),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", None, "1 missing: .*attn2.to_k.weight$"),
        ("decoder.up.0.block.2.conv1.weight", None, "1 missing: first_stage_model.decoder.up.0.block.2.conv1.weight$"),
        ("layers.1.mlp.fc2.bias", None, "1 missing: cond_stage_model.transformer.text_model.encoder.*1.mlp.fc2.bias$"),
        (
            None,
            "model.diffusion_model.input_blocks.1.1.adapter.weight",
            "1 unknown: .*blocks.1.1.adapter.weight$",
        ),
        (None, "model.diffusion_model.output_blocks.9.0.in_layers.0.weight", "1 unknown: .*output_blocks.9.0"),
        (None, "embedding_manager.weight", "1 unknown: embedding_manager.weight$"),
    ],
)
def test_missing_and_unknown_keys_are_named(tmp_path: Path, drop: str | None, add: str | None, message: str) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sd15", {name: _state(part) for name, part in _model("sd15").items()})
    state = {key: array for key, array in store.read_file(path).items() if drop is None or not key.endswith(drop)}
    assert (len(state) < len(store.read_file(path))) == (drop is not None)
    store.write_state(path, state | ({add: np.ones(3, np.float32)} if add else {}))
    with pytest.raises(
        UserError, match=rf"x.safetensors: not a whole checkpoint of sd15, or of another model: {message}"
    ):
        read_single_file(path)


def test_a_file_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sdxl", {name: _state(part) for name, part in _model("sdxl").items()})
    state = store.read_file(path)
    for prefix in ("first_stage_model.", "conditioner.embedders.1."):
        store.write_state(path, {key: array for key, array in state.items() if not key.startswith(prefix)})
        with pytest.raises(UserError, match=rf"not a whole checkpoint of sdxl.*missing: {prefix}"):
            read_single_file(path)
    store.write_state(path, {key: array for key, array in state.items() if key.startswith("model.")})
    with pytest.raises(UserError, match=r"holds no text encoder that is known \(model.diffusion_model.\*\)"):
        read_single_file(path)


SPECK = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("edm_mean", r"Playground v2\.5"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", r"a LoRA \(--lora, not --model\)"),
        ("unet.mid_block.attentions.0.to_q.lora.up.weight", r"a LoRA"),
        ("down_blocks.0.resnets.0.norm1.weight", "one component of a diffusers folder"),
        ("blocks.0.cross_attn.q_linear.weight", r"no single-file checkpoint .* but blocks.0.\*"),
    ],
)
def test_other_architectures_are_named(tmp_path: Path, key: str, name: str) -> None:
    store.write_state(tmp_path / "x.safetensors", {key: SPECK})
    with pytest.raises(UserError, match=rf"x.safetensors is {name}"):
        read_single_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("more", "name"), [(5, "an inpainting model"), (4, "an Instruct"), (2, "of an unknown")])
def test_unets_that_see_more_than_noise_are_named(tmp_path: Path, more: int, name: str) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sd15", {name: _state(part) for name, part in _model("sd15").items()})
    wide = {"model.diffusion_model.input_blocks.0.0.weight": np.ones((32, 4 + more, 3, 3), np.float32)}
    store.write_state(path, store.read_file(path) | wide)
    with pytest.raises(UserError, match=rf"x.safetensors is {name}.* takes {4 + more} channels and gives 4"):
        read_single_file(path)


def test_tensors_of_other_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sd21", {name: _state(part) for name, part in _model("sd21").items()})
    odd = {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": np.ones((5, 64), np.float32)}
    store.write_state(path, store.read_file(path) | odd)
    with pytest.raises(UserError, match=r"x.safetensors: its text_encoder has tensors of another shape"):
        read_single_file(path)


def test_infinite_numbers_are_not_written(tmp_path: Path) -> None:
    components = {name: _state(part) for name, part in _model("sd15").items()}
    components["unet"]["conv_in.bias"] = np.full(32, np.inf, np.float16)
    with pytest.raises(UserError, match=r"infinite numbers in float16, .*: model.*input_blocks.0.0.bias;"):
        write_single_file(tmp_path / "x.safetensors", "sd15", components)
    assert not list(tmp_path.iterdir())


def test_what_does_not_belong_to_the_kind_is_a_bug(tmp_path: Path) -> None:
    components = {name: _state(part) for name, part in _model("sd15").items()}
    with pytest.raises(ValueError, match="kind 'sdxl' with"):
        write_single_file(tmp_path / "x.safetensors", "sdxl", components)
    components["unet"]["down_blocks.0.motion.weight"] = SPECK
    with pytest.raises(ValueError, match="without a place in the other layout: down_blocks.0.motion.weight"):
        write_single_file(tmp_path / "x.safetensors", "sd15", components)


def test_arrays_are_not_copied(tmp_path: Path) -> None:
    """At SDXL's 7 GB a copy is a lot of memory: what is contiguous is written as it is."""
    state = {"down_blocks.0.resnets.0.norm1.weight": SPECK, "down_blocks.1.resnets.0.norm1.weight": SPECK}
    converted = single_file._to_ldm("sd15", "unet", state)
    assert all(np.shares_memory(array, SPECK) for array in converted.values()) and len(converted) == 2
