"""The folder of a run: whether a run may start in it, or go on there."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics

CHECKPOINTS = "checkpoints"
State = TypeVar("State")


@runtime_checkable
class RunSettings(Protocol):
    """All settings of a run, a frozen dataclass whose fields have defaults.

    Attributes:
      FREE_FIELDS: may differ between a run and its resumption: they do not change the numbers, but for rounding.
      data: what the run learns from, for messages.
    """

    FREE_FIELDS: ClassVar[Sequence[str]]

    @property
    def data(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Resume:
    """What to do with a run that is there already.

    Attributes:
      required: go on with it; one that is not there is an error. if_there: go on with it, or start one.
      changed: go on even if settings or prompts are not what they were.
    """

    required: bool = False
    if_there: bool = False
    changed: bool = False


def open_folder(out: Path, resume: Resume, settings: RunSettings, data: Sequence[str]) -> bool:
    """Refuses what would fail after minutes of work: another run's folder, a run that is not there or has other
    settings or data, a folder that cannot be written.

    Args:
      data: what the run learns from, or digests of it; only its digest is kept.

    Returns:
      Whether there is a run to go on with. One that was killed before its first checkpoint is none.

    Raises:
      UserError: as told above.
    """
    if out.parts and out.parts[0].endswith(":"):
        raise UserError(f"--out={out}: buckets cannot be written to; mount the bucket, or use a shared disk")
    folder = out / CHECKPOINTS
    held = _latest_step(folder)
    if resume.required and held is None:
        raise UserError(f"--resume: no checkpoint in {folder}; leave --resume out to start a run there")
    if held is not None and not (resume.required or resume.if_there):
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
    check_writable(out)
    if held is not None:
        _check_meta(folder, settings, data, resume.changed)
        if (out / METRICS).exists():
            read_metrics(out / METRICS)
    return held is not None


def run_meta(settings: RunSettings, data: Sequence[str]) -> dict[str, Any]:
    """What every checkpoint holds beside its state: the resolved config, and a digest of the data (of the prompts)."""
    digest = hashlib.sha256(json.dumps(list(data)).encode()).hexdigest()
    return {"settings": dataclasses.asdict(settings), "prompts": digest}


def restore(checkpointer: Checkpointer, state: State, total: int) -> tuple[int, State]:
    """How many batches are done, and the state after them, from the last whole checkpoint.

    Args:
      state: arrays or shapes of the same tree, lying where it is wanted.
      total: how many are asked for.

    Raises:
      UserError: more is done than is asked for; as `Checkpointer.restore_latest`.
    """
    done, state, _ = checkpointer.restore_latest(state)
    if done > total:
        raise UserError(f"--resume: {checkpointer.folder / str(done)} is past the {total} batches that are asked for")
    logging.info("resuming after batch %d", done)
    return done, state


def _latest_step(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    with Checkpointer(folder, read_only=True) as checkpointer:
        return checkpointer.latest_step()


def _check_meta(folder: Path, settings: RunSettings, data: Sequence[str], changed: bool) -> None:
    wanted, free = run_meta(settings, data), settings.FREE_FIELDS
    with Checkpointer(folder, read_only=True) as checkpointer:
        found = checkpointer.read_latest_meta()
    if found is None:
        return  # restoring says how each of them is damaged
    step, saved = found
    # A field that is younger than the checkpoint had its default.
    one, other = _filled(saved["settings"], dataclasses.asdict(type(settings)())), wanted["settings"]
    one, other = _bound(one, free), _bound(other, free)
    told = [_difference(key, one.get(key), other[key]) for key in sorted(other) if one.get(key) != other[key]]
    if saved.get("prompts", wanted["prompts"]) != wanted["prompts"]:
        told.append(f"{settings.data} are not the same")
    if told and changed:
        logging.warning("going on from %s with changes: %s", folder / str(step), "; ".join(told))
    elif told:
        hint = "go on with the old ones, or tell with --resume-with-changes that this is meant"
        raise UserError(f"--resume: the checkpoint {folder / str(step)} has other settings: {'; '.join(told)}; {hint}")


def _filled(saved: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """What was saved, and the defaults of what was not."""
    own = {key: saved.get(key, value) for key, value in default.items()}
    return {key: _filled(value, default[key]) if isinstance(value, dict) else value for key, value in own.items()}


def _bound(settings: dict[str, Any], free: Sequence[str], path: str = "") -> dict[str, Any]:
    """The fields that must not differ."""
    bound = {key: value for key, value in settings.items() if path + key not in free}
    return {key: _bound(value, free, f"{key}.") if isinstance(value, dict) else value for key, value in bound.items()}


def _difference(name: str, saved: Any, wanted: Any) -> str:
    """``spo.beta was 10.0, now 5.0``, and so on for every field below ``name`` that differs."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        differing = (key for key in wanted if saved.get(key) != wanted[key])
        return ", ".join(_difference(f"{name}.{key}", saved.get(key), wanted[key]) for key in differing)
    return f"{name} was {saved!r}, now {wanted!r}"
