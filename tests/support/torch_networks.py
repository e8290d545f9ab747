"""Small torch networks with random weights, and the same weights in our networks.

In torch, biases start at 0 and norms at 1, so that a swapped or missing one would have no effect. Here they are random.
"""

import functools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.weights import rules


def relative_error(ours: Any, theirs: Any) -> float:
    """Returns the largest difference over the reference's largest value; both arrays have the reference's layout."""
    ours = np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def normal(seed: int, *shape: int) -> jax.Array:
    """Draws standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def to_torch(x: Any) -> torch.Tensor:
    """Converts an array to torch."""
    return torch.from_numpy(np.array(x))


def nchw(x: Any) -> torch.Tensor:
    """Converts [b h w c] to torch's [b c h w]."""
    return to_torch(x).permute(0, 3, 1, 2).contiguous()


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Converts torch's [b c h w] to [b h w c]."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Adds noise to the module's biases and norms; returns it frozen and in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def tree(module: torch.nn.Module, shapes: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the module's weights in the tree of our network."""
    state = {prefix + name: value.numpy() for name, value in module.state_dict().items()}
    return rules.to_tree(state, shapes, "torch")


def jit(function: Callable, **settings: Any) -> Callable:
    """Compiles without LLVM's optimisations, because small networks spend nearly all their time in the compiler."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **settings)


def remat_blocks(function: Callable, *args: Any) -> int:
    """Counts the parts of a function that are recomputed in its backward pass."""
    return len(re.findall(r"\b(?:checkpoint|remat2?)\[", str(jax.make_jaxpr(function)(*args))))


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """The helper functions of this file."""
    helpers = (relative_error, normal, to_torch, nchw, nhwc, randomised, tree, jit, remat_blocks)
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers})


_BASE = dict(norm_num_groups=4, cross_attention_dim=12, layers_per_block=1)
# Together they cover every block type and field that differs between the published UNets, and others of diffusers.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": dict(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    ),
    "sd21": dict(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 2),
        layers_per_block=(2, 1),
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "sdxl": dict(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=10 + 6 * 6,
    ),
    "odd ones": dict(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),  # A level with attention is mirrored by one without.
        attention_head_dim=(2, 1),
        in_channels=9,
        out_channels=3,
        conv_in_kernel=1,
        conv_out_kernel=5,
        norm_eps=0.1,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
}


@pytest.fixture(scope="session")
def unets() -> Callable[[str], SimpleNamespace]:
    """A function from a kind to ``theirs`` (torch) and ``ours``, with ``params``, a jitted ``apply`` and ``inputs``."""

    @functools.cache
    def build(kind: str) -> SimpleNamespace:
        torch.manual_seed(0)
        theirs = randomised(diffusers.UNet2DConditionModel(**_BASE | UNETS[kind]))
        ours = UNet2DConditionModel(UNetConfig.from_dict(dict(theirs.config)))
        config = ours.config

        def inputs(height: int, width: int) -> tuple[Any, ...]:
            """Makes two rows of x, t, context and, if the network takes them, pooled text and time ids."""
            x = normal(1, 2, height, width, config.in_channels)
            context = normal(2, 2, 5, config.cross_attention_dim)
            sizes = jnp.array([[64.0, 48, 0, 8, 64, 64], [1024, 768, 3, 0, 512, 512]])
            extra = (normal(3, 2, 10), sizes) if config.wants_size_conditions else ()
            return x, jnp.array([999, 251]), context, *extra

        def predict(*inputs: Any) -> torch.Tensor:
            """Returns torch's prediction for our inputs as [b h w c], with its graph."""
            x, t, context, *extra = inputs
            added = dict(zip(("text_embeds", "time_ids"), map(to_torch, extra), strict=False))
            x, t, context = nchw(x), to_torch(t), to_torch(context)
            return theirs(x, t, context, added_cond_kwargs=added or None).sample.permute(0, 2, 3, 1)

        params = jax.device_put(tree(theirs, unet_shapes(ours)))
        apply = jit(ours.apply)
        return SimpleNamespace(theirs=theirs, ours=ours, apply=apply, params=params, inputs=inputs, predict=predict)

    return build
