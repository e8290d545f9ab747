"""Looks at rewards as users write them, so that a mistake in one is a line that says what was expected."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float
from spo_jax.core.words import counted
from spo_jax.rewards.common.protocol import Reward, Scores

_REQUIRED = {"check": ("prompts", "size"), "measure": ("images", "prompts")}
_OPTIONAL = {"embed": ("images",), "score": ("params", "x", "features", "t"), "features": ("prompts",)}


def check_function(function: Callable[..., Any], name: str, expected: Sequence[str]) -> None:
    """Refuses a function that cannot be called with the arguments that it will get.

    Args:
      function: the function.
      name: what messages call it.
      expected: names of the arguments.

    Raises:
      UserError: it takes other arguments, or cannot be called at all.
    """
    text = f"expected {name.rpartition('.')[2]}({', '.join(expected)})"
    if not callable(function):
        raise UserError(f"{name} is {_kind(function)}: {text}")
    signature = inspect.signature(function)
    try:
        signature.bind(*expected)
    except TypeError as error:
        raise UserError(f"{name} takes {signature}: {text}") from error


def check_reward_object(reward: Any, where: str, verb: str = "returns") -> None:
    """Refuses what a module's ``load`` has returned, or what was given, if it is no reward.

    A reward is a `spo_jax.rewards.common.protocol.Reward`.

    Args:
      reward: the object.
      where: what returned it, or the argument that it is, for messages.
      verb: ``returns`` or ``is``.

    Raises:
      UserError: a member is missing, or is something else.
    """
    name = type(reward).__name__
    wanted = ("meanings", "lower_is_better", *_REQUIRED)
    missing = [member for member in wanted if not hasattr(reward, member)]
    if missing:
        raise UserError(
            f"{where} {verb} {_kind(reward)} without {', '.join(missing)}: "
            f"expected a reward, which has {', '.join(wanted)}"
        )
    meanings = reward.meanings
    if not isinstance(meanings, Mapping) or not meanings or not all(isinstance(x, str) for x in _flat(meanings)):
        raise UserError(f"{name}.meanings of {where} is {meanings!r}: expected a sentence for each score, by name")
    for member in ("lower_is_better", "signs"):
        names = getattr(reward, member, ())
        if isinstance(names, str) or not set(names) <= set(meanings):
            raise UserError(
                f"{name}.{member} of {where} is {names!r}: expected a list of names among {', '.join(meanings)}"
            )
    optional = {member: arguments for member, arguments in _OPTIONAL.items() if hasattr(reward, member)}
    for member, arguments in (_REQUIRED | optional).items():
        check_function(getattr(reward, member), f"{type(reward).__module__}.{name}.{member}", arguments)


def measured(reward: Reward, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
    """Scores finished images, as `Reward.measure`, and refuses scores that are something else.

    Raises:
      UserError: a score is missing or unknown, or there is not one number for each image.
    """
    name = f"{type(reward).__module__}.{type(reward).__name__}.measure"
    found = reward.measure(images, prompts)
    if not isinstance(found, Mapping):
        raise UserError(f"{name} returned {_kind(found)}: expected a dict with {', '.join(reward.meanings)}")
    if found.keys() != reward.meanings.keys():
        raise UserError(
            f"{name} returned scores {', '.join(map(str, found)) or 'of no name'}: "
            f"expected those in its meanings, {', '.join(reward.meanings)}"
        )
    return {score: _numbers(values, len(images), f"{name} returned {score}") for score, values in found.items()}


def _numbers(values: Any, count: int, what: str) -> Float[np.ndarray, " b"]:
    expected = f"expected {counted(count, 'number')}, one for each image"
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: on a GPU, with a gradient, or bfloat16
        raise UserError(f"{what} as {_kind(values)} that numpy cannot read ({error}): {expected}") from error
    if array.shape != (count,):
        raise UserError(f"{what} of shape {array.shape}: {expected}, shape ({count},)")
    if array.dtype.kind not in "fiub":
        raise UserError(f"{what} of dtype {array.dtype}: {expected}")
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _flat(meanings: Mapping[str, str]) -> list[str]:
    return [*meanings, *meanings.values()]


def _kind(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
