"""The folder of a run: whether a run may start or resume in it, and how checkpoints hold the state."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.run_files import CHECKPOINTS
from spo_jax.core.typing import PyTree
from spo_jax.core.words import counted
from spo_jax.parallel.agreement import gathered, is_visible
from spo_jax.parallel.multihost import is_writer
from spo_jax.run.checkpoint import Checkpointer
from spo_jax.run.checkpoint_reader import CheckpointReader
from spo_jax.run.lock import CARD, RunLock, holds_lock
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics
from spo_jax.run.resume import Resume
from spo_jax.run.settings import RunSettings

FORMAT = 2  # format of checkpoints; older ones held the whole state in one item and cannot be resumed


@runtime_checkable
class State(Protocol):
    """The state of a run: a NamedTuple with a field ``params``, the weights that are trained."""

    params: PyTree

    def _replace(self, **fields: Any) -> "State": ...


class RunFolder(NamedTuple):
    """The folder of a run, which no other run may use in the meantime.

    Attributes:
      resuming: whether there is a run to resume.
      guard: function that raises a `UserError` if another run has taken over the folder; it is called before each save.
    """

    resuming: bool
    guard: Callable[[], None]


@contextlib.contextmanager
def open_folder(out: Path, resume: Resume, settings: RunSettings, data: Sequence[str]) -> Iterator[RunFolder]:
    """Checks whether a run may start or resume in a folder, before anything that takes minutes, and locks the folder.

    A refused run changes nothing in the folder. Of several processes, process 0 decides and holds the lock, and the
    others check that they see the same folder.

    Args:
      out: the run's folder.
      resume: what to do with a run that the folder holds already.
      settings: the settings of the run.
      data: the training data, or digests of it; only a digest of them is kept.

    Yields:
      The folder. A run that was killed before its first checkpoint is not there to resume.

    Raises:
      UserError: the folder holds another run, or no run to resume, or a run with other settings or data, or another
        process is writing to it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        guard = _nothing
        decision = None
        if is_writer():
            step = _step_to_resume(out, resume, settings, data)
            lock = held.enter_context(RunLock(out))
            if CheckpointReader(out / CHECKPOINTS).latest_step() != step:  # another run has ended since
                step = _step_to_resume(out, resume, settings, data)
            guard = lock.check
            decision = [step is not None, lock.id]
        resuming, lock_id = gathered(decision)[0]
        sees_it = is_visible(lambda: holds_lock(out, lock_id))
        blind = [str(index) for index, sees in enumerate(gathered(sees_it)) if not sees]
        if blind:
            raise UserError(
                f"--out={out}: process {', '.join(blind)} does not see the file {CARD} that process 0 has written "
                "there; every process needs the same folder, on a disk that all of them share"
            )
        yield RunFolder(resuming, guard)


def _nothing() -> None:
    """The guard of a process that holds no lock because process 0 does."""


def _step_to_resume(out: Path, resume: Resume, settings: RunSettings, data: Sequence[str]) -> int | None:
    """Returns the latest step in the folder, or None if a new run starts; raises as `open_folder`."""
    folder = out / CHECKPOINTS
    step = CheckpointReader(folder).latest_step()
    resume.check(out, step is not None)
    if step is not None:
        _check_meta(folder, settings, data, resume.changed)
        if (out / METRICS).exists():
            read_metrics(out / METRICS)
    return step


def run_meta(settings: RunSettings, data: Sequence[str]) -> dict[str, Any]:
    """Returns what every checkpoint holds besides its state: the resolved settings, and a digest of the data."""
    digest = hashlib.sha256(json.dumps(list(data)).encode()).hexdigest()
    return {"format": FORMAT, "settings": dataclasses.asdict(settings), "data": digest}


# The state in a checkpoint


def state_items(state: State) -> dict[str, PyTree]:
    """Splits a state into the items of a checkpoint: ``params``, which is all that exporting reads, and the rest."""
    return {"params": state.params, "rest": state._replace(params=())}


def joined(items: dict[str, PyTree]) -> State:
    """Puts the state together again that `state_items` has split."""
    return items["rest"]._replace(params=items["params"])


def restore(checkpointer: Checkpointer, state: State, total: int) -> tuple[int, State, dict[str, Any]]:
    """Reads the number of finished batches, the state after them, and the meta from the last undamaged checkpoint.

    Args:
      checkpointer: the checkpoints of the run.
      state: arrays or shapes of the same tree, with the shardings that the restored arrays should have.
      total: number of batches that the settings ask for.

    Raises:
      UserError: more batches are finished than the settings ask for; as `Checkpointer.restore_latest`.
    """
    done, items, meta = checkpointer.restore_latest(state_items(state))
    if done > total:
        found = checkpointer.folder / str(done)
        raise UserError(f"--resume: {found} is beyond the requested {counted(total, 'batch')}")
    logging.info("resuming after batch %d", done)
    return done, joined(items), meta


# Comparing a run with its resumption


def _check_meta(folder: Path, settings: RunSettings, data: Sequence[str], changed: bool) -> None:
    found = CheckpointReader(folder).read_latest_meta()
    if found is None:
        return  # restoring reports how each checkpoint is damaged
    step, saved = found
    check_format(folder / str(step), saved)
    wanted = json.loads(json.dumps(run_meta(settings, data)))  # as it is stored: tuples are lists
    free = settings.FREE_FIELDS
    # A field that was added after the checkpoint was written had its default.
    before = _bound(_filled(saved["settings"], dataclasses.asdict(type(settings)())), free)
    now = _bound(wanted["settings"], free)
    differences = [_difference(key, before.get(key), now[key]) for key in sorted(now) if before.get(key) != now[key]]
    if saved.get("data") != wanted["data"]:
        differences.append(f"{settings.data} are not the same")
    if differences and changed:
        logging.warning("resuming from %s with changes: %s", folder / str(step), "; ".join(differences))
    elif differences:
        raise UserError(
            f"--resume: the checkpoint {folder / str(step)} has other settings: {'; '.join(differences)}; restore the "
            "old settings, or pass --resume-with-changes to continue anyway"
        )


def check_format(checkpoint: Any, meta: dict[str, Any]) -> None:
    """Raises a `UserError` if a checkpoint was written by an earlier version of the package.

    Args:
      checkpoint: folder of the checkpoint, for messages.
      meta: what it holds besides the state.
    """
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{checkpoint} was written by an earlier version of spo_jax and cannot be read by this one: start a new "
            "run, or use that version"
        )


def _filled(saved: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Adds defaults for fields that were not saved to the saved values."""
    own = {key: saved.get(key, value) for key, value in default.items()}
    return {key: _filled(value, default[key]) if isinstance(value, dict) else value for key, value in own.items()}


def _bound(settings: dict[str, Any], free: Sequence[str], path: str = "") -> dict[str, Any]:
    """Selects the fields that must not differ."""
    bound = {key: value for key, value in settings.items() if path + key not in free}
    return {key: _bound(value, free, f"{key}.") if isinstance(value, dict) else value for key, value in bound.items()}


def _difference(name: str, saved: Any, wanted: Any) -> str:
    """Describes every field below ``name`` that differs, as ``spo.beta was 10.0, now 5.0``."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        differing = (key for key in wanted if saved.get(key) != wanted[key])
        return ", ".join(_difference(f"{name}.{key}", saved.get(key), wanted[key]) for key in differing)
    return f"{name} was {saved!r}, now {wanted!r}"
