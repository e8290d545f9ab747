"""A part of somebody's preferences that is held out, so that a preference model can be measured on what it never saw.

Whole prompts are held out as far as they fit, because two pairs of a prompt may share an image, and a model that has
seen one of them has an easy time with the other. Where prompts are too few for that, single pairs are held out. What is
held out follows from the texts of the prompts alone, so that it is the same on every machine, and hardly changes when
more votes are added.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.words import counted
from spo_jax.data.preferences.check import RawPair, Source

TRAIN = "train"
VALIDATION = "validation"


class HeldOut:
    """A `Source` with the splits ``train`` and ``validation``, which are the only split of another source.

    Rows that cannot be read are in ``train``, because ``validation`` is small, and may not consist of them.

    Args:
      source: the other source.
      share: share of its pairs to hold out, above 0 and below 1.

    Raises:
      UserError: the source has several splits, or fewer than two pairs; or as the source raises it.
    """

    def __init__(self, source: Source, share: float):
        self._source = source
        self._share = share
        if len(source.splits()) > 1:
            raise UserError(
                f"--hold-out={share:g}: the source has several splits already ({', '.join(source.splits())}): leave "
                "the flag out, or keep one of them"
            )
        (self._split,) = source.splits()
        usable = [(not row.problem, str(row.caption)) for row in source.rows(self._split)]
        captions = [caption for can_be_read, caption in usable if can_be_read]
        if len(captions) < 2:
            raise UserError(
                f"--hold-out={share:g}: the source has {counted(len(captions), 'pair')}: expected at least 2"
            )
        chosen = iter(_chosen(captions, share))
        self._held_out = [can_be_read and next(chosen) for can_be_read, _ in usable]

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the two parts."""
        return TRAIN, VALIDATION

    def usual_splits(self) -> tuple[str, ...]:
        """Returns the names of the two parts."""
        return self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns what the other source is made from, and the share."""
        del split
        return self._source.made_from(self._split) | {"hold_out": self._share}

    def count(self, split: str) -> int:
        """Returns the number of pairs of a part."""
        return self._held_out.count(split == VALIDATION)

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs of a part, in the order of the other source."""
        for row, held_out in zip(self._source.rows(self._split), self._held_out, strict=True):
            if held_out == (split == VALIDATION):
                yield row


def _chosen(captions: list[str], share: float) -> list[bool]:
    """Says of each pair whether it is held out."""
    wanted = min(max(1, round(share * len(captions))), len(captions) - 1)
    held_out = _fitting(captions, wanted)
    if held_out.count(True) < wanted / 2:  # a few prompts with many pairs each
        held_out = _fitting([str(number) for number in range(len(captions))], wanted)
    return held_out


def _fitting(groups: list[str], wanted: int) -> list[bool]:
    """Chooses whole groups in the order of their digests, as long as there are no more than ``wanted`` pairs in all."""
    sizes = Counter(groups)
    chosen: set[str] = set()
    for group in sorted(sizes, key=lambda group: hashlib.sha256(group.encode(errors="replace")).digest()):
        if sizes[group] <= wanted:
            chosen.add(group)
            wanted -= sizes[group]
    return [group in chosen for group in groups]
