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
    findings = [*([stopped] if stopped else []), *diagnose(record.curves, _rules(record))]
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
    """Returns the rules of the run's method; of a user's own method that cannot be imported here, those of all runs."""
    try:
        return methods.rules_of(record.method) if record.method else RULES
    except UserError:
        return RULES
