"""Where preference pairs come from; every module here is a source, found by its name.

A source is a module with a class `Options`, whose fields are flags of ``python -m spo_jax.prepare``, and a function
``open_source(options, splits, fetch)`` that gives a `spo_jax.data.preferences.check.Source`. ``splits`` are those that
the user names (none: the usual ones), so that no other has to be fetched; ``fetch`` finds a folder or hub id, see
`spo_jax.weights.hub.resolve`.
"""

import dataclasses

from spo_jax.core.config import Settings


@dataclasses.dataclass(frozen=True)
class SourceOptions(Settings):
    """Base of a source's options: flags, and named so in messages."""

    def locate(self, field: str) -> str:
        """``held_out_pairs`` -> ``--held-out-pairs``."""
        return f"--{field.replace('_', '-')}"
