"""A small program with what `benchmarks.cycles` has to count, and its optimised HLO as libtpu 0.0.42.1 gives it.

``python -m tests.benchmarks.tpu_program`` writes ``tpu_program.hlo`` anew, for a v5e, without places in source files
and without the code of the kernel, which nothing reads.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.topologies import find_topology
from spo_jax.nn.flash import flash_attention

TEXT = Path(__file__).with_suffix(".hlo")
TURNS = 5
ROWS, TOKENS, HEADS, WIDTH = 2, 256, 2, 40


class Net(nn.Module):
    """A product, a norm whose sums are over rows, and a product."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(256, dtype=x.dtype, name="up")(x)
        h = h / jnp.sqrt((h.astype(jnp.float32) ** 2).mean(0, keepdims=True)).astype(h.dtype)
        return nn.Dense(x.shape[-1], dtype=x.dtype, name="down")(jnp.tanh(h))


def program(params, x, weight, again, count):
    """A loop of a known length, one of an unknown length, a branch, and a kernel."""
    x, _ = jax.lax.scan(lambda x, _: (Net().apply(params, x), None), x, None, length=TURNS)
    x = jax.lax.fori_loop(0, count, lambda _, x: jnp.sin(x @ weight), x)
    x = jax.lax.cond(again, lambda x: x @ weight @ weight, lambda x: 2 * x, x)
    heads = x[None, :TOKENS, : HEADS * WIDTH].repeat(ROWS, 0)
    return flash_attention(heads, heads, heads, HEADS)


def traced():
    """The program for a TPU that is not here."""
    sharding = jax.sharding.SingleDeviceSharding(find_topology("v5e:1x1")[0])

    def shape(sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    x = shape((512, 128))
    params = jax.eval_shape(Net().init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: shape(leaf.shape), params)
    return jax.jit(program).trace(params, x, shape((128, 128)), shape((), jnp.bool_), shape((), jnp.int32))


def main():
    """Writes the text."""
    text = traced().lower().compile().as_text()
    text = re.sub(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)+", "", text, flags=re.M)
    text = re.sub(r' stack_frame_id=\d+| source_file="[^"]*"| source_line=\d+', "", text)
    text = re.sub(r'"body":"[^"]*"', '"body":""', text)
    text = re.sub(r',"(flag|scoped_memory|used_scoped_memory|retry)_configs?":(\[[^]]*\]|\{[^}]*\})', "", text)
    TEXT.write_text(re.sub(r"\n{3,}", "\n\n", text))


if __name__ == "__main__":
    main()
