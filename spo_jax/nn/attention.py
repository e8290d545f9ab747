"""Dot-product attention with the kernel of the platform that the program is compiled for.

TPU: the kernels of `spo_jax.nn.flash` if there are at least `FLASH_TOKENS` queries, so that no score matrix is in
memory: for latents of 64 x 64 it is 4,096 x 4,096 per head, and 15 GiB in the backward pass of 20 such latents. Masks
are for short texts, and have the plain attention.
GPU: cuDNN's flash attention if device, dtype and head size allow it. In all other cases: plain attention, XLA's or on
CPUs one that is fast there. The environment variable ``SPO_JAX_ATTENTION=plain`` forces it everywhere, in case a kernel
fails on a device.

The platform is that of the mesh in context (`jax.set_mesh`), so a program for TPUs can be compiled on a host that has
none.
"""

import functools
import os
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Bool, DType, Float
from spo_jax.nn.flash import flash_attention
from spo_jax.parallel.mesh import platform_in_context, spread_rows

# An environment variable rather than a config field: it is about a machine, not a run, and all commands have attention.
VARIABLE = "SPO_JAX_ATTENTION"
# Keys may be few: 80 rows of 4,096 queries and 77 keys take a v5e 1 ms with the kernel and 11 without, by its
# compiler's estimates.
FLASH_TOKENS = 1024


def attention_implementation(head_dim: int, dtype: DType, tokens: int) -> str:
    """Chooses the implementation of attention for the platform in context.

    Args:
      head_dim: the size of one head.
      dtype: the dtype of queries, keys and values.
      tokens: the number of queries.

    Returns:
      ``"flash"`` (TPU), ``"cudnn"`` (GPU) or ``"xla"``.

    Raises:
      UserError: ``SPO_JAX_ATTENTION`` has a value that is not known.
    """
    if _plain_is_forced():
        return "xla"
    platform = platform_in_context()
    if platform == "tpu":
        return "flash" if tokens >= FLASH_TOKENS else "xla"
    return "cudnn" if platform == "gpu" and _cudnn_takes(head_dim, dtype) else "xla"


def _plain_is_forced() -> bool:
    value = os.environ.get(VARIABLE, "") or "auto"
    if value not in ("auto", "plain"):
        raise UserError(f"environment variable {VARIABLE} = {value!r}: expected 'auto' or 'plain'")
    return value == "plain"


def _cudnn_takes(head_dim: int, dtype: DType) -> bool:
    """Whether cuDNN has forward AND backward pass: 16-bit floats, compute capability 8.0 or newer, heads up to 128.

    Wider heads, up to 256, have a backward pass on capability 9.x (Hopper) alone. Other platforms' capabilities are not
    numbers, such as ROCm's ``gfx90a``.
    """
    capability = re.match(r"(\d+)\.\d", str(getattr(jax.devices()[0], "compute_capability", "")))
    if capability is None or dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8:
        return False
    major = int(capability[1])
    return major >= 8 and head_dim <= (256 if major == 9 else 128)


def dot_product_attention(
    q: Float[Array, "b l d"],
    k: Float[Array, "b m d"],
    v: Float[Array, "b m d"],
    heads: int,
    is_causal: bool = False,
    visible: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b l d"]:
    """Multi-head attention on flat heads, scaled by 1/sqrt(head size); the softmax is in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      heads: number of heads, which divides d.
      is_causal: whether a query sees only the keys up to its own place.
      visible: the keys that queries see, at least one per row; None shows all. With it, attention is XLA's plain one:
        only short texts are padded.
    """
    implementation = attention_implementation(q.shape[-1] // heads, q.dtype, q.shape[1])
    masked = is_causal or visible is not None
    if implementation == "flash" and not masked:
        return _flash(*(spread_rows(x) for x in (q, k, v)), heads)
    if platform_in_context() == "cpu" and not masked:
        return _normalised_last(*(spread_rows(x) for x in (q, k, v)), heads)
    mask = None if visible is None else visible[:, None, None]  # [b m] -> [b 1 1 m]

    def split(x):  # [b l d] -> [b l n e]
        return spread_rows(x.reshape(*x.shape[:2], heads, -1))

    out = jax.nn.dot_product_attention(
        split(q), split(k), split(v), mask=mask, is_causal=is_causal,
        implementation="cudnn" if implementation == "cudnn" and mask is None else "xla",
    )  # fmt: skip
    return out.reshape(q.shape)


def _normalised_last(q: Float[Array, "b l d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int) -> Array:
    """Divides by the sum of a query's weights after the sum over the values, not before.

    `jax.nn.dot_product_attention` divides the matrix of weights, and XLA's CPU compiler copies it to do so: with 256
    tokens it takes 2.8 times as long, and 1.4 times with gradients (`python -m benchmarks.layers`). TPUs take longer
    with this one, a layer of CLIP ViT-H by a fifteenth, by the estimates for v5e.
    """

    def split(x):  # [b l d] -> [b n l e]
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    scale = (q.shape[-1] // heads) ** -0.5
    scores = jnp.einsum("bnle,bnme->bnlm", split(q), split(k), preferred_element_type=jnp.float32) * scale
    # The largest score is subtracted only against overflow. It has no effect on the result, so it takes no gradient.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bnlm,bnme->bnle", weights.astype(v.dtype), split(v), preferred_element_type=jnp.float32)
    out = out / weights.sum(-1, keepdims=True)
    return out.astype(q.dtype).swapaxes(1, 2).reshape(q.shape)


def _flash(q: Float[Array, "b l d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int) -> Array:
    """Runs the TPU's kernel, which XLA cannot partition: on a mesh every device runs it on its own rows.

    If the number of devices does not divide the number of rows, every device computes all of them.
    """
    kernel = functools.partial(flash_attention, heads=heads)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q, k, v)
    spec = PartitionSpec(mesh.axis_names if q.shape[0] % mesh.size == 0 else None)
    # The kernel does not declare over which mesh axes its results vary, so shard_map has nothing to check.
    return jax.shard_map(kernel, in_specs=spec, out_specs=spec, check_vma=False)(q, k, v)
