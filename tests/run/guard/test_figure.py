"""The figure of the looks: a panel for the trained score and one for each held-out one, and its marks."""

from spo_jax.run.guard.figure import looks_figure
from tests.support.guarded import hacked, make_guard


def test_panels_and_marks():
    guard = make_guard(hacked(best=3), 20)
    for batch in range(1, 7):
        guard.look(batch, None)
    heading, caption, figure = looks_figure(guard.looks, in_a_row=2)
    assert heading == "Trained on, and held out"
    assert "judge, which the run learns from, above quality, which it does not" in caption
    assert caption.endswith("Best: batch 3 and alarm: batch 6.")
    panels = figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == ["judge", "quality"]
    assert panels[0].lines[0].get_ydata().tolist() == [look.trained["judge"] for look in guard.looks]
    assert {text.get_text() for text in panels[0].texts} == {"best", "alarm"}


def test_a_run_without_a_judge_or_an_alarm():
    values = hacked(best=3)
    guard = make_guard(lambda batch: values(batch)._replace(trained={}), 20)
    guard.look(1, None)
    _, caption, figure = looks_figure(guard.looks, in_a_row=2)
    assert len(figure.axes) == 1 and caption.endswith("at every look: quality. Best: batch 1.")
