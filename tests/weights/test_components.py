"""Components are read from folders of diffusers and transformers, and written to folders that these libraries read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.weights import rules, store
from spo_jax.weights.components import load_clip, load_text, load_unet, load_vae, text_state, write_component

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_names(state: dict[str, np.ndarray], conv: bool) -> dict[str, np.ndarray]:
    """The state of a VAE as diffusers 0.10 saved it, or with 1x1 convolutions in the attention as CompVis did."""
    renamed = {}
    for name, array in state.items():
        for new, old in OLD_NAMES.items():
            if f"attentions.0.{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                array = array[:, :, None, None] if conv and array.ndim == 2 else array
        renamed[name] = array
    return renamed


def _prefixed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of a text encoder with ``text_model.`` before the names of its tower."""
    outside = ("text_model.", "text_projection.")
    return {name if name.startswith(outside) else f"text_model.{name}": array for name, array in state.items()}


def _bare(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of a text encoder without the prefix."""
    return {name.removeprefix("text_model."): array for name, array in state.items()}


def _bare_tree(shapes: dict[str, Any]) -> dict[str, Any]:
    """The tree of a text encoder without ``text_model`` at its top."""
    rest = {name: branch for name, branch in shapes.items() if name != "text_model"}
    return {**shapes.get("text_model", {}), **rest}


def _prefixed_tree(shapes: dict[str, Any]) -> dict[str, Any]:
    """The tree of a text encoder with ``text_model`` at its top."""
    bare = _bare_tree(shapes)
    tower = {name: branch for name, branch in bare.items() if name != "text_projection"}
    outside = {name: branch for name, branch in bare.items() if name == "text_projection"}
    return {"text_model": tower, **outside}


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
    assert len(old.keys() - expected.keys()) == 16  # weight and bias of four layers in two middle blocks
    write_component(tmp_path, vae.config, old)
    for key, array in rules.to_state(load_vae(tmp_path, shape_tree(vae))).items():
        assert np.array_equal(array, expected[key]), key
    if not conv:  # diffusers reads such a file in the same way, but refuses the convolutions
        theirs = torch_arrays(AutoencoderKL.from_pretrained(tmp_path))
        assert all(np.array_equal(theirs[key], array) for key, array in expected.items())


def test_a_vae_with_both_names_of_a_layer_is_refused(
    tmp_path: Path, vae: Any, shape_tree: Any, torch_arrays: Any
) -> None:
    both = torch_arrays(vae) | _old_names(torch_arrays(vae), conv=False)
    write_component(tmp_path, vae.config, both)
    with pytest.raises(UserError, match=r"16 given twice: decoder.mid_block.attentions.0.\w+.bias and decoder"):
        load_vae(tmp_path, shape_tree(vae))


def test_load_vae_reads_an_autoencoder_tiny(tmp_path: Path, shape_tree: Any, torch_arrays: Any) -> None:
    torch.manual_seed(0)
    sizes = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    model = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    model.save_pretrained(tmp_path)
    state = rules.to_state(load_vae(tmp_path, shape_tree(model)))
    expected = torch_arrays(model)
    assert state.keys() == expected.keys()
    assert all(np.array_equal(array, expected[key]) for key, array in state.items())


@pytest.mark.parametrize("tree_prefix", [False, True])
@pytest.mark.parametrize("file_prefix", [False, True])
@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_the_prefix_is_optional_in_file_and_tree(
    tmp_path: Path, name: str, request: Any, shape_tree: Any, torch_arrays: Any, file_prefix: bool, tree_prefix: bool
) -> None:
    model = request.getfixturevalue(name)
    expected = torch_arrays(model)
    state = _prefixed(expected) if file_prefix else _bare(expected)
    state["text_model.embeddings.position_ids"] = np.arange(12)[None]  # as transformers 4 saved it
    store.write_state(tmp_path / "model.safetensors", state)
    shapes = _prefixed_tree(shape_tree(model)) if tree_prefix else _bare_tree(shape_tree(model))
    tree = load_text(tmp_path, shapes)
    assert flatten(tree).keys() == flatten(shapes).keys()
    written = text_state(tree)
    assert written.keys() == _prefixed(expected).keys()
    for key, array in _prefixed(expected).items():
        assert written[key].tobytes() == array.tobytes(), key


def test_a_file_with_both_prefixes_of_a_key_is_refused(
    tmp_path: Path, text_encoder: Any, shape_tree: Any, torch_arrays: Any
) -> None:
    state = torch_arrays(text_encoder)
    store.write_state(tmp_path / "model.safetensors", _bare(state) | _prefixed(state))
    with pytest.raises(
        UserError, match=r"36 given twice: embeddings.position_embedding.weight and text_model.embeddings.position"
    ):
        load_text(tmp_path, _bare_tree(shape_tree(text_encoder)))


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_text_encoders_that_we_wrote_compute_the_same_in_transformers(
    tmp_path: Path, name: str, request: Any, shape_tree: Any, torch_arrays: Any
) -> None:
    model = request.getfixturevalue(name)
    tree = rules.to_tree(torch_arrays(model), shape_tree(model), "x")
    write_component(tmp_path, model.config.to_dict(), text_state(tree), kind="transformers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    keys = store.read_state(tmp_path, "transformers").keys()
    # transformers 4 only warns about names without the prefix and leaves the weights of a CLIPTextModel random.
    assert all(key.startswith(("text_model.", "text_projection.")) for key in keys)
    cls = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor([[58, 3, 4, 59, 59]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids)[0], model(ids)[0])


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_load_clip_and_the_prefix_of_a_preference_model(
    tmp_path: Path, clip: Any, shape_tree: Any, torch_arrays: Any, prefix: str, suffix: str
) -> None:
    expected = torch_arrays(clip)
    state = {prefix + name: array for name, array in expected.items()}
    state[f"{prefix}text_model.embeddings.position_ids"] = np.arange(12)[None]
    state[f"{prefix}vision_model.embeddings.position_ids"] = np.arange(5)[None]
    if suffix == "bin":
        torch.save({name: torch.tensor(array) for name, array in state.items()}, tmp_path / "pytorch_model.bin")
    else:
        store.write_state(tmp_path / "model.safetensors", state)
    for path in (tmp_path, next(tmp_path.iterdir())):  # the folder, or the file itself
        tree = load_clip(path, shape_tree(clip))
        assert tree["logit_scale"].shape == ()
        back = rules.to_state(tree)
        assert back.keys() == expected.keys()
        assert all(back[key].tobytes() == array.tobytes() for key, array in expected.items())


def test_every_tensor_of_the_reference_preference_model_is_used(golden_models: Path) -> None:
    state = store.read_state(golden_models / "spm", "transformers")
    # Build the tree from the file: except for embeddings, the rank of a tensor alone determines its leaf.
    shapes: dict[str, Any] = {}
    for key, array in state.items():
        path = rules.module_path(key)
        leaf = path[-1]
        if leaf == "weight":
            leaf = "embedding" if "_embedding." in key and array.ndim == 2 else "kernel" if array.ndim > 1 else "scale"
        turned = {2: (1, 0), 4: (2, 3, 1, 0)}.get(array.ndim) if leaf == "kernel" else None
        node = shapes
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[leaf] = array.transpose(turned) if turned else array
    # Fill the tree.
    tree = load_clip(golden_models / "spm", shapes)
    assert tree["t_embedder"]["mlp_0"]["kernel"].shape[0] == 256
    assert tree["vision_model"]["encoder"]["layers_0"]["adaLN_modulation_1"]["kernel"].shape == (48, 288)
    assert all(np.array_equal(leaf, flatten(shapes)[path]) for path, leaf in flatten(tree).items())


def test_a_clip_with_two_towers_is_refused_as_a_text_encoder(
    tmp_path: Path, clip: Any, text_encoder: Any, shape_tree: Any
) -> None:
    clip.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"unknown: logit_scale, text_projection.weight, vision_model"):
        load_text(tmp_path, _bare_tree(shape_tree(text_encoder)))


def test_errors_name_the_folder(tmp_path: Path, unet: Any, sdxl_unet: Any, shape_tree: Any) -> None:
    sdxl_unet.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^{tmp_path}: weights do not fit the model: \d+ missing: .*; \d+ unknown: "):
        load_unet(tmp_path, shape_tree(unet))


@pytest.mark.parametrize("shard_bytes", [None, 200_000])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_component_that_we_wrote_computes_the_same_in_diffusers(
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


def test_writing_a_component_again_removes_the_older_files(tmp_path: Path) -> None:
    """Otherwise diffusers would prefer the older index to the newer file."""
    array = np.ones(4, np.float32)
    other = "other-00001-of-00002.safetensors"
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
