"""LoRA files written by other programs are read: peft, diffusers and kohya's scripts, in their versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from spo_jax.models.lora import read_lora, write_lora
from spo_jax.models.stable_diffusion import kohya
from spo_jax.weights.lora import LoRA
from tests.weights.loras import SHORT, assert_same, deltas, forward, merged_forward, random_lora


def _peft_file(tmp_path: Path, unet: Any, config: LoraConfig, with_config: bool) -> tuple[Path, np.ndarray]:
    """Saves a LoRA with PEFT and diffusers; also returns the prediction of their UNet with it."""
    model = UNet2DConditionModel.from_config(unet.config)
    model.load_state_dict(unet.state_dict())
    torch.manual_seed(0)
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    metadata = {"unet_lora_adapter_metadata": config.to_dict()} if with_config else {}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **metadata)
    return tmp_path / "pytorch_lora_weights.safetensors", forward(model.eval())


@pytest.mark.parametrize(
    ("changes", "with_config", "alpha"),
    [
        ({}, False, 4.0),  # The published files have alpha = rank and no metadata.
        (dict(lora_alpha=8), True, 8.0),
        (dict(lora_alpha=8, use_rslora=True), True, 16.0),
        (dict(lora_alpha=8, alpha_pattern={"to_q": 2, "attn2.to_v": 1}), True, None),
        (dict(lora_alpha=8, alpha_pattern={f"^{SHORT}": 2, "attn2.to_v": 1}), True, None),
        (dict(lora_alpha=8, rank_pattern={"attn1.to_q": 2, "to_k": 6}), True, None),
        (dict(rank_pattern={"attn1.to_q": 2}, alpha_pattern={"attn1.to_q": 2}), True, 4.0),
    ],
)
def test_files_of_peft_are_read(
    tmp_path: Path, unet: Any, shape_tree: Any, changes: dict, with_config: bool, alpha: float | None
) -> None:
    basics = dict(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    path, expected = _peft_file(tmp_path, unet, LoraConfig(**basics | changes), with_config)
    lora = read_lora(path, shape_tree(unet))
    assert len(lora.modules()) == 32
    if alpha is not None:
        assert (lora.alpha, lora.rank) == (alpha, 4)
    else:
        assert lora.alpha == lora.rank == (6 if "rank_pattern" in changes else 4)
    assert np.abs(merged_forward(unet, lora) - expected).max() < 1e-4 * np.abs(expected).max()


def test_files_of_a_single_model_are_read(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    lora = random_lora(shape_tree(unet), rank=4, alpha=8)
    model = UNet2DConditionModel.from_config(unet.config)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    model.save_lora_adapter(tmp_path / "single")  # Its keys do not start with "unet.".
    halves = {"A": lambda pair: pair[0].T.copy(), "B": lambda pair: pair[1].T.copy()}
    state = {f"{name}.lora_{h}.weight": f(pair) for name, pair in lora.modules().items() for h, f in halves.items()}
    assert read_lora(tmp_path / "single").alpha == 8
    for prefix in ("", "unet.", "base_model.model.", "unet.base_model.model."):
        folder = tmp_path / f"x{prefix}"
        folder.mkdir()
        save_file({prefix + key: array for key, array in state.items()}, folder / "adapter_model.safetensors")
        assert_same(read_lora(folder, shape_tree(unet)), LoRA(lora.tree, 4.0, 4))
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA"}))
        assert_same(read_lora(folder), lora)


def test_kohya_files_of_other_programs_are_read(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    shapes = shape_tree(unet)
    lora = random_lora(shapes, rank=4, alpha=4)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    # In fp16, with another alpha for one module: its scale is folded into lora_B.
    odd = kohya.kohya_name(SHORT)
    halves = {key: array.astype(np.float16) for key, array in state.items()}
    halves[f"{odd}.alpha"] = np.float16(1)
    save_file({key: np.asarray(array, order="C") for key, array in halves.items()}, tmp_path / "y.safetensors")
    read = read_lora(tmp_path / "y.safetensors", shapes)
    assert read.alpha == 4
    for name, delta in deltas(lora).items():
        scale = 0.25 if name == SHORT else 1.0
        assert np.allclose(deltas(read)[name], delta * scale, atol=0.05), name
    # Without any alpha the scale is 1, as in diffusers.
    bare = {key: array for key, array in state.items() if not key.endswith("alpha")}
    save_file(bare, tmp_path / "z.safetensors")
    assert read_lora(tmp_path / "z.safetensors", shapes).alpha == 4


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_files_of_old_versions_of_diffusers_are_read(tmp_path: Path, unet: Any, shape_tree: Any, prefix: str) -> None:
    """Their halves belong to the attention's processor, and diffusers still reads them."""
    lora = random_lora(shape_tree(unet), rank=4, alpha=4)
    state = {}
    for name, (lora_a, lora_b) in lora.modules().items():
        attention, _, layer = name.removesuffix(".0").rpartition(".")
        state[f"{prefix}{attention}.processor.{layer}_lora.down.weight"] = lora_a.T.copy()
        state[f"{prefix}{attention}.processor.{layer}_lora.up.weight"] = lora_b.T.copy()
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    assert_same(read_lora(tmp_path, shape_tree(unet)), lora)


@pytest.mark.parametrize(
    "alpha", [np.full(1, 2, np.float32), np.array(2), np.array([[2.0]])], ids=["[1]", "int", "[1 1]"]
)
def test_alphas_of_other_shapes_and_types_are_read(tmp_path: Path, unet: Any, shape_tree: Any, alpha: Any) -> None:
    lora = random_lora(shape_tree(unet), rank=4, alpha=4)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    save_file({key: alpha if "alpha" in key else array for key, array in state.items()}, tmp_path / "y.safetensors")
    assert_same(read_lora(tmp_path / "y.safetensors", shape_tree(unet)), LoRA(lora.tree, 2.0, 4))
