"""The settings of a run that decide how much memory it needs."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from spo_jax.core.config import Settings
from spo_jax.core.memory import ELSEWHERE
from spo_jax.run.settings import RunSettings


def memory_advice(settings: RunSettings, devices: int) -> str:
    """Says which fields to change if memory is short: those that the method has and that can still be changed.

    Chunks and gradient checkpointing come first, because they change results only by rounding.

    Args:
      settings: settings of any method.
      devices: number of devices of the mesh.
    """
    lower: list[str] = []
    batches: list[str] = []
    values: list[str] = []
    shared: list[str] = []
    for name, value, how in _fields(settings):
        if how == "lower":
            (batches if name in settings.BATCHES else lower).append(f"{name} (now {value or 'as suits the platform'})")
        elif how == "raise":
            shared += [f"{name} (now {value})"] if 0 < value < devices else []
        else:
            values.append(f"{name} = {how}")
    ways = {"lower": lower, "set": values, "raise": shared, "make smaller batches with": batches}
    ways = [f"{verb} {' or '.join(fields)}" for verb, fields in ways.items() if fields]
    return f"in the config, {'; or '.join(ways)}" if ways else ELSEWHERE


def _fields(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yields (name, value, what to do) of the fields that can still be changed to save memory."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
            continue
        how = field.metadata.get("memory", "")
        if how and str(value) != how and (how != "lower" or value != 1):
            yield f"{prefix}{field.name}", value, how
