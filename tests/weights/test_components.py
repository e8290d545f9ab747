"""UNets and autoencoders out of diffusers folders, and back into folders that diffusers reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.weights import rules, store
from spo_jax.weights.components import load_unet, load_vae, write_component

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_names(state: dict[str, np.ndarray], conv: bool) -> dict[str, np.ndarray]:
    """A VAE's state as diffusers 0.10 saved it; ``conv`` as CompVis did, with 1x1 convolutions for the attention."""
    renamed = {}
    for name, array in state.items():
        for new, old in OLD.items():
            if f"attentions.0.{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                array = array[:, :, None, None] if conv and array.ndim == 2 else array
        renamed[name] = array
    return renamed


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("name", ["unet", "sdxl_unet"])
def test_load_unet(
    tmp_path: Path, name: str, request: Any, shape_tree: Any, torch_arrays: Any, variant: str | None
) -> None:
    model = request.getfixturevalue(name)
    model.save_pretrained(tmp_path, variant=variant)
    tree = load_unet(tmp_path, shape_tree(model), variant=variant, dtype=np.float16)
    assert all(leaf.dtype == np.float16 for leaf in flatten(tree).values())
    expected = torch_arrays(model)
    for key, array in rules.to_state(load_unet(tmp_path, shape_tree(model))).items():
        assert np.array_equal(array, expected[key]), key


@pytest.mark.parametrize("conv", [False, True])
def test_load_vae_with_old_attention_names(
    tmp_path: Path, vae: Any, shape_tree: Any, torch_arrays: Any, conv: bool
) -> None:
    expected = torch_arrays(vae)
    old = _old_names(expected, conv)
    assert len(old.keys() - expected.keys()) == 16  # two mid blocks, four layers, weight and bias
    write_component(tmp_path, vae.config, old)
    for key, array in rules.to_state(load_vae(tmp_path, shape_tree(vae))).items():
        assert np.array_equal(array, expected[key]), key
    if not conv:  # diffusers agrees that this is what such a file means (it refuses the convolutions)
        theirs = torch_arrays(AutoencoderKL.from_pretrained(tmp_path))
        assert all(np.array_equal(theirs[key], array) for key, array in expected.items())


def test_a_vae_with_both_names_of_a_layer_is_refused(
    tmp_path: Path, vae: Any, shape_tree: Any, torch_arrays: Any
) -> None:
    both = torch_arrays(vae) | _old_names(torch_arrays(vae), conv=False)
    write_component(tmp_path, vae.config, both)
    with pytest.raises(UserError, match=r"16 given twice: decoder.mid_block.attentions.0.\w+.bias and decoder"):
        load_vae(tmp_path, shape_tree(vae))


def test_load_a_tiny_autoencoder(tmp_path: Path, shape_tree: Any, torch_arrays: Any) -> None:
    torch.manual_seed(0)
    sizes = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    model = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    model.save_pretrained(tmp_path)
    state = rules.to_state(load_vae(tmp_path, shape_tree(model)))
    expected = torch_arrays(model)
    assert state.keys() == expected.keys()
    assert all(np.array_equal(array, expected[key]) for key, array in state.items())


def test_errors_name_the_folder(tmp_path: Path, unet: Any, sdxl_unet: Any, shape_tree: Any) -> None:
    sdxl_unet.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^{tmp_path}: weights do not fit the model: \d+ missing: .*; \d+ unknown: "):
        load_unet(tmp_path, shape_tree(unet))


@pytest.mark.parametrize("shard_bytes", [None, 200_000])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_component_of_ours_computes_the_same_in_diffusers(
    tmp_path: Path, unet: Any, shape_tree: Any, torch_arrays: Any, variant: str | None, shard_bytes: int | None
) -> None:
    tree = rules.to_tree(torch_arrays(unet), shape_tree(unet), "x")
    dtype = np.float16 if variant else None
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    config = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.26.1", **config}
    write_component(tmp_path, config, rules.to_state(tree, dtype), variant=variant, max_shard_bytes=shard_bytes)
    assert store.read_metadata(next(tmp_path.glob("*.safetensors"))) == {"format": "pt"}
    assert json.loads((tmp_path / "config.json").read_text())["cross_attention_dim"] == 24
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, variant=variant).eval()
    torch.manual_seed(0)
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([1, 501]), torch.randn(2, 7, 24))
    with torch.no_grad():
        difference = (loaded(*inputs).sample - unet(*inputs).sample).abs().max()
    assert difference == 0 if variant is None else difference < 1e-2


def test_a_component_written_again_leaves_nothing_of_the_earlier_writing(tmp_path: Path) -> None:
    """diffusers would read the older index before the newer file."""
    array, other = np.ones(4, np.float32), "other-00001-of-00002.safetensors"
    (tmp_path / other).write_bytes(b"not ours")
    write_component(tmp_path, {}, {"a": array, "b": array}, max_shard_bytes=1)
    write_component(tmp_path, {}, {"b": array})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", other
    ]  # fmt: skip
    write_component(tmp_path, {}, {"a": array, "b": array, "c": array}, max_shard_bytes=1)
    assert sorted(path.name for path in tmp_path.glob("diffusion*")) == [
        *(f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "diffusion_pytorch_model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * array.nbytes


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "unet").write_text("a file")
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/unet/diffusion_pytorch_model.safetensors"):
        write_component(tmp_path / "unet", {}, {"a": np.ones(1, np.float32)})
