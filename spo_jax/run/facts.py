"""The facts of a run that have to be equal in all of its processes, as text by name."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import spo_jax
from spo_jax.core.trees import flatten
from spo_jax.run.settings import RunSettings
from spo_jax.run.versions import library_versions


def facts_of(settings: RunSettings, data: Any) -> dict[str, str]:
    """Collects versions, every setting, and digests of what the run reads.

    Args:
      settings: the settings of the run.
      data: what the method's ``read_data`` returned.
    """
    values = flatten(dataclasses.asdict(settings), ".")
    facts = {f"the version of {name}": version for name, version in library_versions().items()}
    facts["the code of spo_jax"] = _source()
    facts |= {f"config.{name}": repr(value) for name, value in values.items()}
    facts["the training data"] = _digest(data.digests)
    for name, texts in getattr(data, "parts", {}).items():
        count = "1 entry" if len(texts) == 1 else f"{len(texts)} entries"
        facts[f"the content of config.{name}"] = f"{values.get(name)!r} ({count}, digest {_digest(texts)})"
    return facts


def _source() -> str:
    """Returns a digest of the package's own files; two checkouts may have the same version."""
    folder = Path(spo_jax.__file__).parent
    files = sorted(folder.rglob("*.py"))
    return f"digest {_digest(f'{file.relative_to(folder).as_posix()}: {_text(file)}' for file in files)}"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:12]
