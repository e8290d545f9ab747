"""Adapters of small networks, torch's predictions with them, and comparisons of adapters."""

from typing import Any

import jax
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from spo_jax.core.trees import flatten, unflatten
from spo_jax.weights.lora import LoRA

TARGETS = ("to_q", "to_k", "to_v", "to_out_0")
SHORT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def random_lora(shapes: dict[str, Any], rank: int = 4, alpha: float = 4.0, seed: int = 0) -> LoRA:
    """Draws a LoRA on the attention layers of a tree of shapes, with weights that have a visible effect."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in flatten(shapes).items():
        module, _, name = path.rpartition("/")
        if name == "kernel" and module.endswith(TARGETS):
            flat[f"{module}/lora_A"] = rng.normal(0, 0.3, (leaf.shape[0], rank)).astype(np.float32)
            flat[f"{module}/lora_B"] = rng.normal(0, 0.3, (rank, leaf.shape[1])).astype(np.float32)
    return LoRA(unflatten(flat), alpha, rank)


def assert_same(lora: LoRA, expected: LoRA) -> None:
    """Asserts that two LoRAs have the same modules, alpha and rank, and the same bits."""
    assert (lora.alpha, lora.rank) == (expected.alpha, expected.rank)
    assert flatten(lora.tree).keys() == flatten(expected.tree).keys()
    for path, leaf in flatten(expected.tree).items():
        read = flatten(lora.tree)[path]
        assert read.dtype == np.float32 and read.flags.c_contiguous
        assert read.tobytes() == leaf.tobytes(), path


def deltas(lora: LoRA) -> dict[str, np.ndarray]:
    """Returns each module's change of its weights, [in out]."""
    return {name: a @ b * (lora.alpha / lora.rank) for name, (a, b) in lora.modules().items()}


def lora_shapes(lora: LoRA) -> dict[str, Any]:
    """Returns the shapes of a LoRA's tree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lora.tree)


def forward(unet: Any) -> np.ndarray:
    """Returns torch's prediction for fixed latents and text states."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([1, 501]), states).sample.numpy()


def merged_forward(unet: Any, lora: LoRA) -> np.ndarray:
    """Returns `forward` for the network with the LoRA added to its weights."""
    merged = UNet2DConditionModel.from_config(unet.config)
    state = dict(unet.state_dict())
    for name, delta in deltas(lora).items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + torch.tensor(delta.T)
    merged.load_state_dict(state)
    return forward(merged.eval())


# The content of a file with one module.
DOWN = np.ones((4, 16), np.float32)
UP = np.ones((16, 4), np.float32)
PAIR = {f"unet.{SHORT}.lora.down.weight": DOWN, f"unet.{SHORT}.lora.up.weight": UP}


def pair(name: str, down: np.ndarray = DOWN, up: np.ndarray = UP, style: str = "lora.{}.weight") -> dict:
    """Returns the two tensors of a module in a file."""
    return {f"{name}.{style.format('down')}": down, f"{name}.{style.format('up')}": up}
