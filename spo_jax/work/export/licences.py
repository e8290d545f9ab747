"""The licences of published base models, which pass on to what is made from them; `docs/weights.md` lists them."""

from typing import NamedTuple

from spo_jax import toy


class Licence(NamedTuple):
    """A licence.

    Attributes:
      id: its name on the hub.
      name: its name for people.
      link: where its text is.
    """

    id: str
    name: str
    link: str


_OPENRAIL_M = Licence(
    "creativeml-openrail-m",
    "CreativeML OpenRAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
)
_OPENRAIL_PP = Licence(
    "openrail++",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
)
_LICENCES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _OPENRAIL_M,
    "stabilityai/stable-diffusion-xl-base-1.0": _OPENRAIL_PP,
    toy.NAME: Licence("apache-2.0", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
}


def licence_of(base: str, given: str = "") -> Licence | None:
    """Returns the licence of a LoRA.

    Args:
      base: name of the base model.
      given: name of the licence, if the user named one.

    Returns:
      The given licence, or otherwise that of the base model; None if it is not known.
    """
    if given:
        known = {licence.id: licence for licence in _LICENCES.values()}
        return known.get(given, Licence(given, given, ""))
    return _LICENCES.get(base)
