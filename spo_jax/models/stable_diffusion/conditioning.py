"""The inputs on which Stable Diffusion's UNet is conditioned."""

import dataclasses
from typing import NamedTuple

from spo_jax.core.typing import Array, Float


class Conditioning(NamedTuple):
    """The UNet's inputs other than latents and timesteps.

    Attributes:
      states: states of the text encoders.
      pooled: projected pooled text (SDXL only).
      time_ids: (original height, width, crop top, left, target height, width) (SDXL only).
    """

    states: Float[Array, "b l d"]
    pooled: Float[Array, "b p"] | None = None
    time_ids: Float[Array, "b 6"] | None = None


@dataclasses.dataclass(frozen=True)
class SizeConditions:
    """SDXL's conditions on the size of an image in pixels, as in diffusers' `_get_add_time_ids`.

    Attributes:
      original: (height, width) of the image before it was cropped; small values ask for a blurred image.
      crop: (top, left) of the crop; (0, 0) asks for a centred subject.
      target: (height, width) of the crop, usually the size of the image to be made.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def uncropped(cls, size: tuple[int, int]) -> "SizeConditions":
        """Returns the conditions of an uncropped image of (height, width)."""
        return cls(size, (0, 0), size)

    @property
    def time_ids(self) -> tuple[float, ...]:
        """The six values, in the order in which the UNet takes them."""
        return tuple(float(x) for x in (*self.original, *self.crop, *self.target))
