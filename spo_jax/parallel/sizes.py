"""Sizes of the chunks in which devices compute a batch, as whole numbers that need no jax."""

import math


def padded_chunk(batch: int, per_device: int, devices: int) -> int:
    """Computes the rows in memory at a time, on all devices together, if the last chunk may be padded.

    The chunks are equal parts of ``batch``.

    Args:
      batch: rows of a batch, over all devices.
      per_device: largest number of rows that a device may have in memory.
      devices: number of devices.
    """
    parts = math.ceil(batch / (per_device * devices))
    return math.ceil(batch / (parts * devices)) * devices


def even_chunk(batch: int, per_device: int, devices: int) -> int:
    """Computes the rows in memory at a time, on all devices together, if nothing may be padded.

    It is the largest number that cuts ``batch`` evenly.

    Args:
      batch: rows of a batch, a multiple of ``devices``.
      per_device: largest number of rows that a device may have in memory.
      devices: number of devices.
    """
    share = batch // devices
    return devices * max(size for size in range(1, min(per_device, share) + 1) if share % size == 0)
