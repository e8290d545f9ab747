"""Curves as inline SVG: at most five lines each, smoothed, in the colours of the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.signal import savgol_filter

from spo_jax.core.typing import Float
from spo_jax.core.words import readable

MOST_LINES = 5  # more cannot be told apart
MOST_POINTS = 500  # largest number of points of a line; more are not visible and make the file large
SMOOTHED_FROM = 12  # points; shorter lines are drawn as they are

# What matplotlib draws with its default colours, in the colours of the page, which depend on light and dark.
_THEME = {"#000000": "--ink", "#b0b0b0": "--line", "#808080": "--soft"}
_THEME |= {"#1f77b4": "--kind-0", "#ff7f0e": "--kind-1", "#2ca02c": "--kind-2", "#d62728": "--kind-3"}
_THEME |= {"#9467bd": "--kind-4"}  # C0 to C4 are for lines of different kinds
_THEME |= {"#8c564b": "--order-0", "#e377c2": "--order-1", "#7f7f7f": "--order-2", "#bcbd22": "--order-3"}
_THEME |= {"#17becf": "--order-4"}  # C5 to C9 for lines that have an order
_DASHES = ((), (10, 3), (3, 3), (12, 3, 3, 3), (18, 4))  # pixels that are drawn and that are not
_ORDERED = re.compile(r"t\d+")  # series of timesteps


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
      steps: numbers of the batches, rising.
      values: finite values.
    """

    steps: list[int]
    values: list[float]


class Style(NamedTuple):
    """The look of a line: its name for people, the colour of the page, and its dashes; none for a solid line."""

    name: str
    colour: str
    dashes: tuple[int, ...]


class Chart(NamedTuple):
    """A chart of the page.

    Attributes:
      title: title.
      hint: what to look for; may be empty.
      svg: the drawing.
      legend: its lines; empty if there is only one.
    """

    title: str
    hint: str
    svg: Markup
    legend: Sequence[Style] = ()


