"""Charts of the report: at most five lines, smoothed without moving them, inline and in the page's colours."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from spo_jax.run.report.charts import MOST_LINES, Line, charts_of, chosen, inline_svg, smoothed


def rows_of(**curves):
    """Rows in which ``name`` has the given values; ``a__b`` is the series b of the group a."""
    count = max(map(len, curves.values()))
    return [
        {"step": step}
        | {name.replace("__", "/"): values[step] for name, values in curves.items() if step < len(values)}
        for step in range(count)
    ]


def parsed(svg):
    """The element as a page's parser would see it, which knows the prefix of links."""
    return ElementTree.fromstring(str(svg).replace("xlink:href", "href"))


def strokes(svg):
    return [
        path.get("style")
        for path in parsed(svg).iter("path")
        if "stroke: var(--kind" in path.get("style", "") or "stroke: var(--order" in path.get("style", "")
    ]


def test_charts_come_in_the_order_of_their_titles_and_others_follow():
    rows = rows_of(loss=[1.0, 0.5], other_thing=[1.0, 2.0], ratio__win=[1.0, 2.0], empty=[float("nan"), None])
    charts = charts_of(rows, {"ratio": ("Ratio", "above 1"), "missing": ("", ""), "loss": ("Loss", "")})
    assert [(chart.title, chart.hint) for chart in charts] == [
        ("Ratio", "above 1"), ("Loss", ""), ("other thing", "")
    ]  # fmt: skip


def test_what_is_measured_once_is_no_curve_unless_nothing_is_measured_twice():
    rows = rows_of(first_ratio_error=[0.1], loss=[1.0, 0.5])
    assert [chart.title for chart in charts_of(rows, {})] == ["loss"]
    assert [chart.title for chart in charts_of(rows[:1], {})] == ["first ratio error", "loss"]


@pytest.mark.parametrize("count", [1, 5, 6, 20])
def test_a_chart_has_at_most_five_lines(count):
    """Of many timesteps, the first, the last and some between them."""
    lines = {f"t{50 * index:04d}": Line([1, 2], [0.0, 1.0]) for index in range(count)}
    names = list(chosen(lines))
    assert len(names) == min(count, MOST_LINES) and names == sorted(names)
    assert {min(lines), max(lines)} <= set(names)
    (chart,) = charts_of(rows_of(**{f"x__{name}": [0.0, 1.0] for name in lines}), {})
    colours = re.findall(r"stroke: (var\([^)]*\))", " ".join(strokes(chart.svg)))
    assert len(set(colours)) == min(count, MOST_LINES)
    assert [line.name for line in chart.legend] == ([f"t = {int(name[1:])}" for name in names] if count > 1 else [])
    assert (f"5 of {count} lines" in chart.hint) == (count > MOST_LINES)


def test_smoothing_keeps_straight_lines_and_quietens_noise():
    """A mean that only looks back would lag behind a rising line, and one of what is there would bend its ends."""
    line = np.linspace(-1, 3, 60)
    np.testing.assert_allclose(smoothed(line), line, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=600)
    assert smoothed(noise).std() < 0.2
    outlier = np.append(np.zeros(59), 1.0)  # the last batch's loss is not where the loss has got to
    assert smoothed(outlier)[-1] < 0.4


def test_the_raw_line_is_behind_the_smoothed_one_of_long_curves():
    values = np.random.default_rng(0).normal(size=40).tolist()
    (long,) = charts_of(rows_of(loss=values), {})
    raw, smooth = strokes(long.svg)
    assert "stroke-opacity: 0.3" in raw and "stroke-opacity" not in smooth
    schedule = np.minimum(np.arange(40) / 5, 1 - np.arange(40) / 50).tolist()
    for unchanged in (values[:5], schedule):  # smoothing would cut off the peak of a learning rate
        (chart,) = charts_of(rows_of(loss=unchanged), {})
        assert not any("stroke-opacity" in style for style in strokes(chart.svg))


def test_the_chart_says_what_it_shows_to_those_who_do_not_see_it():
    (chart,) = charts_of(rows_of(ratio__win=[1.0, 2.5], ratio__lose=[1.0, 0.25]), {"ratio": ("Ratio", "")})
    assert parsed(chart.svg).get("aria-label") == "Ratio, by batch: lose from 1 to 0.25; win from 1 to 2.5"
    assert "batch" in "".join(parsed(chart.svg).itertext())
    assert [line.name for line in chart.legend] == ["lose", "win"]


def test_lines_differ_by_more_than_their_colour():
    """In dashes where they are of different kinds, in an order of lightness where they are timesteps."""
    (kinds,) = charts_of(rows_of(**{f"x__{name}": [0.0, 1.0] for name in "abcde"}), {})
    assert len({line.dashes for line in kinds.legend}) == 5
    dashed = [style for style in strokes(kinds.svg) if "dasharray" in style]
    assert len(dashed) == 4
    (times,) = charts_of(rows_of(x__t0001=[0.0, 1.0], x__t0951=[0.0, 1.0]), {})
    assert [line.colour for line in times.legend] == ["--order-0", "--order-1"]
    assert not any("dasharray" in style for style in strokes(times.svg))


def test_names_are_text_and_nothing_else():
    name = "<script>\"&'<b> $x^2$"
    (chart,) = charts_of([{"step": 1, f"g/{name}": 1.0, "g/other": 2.0}], {})
    assert name in parsed(chart.svg).get("aria-label") and "<script" not in chart.svg
    assert chart.legend[0].name == name


def test_a_figure_has_the_page_s_colours_and_ids_of_its_own():
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="C1", marker="o")
    axes.grid()
    first, second = (inline_svg(figure, "a & b", key) for key in ("one", "two"))
    assert "var(--kind-1)" in first and "var(--line)" in first and "#ff7f0e" not in first
    assert parsed(first).get("aria-label") == "a & b"
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', first)) <= ids[0]
    assert "://" not in first and "<style" not in first
