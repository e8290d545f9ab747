"""The report of a run: a self-contained HTML file with images, scores, curves and settings."""

import base64
import html
import io
import math
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from spo_jax.core.files import write_text
from spo_jax.core.trees import flatten

MOST_POINTS = 500  # largest number of points of a curve; more are not visible and make the file large

STYLE = """
:root { --ink: #1c2430; --soft: #5d6878; --line: #e3e7ed; --page: #f6f7f9; --card: #fff; --mark: #2456c7;
  --good: #11734b; --bad: #ad2f2f; }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem }
h3 { font-size: 1rem; margin: 0 }
p, figcaption { color: var(--soft); margin: 0 0 .75rem; max-width: 48rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; overflow-x: auto }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0 0; padding: 0; list-style: none }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .75rem }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
.charts img, .pair img { width: 100%; height: auto; display: block }
.pair { margin-bottom: 2rem } .pair figure { margin-top: .5rem }
.small { image-rendering: pixelated }
figure { margin: 0 } figure figcaption { margin: 0; font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-top: 1px solid var(--line); vertical-align: top }
thead th { border-top: 0; color: var(--soft); font-weight: 600; white-space: nowrap }
td.number { white-space: nowrap }
small { color: var(--soft); font-weight: 400 }
tbody th { min-width: 11rem }
td code { overflow-wrap: anywhere }
.better { color: var(--good); font-weight: 600 } .worse { color: var(--bad); font-weight: 600 }
details summary { cursor: pointer; color: var(--mark) }
"""


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    grids: Sequence[tuple[str, np.ndarray, np.ndarray]] | None = None,
    figures: Sequence[tuple[str, str, bytes]] = (),
    charts: Mapping[str, tuple[str, str]] = types.MappingProxyType({}),
) -> None:
    """Writes ``report.html``, which can be read without a network and without any other file.

    Args:
      path: path of the file.
      title: headline of the page.
      settings: the resolved settings, nested or flat.
      rows: rows as `spo_jax.run.metrics.read_metrics` returns them; they may be empty, as may any curve.
      summary: content of the run's `summary.json`. Its ``scores`` is ``{name: score}``, where each score is a dict of
        ``before``, ``before_se``, ``after``, ``after_se``, ``change``, ``change_se`` (standard errors, None where there
        are none; those of ``change`` are paired) and optionally ``meaning`` (a sentence) and ``lower_is_better``.
        Everything else in it is listed unchanged.
      grids: (caption, before, after) with uint8 images ``[h w 3]`` of equal prompts and seeds; None for a run that
        makes no images.
      figures: (heading, caption, SVG), shown after the scores.
      charts: maps a chart to (title, what to look for). A metric ``group/series`` is a curve in the chart ``group``;
        charts that are not named here follow under their own names.

    Raises:
      UserError: the file cannot be written.
    """
    rest = {name: value for name, value in summary.items() if name != "scores"}
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _facts(rest),
        _section("Scores before and after", _scores(summary.get("scores") or {})),
        *(_section(html.escape(heading), _figure(caption, svg)) for heading, caption, svg in figures),
        *([] if grids is None else [_section("Images before and after", "".join(_grid(*grid) for grid in grids))]),
        _section("Curves", _charts(rows, charts)),
        _section("Run", _table(rest)),
        _section("Settings", f"<details><summary>All settings of the run</summary>{_table(settings)}</details>"),
    ]
    write_text(
        path,
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n",
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content or '<p>None were recorded.</p>'}</section>"


