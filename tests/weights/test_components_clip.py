"""CLIP's optional prefixes, and text encoders of ours in transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.weights import rules, store
from spo_jax.weights.components import load_clip, load_text, text_state, write_component


def _prefixed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    outside = ("text_model.", "text_projection.")
    return {name if name.startswith(outside) else f"text_model.{name}": array for name, array in state.items()}


def _bare(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("text_model."): array for name, array in state.items()}


def _bare_tree(shapes: dict[str, Any]) -> dict[str, Any]:
    rest = {name: branch for name, branch in shapes.items() if name != "text_model"}
    return {**shapes.get("text_model", {}), **rest}


def _prefixed_tree(shapes: dict[str, Any]) -> dict[str, Any]:
    outside = {name: branch for name, branch in shapes.items() if name == "text_projection"}
    return {"text_model": {k: v for k, v in _bare_tree(shapes).items() if k != "text_projection"}, **outside}


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
def test_text_encoders_of_ours_compute_the_same_in_transformers(
    tmp_path: Path, name: str, request: Any, shape_tree: Any, torch_arrays: Any
) -> None:
    model = request.getfixturevalue(name)
    tree = rules.to_tree(torch_arrays(model), shape_tree(model), "x")
    write_component(tmp_path, model.config.to_dict(), text_state(tree), kind="transformers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    keys = store.read_state(tmp_path, "transformers").keys()
    # transformers 4 leaves a CLIPTextModel without the prefix at its random start, with no more than a warning.
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


def test_the_reference_preference_model_is_used_up(golden_models: Path) -> None:
    state = store.read_state(golden_models / "spm", "transformers")
    shapes: dict[str, Any] = {}
    for key, array in state.items():  # ranks alone tell the leaves apart here, save for the embeddings
        path = rules.module_path(key)
        leaf = path[-1]
        if leaf == "weight":
            leaf = "embedding" if "_embedding." in key and array.ndim == 2 else "kernel" if array.ndim > 1 else "scale"
        turned = {2: (1, 0), 4: (2, 3, 1, 0)}.get(array.ndim) if leaf == "kernel" else None
        node = shapes
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[leaf] = array.transpose(turned) if turned else array
    tree = load_clip(golden_models / "spm", shapes)
    assert tree["t_embedder"]["mlp_0"]["kernel"].shape[0] == 256
    assert tree["vision_model"]["encoder"]["layers_0"]["adaLN_modulation_1"]["kernel"].shape == (48, 288)
    assert all(np.array_equal(leaf, flatten(shapes)[path]) for path, leaf in flatten(tree).items())


def test_a_text_encoder_that_is_not_one_is_refused(
    tmp_path: Path, clip: Any, text_encoder: Any, shape_tree: Any
) -> None:
    clip.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"unknown: logit_scale, text_projection.weight, vision_model"):
        load_text(tmp_path, _bare_tree(shape_tree(text_encoder)))
