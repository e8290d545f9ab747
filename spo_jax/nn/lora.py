"""Low-rank adaptation as its own variable collection.

``module.apply({"params": base, "lora": tree}, ...)`` is the policy; the same call without ``"lora"`` is the
reference: one set of base weights. Gradients never see merged ones; a rollout on CPUs does (`spo_jax.methods.spo.programs`).

The trainable tree has, for every adapted Dense, ``{"lora_A": Float[in r], "lora_B": Float[r out]}`` in float32.
The factor alpha / r is not a weight: `scaled` multiplies it into ``lora_B`` on the way into ``apply``.
"""

import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Array, DType, Float, Key, Params

# The published SPO targets: all four projections of self- and cross-attention.
ATTENTION_TARGETS = r"(to_q|to_k|to_v|to_out_0)$"


class LoRADense(nn.Module):
    """``nn.Dense`` that adds ``x A B`` in float32 when the ``lora`` collection holds this module."""

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        out = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out = out + bias.astype(self.dtype).reshape((1,) * (out.ndim - 1) + (-1,))
        if not self.has_variable("lora", "lora_A"):
            return out
        a, b = self.get_variable("lora", "lora_A"), self.get_variable("lora", "lora_B")
        delta = x.astype(jnp.float32) @ a @ b
        return (out.astype(jnp.float32) + delta).astype(self.dtype)


def target_shapes(params: Params, pattern: str = ATTENTION_TARGETS) -> dict[str, tuple[int, int]]:
    """The Dense modules whose path matches ``pattern``, with (in, out); ``params`` may hold shapes only."""
    flat = flatten(params)
    modules = {path.removesuffix("/kernel"): leaf for path, leaf in flat.items() if path.endswith("/kernel")}
    return {path: leaf.shape for path, leaf in modules.items() if leaf.ndim == 2 and re.search(pattern, path)}


def init_lora(key: Key, params: Params, rank: int, pattern: str = ATTENTION_TARGETS) -> Params:
    """peft's ``init_lora_weights="gaussian"``: A is normal with standard deviation 1/rank, B is zero."""
    targets = target_shapes(params, pattern)
    flat = {}
    for module_key, (path, (features_in, features_out)) in zip(
        jax.random.split(key, len(targets)), targets.items(), strict=True
    ):
        flat[f"{path}/lora_A"] = jax.random.normal(module_key, (features_in, rank), jnp.float32) / rank
        flat[f"{path}/lora_B"] = jnp.zeros((rank, features_out), jnp.float32)
    return unflatten(flat)


def scaled(lora: Params, scale: float) -> Params:
    """The tree that ``apply`` takes: ``lora_B`` times ``scale`` (alpha / r, times the user's strength)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * scale if path[-1].key == "lora_B" else leaf, lora)


def merge(params: Params, lora: Params, scale: float) -> Params:
    """Base weights with ``scale · A B`` added to the adapted kernels; sums in float32, dtypes kept."""
    flat, deltas = flatten(params), flatten(lora)
    # In one order in every process: another program would not be found among the compiled ones.
    for path in sorted({name.rsplit("/", 1)[0] for name in deltas}):
        kernel = flat[f"{path}/kernel"]
        delta = scale * (deltas[f"{path}/lora_A"] @ deltas[f"{path}/lora_B"])
        flat[f"{path}/kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return unflatten(flat)
