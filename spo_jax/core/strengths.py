"""Strengths of a LoRA as users give them."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

from spo_jax.core.errors import UserError

_MOST = 100.0  # what is beyond it is a slip


def check_strength(strength: float | int, flag: str) -> None:
    """Raises a `UserError` unless ``strength`` does something and is no slip; ``flag`` names it, with its dashes."""
    if not (isinstance(strength, Real) and math.isfinite(strength) and 0 < abs(strength) <= _MOST):
        shown = f"{strength:g}" if isinstance(strength, Real) else repr(strength)
        raise UserError(f"{flag}={shown}: expected a strength other than 0, of at most {_MOST:g}")


def checked_strengths(strengths: str | Sequence[float | int], flag: str) -> list[float]:
    """Returns the strengths that are compared with 0, which is left out, in order.

    Args:
      strengths: numbers, or a text with numbers between commas.
      flag: the flag that names them, with its dashes.

    Raises:
      UserError: there is none, or one is not a number that makes sense.
    """
    if isinstance(strengths, str):
        strengths = _numbers(strengths, flag)
    elif not isinstance(strengths, Iterable):
        raise UserError(f"{flag}={strengths!r}: expected a list of strengths, such as [0.5, 0.75, 1]")
    wanted = [strength for strength in strengths if not (isinstance(strength, Real) and strength == 0)]
    if not wanted:
        raise UserError(f"{flag}: expected strengths other than 0, such as {flag}=0.5,0.75,1")
    for strength in wanted:
        check_strength(strength, flag)
    return sorted(set(map(float, wanted)))


def _numbers(text: str, flag: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag}={text}: expected numbers separated by commas, such as 0.5,0.75,1") from error
