"""LoRA files that cannot be used are refused with the reason."""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.export import export
from spo_jax.models.lora import read_lora
from spo_jax.weights import store
from spo_jax.weights.lora import METADATA_KEY
from tests.weights.loras import DOWN, PAIR, SHORT, UP, lora_shapes, pair, random_lora

KOHYA = f"lora_unet_{SHORT.replace('.', '_')}"
KOHYA_PAIR = {f"{KOHYA}.lora_down.weight": DOWN, f"{KOHYA}.lora_up.weight": UP}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            PAIR | pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
            "1 parts of a text encoder: text_encoder.text_model.encoder.layers.0.self_attn.q_proj$",
        ),
        (
            KOHYA_PAIR | pair("lora_te_text_model_encoder_layers_0_mlp_fc1", style="lora_{}.weight"),
            "1 parts of a text encoder: lora_te_text_model_encoder_layers_0_mlp_fc1$",
        ),
        (
            PAIR | {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": UP},
            "1 parts of a text encoder: text_encoder.text_model.encoder.layers.0.mlp.fc1$",
        ),
        (PAIR | pair("unet.conv_in"), "1 convolutions: conv_in$"),
        (
            KOHYA_PAIR | pair("lora_unet_conv_in", np.ones((4, 4, 3, 3), np.float32), style="lora_{}.weight"),
            "1 convolutions: conv_in$",
        ),
        (PAIR | pair("unet.mid_block.nowhere.to_q"), "1 modules this model does not have .*: mid_block.nowhere.to_q$"),
        (
            KOHYA_PAIR | pair("lora_unet_input_blocks_4_1_proj_in", style="lora_{}.weight"),
            "1 modules this model does not have .*: lora_unet_input_blocks_4_1_proj_in$",
        ),
        (PAIR | {f"unet.{SHORT[:-1]}k.lora.down.weight": DOWN}, f"1 halves without their partner: {SHORT[:-1]}k$"),
        (pair(f"unet.{SHORT}", DOWN[:, :8]), rf"was made for another model: {SHORT} has width 8 there, and \d+ here$"),
        (pair(f"unet.{SHORT}", DOWN[:2]), f"1 halves of different ranks: {SHORT}$"),
        (
            PAIR | {f"unet.{SHORT}.lora_A.weight": DOWN},
            rf"1 tensors that are not LoRA weights: unet.{SHORT}.lora_A.weight \(a second down\)",
        ),
        (PAIR | {f"unet.{SHORT}.alpha": np.float32(4)}, f"1 tensors that are not LoRA weights: unet.{SHORT}.alpha$"),
        (PAIR | {f"unet.{SHORT}.lora_magnitude_vector": UP}, "1 tensors that are not LoRA weights: .*tude_vector$"),
        (KOHYA_PAIR | {f"{KOHYA}.dora_scale": UP}, "1 tensors that are not LoRA weights: .*dora_scale$"),
        ({"lora_unet_x.hada_w1_a": UP}, "is a LoHa, which is not supported: only LoRA is"),
        ({"base_model.model.down_blocks.0.to_q.hada_w1_a": UP}, "is a LoHa, which is not supported: only LoRA is"),
        ({"down_blocks.0.to_q.lokr_w1": UP}, "is a LoKr, which is not supported: only LoRA is"),
        ({"other.weight": UP}, "is not a LoRA file: none of its 1 tensors is half of a LoRA layer"),
        ({"model.diffusion_model.out.0.weight": UP}, "is a whole model in one file, not a LoRA: name it with --model"),
        (
            {"conv_in.weight": UP, "down_blocks.0.x.weight": UP},
            "holds the weights of a whole UNet, not a LoRA: name its",
        ),
        ({"text_model.x.weight": UP, "vision_model.x.weight": UP}, "holds the weights of a CLIP, such as a preference"),
    ],
)
def test_unusable_parts_are_listed(tmp_path: Path, unet: Any, shape_tree: Any, state: dict, message: str) -> None:
    store.write_state(tmp_path / "x.safetensors", state)
    with pytest.raises(UserError, match=rf"^{tmp_path}/x.safetensors.*{message}"):
        read_lora(tmp_path / "x.safetensors", shape_tree(unet))


NAN = np.where(np.arange(64).reshape(4, 16) == 9, np.nan, 1)


