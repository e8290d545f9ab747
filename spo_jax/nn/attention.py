"""Dot-product attention, by the kernel of the platform that the program is compiled for.

TPU: Pallas' flash attention where queries and keys are `FLASH_TOKENS` or more, so that their score matrix is never in
memory: 4,096 x 4,096 for a head and latents of 64 x 64, 15 GiB in the backward pass of 20 of them. GPU: cuDNN's flash
attention where device, dtype and head size allow it. Else XLA's plain one.

The platform is that of the mesh in context (`jax.set_mesh`): a program for TPUs can be compiled on a host without one.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import PartitionSpec

from spo_jax.core.typing import Array, DType, Float
from spo_jax.parallel.mesh import platform_in_context, spread_rows

# Compiled for v5e with 20 images, heads of 80: 1,024 tokens take 0.4 GiB in flash attention and 1.0 in plain, forward
# and backward. 1,024 queries and 77 keys take 0.3 and 0.0: the kernel's layout pads heads of 40 and 80 to 128.
FLASH_TOKENS = 1024
_LANES = 128  # Width of the TPU's vector registers: tokens and wide heads come in multiples of it.
_BLOCK = 512  # Queries and keys that the kernel has on chip at a time: 1 MiB of float32 scores.


def attention_implementation(head_dim: int, dtype: DType, tokens: int) -> str:
    """``"flash"`` (TPU), ``"cudnn"`` (GPU) or ``"xla"``.

    cuDNN takes 16-bit floats and head sizes divisible by 8 up to 128, on Hopper and newer up to 256.

    Args:
      tokens: queries or keys, whichever are fewer.
    """
    platform = platform_in_context()
    if platform == "tpu":
        return "flash" if tokens >= FLASH_TOKENS else "xla"
    if platform != "gpu" or dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8:
        return "xla"
    hopper = float(getattr(jax.devices()[0], "compute_capability", "0")) >= 9.0
    return "cudnn" if head_dim <= (256 if hopper else 128) else "xla"


def dot_product_attention(
    q: Float[Array, "b l d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int, is_causal: bool = False
) -> Float[Array, "b l d"]:
    """Multi-head attention on flat heads, scaled by 1/sqrt(head size); the softmax is in float32."""
    implementation = attention_implementation(q.shape[-1] // heads, q.dtype, min(q.shape[1], k.shape[1]))
    if implementation == "flash":
        attend = flash_attention
    else:
        attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    split = lambda x: spread_rows(x.reshape(*x.shape[:2], heads, -1))  # noqa: E731
    return attend(split(q), split(k), split(v), is_causal=is_causal).reshape(q.shape)


def flash_attention(
    q: Float[Array, "b l n e"], k: Float[Array, "b m n e"], v: Float[Array, "b m n e"], is_causal: bool = False
) -> Float[Array, "b l n e"]:
    """Attention of n heads without a score matrix in memory, on a TPU; differentiable.

    XLA cannot cut a kernel into parts: on a mesh every device runs it on its own rows. Rows that the devices do not
    divide are computed on all of them.
    """
    kernel, mesh = functools.partial(_kernel, is_causal=is_causal), jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q, k, v)
    spec = PartitionSpec(mesh.axis_names if q.shape[0] % mesh.size == 0 else None)
    # The kernel does not tell over which axes its results vary, so there is nothing to check.
    return jax.shard_map(kernel, in_specs=spec, out_specs=spec, check_vma=False)(q, k, v)


def _kernel(
    q: Float[Array, "b l n e"], k: Float[Array, "b m n e"], v: Float[Array, "b m n e"], is_causal: bool
) -> Float[Array, "b l n e"]:
    """Pallas' kernel, which wants [b n l e], whole blocks of tokens, and wide heads in whole registers.

    Keys beyond the end belong to another segment than all queries, so they weigh nothing; queries beyond it are cut.
    """
    (batch, length, _, width), keys = q.shape, k.shape[1]
    wide = width if width < _LANES else _rounded_up(width, _LANES)
    block_q, block_k = (min(_BLOCK, _rounded_up(tokens, _LANES)) for tokens in (length, keys))

    def prepared(x, block):
        more = _rounded_up(x.shape[1], block) - x.shape[1]
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, wide - width)))

    q, k, v = prepared(q, block_q), prepared(k, block_k), prepared(v, block_k)
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
    return out[:, :, :length, :width].swapaxes(1, 2)


def _block_sizes(block_q: int, block_k: int) -> pallas.BlockSizes:
    """One size for queries and one for keys, but for the gradient of the queries."""
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
        # That kernel is given every query's row sum this many times over: 1.3 GB at 512, 20 images and 4,096 tokens.
        block_k_major_dq=_LANES,
        block_k_dq=_LANES,
    )


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
