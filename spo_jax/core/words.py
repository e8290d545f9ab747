"""Phrases that messages of several modules share."""


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, which takes an s unless there is one of it: ``1 image``, ``8 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def excerpt(text: str, length: int = 60) -> str:
    """Returns a text in quotes, cut to a length and with its special characters escaped, so that it is one line."""
    return repr(text if len(text) <= length else f"{text[:length]}…")