@pytest.mark.parametrize(
    ("state", "key", "message"),
    [
        (
            pair(f"unet.{SHORT}", NAN.astype(np.float32)),
            "lora.down.weight",
            "holds values that are not finite: train it",
        ),
        (pair(f"unet.{SHORT}", up=UP.astype(np.float64) * 1e300), "lora.up.weight", "holds values that are not finite"),
        (pair(f"unet.{SHORT}", NAN.astype(ml_dtypes.bfloat16)), "lora.down.weight", "holds values that are not finite"),
        (pair(f"unet.{SHORT}", up=UP.astype(np.int8)), "lora.up.weight", "has the type int8, expected floating-point"),
        (
            pair(f"unet.{SHORT}", DOWN[:0], UP[:, :0]),
            "lora.down.weight",
            r"has shape \[0, 16\], expected a rank of 1 or",
        ),
        (KOHYA_PAIR | {f"{KOHYA}.alpha": np.float32(np.inf)}, "alpha", "is inf, expected a finite number"),
        (KOHYA_PAIR | {f"{KOHYA}.alpha": np.float32(np.nan)}, "alpha", "is nan, expected a finite number"),
        (KOHYA_PAIR | {f"{KOHYA}.alpha": DOWN[0]}, "alpha", r"has shape \[16\], expected one number"),
        (
            KOHYA_PAIR | {f"{KOHYA}.lora_up.weight": UP * np.float32(1e30), f"{KOHYA}.alpha": np.float32(1e30)},
            "lora_up.weight",
            "weights are beyond float32",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_no_lora_has_are_named_with_their_key(
    tmp_path: Path, unet: Any, shape_tree: Any, state: dict, key: str, message: str
) -> None:
    """They would be drawn with, exported, merged and written to whole models."""
    file = tmp_path / "x.safetensors"
    store.write_state(file, state)
    prefix = KOHYA if any(name.startswith(KOHYA) for name in state) else f"unet.{SHORT}"
    with pytest.raises(UserError, match=rf"^{file}: (alpha of )?{re.escape(prefix)}.{re.escape(key)} .*{message}"):
        read_lora(file, shape_tree(unet))
    if prefix != KOHYA:
        for form in ("diffusers", "kohya"):
            with pytest.raises(UserError, match=message):
                export(file, form, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_only_the_targets_of_a_lora_tree_are_accepted(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    targets = lora_shapes(random_lora(shape_tree(unet), rank=8))
    ff = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
    store.write_state(tmp_path / "x.safetensors", PAIR | pair(f"unet.{ff}", np.ones((4, 64), np.float32)))
    assert len(read_lora(tmp_path / "x.safetensors", shape_tree(unet)).modules()) == 2
    with pytest.raises(UserError, match=rf"1 modules this model does not have \(or not as LoRA targets\): {ff}$"):
        read_lora(tmp_path / "x.safetensors", targets)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot understand the adapter's config"),
        ("[1]", "cannot understand the adapter's config"),
        (json.dumps({"unet.lora_alpha": "8"}), "cannot understand .* lora_alpha of down_blocks.*: expected float"),
        (json.dumps({"unet.lora_alpha": True}), "cannot understand .* lora_alpha of down_blocks.*: expected float"),
        ('{"unet.lora_alpha": Infinity}', "adapter's config .*: Infinity is not JSON: expected a finite number"),
        ("[" * 100_000, "cannot understand the adapter's config"),
        ('{"lora_alpha": ' + "9" * 400 + "}", "cannot understand the adapter's config.*an integer of 400 digits"),
        (
            json.dumps({"unet.alpha_pattern": {"(": 3}}),
            "adapter's config .*in alpha_pattern is a pattern: expected the",
        ),
        (
            json.dumps({"unet.alpha_pattern": {r"((\w|\w\w|\.)*)*!": 1}}),
            "in alpha_pattern is a pattern: expected the na",
        ),
        (json.dumps({"unet.alpha_pattern": [4]}), "cannot understand the adapter's config"),
        (json.dumps({"unet.lora_alpha": 4, "unet.use_dora": True}), "is a DoRA, which is not supported"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, config: str, message: str) -> None:
    store.write_state(tmp_path / "x.safetensors", PAIR, {METADATA_KEY: config})
    with pytest.raises(UserError, match=rf"x.safetensors.* ?{message}"):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("rank", [4097, 2000])
def test_a_small_file_whose_ranks_would_take_much_memory_is_refused(tmp_path: Path, rank: int) -> None:
    """All modules get the largest rank: a file of 100 KB took 157 MB."""
    state = pair("unet.mid.to_q", np.ones((rank, 1), np.float32), np.ones((1, rank), np.float32))
    for number in range(40):
        state |= pair(f"unet.mid.{number}", np.ones((1, 500), np.float32), np.ones((500, 1), np.float32))
    store.write_state(tmp_path / "x.safetensors", state)
    with pytest.raises(UserError, match=rf"x.safetensors: mid.to_q has rank {rank}.*: expected ranks|expected at most"):
        read_lora(tmp_path / "x.safetensors")
