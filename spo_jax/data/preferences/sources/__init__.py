"""Sources of preference pairs; each module here is a source, which is found by its name.

A source is a module with a class `Options`, whose fields are flags of ``python -m spo_jax.prepare``, and a function
``open_source(options, splits, fetch)`` that returns a `spo_jax.data.preferences.check.Source`. ``splits`` are named by
the user (empty: the usual ones), so that no others are downloaded. ``fetch`` finds a folder or hub id, as
`spo_jax.weights.hub.resolve`.

A source of something other than pairs has a function ``prepare(options, data_dir, splits, max_bad, limit, fetch)`` in
place of ``open_source``, which writes it; `prompts` is one.
"""

import dataclasses

from spo_jax.core.config import Settings


@dataclasses.dataclass(frozen=True)
class SourceOptions(Settings):
    """Base class of a source's options, which are flags and have their flags' names in error messages."""

    def locate(self, field: str) -> str:
        """Returns the flag of a field: ``held_out_pairs`` becomes ``--held-out-pairs``."""
        return f"--{field.replace('_', '-')}"
