"""The folder of an evaluation: images that are drawn once, and scores that are computed once.

``evaluation.json`` holds the prompts. The images of a contestant lie in ``images/NAME/FINGERPRINT/0012-0.png``: image 0
of prompt 12. The fingerprint is that of the recipe: everything that decides on the images besides prompt and noise,
written out in ``recipe.json`` beside them. A setting that is changed gives another fingerprint, so that images of two
settings never mix, and the old ones stay. ``scores/REWARD-FINGERPRINT/NAME.json`` holds scores by the digest of the
image's file and its prompt. Every file is written whole or not at all, so that a killed evaluation loses at most the
batch that it was drawing, or the scores of the last seconds.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, read_json_object, write_json
from spo_jax.core.images import write_png
from spo_jax.core.typing import UInt8
from spo_jax.core.words import counted, differences, excerpt
from spo_jax.data.encoded_images import BadImage, read_image_file
from spo_jax.data.preferences.images import decode_rgb
from spo_jax.run.lock import CARD, LOCK
from spo_jax.work.evaluate.digests import fingerprint

INDEX = "evaluation.json"
_IMAGES, _SCORES, _RECIPE = "images", "scores", "recipe.json"
_FORMAT = 1
_FIELD = "spo_jax"  # text field of a PNG that says what made it
_KEY = 24  # hexadecimal digits by which a score knows its image
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.@+-]+")


class Recipe(NamedTuple):
    """What made the images of a contestant.

    Attributes:
      values: everything that decides on them besides prompt and noise, as JSON.
      fingerprint: its digest.
    """

    values: Mapping[str, Any]
    fingerprint: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Recipe":
        """Takes the fingerprint of these values."""
        return cls(values, fingerprint(values))


class Store:
    """The folder of an evaluation.

    Args:
      folder: the folder; it is made with the first file.
      prompts: the prompts that are evaluated now: those that the folder has, the first of them, or more.

    Raises:
      UserError: the folder holds something else, or an evaluation of other prompts, or cannot be written.
    """

    def __init__(self, folder: Path, prompts: Sequence[str]):
        self.folder = folder
        self.prompts = list(prompts)
        check_folder(folder, prompts)

    def begin(self) -> None:
        """Writes which prompts belong here, and removes what a killed evaluation has left of its last file."""
        known = _prompts(self.folder)
        if len(known) < len(self.prompts):
            write_json(self.folder / INDEX, {"format": _FORMAT, "prompts": self.prompts})
        # Names of `write_atomic`: .evaluation.json.ab12cd.json
        results = (f".*{suffix}.*{suffix}" for suffix in (".json", ".csv", ".md", ".html"))
        for pattern in (*results, f"{_SCORES}/*/.*.json.*.json", f"{_IMAGES}/*/*/.*.png.*.png"):
            for file in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    file.unlink()

    # Images

    def image_file(self, name: str, recipe: Recipe, prompt: int, image: int) -> Path:
        """Returns the path of an image."""
        return self._images(name, recipe) / f"{prompt:04d}-{image}.png"

    def _images(self, name: str, recipe: Recipe) -> Path:
        return self.folder / _IMAGES / name / recipe.fingerprint

    def begin_images(self, name: str, recipe: Recipe) -> str:
        """Writes the recipe of images that are about to be drawn.

        Returns:
          In what it differs from that of images which the contestant has already; empty if it has none.
        """
        folder = self._images(name, recipe)
        note = ""
        if not (folder / _RECIPE).is_file():
            others = sorted(folder.parent.glob(f"*/{_RECIPE}"), key=lambda file: file.stat().st_mtime)
            if others:
                before, now = (_texts(values) for values in (read_json_object(others[-1]), recipe.values))
                note = differences(before, now, ("there", "now"))
            write_json(folder / _RECIPE, dict(recipe.values))
        return note

    def signs(self, name: str, recipe: Recipe, prompt: int, image: int) -> dict[str, float] | None:
        """Returns what was measured of an image when it was drawn; None if the image is not there."""
        made = _made(self.image_file(name, recipe, prompt, image))
        expected = self._maker(recipe, prompt, image)
        if made is None or any(made.get(key) != value for key, value in expected.items()):
            return None
        signs = made.get("signs")
        return signs if isinstance(signs, dict) else None

    def write_image(
        self,
        name: str,
        recipe: Recipe,
        prompt: int,
        image: int,
        pixels: UInt8[np.ndarray, "h w 3"],
        signs: Mapping[str, float],
    ) -> Path:
        """Writes an image, whose text fields say what made it.

        Args:
          name: name of the contestant.
          recipe: what made the image.
          prompt: number of its prompt.
          image: which image of the prompt it is.
          pixels: the image.
          signs: what was measured before its values were rounded.

        Raises:
          UserError: the file cannot be written.
        """
        path = self.image_file(name, recipe, prompt, image)
        maker = json.dumps(self._maker(recipe, prompt, image) | {"signs": dict(signs)})
        write_png(path, pixels, {"prompt": self.prompts[prompt], "contestant": name, _FIELD: maker})
        return path

    def _maker(self, recipe: Recipe, prompt: int, image: int) -> dict[str, Any]:
        return {"recipe": recipe.fingerprint, "prompt": self.prompts[prompt], "number": prompt, "image": image}

    # Scores

    def scores(self, reward: Mapping[str, Any], name: str) -> "ScoreFile":
        """Opens the scores that a reward has given to a contestant's images.

        Args:
          reward: everything that decides on the scores besides image and prompt, as JSON; its ``spec`` names it.
          name: name of the contestant.
        """
        called = _NOT_IN_NAMES.sub("-", str(reward["spec"]))[:60].strip("-.")
        return ScoreFile(self.folder / _SCORES / f"{called}-{fingerprint(reward)}" / f"{name}.json", reward)


class ScoreFile:
    """Scores of one contestant by one reward, by the keys of `image_key`.

    Args:
      path: the file, which need not exist.
      reward: what gives the scores.

    Attributes:
      scores: the scores by name, by key of the image.
      diversity: mean distance between the images of a prompt, by `joint_key`.

    Raises:
      UserError: the file is damaged.
    """

    def __init__(self, path: Path, reward: Mapping[str, Any]):
        self._path = path
        self._reward = dict(reward)
        content = read_json_object(path) if path.is_file() else {}
        try:
            self.scores: dict[str, dict[str, float]] = dict(content.get("scores", {}))
            self.diversity: dict[str, float] = dict(content.get("diversity", {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: delete it, and its scores are computed again") from error
        self._written = self._count()
        self._last = time.monotonic()

    def _count(self) -> int:
        return len(self.scores) + len(self.diversity)

    def save(self, every: float = 0.0) -> None:
        """Writes the scores, completely or not at all; does nothing if none was added.

        Args:
          every: least seconds since the file was opened or written, before which nothing is written.
        """
        if self._count() == self._written or time.monotonic() - self._last < every:
            return
        write_json(self._path, {"reward": self._reward, "scores": self.scores, "diversity": self.diversity})
        self._written = self._count()
        self._last = time.monotonic()


def check_folder(folder: Path, prompts: Sequence[str]) -> None:
    """Refuses a folder in which the results of these prompts must not or cannot be written.

    Raises:
      UserError: as `Store`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={folder} is a file: expected a folder")
    check_writable(folder)
    if not (folder / INDEX).is_file():
        # An evaluation that was killed before this file was whole has left a part of it, which `Store.begin` removes.
        others = (file.name for file in folder.iterdir() if not file.match(f".{INDEX}.*")) if folder.is_dir() else ()
        if set(others) - {LOCK, CARD}:
            raise UserError(f"--out={folder} holds something else than an evaluation: choose another folder")
        return
    known = _prompts(folder)
    for number, (theirs, ours) in enumerate(zip(known, prompts, strict=False)):
        if theirs != ours:
            raise UserError(
                f"--out={folder} holds an evaluation of other prompts ({counted(len(known), 'prompt')}; prompt "
                f"{number} is {excerpt(theirs)} there and {excerpt(ours)} here): choose another --out"
            )


