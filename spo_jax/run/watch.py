"""Curves and images of a run below the cell of a notebook, redrawn while it trains."""

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.core.notebook import Place, in_notebook
from spo_jax.core.words import readable
from spo_jax.run.metrics import FILE_NAME, read_metrics
from spo_jax.run.report.charts import chosen, curves_of, draw, styles_of

MOST_CHARTS = 6
COLUMNS = 3
WIDTH = 11.0  # inches
DOTS = 90  # dots per inch


@contextlib.contextmanager
def watch(run: str | os.PathLike, every: float = 5.0) -> Iterator[None]:
    """Shows the curves and the latest images of a run below the cell of a notebook, while the body trains it.

    Outside of a notebook nothing is shown. A run that could not be drawn is not disturbed: drawing reads its files, in
    a thread of its own.

    Args:
      run: the run's folder, which need not exist yet.
      every: seconds between two looks at the folder; it is drawn anew only if something was added.
    """
    if not in_notebook():
        yield
        return
    folder = local_path(run)
    place = Place()
    finished = threading.Event()
    before = _state(folder)  # what an earlier run has left there
    watcher = threading.Thread(target=_redraw, args=(folder, place, before, every, finished), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()


def _redraw(folder: Path, place: Place, shown: Any, every: float, finished: threading.Event) -> None:
    """Draws the run whenever it has changed, until it is finished, and then once more."""
    last = False
    while not last:
        last = finished.wait(every)
        state = _state(folder)
        if state == shown:
            continue
        with contextlib.suppress(OSError, UserError):  # it is being written at this moment, so try again
            figure = picture(folder)
            if figure is not None:
                place.show({"image/png": _png(figure), "text/plain": f"curves of {folder}"})
            shown = state


def _state(folder: Path) -> tuple[Any, ...]:
    """Returns what changes when something has been added to a run."""
    try:
        size = (folder / FILE_NAME).stat().st_size
    except OSError:
        size = 0
    return (size, _newest_grid(folder))


def _newest_grid(folder: Path) -> Path | None:
    """Returns the latest grid of images, ``NAME/NUMBER.png``; of a preference model there are none."""
    grids = [file for file in folder.glob("*/*.png") if file.stem.isdigit()]
    return max(grids, key=lambda file: int(file.stem), default=None)


def picture(folder: Path) -> Figure | None:
    """Draws the curves of a run, and its latest images below them; None if there is nothing to draw.

    Args:
      folder: the run's folder.

    Raises:
      UserError: the curves cannot be read.
    """
    rows = read_metrics(folder / FILE_NAME) if (folder / FILE_NAME).exists() else []
    curves = {group: lines for group, lines in curves_of(rows).items() if _moves(lines)}
    groups = sorted(curves, key=_rank)[:MOST_CHARTS]
    grid = _newest_grid(folder)
    images = None if grid is None else np.asarray(Image.open(grid).convert("RGB"))
    if not groups and images is None:
        return None

    lines = -(-len(groups) // COLUMNS)
    heights = [2.1] * lines + ([] if images is None else [WIDTH * images.shape[0] / images.shape[1]])
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
    places = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
    for number, group in enumerate(groups):
        _chart(figure.add_subplot(places[number // COLUMNS, number % COLUMNS]), group, curves[group])
    if images is not None:
        _grid(figure.add_subplot(places[lines, :]), images, f"images after batch {int(grid.stem)}")
    return figure


def _rank(group: str) -> int:
    """Orders charts: what is evaluated, what a judge says, everything else, and last what is split up by timesteps."""
    return 0 if group.startswith("eval_") else 1 if "score" in group else 3 if group.endswith("_at") else 2


def _moves(lines: Mapping[str, Sequence[Any]]) -> bool:
    """Whether there is a line to see: at least two points of it, which differ."""
    return any(len(set(line.values)) > 1 for line in lines.values())


def _chart(axes: Axes, group: str, curves: Mapping[str, Any]) -> None:
    lines = chosen(curves)
    styles = styles_of(list(lines))
    draw(axes, list(lines.values()), styles)
    axes.set_title(readable(group), fontsize=10, loc="left")
    if len(styles) > 1:
        axes.legend(fontsize=7, frameon=False)


def _grid(axes: Axes, images: np.ndarray, title: str) -> None:
    axes.imshow(images, interpolation="nearest" if max(images.shape) < WIDTH * DOTS else "auto")
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_axis_off()


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS)
    return stream.getvalue()