def _facts(summary: Mapping[str, Any]) -> str:
    facts = []
    if "images" in summary:
        facts.append(f"{summary['images']} images scored")
    if "wall_seconds" in summary:
        facts.append(f"{summary['wall_seconds'] / 60:.1f} minutes")
    facts += [f"{name} {version}" for name, version in (summary.get("versions") or {}).items()]
    return "<ul class='facts'>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts) + "</ul>"


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    lines = []
    for name, score in scores.items():
        meaning = f"<br><small>{html.escape(score['meaning'])}</small>" if score.get("meaning") else ""
        cells = (_with_error(score.get(column), score.get(f"{column}_se")) for column in ("before", "after"))
        lines.append(
            f"<tr><th scope='row'>{html.escape(name)}{meaning}</th>"
            + "".join(f"<td class='number'>{cell}</td>" for cell in cells)
            + f"<td class='number'>{_change(score)}</td></tr>"
        )
    return (
        "<p>Means with one standard error. The change is taken image by image from equal prompts and noise; "
        "it is called better or worse where it exceeds two standard errors.</p><div class='card'><table><thead><tr>"
        "<th scope='col'>Score</th><th scope='col'>Before</th><th scope='col'>After</th><th scope='col'>Change</th>"
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _change(score: Mapping[str, Any]) -> str:
    change = score.get("change")
    error = score.get("change_se")
    text = _with_error(change, error, sign="+")
    if change is None or error is None or not abs(change) > 2 * error:
        return text
    verdict = "worse" if (change > 0) == bool(score.get("lower_is_better")) else "better"
    return f"{text} <span class='{verdict}'>{verdict}</span>"


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.4g}" + (f" <small>± {error:.2g}</small>" if error is not None else "")


def _grid(caption: str, before: np.ndarray, after: np.ndarray) -> str:
    figures = []
    for when, image in (("before", before), ("after", after)):
        css = "small" if image.shape[1] < 600 else "large"  # small grids are shown enlarged, with visible pixels
        alt = html.escape(f"{caption}, {when} training")
        source = _data_uri("image/png", _png(image))
        figures.append(
            f"<figure class='card'><img class='{css}' alt='{alt}' src='{source}'>"
            f"<figcaption>{when} training</figcaption></figure>"
        )
    return f"<div class='pair'><h3>{html.escape(caption)}</h3>{''.join(figures)}</div>"


def _figure(caption: str, svg: bytes) -> str:
    source = _data_uri("image/svg+xml", svg)
    caption = html.escape(caption)
    return f"<figure class='card'><img alt='{caption}' src='{source}'><figcaption>{caption}</figcaption></figure>"


def _charts(rows: Sequence[Mapping[str, Any]], charts: Mapping[str, tuple[str, str]]) -> str:
    curves: dict[str, dict[str, tuple[list, list]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and value is not None and math.isfinite(value):
                group, _, series = name.partition("/")
                steps, values = curves.setdefault(group, {}).setdefault(series, ([], []))
                steps.append(row["step"])
                values.append(value)
    figures = []
    for group in [*(name for name in charts if name in curves), *sorted(curves.keys() - charts.keys())]:
        title, hint = (html.escape(text) for text in charts.get(group, (group, "")))
        source = _data_uri("image/svg+xml", _chart(curves[group]))
        figures.append(
            f"<figure class='card'><h3>{title}</h3><figcaption>{hint}</figcaption>"
            f"<img alt='Curve over training steps: {title}' src='{source}'></figure>"
        )
    return f"<div class='charts'>{''.join(figures)}</div>" if figures else ""


def _chart(lines: Mapping[str, tuple[list, list]]) -> bytes:
    """Draws a chart as SVG; many lines (one for each timestep) have ordered colours."""
    figure = Figure(figsize=(4.4, 2.7), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(lines)
    colours = matplotlib.colormaps["viridis" if len(names) > 5 else "tab10"]
    for index, name in enumerate(names):
        colour = colours(index / len(names)) if len(names) > 5 else colours(index)
        stride = -(-len(lines[name][0]) // MOST_POINTS)
        steps, values = (part[::stride] for part in lines[name])
        axes.plot(steps, values, color=colour, label=name, linewidth=1.5, marker="o" if len(steps) < 25 else "", ms=3)
    if len(names) > 1:
        axes.legend(fontsize=7, frameon=False, ncols=-(-len(names) // 10), loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("batch", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)


def as_svg(figure: Figure) -> bytes:
    """Converts a figure to SVG, so that equal figures give equal bytes."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "spo_jax"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _table(values: Mapping[str, Any]) -> str:
    lines = (
        f"<tr><th scope='row'>{html.escape(str(name))}</th><td><code>{html.escape(str(value))}</code></td></tr>"
        for name, value in flatten(values, sep=".").items()
    )
    return f"<div class='card'><table><tbody>{''.join(lines)}</tbody></table></div>"


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
