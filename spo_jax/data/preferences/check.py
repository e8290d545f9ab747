"""A preference pair on its way into a prepared split: the row of a source, its check, and the checked pair."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from spo_jax.data.encoded_images import BadImage, file_below, open_image, read_image_file

LABELS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file that a row names.

    Attributes:
      folder: folder of the data set, below which the file has to lie.
      name: its name, relative to the folder.
    """

    folder: Path
    name: str


@dataclasses.dataclass(frozen=True)
class RawPair:
    """A row as its source provides it, not checked yet.

    Attributes:
      where: position of the row for the list of rejected rows, as file and row or line.
      images: the encoded images, or their files.
      caption: caption of both images.
      labels: labels of the first and of the second image.
      has_label: whether somebody judged the pair.
      are_different: whether the images differ; if None, the source does not say and the files are compared.
      uids: identifiers of the images, empty if they have none.
      num_example_per_prompt: number of pairs with the same caption; if 0, the source does not say and the pairs of the
        split are counted.
      names: names of the two images in messages.
      problem: reason why the row could not be read, empty if there is none.
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
    """A checked pair, with the fields of `RawPair` and images as bytes that Pillow can decode."""

    images: tuple[bytes, bytes]
    caption: str
    labels: tuple[float, float]
    has_label: bool
    are_different: bool
    uids: tuple[str, str]
    num_example_per_prompt: int


@runtime_checkable
class Source(Protocol):
    """Provides preference pairs, one row each."""

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits that the source holds."""

    def usual_splits(self) -> tuple[str, ...]:
        """Returns the splits to prepare if the user does not name any."""

    def count(self, split: str) -> int:
        """Returns the number of rows of a split."""

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the rows of a split, always in the same order."""

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns what determines the rows, as JSON.

        It keeps a prepared split of another origin from being mistaken for this one.
        """


class Rejected(Exception):
    """Signals that a pair cannot be used; the message is the reason."""


def check(raw: RawPair) -> Pair | str:
    """Checks a row, which includes decoding both images.

    Returns:
      The pair, or the reason why the row is rejected.
    """
    try:
        return _checked(raw)
    except Rejected as rejected:
        return str(rejected)


def _checked(raw: RawPair) -> Pair:
    """Returns the pair of a row, or raises `Rejected`."""
    if raw.problem:
        raise Rejected(raw.problem)
    if not isinstance(raw.caption, str) or not raw.caption.strip():
        raise Rejected(f"the caption is {raw.caption!r}, expected text")
    if not _is_unicode(raw.caption):
        raise Rejected(f"the caption {raw.caption!r} contains half of a character (a lone surrogate)")
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
    """Says whether a text can be written as UTF-8; JSON can spell text that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> int:
    """Returns the number of pairs with the same caption as an integer."""
    try:
        if 0 <= value < 2**31 and int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise Rejected(f"num_example_per_prompt is {value!r}, expected a whole number")


def _labels(labels: tuple[Any, Any]) -> tuple[float, float]:
    """Returns the labels as floats."""
    try:
        values = tuple(float(label) for label in labels)
    except (TypeError, ValueError, OverflowError):
        values = ()
    if values not in LABELS:
        raise Rejected(f"the labels are {labels[0]!r} and {labels[1]!r}, expected 1 and 0, 0 and 1, or 0.5 and 0.5")
    return values


def _image(image: Any, name: str) -> bytes:
    """Returns the bytes of an image that Pillow can decode."""
    try:
        if isinstance(image, ImageFile):
            image = file_below(image.folder, image.name)
        if isinstance(image, Path):
            image = read_image_file(image)
        if image is None or image == b"":
            raise Rejected(f"{name} is missing")
        if not isinstance(image, bytes):
            raise Rejected(f"{name} is {type(image).__name__}, expected an encoded image")
        with open_image(image) as opened:
            opened.load()
            if opened.mode != "RGB" or opened.info.get("transparency") is not None:
                opened.convert("RGBA")  # an image that cannot be converted to colours would stop the training later
    except (MemoryError, Rejected):
        raise
    except BadImage as error:
        raise Rejected(f"{name} {error}") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise Rejected(f"{name} cannot be decoded: {error}") from error
    return image
