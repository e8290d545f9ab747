"""The images that the page carries inside it: reduced, and as many as it may weigh."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spo_jax.run.report.images import data_uri
from spo_jax.work.evaluate.result import Evaluation
from spo_jax.work.evaluate.tables import relative

MOST_BYTES = 24 * 2**20  # of all images together as text; a page of this size opens at once, and chats take it
SIDE = 512  # pixels of the longer side of an embedded image
_QUALITY = 82


def gallery(evaluation: Evaluation, out: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Returns the images of the page as JSON.

    Prompts are taken evenly spread over the list, first the first image of each, until the page would be too large. So
    what is shown is never selected by what it looks like.

    Args:
      evaluation: what was drawn.
      out: folder of the page.
      most_bytes: bytes that all images together may have.

    Returns:
      ``items``, in the order of prompts: ``prompt``, ``text``, ``image``, ``group``, and by contestant ``source`` (a
      data URI), ``file`` and ``scores``; ``total``, the number of items that there are; ``folder``, to which the names
      of files are relative, seen from the page; and ``key``, which other evaluations do not share.
    """
    names = [contestant.name for contestant in evaluation.contestants if contestant.name in evaluation.images]
    folder = _common_folder(evaluation, names)
    items, weight = [], 0
    for prompt, image in _spread(len(evaluation.prompts), evaluation.images_per_prompt):
        shown = {name: _shown(evaluation, name, prompt, image, folder) for name in names}
        shown = {name: entry for name, entry in shown.items() if entry is not None}
        weight += sum(len(entry["source"]) for entry in shown.values())
        if weight > most_bytes and items:
            break
        if shown:
            items.append(
                {"prompt": prompt, "text": evaluation.prompts[prompt], "image": image}
                | {"group": evaluation.groups[prompt], "shown": shown}
            )
    items.sort(key=lambda item: (item["prompt"], item["image"]))
    total = len(evaluation.prompts) * evaluation.images_per_prompt
    return {
        "items": items,
        "total": total,
        "folder": relative(folder, out.resolve()),
        "key": _key(evaluation, names, folder),
    }


def _spread(prompts: int, images: int) -> Iterator[tuple[int, int]]:
    """Yields prompts and images so that the prompts of each beginning are evenly spread over the list."""
    bits = max(prompts - 1, 1).bit_length()
    order = sorted(range(prompts), key=lambda number: f"{number:0{bits}b}"[::-1])
    return ((prompt, image) for image in range(images) for prompt in order)


def _shown(evaluation: Evaluation, name: str, prompt: int, image: int, folder: Path) -> dict[str, Any] | None:
    """Returns an image with its scores; None if there is none that can be read, as in a part of an evaluation."""
    path = evaluation.images[name](prompt, image)
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError):
        return None
    scores = {
        score: float(f"{values[prompt, image]:.6g}")
        for score, values in evaluation.scores.get(name, {}).items()
        if np.isfinite(values[prompt, image])
    }
    return {"source": data_uri(pixels, SIDE, _QUALITY), "file": relative(path, folder), "scores": scores}


def _common_folder(evaluation: Evaluation, names: Sequence[str]) -> Path:
    """Returns the folder below which all images lie."""
    if not evaluation.prompts or not names:
        return Path.cwd()
    last = len(evaluation.prompts) - 1
    files = [evaluation.images[name](prompt, 0).resolve() for name in names for prompt in (0, last)]
    return Path(os.path.commonpath([file.parent for file in files]))


def _key(evaluation: Evaluation, names: Sequence[str], folder: Path) -> str:
    """Returns a digest of what was drawn, under which a browser keeps votes; names of files say what made them."""
    known = [dict(evaluation.protocol), list(evaluation.prompts)]
    known += [[name, relative(evaluation.images[name](0, 0), folder)] for name in names if evaluation.prompts]
    return hashlib.sha256(json.dumps(known, default=str, sort_keys=True).encode()).hexdigest()[:16]
