"""Parses JSON from elsewhere: strictly, and within bounds, so that nothing surprising is deeper in the program."""

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 2**26
_DEPTH = 64  # of lists and objects; the files of models have four
_DIGITS = 40  # of an integer; tokenizers write a limit of 31


class BadJSON(ValueError):
    """The text is not JSON, or is JSON that no file here has a use for; the message is part of a line."""


def parse_json(text: bytes | str) -> Any:
    """Parses a JSON text.

    Args:
      text: text, or UTF-8 with or without a byte-order mark.

    Raises:
      BadJSON: it is not JSON, which has no NaN and no infinity; a key occurs twice in an object, and which of its
        values counts would be a guess; it is more than 64 lists and objects deep; a number has too many digits; or a
        string has half of a character (a lone surrogate), which cannot be written to any file.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeDecodeError as error:
        raise BadJSON(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise BadJSON(_too_deep()) from error
    except json.JSONDecodeError as error:
        raise BadJSON(str(error)) from error
    # Only an escape can spell half of a character.
    _check(value, check_text="\\ud" in text or "\\uD" in text)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise BadJSON(f"the key {twice[:100]!r} occurs twice in an object")
    return value


def _no_constant(name: str) -> None:
    raise BadJSON(f"{name} is not JSON: expected a finite number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadJSON(f"the number {digits[:100]} is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise BadJSON(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _too_deep() -> str:
    return f"it is more than {_DEPTH} lists and objects deep"


def _check(value: Any, check_text: bool) -> None:
    """Checks the depth and, if asked, the strings, without recursion."""
    level = [value]
    for _ in range(_DEPTH + 1):
        inner = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                texts = item.keys()
            else:
                inner += item if isinstance(item, list) else ()
                texts = (item,) if isinstance(item, str) else ()
            if check_text:
                for text in texts:
                    check_characters(text)
        level = inner
        if not level:
            return
    raise BadJSON(_too_deep())


def finite_or_null(value: Any) -> Any:
    """Returns a JSON value in which numbers that are not finite, which JSON does not have, are None."""
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_characters(text: str) -> None:
    """Checks that a text can be written to a file.

    Raises:
      BadJSON: it has half of a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(error.start - 20, 0) : error.start + 1]
        raise BadJSON(f"it contains half of a character (a lone surrogate): {near!r}") from error
