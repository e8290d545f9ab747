"""Attention on TPUs without a score matrix in memory, for heads as projections leave them: side by side in one row.

A TPU's registers and matrix units are 128 lanes wide, and heads of 40 or 80 fill them badly. Heads on an axis of their
own would have to be moved there, padded to 128 each, and back: in SD 1.5 that takes half as long as attention itself.
The kernels here read rows of all heads. For each head they take the lanes of the registers that it lies in, set those
of its neighbours to zero on one side of every product, and so get the products of the head alone, at no more work for
the matrix unit than a padded head would be, except for heads that lie across two registers.

Both passes keep scores of a block of queries and of keys on chip, and a softmax that is corrected block by block
(FlashAttention-2). The backward pass makes the gradients of queries, keys and values in one kernel, which holds those
of all keys on chip.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from spo_jax.core.typing import Array, Float
from spo_jax.nn.remat import keep

_LANES = 128  # width of a register
_QUERIES, _KEYS = 256, 512  # at a time: 0.5 MiB of float32 scores, in code that is written out for every head
_ROWS = 16  # rows of a register in 16 bits; tokens of a short sequence come in multiples of it
_MANY_KEYS = 512  # from how many on an output is worth its memory: it took four operations for each of them
_NEVER = -1e30  # score of a key that does not exist; not infinite, which would be NaN minus itself
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the heads of a row lie in registers, and how tokens are cut into blocks.

    Attributes:
      heads: number of heads in all.
      width: size of a head.
      queries: number of queries.
      keys: number of keys.
    """

    heads: int
    width: int
    queries: int
    keys: int

    @property
    def group(self) -> int:
        """Lanes that a kernel has at a time: whole heads in whole registers where there are such, otherwise all."""
        lanes = math.lcm(self.width, _LANES)
        return lanes if self.heads * self.width % lanes == 0 else self.heads * self.width

    @property
    def heads_at_a_time(self) -> int:
        """Heads of a group."""
        return self.group // self.width

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.heads // self.heads_at_a_time

    def span(self, head: int) -> slice:
        """Returns the lanes of the registers that a head of a group lies in."""
        last = -(-(head + 1) * self.width // _LANES) * _LANES
        return slice(head * self.width // _LANES * _LANES, min(last, self.group))

    @property
    def widest(self) -> int:
        """Lanes of the widest span."""
        spans = [self.span(head) for head in range(self.heads_at_a_time)]
        return max(span.stop - span.start for span in spans)

    def own(self, head: int, x: Array) -> Array:
        """Returns the lanes of a head's span with zeros in place of other heads' numbers."""
        first = head * self.width - self.span(head).start
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where((lane >= first) & (lane < first + self.width), x, jnp.zeros_like(x))

    @property
    def query_block(self) -> int:
        """Queries at a time."""
        return _block(self.queries, _QUERIES, _ROWS)

    @property
    def key_block(self) -> int:
        """Keys at a time; they are the lanes of scores."""
        return _block(self.keys, _KEYS, _LANES)

    def scores(self, q: Array, k: Array, block: Array) -> Array:
        """Returns scaled scores [queries keys] of a block of keys; keys that were added have `_NEVER`."""
        scores = _product(q, k, 1, 1) * (1 / math.sqrt(self.width))
        if self.keys % self.key_block == 0:
            return scores
        key = block * self.key_block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        return jnp.where(key < self.keys, scores, _NEVER)


def _block(tokens: int, most: int, multiple: int) -> int:
    """Returns the largest block up to ``most`` that needs the fewest more tokens."""
    if tokens <= most:
        return -(-tokens // multiple) * multiple
    return min(range(most, most // 2 - 1, -_LANES), key=lambda block: -tokens % block)


def _product(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """Multiplies two matrices, summing over an axis of each, in float32; float32 inputs are not rounded."""
    return jax.lax.dot_general(
        x, y, (((x_axis,), (y_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )  # fmt: skip


def flash_attention(
    q: Float[Array, "b l d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int
) -> Float[Array, "b l d"]:
    """Multi-head attention on flat heads, scaled by 1/sqrt(head size); differentiable.

    Args:
      q: queries.
      k: keys.
      v: values.
      heads: number of heads, which divides d.
    """
    layout = _Layout(heads, q.shape[-1] // heads, q.shape[1], k.shape[1])
    q = _with_tokens(q, layout.query_block)
    k, v = (_with_tokens(x, layout.key_block) for x in (k, v))
    return _attention(q, k, v, layout)[:, : layout.queries]


def _with_tokens(x: Float[Array, "b l d"], block: int) -> Float[Array, "b l2 d"]:
    """Appends zeros up to whole blocks."""
    more = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, more), (0, 0))) if more else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(q: Array, k: Array, v: Array, layout: _Layout) -> Array:
    return _forward(q, k, v, layout, residuals=False)[0]


def _attention_forward(q: Array, k: Array, v: Array, layout: _Layout) -> tuple[Array, tuple[Array, ...]]:
    out, normaliser = _forward(q, k, v, layout, residuals=True)
    # With tokens in place of the few heads in the lanes, which take a sixteenth of the memory or less.
    turned = normaliser.swapaxes(2, 3)
    if layout.keys >= _MANY_KEYS:
        out, turned = keep(out), keep(turned)
    return out, (q, k, v, out, turned)


def _attention_backward(layout: _Layout, residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    *inputs, turned = residuals
    return _backward(*inputs, turned.swapaxes(2, 3), gradient, layout)


_attention.defvjp(_attention_forward, _attention_backward)


# The forward pass


def _forward(q: Array, k: Array, v: Array, layout: _Layout, residuals: bool) -> tuple[Array, ...]:
    """Returns the output and, as ``residuals``, the logarithm of every query's sum of exponentials [b g l n]."""
    grid, queries, keys = _grid(q, k, layout)
    n, rows = layout.heads_at_a_time, layout.query_block
    out_shape = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    out_specs = [queries]
    if residuals:
        out_shape.append(jax.ShapeDtypeStruct((q.shape[0], layout.groups, q.shape[1], n), jnp.float32))
        out_specs.append(_of_heads(layout))
    scratch = [pltpu.VMEM((n, rows, size), jnp.float32) for size in (1, 1, layout.widest)]
    out = pl.pallas_call(
        functools.partial(_forward_kernel, layout=layout),
        grid=grid,
        in_specs=[queries, keys, keys],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=scratch,
        compiler_params=_parameters(layout, 4, n * rows * (2 * _LANES + layout.widest)),
        cost_estimate=_cost(q, k, layout, products=2),
        name="attention",
    )(q, k, v)
    return tuple(out)


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *rest, layout: _Layout):
    *normaliser_ref, most_ref, sum_ref, out_sum_ref = rest
    block, blocks = pl.program_id(3), pl.num_programs(3)

    @pl.when(block == 0)
    def begin():
        most_ref[...] = jnp.full_like(most_ref, _NEVER)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        out_sum_ref[...] = jnp.zeros_like(out_sum_ref)

    for head in range(layout.heads_at_a_time):
        span = layout.span(head)
        lanes = slice(0, span.stop - span.start)
        scores = layout.scores(layout.own(head, q_ref[0, :, span]), k_ref[0, :, span], block)
        before = most_ref[head]
        most = jnp.maximum(before, scores.max(1, keepdims=True))
        weights = jnp.exp(scores - most)
        kept = jnp.exp(before - most)
        most_ref[head] = most
        sum_ref[head] = kept * sum_ref[head] + weights.sum(1, keepdims=True)
        # The neighbours' values are summed as well, and left out at the end.
        values = _product(weights.astype(v_ref.dtype), v_ref[0, :, span], 1, 0)
        out_sum_ref[head, :, lanes] = kept * out_sum_ref[head, :, lanes] + values

    @pl.when(block == blocks - 1)
    def end():
        for first in range(0, layout.group, _LANES):
            out_ref[0, :, first : first + _LANES] = _joined(out_sum_ref, sum_ref, layout, first).astype(out_ref.dtype)
        for ref in normaliser_ref:
            columns = [most_ref[head] + jnp.log(sum_ref[head]) for head in range(layout.heads_at_a_time)]
            lane = jax.lax.broadcasted_iota(jnp.int32, ref.shape[2:], 1)
            ref[0, 0] = sum(jnp.where(lane == head, column, 0) for head, column in enumerate(columns))


def _joined(out_sum_ref, sum_ref, layout: _Layout, first: int) -> Array:
    """Returns a register's lanes of the output, from all heads that lie in them."""
    size = min(_LANES, layout.group - first)
    lane = first + jax.lax.broadcasted_iota(jnp.int32, (layout.query_block, size), 1)
    out = jnp.zeros((layout.query_block, size), jnp.float32)
    for head in range(layout.heads_at_a_time):
        span = layout.span(head)
        if span.start <= first < span.stop:
            start = first - span.start
            own = (lane >= head * layout.width) & (lane < (head + 1) * layout.width)
            out = jnp.where(own, out_sum_ref[head, :, start : start + size] / sum_ref[head], out)
    return out


# The backward pass


def _backward(q, k, v, out, normaliser, gradient, layout: _Layout) -> tuple[Array, ...]:
    """Returns the gradients of queries, keys and values."""
    grid, queries, keys = _grid(q, k, layout)
    n, rows, tokens = layout.heads_at_a_time, layout.query_block, k.shape[1]
    all_keys = pl.BlockSpec((1, tokens, layout.group), lambda row, group, *_: (row, 0, group))
    scratch = [(n, rows, 1), (rows, layout.group), (tokens, layout.group), (tokens, layout.group)]
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, layout=layout),
        grid=grid,
        in_specs=[queries, keys, keys, queries, _of_heads(layout), queries],
        out_specs=[queries, all_keys, all_keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=_parameters(layout, 6, n * rows * _LANES + (rows + 4 * tokens) * layout.group),
        cost_estimate=_cost(q, k, layout, products=5),
        name="attention_gradients",
    )(q, k, v, out, normaliser, gradient)
    return tuple(gradients)


def _backward_kernel(
    q_ref, k_ref, v_ref, out_ref, normaliser_ref, gradient_ref, dq_ref, dk_ref, dv_ref,
    mean_ref, dq_sum_ref, dk_sum_ref, dv_sum_ref, *, layout: _Layout,
):  # fmt: skip
    query, queries = pl.program_id(2), pl.num_programs(2)
    block, blocks = pl.program_id(3), pl.num_programs(3)
    rows = pl.ds(block * layout.key_block, layout.key_block)

    @pl.when(query == 0)
    def begin_keys():
        dk_sum_ref[rows] = jnp.zeros((layout.key_block, layout.group), jnp.float32)
        dv_sum_ref[rows] = jnp.zeros((layout.key_block, layout.group), jnp.float32)

    @pl.when(block == 0)
    def begin_queries():
        dq_sum_ref[...] = jnp.zeros_like(dq_sum_ref)
        for head in range(layout.heads_at_a_time):
            span = layout.span(head)
            product = gradient_ref[0, :, span].astype(jnp.float32) * out_ref[0, :, span].astype(jnp.float32)
            mean_ref[head] = layout.own(head, product).sum(1, keepdims=True)

    for head in range(layout.heads_at_a_time):
        span = layout.span(head)
        q = layout.own(head, q_ref[0, :, span])
        k = layout.own(head, k_ref[0, :, span])
        gradient = layout.own(head, gradient_ref[0, :, span])
        weights = jnp.exp(layout.scores(q, k, block) - normaliser_ref[0, 0, :, head : head + 1])
        dv_sum_ref[rows, span] += _product(weights.astype(q.dtype), gradient, 0, 0)
        dweights = _product(gradient, v_ref[0, :, span], 1, 1)
        dscores = weights * (dweights - mean_ref[head]) * (1 / math.sqrt(layout.width))
        dscores = dscores.astype(q.dtype)
        dk_sum_ref[rows, span] += _product(dscores, q, 0, 0)
        dq_sum_ref[:, span] += _product(dscores, k, 1, 0)

    @pl.when(block == blocks - 1)
    def end_queries():
        dq_ref[0] = dq_sum_ref[...].astype(dq_ref.dtype)

    @pl.when(query == queries - 1)
    def end_keys():
        dk_ref[0, rows] = dk_sum_ref[rows].astype(dk_ref.dtype)
        dv_ref[0, rows] = dv_sum_ref[rows].astype(dv_ref.dtype)


# What both passes say to Pallas


def _grid(q: Array, k: Array, layout: _Layout) -> tuple[tuple[int, ...], pl.BlockSpec, pl.BlockSpec]:
    """Returns the grid (rows, groups of heads, blocks of queries, blocks of keys) and the blocks of both."""
    grid = q.shape[0], layout.groups, q.shape[1] // layout.query_block, k.shape[1] // layout.key_block
    queries = pl.BlockSpec((1, layout.query_block, layout.group), lambda row, group, i, j: (row, i, group))
    keys = pl.BlockSpec((1, layout.key_block, layout.group), lambda row, group, i, j: (row, j, group))
    return grid, queries, keys


def _of_heads(layout: _Layout) -> pl.BlockSpec:
    """Returns the block of an array with one number for each query and head, [b g l n]."""
    return pl.BlockSpec((1, 1, layout.query_block, layout.heads_at_a_time), lambda row, group, i, j: (row, group, i, 0))


def _parameters(layout: _Layout, arrays: int, floats: int) -> pltpu.CompilerParams:
    """Asks for as much memory on the chip as blocks, scratch and some scores take.

    Args:
      layout: the layout.
      arrays: blocks of tokens, of which there are two each, in up to 4 bytes.
      floats: numbers in scratch.
    """
    tokens = max(layout.query_block, layout.key_block)
    scores = 8 * layout.query_block * layout.key_block
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=max(16 * _MIB, 4 * (2 * arrays * tokens * layout.group + floats + scores)),
    )


def _cost(q: Array, k: Array, layout: _Layout, products: int) -> pl.CostEstimate:
    """Counts what attention is, without what padding adds, for the compiler's schedule and for benchmarks."""
    scores = q.shape[0] * layout.heads * layout.queries * layout.keys
    moved = products * (layout.queries + layout.keys) * q.shape[0] * layout.heads * layout.width * q.dtype.itemsize
    return pl.CostEstimate(flops=2 * products * scores * layout.width, transcendentals=scores, bytes_accessed=moved)
