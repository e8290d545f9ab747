"""One preference pair on its way into a prepared split: what a source says, and what is left after checking it."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image, UnidentifiedImageError

LABELS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
_LONGEST = 32  # times the shorter side: loading brings that one to the model's size, and the longer one along with it


@dataclasses.dataclass(frozen=True)
class RawPair:
    """A row as its source has it; nothing in it has been checked.

    Attributes:
      where: the row in the user's words, for the list of rejected rows: file and row or line.
      images: encoded pictures, or files that hold them.
      labels: of the first and the second picture.
      are_different: None where the source does not say: then the files are compared.
      uids: of the pictures; empty where they have none.
      num_example_per_prompt: 0 where the source does not say: then the split's pairs are counted.
      problem: why nothing could be read of this row.
    """

    where: str
    images: tuple[Any, Any] = (None, None)
    caption: Any = None
    labels: tuple[Any, Any] = (None, None)
    has_label: bool = True
    are_different: bool | None = None
    uids: tuple[str, str] = ("", "")
    num_example_per_prompt: Any = 0
    names: tuple[str, str] = ("jpg_0", "jpg_1")
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A checked pair; fields as in `RawPair`, pictures as bytes that Pillow decodes."""

    images: tuple[bytes, bytes]
    caption: str
    labels: tuple[float, float]
    has_label: bool
    are_different: bool
    uids: tuple[str, str]
    num_example_per_prompt: int


@runtime_checkable
class Source(Protocol):
    """Where preference pairs come from."""

    def splits(self) -> tuple[str, ...]:
        """The splits that it holds."""

    def usual_splits(self) -> tuple[str, ...]:
        """Those that are prepared when the user names none."""

    def count(self, split: str) -> int:
        """The number of rows of a split."""

    def rows(self, split: str) -> Iterator[RawPair]:
        """Those rows, in an order that never changes."""

    def made_from(self, split: str) -> dict[str, Any]:
        """What decides the rows, as JSON: a prepared split of other origin is never taken for this one."""


class Rejected(Exception):
    """Why a pair cannot be used."""


def check(raw: RawPair) -> Pair | str:
    """The pair, both pictures really decoded, or the reason why it is rejected."""
    try:
        return _checked(raw)
    except Rejected as rejected:
        return str(rejected)


def _checked(raw: RawPair) -> Pair:
    if raw.problem:
        raise Rejected(raw.problem)
    if not isinstance(raw.caption, str) or not raw.caption.strip():
        raise Rejected(f"the caption is {raw.caption!r}, expected text")
    if not _is_unicode(raw.caption):
        raise Rejected(f"the caption {raw.caption!r} has half of a character in it (a lone surrogate)")
    first, second = (_image(image, name) for image, name in zip(raw.images, raw.names, strict=True))
    return Pair(
        images=(first, second),
        caption=raw.caption,
        labels=_labels(raw.labels),
        has_label=raw.has_label,
        are_different=first != second if raw.are_different is None else raw.are_different,
        uids=raw.uids,
        num_example_per_prompt=_count(raw.num_example_per_prompt),
    )


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can spell what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> int:
    try:
        if 0 <= value < 2**31 and int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise Rejected(f"num_example_per_prompt is {value!r}, expected a whole number")


def _labels(labels: tuple[Any, Any]) -> tuple[float, float]:
    try:
        values = tuple(float(label) for label in labels)
    except (TypeError, ValueError, OverflowError):
        values = ()
    if values not in LABELS:
        raise Rejected(f"the labels are {labels[0]!r} and {labels[1]!r}, expected 1 and 0, 0 and 1, or 0.5 and 0.5")
    return values


def _image(image: Any, name: str) -> bytes:
    if isinstance(image, Path):
        try:
            image = image.read_bytes()
        except OSError as error:
            raise Rejected(f"{name} is missing: {image}: {error.strerror or error}") from error
        except ValueError as error:  # no path at all: a NUL, half of a character
            raise Rejected(f"{name} is missing: {str(image)!r}: {error}") from error
    if image is None or image == b"":
        raise Rejected(f"{name} is missing")
    if not isinstance(image, bytes):
        raise Rejected(f"{name} is {type(image).__name__}, expected an encoded picture")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            if opened.mode != "RGB" or opened.info.get("transparency") is not None:
                opened.convert("RGBA")  # what has no way to colours would stop the training later
            width, height = opened.size
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Rejected(f"{name} is no picture in a format that is known") from error
    except Exception as error:  # Pillow's readers raise all kinds: OSError, SyntaxError, ValueError, struct.error, ...
        raise Rejected(f"{name} cannot be decoded: {error}") from error
    if max(width, height) > _LONGEST * min(width, height):
        raise Rejected(f"{name} is {width} x {height} pixels: one side is more than {_LONGEST} times the other")
    return image
