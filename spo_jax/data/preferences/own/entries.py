"""A pair as a line of JSON or a row of a table describes it; fields that are not named here are nobody's business."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax.data.preferences.check import ImageFile, RawPair
from spo_jax.data.prompts import KEYS

IMAGES = ("image_0", "image_1")
LABELS = ("label_0", "label_1")


def pair_of(entry: Mapping[str, Any], where: str, folder: Path) -> RawPair:
    """Returns the pair of an entry; what the writer checks of every source is not checked here.

    Args:
      entry: the prompt under ``prompt``, ``caption`` or ``text``, ``image_0`` and ``image_1``, and either ``label`` or
        ``label_0`` and ``label_1``.
      where: the place of the entry, for messages.
      folder: the folder to which names of images are relative.
    """
    label = entry.get("label")
    if "label" in entry and (isinstance(label, bool) or label not in (0, 0.5, 1)):
        return RawPair(where, problem=f"label is {label!r}, expected 0 or 1 (which image is preferred) or 0.5")
    return RawPair(
        where=where,
        images=tuple(_file(entry.get(name), folder) for name in IMAGES),
        caption=next((entry[key] for key in KEYS if key in entry), None),
        labels=tuple(entry.get(name) for name in LABELS) if label is None else (1 - label, label),
        names=IMAGES,
    )


def _file(value: Any, folder: Path) -> ImageFile | None:
    """Returns the file of an image, or None where an entry has none."""
    return ImageFile(folder, value) if isinstance(value, str) and value else None
