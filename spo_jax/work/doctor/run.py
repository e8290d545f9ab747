"""How a run goes: what its curves say, by the rules of its method."""

from collections.abc import Sequence
from pathlib import Path

from spo_jax import methods
from spo_jax.core.errors import UserError
from spo_jax.run.diagnosis.record import Record, read_record, unfinished
from spo_jax.run.diagnosis.rule import Rule, diagnose, headline
from spo_jax.run.diagnosis.shared import RULES
from spo_jax.work.doctor.section import Section


def examine_run(folder: Path) -> Section:
    """Reads the folder of a run and says whether it learns, and what looks wrong.

    Raises:
      UserError: there are no curves in the folder, or a file is damaged.
    """
    record = read_record(folder)
    stopped = unfinished(record)
    findings = [*([stopped] if stopped else []), *diagnose(record.curves, [*RULES, *_rules(record)])]
    data = {
        "folder": str(record.folder),
        "state": record.state,
        "method": record.method or None,
        "batches_done": record.done,
        "batches": record.total,
    }
    title = f"{record.describe()}\n\n{headline(findings, record.curves)}"
    return Section("run", title, {}, findings, data)


def _rules(record: Record) -> Sequence[Rule]:
    """Returns the rules of the run's method; a user's own method may have none, or not be importable from here."""
    try:
        return getattr(methods.load_method(record.method), "RULES", ()) if record.method else ()
    except UserError:
        return ()