def charts_of(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, tuple[str, str]]) -> list[Chart]:
    """Draws a chart for every group of curves.

    Args:
      rows: rows as `spo_jax.run.metrics.read_metrics` returns them; ``group/series`` is a line in the chart ``group``.
      titles: group to (title, hint); charts are drawn in this order, others follow under their own names.
    """
    curves = curves_of(rows)
    charts = []
    longest = max((len(line.steps) for lines in curves.values() for line in lines.values()), default=0)
    for group in [*(name for name in titles if name in curves), *sorted(curves.keys() - titles.keys())]:
        if longest > 1 and all(len(line.steps) == 1 for line in curves[group].values()):
            continue  # what is measured once is no curve
        title, hint = titles.get(group, (readable(group), ""))
        lines = chosen(curves[group])
        if len(lines) < len(curves[group]):
            hint = f"{hint + '; ' if hint else ''}{len(lines)} of {len(curves[group])} lines"
        label = f"{title}, by batch: {'; '.join(_told(name, line) for name, line in lines.items())}"
        styles = styles_of(list(lines))
        figure = Figure(figsize=(4.4, 2.4), layout="constrained")
        draw(figure.add_subplot(), list(lines.values()), styles)
        drawing = inline_svg(figure, label, f"chart-{len(charts)}")
        charts.append(Chart(title, hint, drawing, styles if len(styles) > 1 else ()))
    return charts


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """Sorts what the rows hold into groups of lines, by the names of both; what is not finite is left out."""
    curves: dict[str, dict[str, Line]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and value is not None and math.isfinite(value):
                group, _, series = name.partition("/")
                steps, values = curves.setdefault(group, {}).setdefault(series, Line([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def chosen(lines: Mapping[str, Line]) -> dict[str, Line]:
    """Chooses the lines that are drawn: all in the order of their names, or five of them, evenly spread."""
    names = sorted(lines)
    if len(names) > MOST_LINES:
        names = [names[index] for index in np.linspace(0, len(names) - 1, MOST_LINES).round().astype(int)]
    return {name: lines[name] for name in names}


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Averages each value with its neighbours, a twelfth of the curve to either side and never fewer than one.

    At both ends, a straight line through the window takes the place of the average. So the curve neither lags behind
    nor ends at a value that is no better than the others.
    """
    reach = max(1, len(values) // 12)
    return savgol_filter(values, 2 * reach + 1, polyorder=1, mode="interp")


def is_noisy(values: Float[np.ndarray, " n"]) -> bool:
    """Says whether a curve is worth smoothing: it is long and turns often, unlike a schedule or a count."""
    steps = np.diff(values)
    turns = int(np.count_nonzero(steps[1:] * steps[:-1] < 0))
    return len(values) >= SMOOTHED_FROM and turns > len(values) / 5  # two thirds of the points of pure noise


def _told(name: str, line: Line) -> str:
    return f"{readable(name)} from {line.values[0]:.3g} to {line.values[-1]:.3g}".strip()


def styles_of(names: Sequence[str]) -> list[Style]:
    """Chooses colours: an order of them for timesteps, otherwise different ones, which differ in their dashes too."""
    ordered = len(names) > 1 and all(_ORDERED.fullmatch(name) for name in names)
    return [
        Style(readable(name), f"--{'order' if ordered else 'kind'}-{index}", () if ordered else _DASHES[index])
        for index, name in enumerate(names)
    ]


def draw(axes: Axes, lines: Sequence[Line], styles: Sequence[Style]) -> None:
    """Draws lines in matplotlib's default colours, smoothed if they are noisy."""
    colours = {variable: colour for colour, variable in _THEME.items()}
    for line, style in zip(lines, styles, strict=True):
        values = np.asarray(line.values, np.float64)
        stride = -(-len(values) // MOST_POINTS)
        kept = np.unique(np.append(np.arange(0, len(values), stride), len(values) - 1))  # the last point is named
        steps = np.asarray(line.steps)[kept]
        colour = colours[style.colour]
        if is_noisy(values):
            axes.plot(steps, values[kept], color=colour, linewidth=1, alpha=0.3)
            values = smoothed(values)
        dashes = (0, [length / 4 for length in style.dashes]) if style.dashes else "solid"
        marker = "o" if len(values) < SMOOTHED_FROM else ""
        look = {"color": colour, "linewidth": 2, "linestyle": dashes, "marker": marker, "markersize": 4}
        axes.plot(steps, values[kept], label=style.name, **look)
    axes.set_xlabel("batch", fontsize=9.5)
    style_axes(axes, batches=6, values=5)


def style_axes(axes: Axes, batches: int, values: int) -> None:
    """Gives the axes of a curve over batches the look of all curves.

    Args:
      axes: the axes.
      batches: largest number of intervals on the horizontal axis.
      values: largest number of intervals on the vertical axis.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=batches, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=values, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(labelsize=9.5, length=0)
    axes.grid(axis="y", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)


def inline_svg(figure: Figure, label: str, key: str) -> Markup:
    """Converts a figure to an SVG element of the page, with the page's font and colours.

    Args:
      figure: a figure in matplotlib's default colours.
      label: text that says what it shows, for readers who do not see it.
      key: prefix of the element's ids, different for each figure of a page.
    """
    text = as_svg(figure, inline=True).decode("utf-8")
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)[0]
    # What would count for the whole page, links elsewhere, and ids that every figure has.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"; font-family: [^;]*;", ";", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{key}-", body)
    body = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})", lambda m: f"{m[1]}: var({_THEME[m[2]]})" if m[2] in _THEME else m[0], body
    )
    return Markup('<svg role="img" aria-label="{}" {}>').format(label, Markup(box)) + Markup(body)


def as_svg(figure: Figure, inline: bool = False) -> bytes:
    """Converts a figure to SVG, so that equal figures give equal bytes.

    Args:
      figure: the figure.
      inline: whether text remains text and the background is left out, as for a page; a file has its own glyphs.
    """
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "spo_jax", "svg.fonttype": "none" if inline else "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=inline)
    return stream.getvalue()
