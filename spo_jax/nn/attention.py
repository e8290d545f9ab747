"""Dot-product attention with the kernel of the platform that the program is compiled for.

TPU: Pallas' flash attention if there are at least `FLASH_TOKENS` queries and keys, so that their score matrix is never
in memory: for latents of 64 x 64 it is 4,096 x 4,096 per head, and 15 GiB in the backward pass of 20 such latents.
GPU: cuDNN's flash attention if device, dtype and head size allow it. In all other cases: XLA's plain attention, which
the environment variable ``SPO_JAX_ATTENTION=plain`` forces everywhere, in case a kernel fails on a device.

The platform is that of the mesh in context (`jax.set_mesh`), so a program for TPUs can be compiled on a host that has
none.
"""

import functools
import math
import os
import re

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import PartitionSpec

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Bool, DType, Float
from spo_jax.parallel.mesh import platform_in_context, spread_rows

# An environment variable rather than a config field: it is about a machine, not a run, and all commands have attention.
VARIABLE = "SPO_JAX_ATTENTION"
# Memory of the forward and backward pass, compiled for v5e with 20 images and heads of size 80: 1,024 tokens take
# 0.4 GiB with flash attention and 1.0 GiB with plain attention. 1,024 queries and 77 keys take 0.3 and 0.0 GiB, because
# the kernel's layout pads heads of size 40 and 80 to 128.
FLASH_TOKENS = 1024
_LANES = 128  # Width of the TPU's vector registers; tokens and wide heads come in multiples of it.
_BLOCK = 512  # Queries and keys that the kernel holds on chip at a time: 1 MiB of float32 scores.


def attention_implementation(head_dim: int, dtype: DType, tokens: int) -> str:
    """Chooses the implementation of attention for the platform in context.

    Args:
      head_dim: the size of one head.
      dtype: the dtype of queries, keys and values.
      tokens: the number of queries or of keys, whichever is smaller.

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
    implementation = attention_implementation(q.shape[-1] // heads, q.dtype, min(q.shape[1], k.shape[1]))
    if visible is not None:
        attend = functools.partial(
            jax.nn.dot_product_attention, implementation="xla", mask=visible[:, None, None]
        )  # [b m] -> [b 1 1 m]
    elif implementation == "flash":
        attend = flash_attention
    else:
        attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)

    def split(x):  # [b l d] -> [b l n e]
        return spread_rows(x.reshape(*x.shape[:2], heads, -1))

    return attend(split(q), split(k), split(v), is_causal=is_causal).reshape(q.shape)


def flash_attention(
    q: Float[Array, "b l n e"], k: Float[Array, "b m n e"], v: Float[Array, "b m n e"], is_causal: bool = False
) -> Float[Array, "b l n e"]:
    """Attention of n heads on a TPU without a score matrix in memory; differentiable.

    XLA cannot partition a kernel, so on a mesh every device runs it on its own rows. If the number of devices does not
    divide the number of rows, every device computes all of them.
    """
    kernel = functools.partial(_kernel, is_causal=is_causal)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q, k, v)
    spec = PartitionSpec(mesh.axis_names if q.shape[0] % mesh.size == 0 else None)
    # The kernel does not declare over which mesh axes its results vary, so shard_map has nothing to check.
    return jax.shard_map(kernel, in_specs=spec, out_specs=spec, check_vma=False)(q, k, v)


def _kernel(
    q: Float[Array, "b l n e"], k: Float[Array, "b m n e"], v: Float[Array, "b m n e"], is_causal: bool
) -> Float[Array, "b l n e"]:
    """Pallas' kernel, which expects [b n l e], whole blocks of tokens, and wide heads in whole registers.

    Padded keys belong to a different segment than all queries, so they have no weight; padded queries are cut off.
    """
    batch, length, _, width = q.shape
    keys = k.shape[1]
    wide = width if width < _LANES else _rounded_up(width, _LANES)
    block_q = min(_BLOCK, _rounded_up(length, _LANES))
    block_k = min(_BLOCK, _rounded_up(keys, _LANES))

    def prepared(x, block):  # [b l n e] -> [b n l e], padded
        more = _rounded_up(x.shape[1], block) - x.shape[1]
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, wide - width)))

    q = prepared(q, block_q)
    k = prepared(k, block_k)
    v = prepared(v, block_k)
    segments = None
    if k.shape[2] != keys:
        outside = (jnp.arange(k.shape[2]) >= keys).astype(jnp.int32)
        segments = pallas.SegmentIds(
            jnp.zeros((batch, q.shape[2]), jnp.int32), jnp.broadcast_to(outside[None], (batch, k.shape[2]))
        )
    sizes = _block_sizes(block_q, block_k)
    out = pallas.flash_attention(
        q, k, v, segment_ids=segments, causal=is_causal, sm_scale=1 / math.sqrt(width), block_sizes=sizes
    )
    return out[:, :, :length, :width].swapaxes(1, 2)  # [b n l e] -> [b l n e]


def _block_sizes(block_q: int, block_k: int) -> pallas.BlockSizes:
    """One size for queries and one for keys, except in the gradient of the queries."""
    return pallas.BlockSizes(
        block_b=1,
        block_q=block_q,
        block_k_major=block_k,
        block_k=block_k,
        block_q_major_dkv=block_q,
        block_q_dkv=block_q,
        block_k_major_dkv=block_k,
        block_k_dkv=block_k,
        block_q_dq=block_q,
        # This kernel receives the row sum of every query this many times: 1.3 GB at 512, 20 images and 4,096 tokens.
        block_k_major_dq=_LANES,
        block_k_dq=_LANES,
    )


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
