"""Names and layouts: torch -> tree -> torch gives the same bytes, and nothing is lost or added on the way."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.weights import rules
from spo_jax.weights.store import read_state

KEYS = {
    "conv_in.weight": ("conv_in", "kernel"),
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight": (
        *("down_blocks_0", "attentions_1", "transformer_blocks_0", "attn1", "to_out_0", "kernel"),
    ),
    "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj.bias": (
        *("down_blocks_0", "attentions_1", "transformer_blocks_0", "ff", "net_0", "proj", "bias"),
    ),
    "time_embedding.linear_1.weight": ("time_embedding", "linear_1", "kernel"),
    "add_embedding.linear_2.bias": ("add_embedding", "linear_2", "bias"),
    "vision_model.encoder.layers.11.layer_norm1.weight": (
        *("vision_model", "encoder", "layers_11", "layer_norm1", "scale"),
    ),
    "text_model.embeddings.token_embedding.weight": ("text_model", "embeddings", "token_embedding", "embedding"),
    "vision_model.embeddings.class_embedding": ("vision_model", "embeddings", "class_embedding"),
    "vision_model.encoder.layers.3.adaLN_modulation.1.weight": (
        *("vision_model", "encoder", "layers_3", "adaLN_modulation_1", "kernel"),
    ),
    "t_embedder.mlp.0.weight": ("t_embedder", "mlp_0", "kernel"),
    "decoder.layers.3.conv.0.weight": ("decoder", "layers_3", "conv_0", "kernel"),
    "logit_scale": ("logit_scale",),
    "layers.2.0.weight": ("layers_2_0", "kernel"),
}


@pytest.mark.parametrize("key", KEYS)
def test_names_translate_both_ways(key: str) -> None:
    path = KEYS[key]
    assert rules.torch_key(path) == key
    module = key.rpartition(".")[0]
    if module and path[-1] != "class_embedding":
        assert rules.module_path(module) == path[:-1]
        assert rules.module_name(path[:-1]) == module


def _assert_round_trip(state: dict[str, np.ndarray], shapes: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree, after checking its shapes and that the way back gives the same bytes."""
    tree = rules.to_tree(state, shapes, "x")
    shape_of = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    assert {path: leaf.shape for path, leaf in flatten(tree).items()} == shape_of
    back = rules.to_state(tree)
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].flags.c_contiguous and back[name].dtype == array.dtype
        assert back[name].shape == array.shape and back[name].tobytes() == array.tobytes(), name
    return tree


@pytest.mark.parametrize("name", ["unet", "sdxl_unet", "vae", "text_encoder", "text_encoder_2", "clip"])
def test_torch_tree_torch_is_the_identity(
    name: str, request: pytest.FixtureRequest, shape_tree: Any, torch_arrays: Any
) -> None:
    model = request.getfixturevalue(name)
    _assert_round_trip(torch_arrays(model), shape_tree(model))


@pytest.mark.parametrize(
    ("folder", "cls"),
    [
        ("sd15/unet", UNet2DConditionModel),
        ("sdxl/unet", UNet2DConditionModel),
        ("sd15/vae", AutoencoderKL),
        ("sdxl/vae", AutoencoderKL),
        ("sd15/text_encoder", CLIPTextModel),
        ("sdxl/text_encoder_2", CLIPTextModelWithProjection),
    ],
)
def test_folders_of_the_reference_are_read(
    folder: str, cls: Any, golden_models: Path, shape_tree: Any, torch_arrays: Any
) -> None:
    model = cls.from_pretrained(golden_models / folder)
    kind = "diffusers" if cls in (UNet2DConditionModel, AutoencoderKL) else "transformers"
    state = read_state(golden_models / folder, kind)
    assert sum(array.size for array in state.values()) == sum(p.numel() for p in model.parameters())
    prefix = "text_model." if cls is CLIPTextModel else ""
    bare = {name.removeprefix(prefix): array for name, array in state.items()}
    tree = _assert_round_trip(bare, shape_tree(model))
    loaded = torch_arrays(model)
    assert all(np.array_equal(array, loaded[name]) for name, array in rules.to_state(tree).items())


