"""What Stable Diffusion's text encoders make of a prompt, for its UNet and for judges that are made of one."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.nn.clip import CLIPTextModel


class Texts(NamedTuple):
    """Encoded prompts.

    Attributes:
      states: last states of SD's text encoder, or the penultimate states of both of SDXL's side by side.
      pooled: state of the end token: SD's as it is, SDXL's of the second encoder and projected.
    """

    states: Float[Array, "b l d"]
    pooled: Float[Array, "b p"]


def encode_texts(encoders: Sequence[CLIPTextModel], params: Sequence[Params], ids: Int[Array, "b e l"]) -> Texts:
    """Encodes tokens with one or both text encoders, inside a program.

    Args:
      encoders: SD's text encoder, or both of SDXL's.
      params: the weights of each.
      ids: tokens for each of them.
    """
    pairs = zip(encoders, params, strict=True)
    outputs = [encoder.apply({"params": weights}, ids[:, e]) for e, (encoder, weights) in enumerate(pairs)]
    if len(outputs) == 1:
        return Texts(outputs[0][0].last, outputs[0][0].pooled)
    return Texts(jnp.concatenate([output.penultimate for output, _ in outputs], axis=-1), outputs[-1][1])
