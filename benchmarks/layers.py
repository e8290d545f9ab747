"""Layers that are written in a way of their own, beside the plain way: ``python -m benchmarks.layers``.

Each is a rate of two programs run in turn on the device at hand, at the widths of the embedded pipeline's decoder and
UNet. Both compute the same (tests/models); what differs is time.
"""

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
from spo_jax.nn.convolution import convolve
from spo_jax.nn.layers import GroupNorm, UpsampledConv

_ONES = ((1, 1), (1, 1))


class PlainUpsampledConv(nn.Module):
    """The doubled picture, and a convolution over it."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 e"]:
        doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return nn.Conv(self.features, (3, 3), padding=_ONES)(doubled)


def gradient_in_a_loop(convolution: Callable) -> Callable:
    """Four times the gradient of a convolution's input, the kernel frozen."""

    def run(x, kernel):
        gradient = jax.grad(lambda x: jnp.square(convolution(x, kernel)).sum())
        return jax.lax.fori_loop(0, 4, lambda _, x: x - 1e-3 * gradient(x), x)

    return run


def plain_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "k l c e"]) -> Float[Array, "b h w e"]:
    """jax's own."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), _ONES, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def cases() -> dict[str, tuple[Callable, Callable, tuple[Any, ...], tuple[Any, ...]]]:
    """Name to (ours, plain, arguments of ours, of the plain)."""
    normal = lambda *shape: jax.random.normal(jax.random.key(0), shape)  # noqa: E731

    def modules(ours: nn.Module, plain: nn.Module, x: Array) -> tuple[Any, ...]:
        arguments = [(jax.jit(module.init)(jax.random.key(1), x), x) for module in (ours, plain)]
        return ours.apply, plain.apply, *arguments

    loops = gradient_in_a_loop(convolve), gradient_in_a_loop(plain_convolution)
    both = (normal(32, 8, 8, 144), normal(3, 3, 144, 48))
    return {
        "convolution of a doubled picture": modules(UpsampledConv(64), PlainUpsampledConv(64), normal(64, 8, 8, 64)),
        "gradient of a convolution in a loop": (*loops, both, both),
        "group norm": modules(
            GroupNorm(8, 1e-6), nn.GroupNorm(8, epsilon=1e-6, use_fast_variance=False), normal(64, 32, 32, 16)
        ),
    }


def milliseconds(functions: Sequence[Callable], arguments: Sequence[tuple[Any, ...]], repeats: int) -> list[float]:
    """Medians of compiled programs, run in turn."""
    programs = [jax.jit(function) for function in functions]
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats + 1):  # the first one compiles
        for program, own, taken in zip(programs, arguments, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(*own))
            taken.append(time.perf_counter() - begin)
    return [1e3 * statistics.median(taken[1:]) for taken in seconds]


def run() -> None:
    """The command."""
    repeats = flags.DEFINE_integer("repeats", 20, "Runs on the clock.", lower_bound=1)

    def main(_: Sequence[str]) -> None:
        print(f"{'on ' + jax.devices()[0].device_kind:38s} {'ours':>9s} {'plain':>9s}")
        for name, (*functions, ours, plain) in cases().items():
            found = milliseconds(functions, (ours, plain), repeats.value)
            print(f"{name:38s} {found[0]:6.2f} ms {found[1]:6.2f} ms   {found[1] / found[0]:.1f} times as fast")

    run_command(main)


if __name__ == "__main__":
    run()
