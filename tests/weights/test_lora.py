"""LoRA files in both layouts load in diffusers with the right scale, and are read back exactly."""

import json
from collections import ChainMap
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from spo_jax.core.trees import flatten, unflatten
from spo_jax.models.lora import read_lora, write_lora
from spo_jax.models.stable_diffusion import kohya
from spo_jax.weights import store
from spo_jax.weights.lora import METADATA_KEY, LoRA
from tests.weights.loras import SHORT, assert_same, deltas, forward, lora_shapes, merged_forward, pair, random_lora


@pytest.fixture
def pipe(unet: Any) -> Any:
    """A Stable Diffusion pipeline around a new copy of the small UNet, without its other parts."""
    copy = UNet2DConditionModel.from_config(unet.config)
    copy.load_state_dict(unet.state_dict())
    none = dict(
        vae=None, text_encoder=None, tokenizer=None, scheduler=None, safety_checker=None, feature_extractor=None
    )
    return StableDiffusionPipeline(unet=copy.eval(), **none, requires_safety_checker=False)


@pytest.mark.parametrize("alpha", [4.0, 8.0, 3.0, 0.3])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_applies_a_written_lora(
    tmp_path: Path, unet: Any, pipe: Any, shape_tree: Any, layout: str, alpha: float
) -> None:
    lora = random_lora(shape_tree(unet), rank=4, alpha=alpha)
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", lora, layout)
    pipe.load_lora_weights(tmp_path)
    adapted = {n: m for n, m in pipe.unet.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert adapted.keys() == lora.modules().keys() and len(adapted) == 32
    for name, module in adapted.items():
        assert module.scaling == {"default_0": 1.0}, name  # Alpha is in the weights.
    ours, theirs = merged_forward(unet, lora), forward(pipe.unet)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    assert np.abs(ours - forward(unet)).max() > 1e-2  # The update is not negligible.
    pipe.unload_lora_weights()
    assert np.array_equal(forward(pipe.unet), forward(unet))


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_programs_that_ignore_alpha_apply_the_same_strength(
    tmp_path: Path, unet: Any, pipe: Any, shape_tree: Any, layout: str
) -> None:
    """Without metadata and alphas, diffusers applies a scale of 1, as programs do that read neither."""
    lora = random_lora(shape_tree(unet), rank=4, alpha=8.0)
    write_lora(tmp_path / "whole.safetensors", lora, layout)
    state = {key: array for key, array in load_file(tmp_path / "whole.safetensors").items() if "alpha" not in key}
    save_file(state, tmp_path / "bare.safetensors", {"format": "pt"})
    pipe.load_lora_weights(tmp_path, weight_name="bare.safetensors")
    ours, theirs = merged_forward(unet, lora), forward(pipe.unet)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    assert np.abs(ours - forward(unet)).max() > 1e-2


def test_files_with_alpha_in_their_metadata_are_read_as_before(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    """Earlier versions wrote them."""
    lora = random_lora(shape_tree(unet), rank=4, alpha=7.0)
    halves = (pair(f"unet.{name}", a.T.copy(), b.T.copy()) for name, (a, b) in lora.modules().items())
    config = {"unet.r": 4, "unet.lora_alpha": 7, "unet.peft_type": "LORA"}
    store.write_state(tmp_path / "x.safetensors", dict(ChainMap(*halves)), {METADATA_KEY: json.dumps(config)})
    assert_same(read_lora(tmp_path / "x.safetensors", shape_tree(unet)), lora)


def test_diffusers_applies_a_lora_on_some_modules(tmp_path: Path, unet: Any, pipe: Any, shape_tree: Any) -> None:
    flat = flatten(random_lora(shape_tree(unet)).tree)
    lora = LoRA(unflatten({path: leaf for path, leaf in flat.items() if "attn2/to_k" in path}), 2.0, 4)
    for layout in ("diffusers", "kohya"):
        write_lora(tmp_path / f"{layout}.safetensors", lora, layout)
        pipe.load_lora_weights(tmp_path, weight_name=f"{layout}.safetensors")
        assert np.allclose(merged_forward(unet, lora), forward(pipe.unet), atol=1e-5)
        pipe.unload_lora_weights()


@pytest.mark.parametrize("alpha", [3.0, 8.0, 0.3])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("name", ["unet", "sdxl_unet"])
def test_round_trip(tmp_path: Path, name: str, request: Any, shape_tree: Any, layout: str, alpha: float) -> None:
    shapes = shape_tree(request.getfixturevalue(name))
    lora = random_lora(shapes, rank=3, alpha=float(np.float32(alpha)))
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout, {"prompts": "4k"})
    header = store.read_metadata(path)
    assert header["format"] == "pt" and header["prompts"] == "4k"
    read = read_lora(path, shapes)
    assert (read.alpha, read.rank) == (3.0, 3)
    for module, delta in deltas(lora).items():
        np.testing.assert_allclose(deltas(read)[module], delta, rtol=1e-5, atol=1e-6)
    assert_same(read, lora.folded())
    assert_same(read_lora(tmp_path, lora_shapes(lora)), read)
    if layout == "diffusers":
        assert_same(read_lora(path), read)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_file_does_not_touch_a_model_beside_it(tmp_path: Path, unet: Any, shape_tree: Any, layout: str) -> None:
    """Even if the file has the name of a model's file, the model's shards are kept."""
    unet.save_pretrained(tmp_path, max_shard_size="200KB")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) > 3
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_lora(path, random_lora(shape_tree(unet)), layout)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before | {path: path.read_bytes()}


