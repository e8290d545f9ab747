"""Latents of a whole rollout with columns and channels in one axis, as they lie in memory without padding.

A TPU pads the last axis of an array to 128 numbers, so that the 4 channels of latents would take 32 times their size:
1.6 GiB for the 800 candidates of a rollout of LPO on SD 1.5, which are 50 MiB. XLA keeps what a loop collects in the
order in which the loop writes it, so a scan writes packed latents, and whatever reads many of them packs them first,
which undoes the unpacking before anything is computed.
"""

from spo_jax.core.typing import Array, Float


def packed(latents: Float[Array, "*n h w c"]) -> Float[Array, "*n h wc"]:
    """Joins columns and channels."""
    return latents.reshape(*latents.shape[:-2], -1)


def unpacked(latents: Float[Array, "*n h wc"], channels: int) -> Float[Array, "*n h w c"]:
    """Undoes `packed`."""
    return latents.reshape(*latents.shape[:-1], -1, channels)
