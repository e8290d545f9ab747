"""Ranges of what users ask for when images are drawn.

What is beyond them is a slip, and is refused before anything is read or allocated.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from spo_jax.core.config import MAX_GUIDANCE, MAX_STEPS, SEED_LIMIT
from spo_jax.core.errors import UserError

SOLVERS = ("ddim", "euler", "dpm++")  # described in `spo_jax.diffusion.steps`; here, flags and files name them
LIMITS = {
    "count": (1, 1_000_000),
    "seed": (0, SEED_LIMIT - 1),
    "steps": (1, MAX_STEPS),
    "height": (1, 8192),
    "width": (1, 8192),
    "batch": (1, 1024),
    "guidance": (-MAX_GUIDANCE, MAX_GUIDANCE),
    "images_per_prompt": (1, 1000),
    "limit": (1, 1_000_000),
    "size": (1, 8192),
}


def flag_bounds(name: str) -> dict[str, int | float]:
    """Returns the range of a number as absl's flags take it."""
    least, most = LIMITS[name]
    return {"lower_bound": least, "upper_bound": most}


def check_limits(**numbers: int | float | None) -> None:
    """Refuses numbers that are out of range; a height or width may be None.

    Raises:
      UserError: a number is out of range, not whole although only guidance need not be, or not a number at all.
    """
    for name, number in numbers.items():
        if number is None and name in ("height", "width"):
            continue
        least, most = LIMITS[name]
        kind = Real if name == "guidance" else Integral
        if not (isinstance(number, kind) and least <= number <= most):
            shown = number if isinstance(number, Real) else repr(number)
            whole = "whole " if isinstance(number, Real) and not isinstance(number, kind) else ""
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}={shown}: expected a {whole}number from {least} to {most}")


def check_prompt(prompt: str) -> None:
    """Refuses what is no text that can be written.

    A command line can hold bytes that are not UTF-8, and JSON halves of characters.

    Raises:
      UserError: the prompt is no text, or cannot be written as UTF-8.
    """
    if not isinstance(prompt, str):
        raise UserError(f"--prompt={prompt!r}: expected a text")
    if prompt != prompt.encode(errors="replace").decode():
        raise UserError(f"--prompt={prompt!r}: expected text that can be written as UTF-8")


def checked_prompts(prompts: Sequence[str]) -> list[str]:
    """Returns the prompts of a caller from Python as a list.

    Raises:
      UserError: they are no list, there is none, or one is no text, is empty or cannot be written as UTF-8.
    """
    if not isinstance(prompts, Iterable):
        raise UserError(f"prompts = {prompts!r}: expected a list of texts")
    prompts = list(prompts)
    if not prompts:
        raise UserError("prompts is an empty list: expected texts")
    for number, text in enumerate(prompts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompts[{number}] = {text!r}: expected a text")
        check_prompt(text)
    return prompts
