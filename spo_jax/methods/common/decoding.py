"""How many images a device decodes and judges at a time where the settings leave that open."""

from collections.abc import Sequence

from absl import logging

from spo_jax.parallel.mesh import platform_in_context

ELSEWHERE = 4
# The TPU compiler splits fewer than eight images into parts, which it moves into the batch axis, and that costs pads
# and copies around every convolution. By its estimates for a v5e, an image of SD 1.5 takes 94 ms if four are decoded at
# a time and 27 ms if eight are, which take 3.0 GiB.
ON_TPU = 8
_LARGEST = 96 * 96  # latents of 768 px; eight images of 1,024 px would take most of a chip's memory


def images_at_a_time(setting: int, latent_shape: Sequence[int]) -> int:
    """Returns how many images a device decodes and judges at a time, and says so in the log where it was left open.

    Args:
      setting: the field ``decode_chunk``; 0 leaves the choice to the platform in context.
      latent_shape: shape of an image's latents, which ends with (h, w, c).
    """
    if setting:
        return setting
    height, width = latent_shape[-3:-1]
    chosen = ON_TPU if platform_in_context() == "tpu" and height * width <= _LARGEST else ELSEWHERE
    logging.info("decoding and judging %d images at a time on each device (decode_chunk)", chosen)
    return chosen
