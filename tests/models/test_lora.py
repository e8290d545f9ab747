"""LoRA files of all families: the family with their modules is found, and adapters of other models are refused.

`tests/weights/test_lora.py` and `stable_diffusion/test_kohya.py` check the files themselves.
"""

from typing import Any

import jax
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.models.lora import check_fits, names_of
from spo_jax.models.stable_diffusion import kohya
from tests.weights.loras import random_lora


def test_a_family_is_found_by_the_names_of_its_modules(unet: Any, shape_tree: Any) -> None:
    """If no family has the modules, the first one is returned."""
    modules = list(random_lora(shape_tree(unet)).modules())
    assert names_of(modules) is names_of(map(kohya.kohya_name, modules)) is kohya
    assert kohya.claims(modules) and not kohya.claims(["transformer.layers.0.attn"])
    assert names_of(["transformer.layers.0.attn"]) is kohya


def test_an_adapter_of_another_model_is_refused(unet: Any, sdxl_unet: Any, shape_tree: Any) -> None:
    """Its modules may be missing in the network, or have another shape there."""
    shapes = shape_tree(unet)
    tree = random_lora(shapes).tree
    check_fits(tree, shapes, "lora.safetensors", "toy")
    check_fits(jax.eval_shape(lambda: tree), shapes, "lora.safetensors", "toy")
    with pytest.raises(UserError, match="lora.safetensors was trained on another model than xl: [0-9]+ of its modules"):
        check_fits(tree, shape_tree(sdxl_unet), "lora.safetensors", "xl")
    wider = jax.tree.map(lambda half: np.concatenate([half, half], axis=-1), tree)
    with pytest.raises(
        UserError, match="another shape, such as down_blocks_0/.*; name its own base model with --model"
    ):
        check_fits(wider, shapes, "lora.safetensors", "toy")
