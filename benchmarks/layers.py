"""Compares layers that this package computes in its own way with plain ones: ``python -m benchmarks.layers``.

Two programs run in turn on the device at hand, with widths of the toy pipeline's decoder and UNet. Both compute the
same (tests/nn) and differ in time. A second table has the operations per second of jax's convolutions in float32, with
widths of the toy, of the benchmarks' size ``small`` (56) and of 64, beside those of a matrix product of 1,024: what
keeps a rollout on CPUs from that rate.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn

from spo_jax.core.cli import run_command
from spo_jax.core.typing import Array, Float
from spo_jax.nn.attention import dot_product_attention
from spo_jax.nn.convolution import convolve
from spo_jax.nn.layers import GroupNorm, UpsampledConv

_ONES = ((1, 1), (1, 1))
# Images, their side, and channels before and after, of convolutions with kernel 3: two of the UNet, then the decoder,
# and two whose widths differ by an eighth.
_CONVOLUTIONS = (
    (64, 4, 96, 96), (64, 8, 48, 48), (96, 8, 64, 64), (96, 32, 32, 16), (96, 32, 16, 16), (96, 32, 16, 3),
    (32, 16, 56, 56), (32, 16, 64, 64),
)  # fmt: skip


class PlainUpsampledConv(nn.Module):
    """A convolution over the doubled image."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 e"]:
        doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return nn.Conv(self.features, (3, 3), padding=_ONES)(doubled)


def gradient_in_a_loop(convolution: Callable) -> Callable:
    """Returns a function that takes the gradient of a convolution's input four times; the kernel is frozen."""

    def run(x, kernel):
        gradient = jax.grad(lambda x: jnp.square(convolution(x, kernel)).sum())
        return jax.lax.fori_loop(0, 4, lambda _, x: x - 1e-3 * gradient(x), x)

    return run


def plain_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "k l c e"]) -> Float[Array, "b h w e"]:
    """Convolves as jax does."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), _ONES, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_attention(
    q: Float[Array, "b l d"], k: Float[Array, "b l d"], v: Float[Array, "b l d"], heads: int
) -> Float[Array, "b l d"]:
    """Attends as jax does."""
    out = jax.nn.dot_product_attention(*(x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v)))
    return out.reshape(q.shape)


def gradients_of(attend: Callable) -> Callable:
    """Returns a function that takes the gradients of an attention's three inputs."""
    return jax.grad(lambda *inputs: jnp.square(attend(*inputs)).sum(), (0, 1, 2))


def cases() -> dict[str, tuple[Callable, Callable, tuple[Any, ...], tuple[Any, ...]]]:
    """Returns by name: our function, the plain one, arguments of ours, arguments of the plain one."""

    def normal(*shape: int) -> Array:
        return jax.random.normal(jax.random.key(0), shape)

    def modules(ours: nn.Module, plain: nn.Module, x: Array) -> tuple[Any, ...]:
        arguments = [(jax.jit(module.init)(jax.random.key(1), x), x) for module in (ours, plain)]
        return ours.apply, plain.apply, *arguments

    loops = gradient_in_a_loop(convolve), gradient_in_a_loop(plain_convolution)
    both = (normal(32, 8, 8, 144), normal(3, 3, 144, 48))
    odd = (normal(32, 16, 16, 56), normal(3, 3, 56, 56))
    tokens = (normal(32, 256, 56),) * 3
    attentions = [functools.partial(attend, heads=4) for attend in (dot_product_attention, plain_attention)]
    return {
        "attention": (*attentions, tokens, tokens),
        "attention and its gradients": (*map(gradients_of, attentions), tokens, tokens),
        "convolution of 56 features": (convolve, plain_convolution, odd, odd),
        "convolution of a doubled image": modules(UpsampledConv(64), PlainUpsampledConv(64), normal(64, 8, 8, 64)),
        "gradient of a convolution in a loop": (*loops, both, both),
        "group norm": modules(
            GroupNorm(8, 1e-6), nn.GroupNorm(8, epsilon=1e-6, use_fast_variance=False), normal(64, 32, 32, 16)
        ),
    }


def rates(repeats: int) -> dict[str, float]:
    """Measures the operations per second of a product and of convolutions, by their names."""

    def rate(function: Callable, flops: float, *shapes: tuple[int, ...]) -> float:
        arguments = tuple(jnp.ones(shape) for shape in shapes)
        return flops / (1e-3 * milliseconds([function], [arguments], repeats)[0])

    found = {"product of 1,024": rate(jnp.matmul, 2 * 1024**3, (1024, 1024), (1024, 1024))}
    for images, side, before, after in _CONVOLUTIONS:
        shapes = (images, side, side, before), (3, 3, before, after)
        flops = 2 * 9 * images * side**2 * before * after
        found[f"{images} of {side} x {side}, {before} to {after} channels"] = rate(plain_convolution, flops, *shapes)
    return found


def milliseconds(functions: Sequence[Callable], arguments: Sequence[tuple[Any, ...]], repeats: int) -> list[float]:
    """Measures functions in turn, compiled; returns the median of each."""
    programs = [jax.jit(function) for function in functions]
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats + 1):  # the first one compiles
        for program, own, taken in zip(programs, arguments, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(*own))
            taken.append(time.perf_counter() - begin)
    return [1e3 * statistics.median(taken[1:]) for taken in seconds]


def run() -> None:
    """Runs the command."""
    repeats = flags.DEFINE_integer("repeats", 20, "Time this number of runs.", lower_bound=1)

    def main(_: Sequence[str]) -> None:
        print(f"{'on ' + jax.devices()[0].device_kind:38s} {'ours':>9s} {'plain':>9s}")
        for name, (*functions, ours, plain) in cases().items():
            found = milliseconds(functions, (ours, plain), repeats.value)
            print(f"{name:38s} {found[0]:6.2f} ms {found[1]:6.2f} ms   {found[1] / found[0]:.1f} times as fast")
        for name, rate in rates(repeats.value).items():
            print(f"{name:38s} {rate / 1e9:6.1f} GFLOP/s")

    run_command(main)


if __name__ == "__main__":
    run()
