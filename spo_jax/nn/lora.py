"""Low-rank adaptation as a variable collection of its own.

``module.apply({"params": base, "lora": tree}, ...)`` is the policy, and the same call without ``"lora"`` is the
reference, so there is one set of base weights. Gradients are never taken through merged weights; a rollout on CPUs does
use them (`spo_jax.methods.spo`).

The trainable tree holds ``{"lora_A": Float[in r], "lora_B": Float[r out]}`` in float32 for every adapted Dense.
The factor alpha / r is not a weight: `scaled` multiplies it into ``lora_B`` before the tree is passed to ``apply``.
"""

import re

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint

from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Array, DType, Float, Key, Params
from spo_jax.nn.given import Given
from spo_jax.parallel.mesh import platform_in_context

# The targets of the published SPO: all four projections of self- and cross-attention.
ATTENTION_TARGETS = r"(to_q|to_k|to_v|to_out_0)$"


class LoRADense(Given):
    """``nn.Dense`` that adds ``x A B`` in float32 if the ``lora`` collection holds this module.

    Attributes:
      features: number of outputs.
      use_bias: whether a bias is added.
      dtype: dtype of the computation.
      halves: whether the two halves of the outputs are computed, and returned, apart.
    """

    features: int
    use_bias: bool = True
    dtype: DType = jnp.float32
    halves: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"] | list[Float[Array, "*b e2"]]:
        kernel = jnp.asarray(self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else None
        if not self.halves:
            return self._outputs(x, kernel, bias, slice(None))
        half = self.features // 2
        return [self._outputs(x, kernel, bias, columns) for columns in (slice(half), slice(half, None))]

    def _outputs(
        self, x: Float[Array, "*b d"], kernel: Float[Array, "d e"], bias: Float[Array, " e"] | None, columns: slice
    ) -> Float[Array, "*b e2"]:
        """Computes some columns of the outputs."""
        out = x.astype(self.dtype) @ kernel[:, columns].astype(self.dtype)
        if bias is not None:
            out = out + bias[columns].astype(self.dtype).reshape((1,) * (out.ndim - 1) + (-1,))
        if not self.has_variable("lora", "lora_A"):
            return out
        a = self.get_variable("lora", "lora_A")
        b = self.get_variable("lora", "lora_B")
        delta = _in_rows(_product(_product(x.astype(jnp.float32), a), b[:, columns]))
        return (out.astype(jnp.float32) + delta).astype(self.dtype)


def _in_rows(x: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    """Asks TPUs for outputs whose last axis is innermost, as attention and feed-forwards take them.

    The compiler lays products with few columns out along the tokens, and what is made from them too. Each delta would
    then be turned in float32: by the estimates for v5e, 8 of the 110 ms of an attention of SD 1.5's largest level.
    """
    if platform_in_context() != "tpu" or x.ndim != 3:
        return x
    return with_layout_constraint(x, Layout((0, 1, 2)))


def _product(x: Float[Array, "*b d"], y: Float[Array, "d e"]) -> Float[Array, "*b e"]:
    """Multiplies in float32, forward and backward.

    Without the precision, TPUs would round both sides to bfloat16 and NVIDIA GPUs to TF32. TPUs need six passes for it,
    but with few columns a product mostly moves memory: by the compiler's estimate for v5e, forward and backward of an
    adapted projection of SD 1.5 or SDXL take 10 to 36 % longer, which is a few per cent of an update.
    """
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def target_shapes(params: Params, pattern: str = ATTENTION_TARGETS) -> dict[str, tuple[int, int]]:
    """Returns the shapes (in, out) of the Dense modules whose path matches a pattern.

    Args:
      params: the tree of base weights, or of their shapes only.
      pattern: a regular expression that is searched in every module's path.
    """
    flat = flatten(params)
    modules = {path.removesuffix("/kernel"): leaf for path, leaf in flat.items() if path.endswith("/kernel")}
    return {path: leaf.shape for path, leaf in modules.items() if leaf.ndim == 2 and re.search(pattern, path)}


def init_lora(key: Key, params: Params, rank: int, pattern: str = ATTENTION_TARGETS) -> Params:
    """Initialises as peft's ``init_lora_weights="gaussian"``: A is normal with standard deviation 1/rank, B is zero."""
    targets = target_shapes(params, pattern)
    keys = jax.random.split(key, len(targets))
    flat = {}
    for module_key, (path, (features_in, features_out)) in zip(keys, targets.items(), strict=True):
        flat[f"{path}/lora_A"] = jax.random.normal(module_key, (features_in, rank), jnp.float32) / rank
        flat[f"{path}/lora_B"] = jnp.zeros((rank, features_out), jnp.float32)
    return unflatten(flat)


def scaled(lora: Params, scale: float | Float[Array, ""]) -> Params:
    """Returns the tree that ``apply`` takes: ``lora_B`` times ``scale`` (alpha / r, times the user's strength)."""

    def scale_leaf(path, leaf):
        return leaf * scale if path[-1].key == "lora_B" else leaf

    return jax.tree_util.tree_map_with_path(scale_leaf, lora)


def merge(params: Params, lora: Params, scale: float) -> Params:
    """Adds ``scale · A B`` to the adapted kernels of the base weights; sums in float32 and keeps the dtypes."""
    flat = flatten(params)
    deltas = flatten(lora)
    # Sorted, so that every process builds the same program: another one would not be found in the compilation cache.
    for path in sorted({name.rsplit("/", 1)[0] for name in deltas}):
        kernel = flat[f"{path}/kernel"]
        a, b = (jnp.asarray(deltas[f"{path}/{half}"]) for half in ("lora_A", "lora_B"))  # those of a file are numpy's
        delta = scale * _product(a, b)
        flat[f"{path}/kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return unflatten(flat)
