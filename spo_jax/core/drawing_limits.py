"""Ranges of what users ask for when images are drawn.

What is beyond them is a slip, and is refused before anything is read or allocated.
"""

from spo_jax.core.config import MAX_GUIDANCE, MAX_STEPS, SEED_LIMIT
from spo_jax.core.errors import UserError

LIMITS = {
    "count": (1, 1_000_000),
    "seed": (0, SEED_LIMIT - 1),
    "steps": (1, MAX_STEPS),
    "height": (1, 8192),
    "width": (1, 8192),
    "batch": (1, 1024),
    "guidance": (-MAX_GUIDANCE, MAX_GUIDANCE),
}


def check_limits(**numbers: int | float | None) -> None:
    """Refuses numbers that are out of range; None is accepted.

    Raises:
      UserError: a number is out of range, or not a number at all.
    """
    for name, number in numbers.items():
        least, most = LIMITS[name]
        if number is not None and not least <= number <= most:
            raise UserError(f"--{name}={number}: expected a number from {least} to {most}")


def check_prompt(prompt: str) -> None:
    """Refuses bytes that are not UTF-8, which a command line can hold, and halves of characters, which JSON can.

    Raises:
      UserError: the prompt cannot be written as UTF-8.
    """
    if prompt != prompt.encode(errors="replace").decode():
        raise UserError(f"--prompt={prompt!r}: expected text that can be written as UTF-8")
