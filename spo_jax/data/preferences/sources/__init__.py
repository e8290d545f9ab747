"""Sources of preference pairs; each module here is a source, which is found by its name.

A source is a module with a class `Options`, whose fields are flags of ``python -m spo_jax.prepare``, and a function
``open_source(options, splits, fetch)`` that returns a `spo_jax.data.preferences.check.Source`. ``splits`` are named by
the user (empty: the usual ones), so that no others are downloaded. ``fetch`` finds a folder or hub id, as
`spo_jax.weights.hub.resolve`.

A source of something other than pairs has a function ``prepare(options, data_dir, splits, max_bad, limit, fetch)`` in
place of ``open_source``, which writes it; `prompts` is one.
"""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import Settings, setting


@dataclasses.dataclass(frozen=True)
class SourceOptions(Settings):
    """Base class of a source's options, which are flags and have their flags' names in error messages."""

    def locate(self, field: str) -> str:
        """Returns the flag of a field: ``held_out_pairs`` becomes ``--held-out-pairs``."""
        return f"--{field.replace('_', '-')}"


@dataclasses.dataclass(frozen=True)
class NamedOptions(SourceOptions):
    """Options of a source that reads what the user names.

    Attributes:
      EXPECTED: what ``source`` may name, for messages.
    """

    EXPECTED: ClassVar[str]

    source: str = setting("", "Read the pairs from this folder (pick_a_pic: or hub id; prompts: or file, or URL).")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.source), "source", self.EXPECTED)


@dataclasses.dataclass(frozen=True)
class ParquetOptions(NamedOptions):
    """Options of a source that reads parquet files, which may be on the hub."""

    revision: str = setting("", "Use this revision of the hub id.")
    partial: bool = setting(False, "Prepare the parquet files that exist even if some are missing.")
