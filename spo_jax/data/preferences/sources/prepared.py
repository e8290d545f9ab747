"""A prepared split, from which another one is made: filtered by a rule, or cut to its first pairs.

Whoever has prepared data needs neither the files that it was made from nor to decide on a filter beforehand.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.format import FILTERED_BEFORE, IMAGES, open_preferences, open_records, prepared_splits
from spo_jax.data.preferences.parquet import SPLITS
from spo_jax.data.preferences.sources import NamedOptions


@dataclasses.dataclass(frozen=True)
class Options(NamedOptions):
    """Names the folder with prepared splits."""

    EXPECTED: ClassVar = "a folder that `python -m spo_jax.prepare` has written"


def open_source(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> "PreparedPairs":
    """Opens the folder.

    Raises:
      UserError: it holds no prepared split.
    """
    del splits, fetch
    return PreparedPairs(local_path(options.source))


class PreparedPairs:
    """A `Source`: the complete splits of a folder with prepared pairs.

    Args:
      folder: the folder.

    Raises:
      UserError: it is no folder, or has no prepared split.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._splits = tuple(prepared_splits(folder))
        if not self._splits:
            inner = ", ".join(sorted({str(path.parent.parent) for path in folder.glob("*/*/prepared.json")}))
            hint = f" ({inner} has some)" if inner else ""
            raise UserError(f"--source={folder} holds no prepared splits{hint}: expected {Options.EXPECTED}")

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the complete splits."""
        return self._splits

    def usual_splits(self) -> tuple[str, ...]:
        """Returns all splits, those on which one trains first."""
        return tuple(sorted(self._splits, key=lambda split: (split not in SPLITS[:1], split)))

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns the folder, the digest of the split, and the rule by which it was filtered if it was.

        Raises:
          UserError: the split is damaged.
        """
        pairs = open_preferences(self._folder, split)
        origin = {"dataset": "prepared", "source": str(self._folder.resolve()), "digest": pairs.digest}
        return origin | ({FILTERED_BEFORE: pairs.rule} if pairs.rule else {})

    def count(self, split: str) -> int:
        """Returns the number of pairs.

        Raises:
          UserError: the split is damaged.
        """
        return len(open_preferences(self._folder, split))

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs as they were prepared.

        Raises:
          UserError: a record cannot be read.
        """
        records = open_records(self._folder / split, split)
        for row in range(len(records)):
            try:
                record = records[row]
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"{self._folder / split}: pair {row} cannot be read ({error}): prepare it again"
                ) from error
            yield RawPair(
                where=f"pair {row}",
                images=tuple(record[name] for name in IMAGES),
                caption=record["caption"].decode(),
                labels=(float(record["label_0"]), float(record["label_1"])),
                has_label=bool(record["has_label"]),
                are_different=bool(record["are_different"]),
                uids=(record["image_0_uid"].decode(), record["image_1_uid"].decode()),
                num_example_per_prompt=int(record["num_example_per_prompt"]),
                names=IMAGES,
            )
