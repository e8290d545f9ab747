"""Compiles the preparation of images for a CLIP for a TPU that is not here, beside the work of the network.

python -m benchmarks.pixels_aot --topology=v5e:1x1

Pillow's resize is compiled in both of its ways (`spo_jax.core.resizing`). Seconds are bounds that no program reaches:
the bytes that the compiler counts at the speed of the memory, and the operations of the layers at the chip's peak.
"""

import functools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.flops import count
from benchmarks.topologies import chip_of, find_topology
from spo_jax.core import resizing
from spo_jax.core.cli import run_command
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.rewards.common.clip_pixels import transformers_pixels

WAYS = {"products of matrices": resizing._digit_by_digit, "tap by tap": resizing._tap_by_tap}


def preparation_bytes(device: jax.Device, images: int, side: int) -> dict[str, float]:
    """Returns the bytes that the preparation of images moves, by the way of the resize.

    Args:
      device: the TPU to compile for.
      images: number of images.
      side: their height and width in pixels.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    given = jax.ShapeDtypeStruct((images, side, side, 3), jnp.float32, sharding=sharding)
    found = {}
    for name, way in WAYS.items():
        program = jax.jit(functools.partial(_prepare, way)).trace(given).lower().compile()
        found[name] = program.cost_analysis()["bytes accessed"]
    return found


def _prepare(way: Any, images: jax.Array) -> jax.Array:
    """Prepares images with this way of resizing, whatever the platform."""

    def chosen(x: jax.Array, cpu: functools.partial, default: functools.partial) -> jax.Array:
        del default
        return way(x, **cpu.keywords)

    with mock.patch.object(jax.lax, "platform_dependent", chosen):
        return transformers_pixels(images, CLIP_H["vision_config"]["image_size"])


def tower_operations(images: int) -> float:
    """Counts the operations of the vision tower of CLIP ViT-H/14."""
    clip = CLIPModel(CLIPConfig.from_dict(CLIP_H))
    side = clip.config.vision.image_size
    given = jax.ShapeDtypeStruct((images, side, side, 3), jnp.float32)
    encode = functools.partial(clip.apply, method="encode_image")
    return count(jax.jit(encode).trace({"params": clip_shapes(clip)}, given))


def run() -> None:
    """Runs the command."""
    topology = flags.DEFINE_string("topology", "v5e:1x1", "Compile for a chip of this TPU: v5e:1x1, v6e:1x1, …")
    images = flags.DEFINE_integer("images", 25, "Prepare this number of images.", lower_bound=1)
    side = flags.DEFINE_integer("image_side", 512, "Prepare images of this size.", lower_bound=32)

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
        device = find_topology(topology.value)[0]
        chip = chip_of(device)
        print(f"{images.value} images of {side.value} pixels on a {chip.name}")
        for name, moved in preparation_bytes(device, images.value, side.value).items():
            print(f"  prepared, {name:22s} {moved / 1e9:7.2f} GB moved  {1e3 * moved / chip.bandwidth:7.2f} ms")
        work = tower_operations(images.value)
        print(f"  vision tower of ViT-H/14         {work / 1e12:7.2f} TFLOP     {1e3 * work / chip.peak_flops:7.2f} ms")

    run_command(main)


if __name__ == "__main__":
    run()
