"""Accuracy against timestep, for people."""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from spo_jax.core.files import write_atomic
from spo_jax.methods.spm.accuracy import Agreement, mean_and_error
from spo_jax.run.report import as_svg


def accuracy_figure(lines: Mapping[str, Agreement]) -> Figure:
    """A line for each model with one standard error up and down, and chance."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, measured) in enumerate(lines.items()):
        timesteps = sorted(measured)
        values = [mean_and_error(measured[t]) for t in timesteps]
        heights, errors = [mean for mean, _ in values], [error or 0.0 for _, error in values]
        style = {"marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.5, "color": f"C{index}"}
        axes.errorbar(timesteps, heights, yerr=errors, label=name, **style)
    axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1, label="chance")
    axes.set_xlabel("timestep t of the noised picture (0: the picture itself)")
    axes.set_ylabel("pair accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """``path`` with the endings .svg and .png.

    Raises:
      UserError: a file cannot be written.
    """
    path = Path(path)
    write_atomic(path.with_suffix(".svg"), lambda file: file.write_bytes(as_svg(figure)))
    write_atomic(path.with_suffix(".png"), lambda file: figure.savefig(file, format="png", dpi=150))
