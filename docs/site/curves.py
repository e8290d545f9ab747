"""Draws the curves of docs/guide.md: ``python docs/site/curves.py --runs=runs --out=runs/figures``.

docs/guide.md has the commands that make the runs, and docs/images the figures that it shows. Each of them shows a sick
run beside the healthy one, and is drawn from nothing but their ``metrics.jsonl``. Background and colours suit light
pages and dark ones.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

HEALTHY = "healthy"
SICK = {
    "lr_too_high": "learning rate 0.01",
    "weak_judge": "a judge of 20 steps",
    "threshold_too_high": "threshold 0.6",
    "too_long": "68 batches, learning rate 0.001",
}
GREY, BLUE, ORANGE = "#7d8590", "#3b8ed0", "#e8710a"
AVERAGED = 5  # batches

Row = dict[str, float]


def _mean(*prefixes: str) -> Callable[[Row], float | None]:
    """Returns a function from a row to the mean of its entries of a family, such as the scores of all timesteps."""

    def value(row: Row) -> float | None:
        found = [number for name, number in row.items() if name.startswith(prefixes)]
        return float(np.mean(found)) if found else None

    return value


PANELS: dict[str, Callable[[Row], float | None]] = {
    "the judge's mean score": _mean("judge_score/", "spm_score/"),  # the second is its name in runs of earlier versions
    "share of valid pairs": _mean("valid_share_at/"),
    "share of clipped ratios": _mean("clip_fraction/"),
    "true aesthetic, 16 images": _mean("eval_aesthetic"),
}


def read_rows(run: Path) -> list[Row]:
    """Reads the curves of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw(sick: Sequence[Row], healthy: Sequence[Row], label: str, file: Path) -> None:
    """Draws a run beside the healthy one and writes the figure."""
    style = {"font.size": 11, "svg.fonttype": "none", "font.family": "sans-serif", "axes.edgecolor": GREY}
    style |= {name: GREY for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")}
    # Without dates and random ids the same curves give the same file.
    with plt.rc_context(style | {"svg.hashsalt": "spo_jax"}):
        figure, axes = plt.subplots(2, 2, figsize=(7.5, 4.6), layout="constrained")
        for axis, (title, value) in zip(axes.flat, PANELS.items(), strict=True):
            _line(axis, healthy, value, BLUE, HEALTHY)
            _line(axis, sick, value, ORANGE, label)
            axis.set_title(title, fontsize=11)
            axis.spines[["top", "right"]].set_visible(False)
            if title.startswith("share"):
                axis.set_ylim(-0.02, max(0.5, axis.get_ylim()[1]))
        for axis in axes[1]:
            axis.set_xlabel("batch")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _line(axis: Axes, rows: Sequence[Row], value: Callable[[Row], float | None], colour: str, label: str) -> None:
    """Draws one curve: a few points with markers, or the values faintly and their running mean."""
    points = [(row["step"], value(row)) for row in rows]
    steps, values = np.array([point for point in points if point[1] is not None], float).reshape(-1, 2).T
    few = len(values) < len(rows) / 2
    if few:
        axis.plot(steps, values, color=colour, marker="o", markersize=4, label=label)
        return
    axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    kernel = np.ones(min(AVERAGED, len(values)))
    count = np.convolve(np.ones_like(values), kernel, mode="same")
    axis.plot(steps, np.convolve(values, kernel, mode="same") / count, color=colour, linewidth=2, label=label)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder of the figures")
    flags = parser.parse_args()
    missing = [name for name in (HEALTHY, *SICK) if not (flags.runs / name / "metrics.jsonl").is_file()]
    if missing:
        made = 'docs/guide.md has the commands, under "What the curves should look like"'
        parser.exit(2, f"error: {flags.runs} lacks the curves of {', '.join(missing)}: {made}\n")
    healthy = read_rows(flags.runs / HEALTHY)
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, label in SICK.items():
        file = flags.out / f"curves_{name}.svg"
        draw(read_rows(flags.runs / name), healthy, label, file)
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
