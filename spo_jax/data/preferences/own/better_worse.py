"""Preferences as two folders: ``better/a.png`` is preferred to ``worse/a.png``.

The prompts are the captions of ``better/``, kept as for fine-tuning: a text file beside each image (``better/a.txt``),
as kohya's scripts have it, or one ``metadata.jsonl``.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spo_jax.data.captioned_images import image_files, open_captioned_images
from spo_jax.data.preferences.check import ImageFile, RawPair

BETTER = "better"
WORSE = "worse"
SPLIT = "train"


class BetterAndWorse:
    """A `Source` whose only split is ``train``.

    Args:
      folder: the folder that holds both.

    Raises:
      UserError: an image of ``better/`` has no caption, or is no image, or there is none.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        better = folder / BETTER
        captioned = open_captioned_images(better)
        self._digest = captioned.digest
        self._captions = {
            file.relative_to(better).as_posix(): caption
            for file, caption in zip(captioned.files, captioned.captions, strict=True)
        }
        self._worse = {file.name: file.stat().st_size for file in image_files(folder / WORSE)}
        # An image of worse/ without a partner is a pair that misses one, and is named as such.
        self._names = sorted(self._captions.keys() | self._worse.keys())

    def splits(self) -> tuple[str, ...]:
        """Returns the name of the only split."""
        return (SPLIT,)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns the name of the only split."""
        return self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns the folder and a digest of the captions and of all names and sizes."""
        del split
        digest = hashlib.sha256(f"{self._digest} {sorted(self._worse.items())}".encode()).hexdigest()
        return {"dataset": "folder", "source": str(self._folder.resolve()), "digest of better and worse": digest}

    def count(self, split: str) -> int:
        """Returns the number of file names in either folder."""
        del split
        return len(self._names)

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs in the order of their names; the first image is the better one."""
        del split
        for name in self._names:
            if name not in self._captions:
                yield RawPair(name, problem=f"{WORSE}/{name} has no {BETTER}/{name}: expected equal names in both")
                continue
            yield RawPair(
                where=name,
                images=tuple(ImageFile(self._folder, f"{side}/{name}") for side in (BETTER, WORSE)),
                caption=self._captions[name],
                labels=(1, 0),
                names=(f"{BETTER}/{name}", f"{WORSE}/{name}"),
            )