def test_keys_and_header_of_the_diffusers_layout(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    lora = random_lora(shape_tree(unet), rank=4, alpha=8)
    write_lora(tmp_path / "x.safetensors", lora)
    state = load_file(tmp_path / "x.safetensors")
    assert state[f"unet.{SHORT}.lora.down.weight"].shape == (4, 16)
    assert state[f"unet.{SHORT}.lora.up.weight"].shape == (16, 4)
    assert len(state) == 64 and not any(key.endswith("alpha") for key in state)
    header = json.loads(store.read_metadata(tmp_path / "x.safetensors")[METADATA_KEY])
    assert header.keys() == {"unet.r", "unet.lora_alpha", "unet.target_modules", "unet.peft_type"}
    assert (header["unet.r"], header["unet.lora_alpha"], header["unet.peft_type"]) == (4, 4, "LORA")


def test_keys_of_the_kohya_layout(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    lora = random_lora(shape_tree(unet), rank=4, alpha=8)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert kohya.kohya_name(SHORT.replace("to_q", "to_out.0")) == name
    assert state[f"{name}.lora_down.weight"].shape == (4, 16) and state[f"{name}.lora_up.weight"].shape == (16, 4)
    assert state[f"{name}.alpha"].shape == () and state[f"{name}.alpha"] == 4
    assert len(state) == 96 and METADATA_KEY not in store.read_metadata(tmp_path / "x.safetensors")


def test_a_lora_whose_halves_disagree_raises() -> None:
    good = {"lora_A": np.ones((5, 2)), "lora_B": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"a.0: lora_A \(5, 2\), lora_B \(2, 3\) are not of rank 4"):
        LoRA({"a_0": good}, 4.0, 4)
    with pytest.raises(ValueError, match="has lora_A and lora_B, and nothing else"):
        LoRA({"a_0": {"lora_A": np.ones((5, 2))}}, 4.0, 2)
    with pytest.raises(ValueError, match="expected diffusers or kohya"):
        write_lora("x.safetensors", LoRA({"a": good}, 4, 2), "webui")


def test_files_of_the_reference_are_read(golden_dir: Path) -> None:
    folder = golden_dir / "g_sd15"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    lora = read_lora(folder / "lora_init.safetensors")
    assert (lora.rank, lora.alpha, len(lora.modules())) == (4, 4.0, 32)
