"""The curves of the comparison: every measure against the work, one line for each contestant."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from benchmarks.compare_methods.results import (
    ACCURACY,
    AESTHETIC,
    DIVERSITY,
    LAYOUT,
    OUT_OF_RANGE,
    Base,
    measures,
    rows,
    summarised,
)  # fmt: skip
from spo_jax.core.files import write_atomic
from spo_jax.run.report.charts import as_svg

_TITLES = {
    AESTHETIC: "aesthetic, gain in base deviations",
    LAYOUT: "layout, gain in base deviations",
    ACCURACY: "images that show their prompt",
    DIVERSITY: "diversity of a prompt's images",
    OUT_OF_RANGE: "values out of range",
}
# Colour, dashes and marker. What learns from pairs is dashed, what knows the truth dotted, and what listens to a latent
# reward model has dashes and dots.
_COLOURS = ("#1f6fb4", "#e8710a", "#2a9d4e", "#8a4fbf", "#c33c54", "#8c6d46", "#3aa6b9", "#b3a100", "#555555")
_DASHES = {"judge": "-", "latent judge": (0, (6, 1.5, 1, 1.5)), "pairs": (0, (4, 2)), "truth": (0, (1, 1.5))}
_SOURCES = {
    "judge": "solid: listens to the preference model",
    "latent judge": "dots and dashes: listens to the latent reward model",
    "pairs": "dashed: learns from the pairs",
    "truth": "dotted: is told the truth, which nobody has",
}
_MARKERS = "osD^vP*hX"
_GREY = "#7d8590"


def draw(entries: Sequence[Mapping[str, Any]], base: Base, path: Path) -> None:
    """Draws a panel for every measure, and the legend in the last one, and writes an SVG file on a white background.

    A band reaches from the lowest to the highest seed.

    Args:
      entries: entries on the same labels.
      base: the measurement of the base.
      path: the file.
    """
    names = [name for name in measures(base) if name in _TITLES]
    figure = Figure(figsize=(11, 6.4), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 3).ravel()
    found = [summarised(entry, base) for entry in entries]
    for panel, name in zip(panels, names, strict=False):
        for number, entry in enumerate(found):
            _line(panel, entry, name, number)
        still = 0.0 if name in (AESTHETIC, LAYOUT) else float(rows(base, name).mean())
        panel.axhline(still, color=_GREY, linewidth=1, zorder=0)
        _style(panel, _TITLES[name])
    for panel in panels[len(names) :]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="upper left", frameon=False, fontsize=9.5, handlelength=3.2)
    note = [text for source, text in _SOURCES.items() if source in {entry["source"] for entry in entries}]
    panels[-1].text(0.02, -0.12, "\n".join(note), fontsize=9, color=_GREY, transform=panels[-1].transAxes)
    for panel in panels[:3] if len(names) <= 3 else panels[2 : len(names)]:
        panel.set_xlabel("work: evaluations of the UNet", fontsize=9.5)
    write_atomic(path, lambda temporary: temporary.write_bytes(as_svg(figure)))


def _line(panel: Axes, entry: Mapping[str, Any], name: str, number: int) -> None:
    look = look_of(entry["source"], number)
    works = [row["work"] for row in entry["curve"]]
    means, low, high = ([row[name][key] for row in entry["curve"]] for key in ("mean", "low", "high"))
    if len(entry["seeds"]) > 1:
        panel.fill_between(works, low, high, color=look["color"], alpha=0.12, linewidth=0)
    panel.plot(works, means, linewidth=1.8, markersize=4.5, label=entry["title"], **look)


def look_of(source: str, number: int) -> dict[str, Any]:
    """Returns how a line looks: its colour, dashes and marker.

    Args:
      source: what the contestant learns from.
      number: its number in the figure.
    """
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[source],
        "marker": _MARKERS[number % len(_MARKERS)],
    }


def _style(panel: Axes, title: str) -> None:
    panel.set_xscale("log")
    panel.set_title(title, fontsize=10.5, loc="left")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda work, _: f"{work / 1000:g} k"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xticks([t for t in (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5) if _within(panel, t)])
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    panel.ticklabel_format(axis="y", useOffset=False)
    panel.tick_params(labelsize=9.5, length=0)
    panel.grid(axis="y", linewidth=0.8, color="#e3e6ea")
    panel.spines[["top", "right", "left"]].set_visible(False)


def _within(panel: Axes, tick: float) -> bool:
    low, high = panel.get_xlim()
    return low <= tick <= high
