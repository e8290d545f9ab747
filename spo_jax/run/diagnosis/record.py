"""What a run has left in its folder, whether it is finished, still going, or has stopped before its end."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_json
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.run_files import CHECKPOINTS, START, SUMMARY
from spo_jax.core.words import counted, duration
from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.rule import Finding
from spo_jax.run.lock import user_of
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics
from spo_jax.run.settings import RunSettings

State = Literal["finished", "going", "stopped"]


class Record(NamedTuple):
    """A run as its folder shows it.

    Attributes:
      folder: the run's folder.
      state: whether it is finished, still going, or has stopped before its end.
      user: in words, which process writes there now; empty if none does.
      method: name of its method; empty if nothing says it.
      done: number of batches in its curves.
      total: number of batches that it should have; None if nothing says it.
      seconds: seconds of the whole run; None unless it is finished.
      command: the command that started it; empty if it was started from Python, or if nothing says it.
      started_in: the folder in which it was started; empty if nothing says it.
      curves: its curves, settings and scores.
    """

    folder: Path
    state: State
    user: str
    method: str
    done: int
    total: int | None
    seconds: float | None
    command: str
    started_in: str
    curves: Curves

    def describe(self) -> str:
        """Says in one line what it is and how far it came."""
        of = "" if self.total is None else f" of {self.total}"
        took = "" if self.seconds is None else f" in {duration(self.seconds)}"
        state = {"going": f"still going ({self.user})", "stopped": "stopped before its end"}.get(self.state, self.state)
        return f"{self.folder}: {self.method or 'a method that is not known'}, {state}, {self.done}{of} batches{took}"


def write_start(
    out: Path,
    settings: RunSettings,
    total: int,
    flags: Sequence[str],
    lower_is_better: Sequence[str] = (),
    judge_scores: Sequence[str] = (),
) -> None:
    """Writes what a run that has not finished says nowhere else.

    Args:
      out: the run's folder.
      settings: its settings.
      total: its number of batches.
      flags: the flags of `spo_jax.train` that started it; empty if Python did.
      lower_is_better: names of its scores that improve by falling.
      judge_scores: names of its scores from which it learns.
    """
    start = {
        "method": settings.method,
        "batches": total,
        "command": shlex.join(["python", "-m", "spo_jax.train", *flags]) if flags else "",
        "folder": os.getcwd(),  # in which the command's relative paths are
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "lower_is_better": list(lower_is_better),
        "judge_scores": list(judge_scores),
        "settings": dataclasses.asdict(settings),
    }
    write_json(out / START, finite_or_null(start))


def read_record(folder: Path) -> Record:
    """Reads the folder of a run, to which the run may be writing.

    Raises:
      UserError: there are no curves in it, or a file is damaged.
    """
    start = read_json_object(folder / START) if (folder / START).is_file() else {}
    summary = read_json_object(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    user = user_of(folder)
    if not (folder / METRICS).is_file():
        going = f"; {user} is still preparing it" if user else ""
        raise UserError(f"--run={folder}: no {METRICS} here, so no batch of a run was finished{going}")
    rows = read_metrics(folder / METRICS)
    done = max((row["step"] for row in rows), default=0)
    total = start.get("batches", summary.get("batches"))
    # A run that was made longer has the summary of its first end until it reaches the second.
    whole = summary.get("batches") == (done if total is None else total)
    by_guard = (summary.get("guard") or {}).get("stopped_batch") == done  # an end as well
    finished = bool(summary) and not user and (whole or by_guard)
    state: State = "going" if user else "finished" if finished else "stopped"
    curves = Curves(
        rows,
        start.get("settings") or {},
        (summary.get("scores") or {}) if finished else {},
        start.get("lower_is_better"),
        start.get("judge_scores"),
    )
    seconds = summary.get("wall_seconds") if finished else None
    started_in = start.get("folder") or ""
    method = start.get("method") or summary.get("method") or ""
    return Record(folder, state, user, method, done, total, seconds, start.get("command") or "", started_in, curves)


def unfinished(record: Record) -> Finding | None:
    """A run that stopped before its end, and how it goes on."""
    if record.state != "stopped":
        return None
    last = _last_checkpoint(record.folder)
    of = "" if record.total is None else f" of {record.total}"
    found = f"It stopped after batch {record.done}{of}, and no process is writing in its folder."
    if last is None:
        advice = f"There is no checkpoint: start it again{_how(record, '')}"
        return Finding("problem", found, advice, rule="unfinished")
    if record.done == record.total:
        text = f"All {record.done} batches are trained, but what follows them did not finish, as its last lines say."
        return Finding("problem", text, f"Do that again{_how(record, '--resume')}", rule="unfinished")
    lost = record.done - last
    again = f" ({counted(lost, 'batch')} after its last checkpoint will be done again)" if lost > 0 else ""
    return Finding(
        "problem",
        f"{found[:-1]}; its last checkpoint is of batch {last}.",
        f"Continue it{again}{_how(record, '--resume')}",
        rule="unfinished",
    )


def _how(record: Record, flag: str) -> str:
    """Says by which command, which has a line of its own, so that it can be copied."""
    if not record.command:
        return " by its command" + (f" with {flag}, or in Python with spo_jax.Resume(required=True)." if flag else ".")
    given = shlex.split(record.command)
    has_it = any(part.lstrip("-").partition("=")[0] in ("resume", "auto-resume") for part in given)
    place = f"cd {shlex.quote(record.started_in)} && " if record.started_in not in ("", os.getcwd()) else ""
    return f":\n{place}{shlex.join([*given, flag] if flag and not has_it else given)}"


def _last_checkpoint(folder: Path) -> int | None:
    if not (folder / CHECKPOINTS).is_dir():
        return None
    return max((int(path.name) for path in (folder / CHECKPOINTS).iterdir() if path.name.isdigit()), default=None)
