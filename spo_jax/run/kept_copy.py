"""A copy of a run elsewhere, for machines that are taken away: kept while it trains, and fetched back afterwards.

A run needs a folder with renames and locks that hold. A Drive that is mounted into a notebook does not promise that: it
uploads later, and is away now and then ("transport endpoint is not connected"). So the run stays on the machine's disk,
a thread copies what is finished, and what fails is tried again without disturbing the run. A checkpoint is copied under
another name and then renamed; if its upload was cut nevertheless, the sizes in its list of files tell, and the run
resumes from the checkpoint before it.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, local_path
from spo_jax.core.progress import say, stage
from spo_jax.core.run_files import CHECKPOINTS, holds_run
from spo_jax.run.lock import CARD


@contextlib.contextmanager
def keep_copy(run: str | os.PathLike, copy: str | os.PathLike, every: float | int = 30.0) -> Iterator[None]:
    """Keeps a copy of a run in another folder while the body trains it, and begins by fetching it if the run is gone.

    Args:
      run: the run's folder, on a disk of this machine; it need not exist.
      copy: the folder of the copy, such as one in a mounted Drive; empty for none, and then nothing is done.
      every: seconds between two looks at the run; more than 0.

    Raises:
      UserError: the copy's folder is the run's, in it or around it, or cannot be written; the copy cannot be
        fetched; or the run is behind its copy; or ``every`` is out of range.
    """
    if not os.fspath(copy):
        yield
        return
    if not (isinstance(every, int | float) and 0 < every <= threading.TIMEOUT_MAX):
        raise UserError(f"every={every!r}: expected seconds between two looks at the run, more than 0")
    run, copy = local_path(run), local_path(copy)
    _check_apart(run, copy)
    check_writable(copy)
    if holds_run(copy) and holds_run(run):
        _check_not_behind(run, copy)
    elif holds_run(copy):
        with stage(f"fetching the run from {copy}"):
            try:
                _update(copy, run)
            except OSError as error:
                raise UserError(f"cannot fetch the run from {copy}: {error.strerror or error}") from error

    finished = threading.Event()
    copier = threading.Thread(target=_keep, args=(run, copy, every, finished), name="kept copy", daemon=True)
    copier.start()
    try:
        yield
    finally:
        finished.set()
        copier.join()


def _check_apart(run: Path, copy: Path) -> None:
    """Refuses a copy that is the run, or of which one is in the other: it would be copied into itself."""
    here, there = run.resolve(), copy.resolve()
    if here == there:
        raise UserError(f"{copy} is the run itself: expected another folder for its copy")
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(f"one of {run} and {copy} is in the other: expected a folder beside the run for its copy")


def _check_not_behind(run: Path, copy: Path) -> None:
    """Refuses a copy that is ahead of the run: it is of another run, or was not fetched to its end."""
    here, there = max(_steps(run)), max(_steps(copy))
    if there > here:
        raise UserError(
            f"{copy} holds checkpoint {there}, and {run} comes only to {here}: delete {run} to go on from the copy, or "
            "keep the copy of this run in another folder"
        )


def _keep(run: Path, copy: Path, every: float, finished: threading.Event) -> None:
    """Updates the copy until the run is finished, and then once more."""
    failing = last = False
    while not last:
        last = finished.wait(every)
        try:
            _update(run, copy)
            failing = False
        except OSError as error:
            if last or not failing:
                then = "the copy is not complete" if last else "the run goes on, and this is tried again"
                logging.warning("cannot copy %s to %s: %s; %s", run, copy, error.strerror or error, then)
            failing = True
    steps = _steps(run)  # not those of the copy, which may be away
    if steps and not failing:
        say(f"{copy} holds the run up to checkpoint {max(steps)}")


def _update(source: Path, target: Path) -> None:
    """Makes ``target`` what ``source`` is, as far as files of ``source`` are finished.

    Checkpoints come first: curves that go beyond the checkpoint are cut when the run resumes, missing ones are missed.

    Raises:
      OSError: something cannot be read or written; what is there already is whole.
    """
    steps = _steps(source)
    for step in sorted(steps):
        _copy_checkpoint(source / CHECKPOINTS / str(step), target / CHECKPOINTS / str(step))
    for old in _steps(target) - steps:
        if old < max(steps, default=0):
            shutil.rmtree(target / CHECKPOINTS / str(old))
    for file in _files(source):
        parts = file.relative_to(source).parts
        if parts[0] != CHECKPOINTS and file.name != CARD:
            _copy_file(file, target.joinpath(*parts))


def _steps(run: Path) -> set[int]:
    """Returns the steps of the checkpoints that are finished."""
    folder = run / CHECKPOINTS
    return {int(name) for name in os.listdir(folder) if name.isdigit()} if folder.is_dir() else set()


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint, whole or not at all; of one that is there, what has come since: the list of its files."""
    whole = target.is_dir()
    into = target if whole else target.with_name(f"{target.name}.part")
    if not whole and into.exists():
        shutil.rmtree(into)  # what an earlier attempt has left
    try:
        for file in _files(source):
            if not whole or file.parent == source:
                _copy_file(file, into / file.relative_to(source))
    except FileNotFoundError:
        if source.exists():
            raise
        return  # the run has just removed it, because there are later ones
    if not whole:
        into.rename(target)


def _files(folder: Path) -> list[Path]:
    """Lists the files below ``folder`` that are not hidden, as those are that are being written."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found


def _refuse(error: OSError) -> None:
    """Raises what listing a folder raised, which `os.walk` would pass over, unless the folder has just been removed."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _copy_file(source: Path, target: Path) -> None:
    """Copies a file if it is new or has changed; ``target`` is replaced in one step."""
    stat = source.stat()
    with contextlib.suppress(FileNotFoundError):
        there = target.stat()
        if there.st_size == stat.st_size and there.st_mtime >= stat.st_mtime:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)
