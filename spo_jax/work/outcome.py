"""What a run ended with: its summary, its report, and its scores on the terminal."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from spo_jax.core.cli import printing
from spo_jax.core.files import write_json
from spo_jax.core.json_text import finite_or_null
from spo_jax.core.progress import stage
from spo_jax.core.run_files import BEFORE_AFTER, SUMMARY
from spo_jax.core.words import duration
from spo_jax.methods import rules_of
from spo_jax.methods.base import Result, Run
from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.rule import diagnose
from spo_jax.run.diagnosis.shared import scores
from spo_jax.run.guard.look import BEST, WORSE
from spo_jax.run.metrics import FILE_NAME as METRICS
from spo_jax.run.metrics import read_metrics
from spo_jax.run.report.images import write_sheet
from spo_jax.run.report.steps import longer
from spo_jax.run.settings import RunSettings
from spo_jax.run.verdict import verdict
from spo_jax.run.versions import versions


class Trained(NamedTuple):
    """What the summary says of the training itself.

    Attributes:
      batches: number of batches that were trained.
      guarded: the guard's entry of the summary; empty without one.
      seconds: seconds that parts of the run took, by name; ``wall_seconds`` is all of it.
      resumed: whether the run was resumed, so that only its last part is known.
    """

    batches: int
    guarded: dict[str, Any]
    seconds: Mapping[str, float]
    resumed: bool


def summary_of(settings: RunSettings, mesh: Mesh, trained: Trained, result: Result) -> dict[str, Any]:
    """Returns the content of ``summary.json``."""
    finished = datetime.now(UTC)
    begun = finished - timedelta(seconds=trained.seconds["wall_seconds"])
    started = {} if trained.resumed else {"started": _moment(begun)}
    summary = {
        "verdict": verdict(result.summary.get("scores", {})),
        **result.summary,
        **({"guard": trained.guarded} if trained.guarded else {}),
        "method": settings.method,
        "batches": trained.batches,
        **{name: round(value, 2) for name, value in trained.seconds.items()},
        **started,
        "finished": _moment(finished),
        "versions": versions(mesh),
    }
    return finite_or_null(summary)  # a method of the user may measure what is not finite


def _moment(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def about_scores(run: Run) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the names of the run's scores that improve by falling, and of those from which it learns."""
    return getattr(run, "lower_is_better", ()), getattr(run, "judge_scores", ())


def write_results(
    settings: RunSettings, out: Path, run: Run, summary: dict[str, Any], result: Result, command: Sequence[str]
) -> None:
    """Writes the summary, the images before and after, and the report.

    Args:
      settings: settings of the run.
      out: the run's folder.
      run: the run.
      summary: what `summary_of` returned.
      result: what the method's ``finish`` returned.
      command: the flags of the command that started the run.

    Raises:
      UserError: something cannot be written.
    """
    # Imported here, because matplotlib takes a while and nothing before needs it.
    from spo_jax.run.guard.figure import looks_figure
    from spo_jax.run.report.page import write_report

    write_json(out / SUMMARY, summary)
    if result.pairs:
        write_sheet(out / BEFORE_AFTER, result.pairs)
    model = getattr(settings, "model", "")
    rows = read_metrics(out / METRICS)
    curves = Curves(rows, dataclasses.asdict(settings), result.summary.get("scores", {}), *about_scores(run))
    rules = [rule for rule in rules_of(settings.method) if rule is not scores]  # the verdict tells these
    looks = run.guard.looks if getattr(run, "guard", None) is not None else []
    ended = (summary.get("guard") or {}).get("stopped_batch") is not None  # and would end again
    counts = (WORSE, BEST)  # for programs, and no curves to look at
    shown = [{name: value for name, value in row.items() if name not in counts} for row in rows]
    figures = [*result.figures, *([looks_figure(looks, run.guard.plan.in_a_row)] if looks else [])]
    with stage("writing the report"):
        write_report(
            out / "report.html",
            title=run.progress.title + (f" on {Path(model).name if Path(model).exists() else model}" if model else ""),
            settings=settings,
            rows=shown,
            summary=summary,
            pairs=result.pairs,
            figures=figures,
            charts=run.charts,
            steps=[*result.steps, *([] if ended else longer(settings, command, out))],
            findings=diagnose(curves, rules),
        )


def print_scores(summary: dict[str, Any], out: Path) -> None:
    """Prints the scores before and after, the verdict, and where the report is."""
    with printing():
        if "scores" in summary:
            of = f"{summary['images']} pairs of images, same prompts and noise" if "images" in summary else "scores"
            print(f"\n{of}:")
        for name, score in summary.get("scores", {}).items():
            before, after = (_fixed(score[when], "8.4f") for when in ("before", "after"))
            error = "" if score["change_se"] is None else f" ± {score['change_se']:.4f}"
            print(f"  {name:20s} {before} -> {after}   change {_fixed(score['change'], '+.4f')}{error}")
        print(f"\n{summary['verdict']}")
        if "guard" in summary:
            print(summary["guard"]["text"])
        print(f"{duration(summary['wall_seconds'])} in all; see {out / 'report.html'}")


def _fixed(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(round(value, 4) + 0.0, form)  # and no -0.0000
