"""Phrases that the messages about weights share."""

from collections.abc import Iterable
from pathlib import Path

_NAME_LENGTH = 120


def printable(text: str, limit: int = _NAME_LENGTH) -> str:
    """Returns a text from a file so that it can be part of a line: escaped, and cut after ``limit`` characters."""
    shown = repr(text[:limit])[1:-1]
    return shown + "…" * (len(text) > limit)


def shorten(names: Iterable[str], limit: int = 20) -> str:
    """Sorts and joins names: the first ``limit`` of them, then the number of the others."""
    ordered = sorted(names)
    listed = ", ".join(map(printable, ordered[:limit]))
    return listed if len(ordered) <= limit else f"{listed} and {len(ordered) - limit} more"


def explain_unreadable(path: Path) -> str:
    """Explains, from its first bytes, why a file cannot be read and what to do next."""
    try:
        with open(path, "rb") as opened:
            head = opened.read(20)
    except OSError as error:
        return str(error.strerror or error)
    if head.startswith(b"version https://git"):
        return "it is a git-lfs pointer; fetch the file itself with `git lfs pull`"
    if head.startswith(b"\x80"):
        return (
            "it is in torch's legacy format (before 1.6); convert it once where torch is installed: "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    return "it is damaged or cut off; fetch it again"
