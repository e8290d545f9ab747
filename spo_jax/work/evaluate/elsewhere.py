"""Images that were made elsewhere, in a folder: which of them belongs to which prompt.

Either a manifest says so, ``metadata.jsonl`` with a line ``{"file_name": "a.png", "text": "a red star"}`` per image (as
the datasets library reads it), where several images of a prompt follow each other; or the names of the files do:
``0012.png`` is prompt 12, counted from 0, and ``0012-3.png`` its image 3. With several images per prompt and plain
numbers, n images of prompt 0 come first, then those of prompt 1, as ``spo_jax.sample --count`` writes them.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.words import counted, excerpt
from spo_jax.data.captioned_images import METADATA, captions_of_manifest, image_files
from spo_jax.data.encoded_images import BadImage, check_header, open_image
from spo_jax.work.evaluate.entries import Entry

_NUMBERED = re.compile(r"(\d{1,9})(?:[-_](\d{1,6}))?")


def find_all_images(entries: Sequence[Entry], prompts: Sequence[str], count: int) -> dict[str, list[list[Path]]]:
    """Returns the images of every contestant that is a folder of images; arguments and errors as of `find_images`."""
    return {
        entry.name: find_images(entry.name, entry.source, prompts, count) for entry in entries if entry.kind == "images"
    }


def find_images(name: str, folder: str, prompts: Sequence[str], count: int) -> list[list[Path]]:
    """Returns the images of each prompt.

    Args:
      name: name of the contestant, for messages.
      folder: the folder.
      prompts: the prompts.
      count: number of images of each prompt; further ones are left out.

    Raises:
      UserError: there is no such folder, prompts have no image, or a file is no image or damaged.
    """
    flag = f"--images {name}"
    path = local_path(folder)
    if not path.is_dir():
        raise UserError(f"{flag}: no folder {folder}: expected one with an image for every prompt")
    has_manifest = (path / METADATA).is_file()
    found = _from_manifest(path, prompts, count) if has_manifest else _from_numbers(path, prompts, count, flag)
    short = [number for number, files in enumerate(found) if len(files) < count]
    if short:
        first = short[0]
        has = f"{len(found[first])} of {count} images" if count > 1 else "no image"
        lack = "lacks" if len(short) == 2 else "lack"
        others = f"; {counted(len(short) - 1, 'other prompt')} {lack} images too" if len(short) > 1 else ""
        example = f"{first:04d}-0.png" if count > 1 else f"{first:04d}.png"
        how = f"in {METADATA}" if has_manifest else f"such as {example}, or a {METADATA} that names them"
        raise UserError(
            f"{flag}: prompt {first} ({excerpt(prompts[first])}) has {has} in {folder}{others}: expected "
            f"{counted(count, 'image')} for every prompt, {how}"
        )
    for file in (file for files in found for file in files):
        _check(file, flag)
    return found


def sizes(files: Iterable[Path]) -> set[tuple[int, int]]:
    """Returns the (height, width) of all images, from their headers."""
    found = set()
    for file in files:
        with open(file, "rb") as content, open_image(content) as image:
            found.add((image.height, image.width))
    return found


def _from_manifest(folder: Path, prompts: Sequence[str], count: int) -> list[list[Path]]:
    queues: dict[str, collections.deque[Path]] = collections.defaultdict(collections.deque)
    for file, text in captions_of_manifest(folder):
        queues[text].append(file)
    return [[queues[text].popleft() for _ in range(min(count, len(queues[text])))] for text in prompts]


def _from_numbers(folder: Path, prompts: Sequence[str], count: int, flag: str) -> list[list[Path]]:
    files: dict[tuple[int, int], Path] = {}
    for file in image_files(folder):
        match = _NUMBERED.fullmatch(file.stem)
        if match is None:
            continue
        number, image = match.groups()
        place = (int(number), int(image)) if image is not None else divmod(int(number), count)
        if place in files:
            raise UserError(f"{flag}: {files[place]} and {file} are both image {place[1]} of prompt {place[0]}")
        files[place] = file
    found = [[files.get((prompt, image)) for image in range(count)] for prompt in range(len(prompts))]
    return [[file for file in row if file is not None] for row in found]


def _check(file: Path, flag: str) -> None:
    """Refuses what is no image; of a PNG the checksums of all parts are compared, which takes no decoding."""
    try:
        check_header(file)
        if file.suffix.lower() == ".png":
            with Image.open(file) as image:
                image.verify()
    except BadImage as error:
        raise UserError(f"{flag}: {file} {error}: replace it") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise UserError(f"{flag}: {file} is damaged ({error}): replace it") from error