def test_kernels_compute_what_torch_computes() -> None:
    torch.manual_seed(0)
    dense = torch.nn.Linear(5, 3)
    conv = torch.nn.Conv2d(5, 3, (3, 2))
    state = {"d.weight": dense.weight.detach().numpy(), "c.weight": conv.weight.detach().numpy()}
    shapes = {"d": {"kernel": np.empty((5, 3))}, "c": {"kernel": np.empty((3, 2, 5, 3))}}
    tree = rules.to_tree(state, shapes, "x")
    assert np.shares_memory(tree["c"]["kernel"], state["c.weight"])  # no second copy of a large model
    x = torch.randn(2, 5)
    assert np.allclose(x.numpy() @ tree["d"]["kernel"], (dense(x) - dense.bias).detach().numpy(), atol=1e-6)
    images = torch.randn(2, 5, 6, 7)
    ours = jax.lax.conv_general_dilated(
        jnp.asarray(images.numpy().transpose(0, 2, 3, 1)),
        jnp.asarray(tree["c"]["kernel"]),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    theirs = torch.nn.functional.conv2d(images, conv.weight).detach().numpy().transpose(0, 2, 3, 1)
    assert np.allclose(ours, theirs, atol=1e-5)


def test_a_1x1_convolution_and_a_dense_layer_are_interchangeable() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)  # [out in]
    dense = {"a": {"kernel": np.empty((3, 2))}}
    conv = {"a": {"kernel": np.empty((1, 1, 3, 2))}}
    from_conv = rules.to_tree({"a.weight": weight[:, :, None, None]}, dense, "x")["a"]["kernel"]
    assert np.array_equal(from_conv, weight.T)
    from_dense = rules.to_tree({"a.weight": weight}, conv, "x")["a"]["kernel"]
    assert np.array_equal(from_dense[0, 0], weight.T)
    with pytest.raises(UserError, match=r"a.weight float32\(2, 3, 3, 3\), expected \(2, 3\)"):
        rules.to_tree({"a.weight": np.zeros((2, 3, 3, 3), np.float32)}, dense, "x")


def test_scalars_keep_shape_and_precision_and_only_floats_are_cast() -> None:
    shapes = {"logit_scale": np.empty(()), "a": {"scale": np.empty((2,))}}
    state = {"logit_scale": np.array(4.6, np.float32), "a.weight": np.ones(2, np.float16)}
    tree = rules.to_tree(state, shapes, "x", dtype=jnp.bfloat16)
    assert tree["logit_scale"].shape == () and tree["logit_scale"].dtype == np.float32
    assert tree["a"]["scale"].dtype == ml_dtypes.bfloat16
    back = rules.to_state({**tree, "steps": np.array(3, np.int64)}, dtype=np.float16)
    assert back["logit_scale"].shape == () and back["logit_scale"].dtype == np.float32
    assert back["a.weight"].dtype == np.float16
    assert back["steps"].dtype == np.int64
    assert rules.to_tree(state, shapes, "x")["a"]["scale"].dtype == np.float16


def test_every_problem_is_listed_sorted_in_one_line() -> None:
    shapes = {
        "a": {"kernel": np.empty((3, 2)), "bias": np.empty((2,))},
        "n_1": {"scale": np.empty((4,)), "bias": np.empty((4,))},
        "conv": {"kernel": np.empty((3, 3, 4, 8))},
        "t": {"linear_1": {"bias": np.empty((1,))}},
    }
    state = {
        "a.weight": np.zeros((3, 2), np.float32),
        "a.bias": np.zeros((2,), np.int64),
        "conv.weight": np.zeros((8, 5, 3, 3), np.float32),
        "t.linear_1.bias": np.zeros(1, np.float32),
        "t.linear.1.bias": np.zeros(1, np.float32),
        "z.extra": np.zeros(1, np.float32),
        "b.extra": np.zeros(1, np.float32),
    }
    with pytest.raises(UserError) as caught:
        rules.to_tree(state, shapes, "models/x/unet")
    assert str(caught.value) == (
        "models/x/unet: weights do not fit the model: 2 missing: n.1.bias, n.1.weight; 2 unknown: b.extra, z.extra; "
        "1 given twice: t.linear_1.bias and t.linear.1.bias; 3 of another shape or type: "
        "a.bias int64(2,), expected (2,), a.weight float32(3, 2), expected (2, 3), "
        "conv.weight float32(8, 5, 3, 3), expected (8, 4, 3, 3); "
        "check that config.json and the weights belong to the same model"
    )


def test_long_lists_are_cut_and_end_with_a_count() -> None:
    shapes = {f"m_{i}": {"bias": np.empty((1,))} for i in range(686)}
    with pytest.raises(
        UserError, match=r"686 missing: m.0.bias, m.1.bias, m.10.bias, .* and 666 more; check"
    ) as caught:
        rules.to_tree({}, shapes, "x")
    assert len(str(caught.value)) < 500


def test_renames_and_ignored_keys() -> None:
    shapes = {"new": {"bias": np.empty((1,))}}
    one = np.ones(1, np.float32)
    renames = [(r"^old\.", "new."), (r"^new\.", "never.")]
    tree = rules.to_tree({"old.bias": one, "x.position_ids": one}, shapes, "x", renames, [r"position_ids$"])
    assert np.array_equal(tree["new"]["bias"], one)
    with pytest.raises(UserError, match=r"1 given twice: old.bias and new.bias;"):
        rules.to_tree({"old.bias": one, "new.bias": one}, shapes, "x", renames[:1])


def test_a_tree_that_torch_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two leaves of the tree are named a.weight"):
        rules.to_state({"a": {"kernel": np.zeros((2, 2)), "scale": np.zeros(2)}})
    with pytest.raises(ValueError, match=r"a/kernel has rank 5: expected the rank of a torch layer"):
        rules.to_state({"a": {"kernel": np.zeros((1,) * 5)}})
