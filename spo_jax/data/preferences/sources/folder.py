"""A user's own preferences: a folder with a JSONL or CSV file per split and image files, or with better/ and worse/.

`spo_jax.data.preferences.own` has a file for each of these forms. The page for voting writes the first.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from spo_jax.core.config import setting
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.words import listed
from spo_jax.data.preferences.check import Source
from spo_jax.data.preferences.own.better_worse import BETTER, WORSE, BetterAndWorse
from spo_jax.data.preferences.own.files import READERS, PreferenceFiles
from spo_jax.data.preferences.own.held_out import HeldOut
from spo_jax.data.preferences.sources import NamedOptions

_EXPECTED = (
    "JSONL files (train.jsonl: a line per pair), CSV files (train.csv: a row per pair), or two folders better and "
    "worse with equal file names"
)


@dataclasses.dataclass(frozen=True)
class Options(NamedOptions):
    """Names the folder to read, and how much of it to keep for measuring."""

    EXPECTED: ClassVar = "a folder"

    hold_out: float = setting(
        0.0, "Hold out this share of the pairs as the split validation (folder).", at_least=0, below=1
    )


def open_source(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> Source:
    """Opens the folder.

    Raises:
      UserError: it is no folder, or has none of the forms or several; or as its form raises it.
    """
    del splits, fetch
    source = open_form(local_path(options.source))
    return HeldOut(source, options.hold_out) if options.hold_out else source


def open_form(folder: Path) -> Source:
    """Opens a folder in the form that it has.

    Raises:
      UserError: as `open_source`.
    """
    if folder.is_file():
        raise UserError(f"--source={folder} is a file: expected the folder that it is in")
    if not folder.is_dir():
        raise UserError(f"--source={folder} is not a folder: expected one with {_EXPECTED}")
    # Find the forms that the folder has.
    files = {suffix: sorted(path for path in folder.glob(f"[!.]*{suffix}") if path.is_file()) for suffix in READERS}
    files = {suffix: paths for suffix, paths in files.items() if paths}
    sides = [side for side in (BETTER, WORSE) if (folder / side).is_dir()]
    found = [paths[0].name for paths in files.values()] + ([f"{listed(sides)} (folders)"] if sides else [])
    # Refuse what leaves open what is meant.
    if not found:
        raise UserError(f"--source={folder} holds no preferences{_hint(folder)}: expected {_EXPECTED}")
    if len(found) > 1:
        raise UserError(
            f"--source={folder} holds preferences in several forms, {listed(found)}: expected one of {_EXPECTED}; move "
            "the others elsewhere"
        )
    if len(sides) == 1:
        missing = WORSE if sides == [BETTER] else BETTER
        raise UserError(f"--source={folder} has a folder {sides[0]} and none {missing}: expected {_EXPECTED}")
    if sides:
        return BetterAndWorse(folder)
    (paths,) = files.values()
    return PreferenceFiles({path.stem: path for path in paths})


def _hint(folder: Path) -> str:
    """Names folders inside that hold preferences, as does the one of the page for voting."""
    files = {path.parent for suffix in READERS for path in folder.glob(f"[!.]*/[!.]*{suffix}")}
    sides = {path.parent for path in folder.glob(f"[!.]*/{BETTER}") if (path.parent / WORSE).is_dir()}
    inner = sorted(map(str, files | sides))
    return f" ({listed(inner)} {'holds' if len(inner) == 1 else 'hold'} some)" if inner else ""
