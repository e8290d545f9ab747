"""The figure of a guard's looks: the score that is trained on above the held-out ones, for the same images."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spo_jax.core.words import listed, readable
from spo_jax.run.guard.look import Look
from spo_jax.run.guard.sentences import alarm_of, when
from spo_jax.run.report.charts import style_axes

_MOST = 3  # held-out scores that are drawn


def looks_figure(looks: Sequence[Look], in_a_row: int) -> tuple[str, str, Figure]:
    """Draws the looks of a run, in matplotlib's default colours.

    Args:
      looks: the looks, in order; at least one.
      in_a_row: worse looks in a row that are an alarm.

    Returns:
      Heading, caption and figure, as `spo_jax.run.report.page.write_report` takes them.
    """
    held_out = _first_of_each(looks[0].held_out)[:_MOST]
    panels = [(name, [look.trained[name] for look in looks], "C0") for name in list(looks[0].trained)[:1]]
    panels += [(name, [look.held_out[name] for look in looks], "C1") for name in held_out]
    figure = Figure(figsize=(5.2, 0.8 + 1.2 * len(panels)), layout="constrained")
    axes = list(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0])
    for panel, (name, values, colour) in zip(axes, panels, strict=True):
        _draw(panel, [look.batch for look in looks], values, colour, readable(name))
    marks = {"best": looks[-1].best}
    if alarm := alarm_of(looks, in_a_row):
        marks = {"best": alarm[0].batch, "alarm": alarm[1].batch}
    _mark(axes, marks)
    axes[-1].set_xlabel("batch", fontsize=9.5)
    return "Trained on, and held out", _caption(looks, held_out, marks), figure


def _first_of_each(scores: Mapping[str, float]) -> list[str]:
    """Returns the first of the scores whose names have the same beginning."""
    firsts: dict[str, str] = {}
    for name in scores:
        firsts.setdefault(name.partition("/")[0], name)
    return list(firsts.values())


def _draw(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str, title: str) -> None:
    axes.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=4)
    axes.set_title(title, fontsize=9.5, loc="left")
    style_axes(axes, batches=8, values=4)


def _mark(axes: Sequence[Axes], marks: Mapping[str, int]) -> None:
    """Draws a dashed line for each batch that is marked, and writes what it is above the first panel."""
    for what, batch in marks.items():
        for panel in axes:
            panel.axvline(batch, color="grey", linewidth=1, linestyle="--")
        place = axes[0].get_xaxis_transform()
        axes[0].text(batch, 1, what, transform=place, fontsize=9.5, ha="center", va="bottom", color="grey")


def _caption(looks: Sequence[Look], held_out: Sequence[str], marks: Mapping[str, int]) -> str:
    trained = [readable(name) for name in list(looks[0].trained)[:1]]
    others = listed([readable(name) for name in held_out])
    on = f"{trained[0]}, which the run learns from, above {others}, which it does not" if trained else others
    where = listed([f"{what}: {when(batch)}" for what, batch in marks.items()])
    return f"Means over the same images at every look: {on}. {where[0].upper() + where[1:]}."