def _prompts(folder: Path) -> list[str]:
    """Reads the prompts of an evaluation; there are none before it has begun."""
    path = folder / INDEX
    if not path.is_file():
        return []
    content = read_json_object(path)
    prompts = content.get("prompts")
    if content.get("format") != _FORMAT or not isinstance(prompts, list):
        raise UserError(f"{path} is not of an evaluation that this version can continue: choose another --out")
    return prompts


def image_key(file: Path, prompt: str) -> str:
    """Returns the key under which the scores of an image are kept, from its bytes and its prompt.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        data = read_image_file(file)
    except BadImage as error:
        raise UserError(f"{file} {error}") from error
    return hashlib.sha256(prompt.encode() + b"\0" + data).hexdigest()[:_KEY]


def joint_key(keys: Sequence[str]) -> str:
    """Returns the key of several images together."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:_KEY]


def read_pixels(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    try:
        return decode_rgb(read_image_file(file))
    except BadImage as error:
        raise UserError(f"{file} {error}: replace it, or delete it if this command drew it") from error


def _made(path: Path) -> dict[str, Any] | None:
    """Reads what made an image; None if there is no such file, or one that was not written here."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            value = json.loads(image.info.get(_FIELD, ""))
    except (OSError, ValueError, SyntaxError):
        return None
    return value if isinstance(value, dict) else None


def _texts(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens a recipe to texts, for a message."""
    texts: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        texts |= _texts(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return texts
