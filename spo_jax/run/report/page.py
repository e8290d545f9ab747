"""The page: puts the parts of the report together and writes them as one self-contained file."""

import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from spo_jax.core.config import Settings
from spo_jax.core.files import write_text
from spo_jax.core.trees import flatten
from spo_jax.run.diagnosis.rule import Finding
from spo_jax.run.report.charts import Chart, charts_of, inline_svg
from spo_jax.run.report.images import MOST_PAIRS, ImagePair, shown
from spo_jax.run.report.scores import facts, score_rows, setting_rows
from spo_jax.run.report.steps import NextStep
from spo_jax.run.verdict import outcomes, shown_limit, verdict

OPEN_PAIRS = 12  # pairs that are not folded
OPEN_CHARTS = 6  # charts that are not folded
_TEMPLATES = Path(__file__).parent / "template"


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    pairs: Sequence[ImagePair] = (),
    figures: Sequence[tuple[str, str, Figure]] = (),
    charts: Mapping[str, tuple[str, str]] = types.MappingProxyType({}),
    steps: Sequence[NextStep] = (),
    findings: Sequence[Finding] = (),
) -> None:
    """Writes ``report.html``, which can be read without a network and without any other file.

    Args:
      path: path of the file.
      title: headline of the page.
      settings: the settings of the run; those that differ from their defaults come first.
      rows: rows as `spo_jax.run.metrics.read_metrics` returns them; they may be empty, as may any curve.
      summary: content of the run's `summary.json`. Its ``scores`` is what `spo_jax.core.statistics.paired_scores`
        returns; ``text`` in its ``guard`` stands below the verdict; everything else in it is listed at the end.
      pairs: images before and after; the first `MOST_PAIRS` are shown.
      figures: (heading, caption, figure in matplotlib's default colours), shown after the scores.
      charts: maps a chart to (title, what to look for). A metric ``group/series`` is a curve in the chart ``group``;
        charts that are not named here follow under their own names.
      steps: what can be done with the results.
      findings: what the curves say; what is well is not shown.

    Raises:
      UserError: the file cannot be written.
    """
    scores = summary.get("scores") or {}
    changed, unchanged = setting_rows(settings)
    text = (
        page_environment(_TEMPLATES)
        .get_template("page.html")
        .render(
            title=title,
            facts=facts(summary),
            verdict=summary.get("verdict") or verdict(scores),
            tone=_tone(scores),
            guard=(summary.get("guard") or {}).get("text", ""),
            pairs=[shown(pair) for pair in pairs[:MOST_PAIRS]],
            total=summary.get("images", len(pairs)),
            open_pairs=OPEN_PAIRS,
            scores=score_rows(scores),
            noise=shown_limit(scores),
            figures=[
                Chart(heading, caption, inline_svg(figure, f"{heading}. {caption}", f"figure-{number}"))
                for number, (heading, caption, figure) in enumerate(figures)
            ],
            charts=charts_of(rows, charts),
            open_charts=OPEN_CHARTS,
            steps=steps,
            findings=[finding for finding in findings if finding.level != "good"],
            changed=changed,
            unchanged=unchanged,
            rest=_rest(summary),
        )
    )
    write_text(path, text + "\n")


def page_environment(folder: Path) -> jinja2.Environment:
    """Returns the environment of a page's templates, which escapes every text that is put into them.

    Args:
      folder: folder of the templates. The report's own, whose head and style pages share, are under ``report/``.
    """
    loaders = [jinja2.FileSystemLoader(folder), jinja2.PrefixLoader({"report": jinja2.FileSystemLoader(_TEMPLATES)})]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _tone(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The colour of the verdict: that of its outcome if there is one, and none if it is mixed or there is nothing."""
    found = set(outcomes(scores).values()) & {"better", "worse"}
    return found.pop() if len(found) == 1 else ""


def _rest(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary holds besides what is shown elsewhere, and the versions after it."""
    rest = {name: value for name, value in summary.items() if name not in ("scores", "verdict", "versions")}
    if "guard" in rest:
        rest["guard"] = {name: value for name, value in rest["guard"].items() if name not in ("text", "looks")}
    return flatten(rest, sep=".") | flatten(summary.get("versions") or {}, sep=".")
