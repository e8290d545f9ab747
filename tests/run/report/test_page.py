"""The report: complete in one file, safe against what users put into names, and complete without some of its parts."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from spo_jax.core.config import setting
from spo_jax.core.errors import UserError
from spo_jax.core.statistics import paired_scores
from spo_jax.run.diagnosis.rule import Finding
from spo_jax.run.report.images import MOST_PAIRS, ImagePair
from spo_jax.run.report.page import write_report
from spo_jax.run.report.steps import NextStep
from spo_jax.run.settings import RunSettings
from spo_jax.run.verdict import verdict
from tests.support.commands import ROOT

HOSTILE = "<script>alert(\"x\")</script> & 'quoted' {{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "input"}
CHARTS = {
    "eval_aesthetic": ("Aesthetic", "mean score & more"),
    "loss": ("Loss", "of the pairs of a batch"),
    "ratio": ("Likelihood ratio", ""),
    "grad_norm": ("Gradient norm", "global"),
    "seconds": ("Seconds per batch", "where the time goes"),
}


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    beta: float = setting(10.0, "Factor of the log ratios.")
    model: str = setting("toy", "The model.")


class Page(HTMLParser):
    """Tags with attributes and the text of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.open, self.words = text, [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # within SVG
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]

    @property
    def drawings(self):
        return [attributes for tag, attributes in self.tags if tag == "svg" and "aria-hidden" not in attributes]

    @property
    def text(self):
        return " ".join(self.words)


def report(tmp_path, **changes):
    arguments = {"title": "Run", "settings": Settings(), "rows": [], "summary": {}} | changes
    write_report(tmp_path / "report.html", **arguments)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def some_pairs(count, prompt="a red star"):
    images = np.random.default_rng(0).integers(0, 255, (2, count, 16, 16, 3), np.uint8)
    return [ImagePair(f"{prompt} {index}", *pair) for index, pair in enumerate(zip(*images, strict=True))]


def full_run():
    rng = np.random.default_rng(0)
    rows = [
        {"step": step, "loss": 0.7 - step / 100, "ratio/win": 1.0 + step / 50, "ratio/lose": 1.0, "grad_norm": None}
        | {"seconds/rollout": 2.0, "seconds/update": 1.0, "eval_aesthetic": 0.6, "my_own": 1.0}
        | {f"judge_score/t{t:04d}": float(rng.normal()) for t in range(1, 802, 50)}
        for step in range(1, 40)
    ]
    score = {"before": 0.5, "before_se": 0.02, "after": 0.75, "after_se": 0.02, "change": 0.25, "change_se": 0.01}
    summary = {
        "verdict": "Better on aesthetic.",
        "scores": {"aesthetic": score | {"meaning": "closed form; higher is better"}},
        "method": "spo",
        "images": 100,
        "batches": 1234,
        "wall_seconds": 300.0,
        "finished": "2026-11-05T21:00:00+00:00",
        "versions": {"jax": "0.10.2", "device": "1 x cpu"},
    }
    return {
        "title": "SPO on toy",
        "rows": rows,
        "summary": summary,
        "settings": Settings(beta=5.0),
        "pairs": some_pairs(14),
        "charts": CHARTS,
        "steps": [NextStep("Draw with it", "A sentence.", "python -m spo_jax.sample")],
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page of `full_run`; tests only read it."""
    return report(tmp_path_factory.mktemp("full"), **full_run())


def test_nothing_is_fetched(full):
    """Neither by the page as it is nor by anything that might slip into it: its policy forbids every request."""
    targets = [
        value for _, attributes in full.tags for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data")
    ]  # fmt: skip
    assert targets and all(target.startswith(("data:", "#")) for target in targets)
    assert not any(tag in ("iframe", "object", "embed", "form", "base") for tag, _ in full.tags)
    text = full.source
    assert "://" not in text and "@import" not in text and "url(" not in text.replace("url(#", "")
    (policy,) = [a["content"] for tag, a in full.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "img-src data:;" in policy
    assert not re.findall(r"-src[^;]*(?:\*|self|https?)", policy)


def test_the_page_opens_with_what_was_run_and_whether_it_learnt(full):
    for text in ("SPO on toy", "5 November 2026", "method spo", "1,234 batches", "5 min", "1 x cpu"):
        assert text in full.text.partition("Images before and after")[0]
    assert full.text.index("Better on aesthetic.") < full.text.index("Images before and after")
    headings = [tag for tag, _ in full.tags if tag in ("h1", "h2", "h3")]
    assert headings[:2] == ["h1", "h2"] and headings.count("h1") == 1


def test_without_a_verdict_the_page_makes_it_from_the_scores(tmp_path):
    scores = full_run()["summary"]["scores"]
    assert verdict(scores) in report(tmp_path, summary={"scores": scores}).text
    assert verdict({}) in report(tmp_path).text


def test_every_image_is_there_without_a_script_and_has_a_description(full):
    """Side by side with its prompt; some of the pairs are folded, none is left out."""
    assert [image["alt"] for image in full.images] == [
        f"a red star {index}, {when} training" for index in range(14) for when in ("before", "after")
    ]
    assert all(image["src"].startswith("data:image/png") for image in full.images)
    assert "2 more pairs" in full.text and "The first 14 of 100" in full.text
    (controls,) = [attributes for _, attributes in full.tags if attributes.get("class") == "controls"]
    assert "hidden" in controls  # the script shows them
    assert full.text.count("a red star 13") == 1


def test_of_many_images_the_first_are_shown(tmp_path):
    assert len(report(tmp_path, pairs=some_pairs(30)).images) == 2 * MOST_PAIRS
    page = report(tmp_path, pairs=some_pairs(3))
    assert "All of them" in page.text and "more pairs" not in page.text


def test_a_chart_for_each_group_of_curves(full):
    titles = [attributes["aria-label"].partition(", by batch")[0] for attributes in full.drawings]
    known = ["eval_aesthetic", "loss", "ratio", "seconds"]  # in that order; grad_norm has no finite value
    assert titles == [CHARTS[name][0] for name in known] + ["judge score", "my own"]
    assert "of the pairs of a batch" in full.text and "mean score & more" in full.text and "5 of 17 lines" in full.text


def test_settings_that_differ_from_their_defaults_come_first(full, tmp_path):
    shown, _, folded = full.text.partition("The other ")
    changed = shown[shown.index("These differ") :]
    assert all(text in changed for text in ("beta", "5.0", "default 10.0", "Factor of the log ratios."))
    assert "log.eval_every" not in changed and "log.eval_every" in folded
    assert "All settings have the method's defaults" in report(tmp_path).text


def test_advice_is_shown_as_given(full, tmp_path):
    assert "Draw with it" in full.text and "python -m spo_jax.sample" in full.text
    assert "What to do next" not in report(tmp_path).text


def test_equal_runs_give_equal_files(tmp_path):
    report(tmp_path, **full_run())
    first = (tmp_path / "report.html").read_bytes()
    report(tmp_path, **full_run())
    assert (tmp_path / "report.html").read_bytes() == first


def test_long_runs_stay_small(tmp_path):
    """20,000 batches with 16 lines must not make a file that is too large for a browser."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20_000, 16))
    report(
        tmp_path, rows=[{"step": s} | {f"x/{i}": float(v) for i, v in enumerate(row)} for s, row in enumerate(values)]
    )
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_what_users_wrote_is_escaped(tmp_path):
    run = full_run()
    score = run["summary"]["scores"]["aesthetic"] | {"meaning": HOSTILE}
    pairs = [ImagePair(HOSTILE, *(np.zeros((4, 4, 3), np.uint8),) * 2)]
    name = HOSTILE.replace("/", "|")  # after "/" comes the line within a chart
    page = report(
        tmp_path,
        title=HOSTILE,
        settings=Settings(model=HOSTILE),
        rows=[{"step": 1, name: 1.0, f"lines/{name}": 1.0, "lines/other": 2.0, "known": 1.0}],
        summary={"verdict": HOSTILE, "method": HOSTILE, "scores": {name: score}, "versions": {HOSTILE: HOSTILE}},
        pairs=pairs,
        figures=[(HOSTILE, HOSTILE, Figure())],
        charts={"known": (HOSTILE, HOSTILE)},
        steps=[NextStep(HOSTILE, HOSTILE, HOSTILE)],
    )
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert page.text.count(HOSTILE) >= 14
    assert sum(HOSTILE in image["alt"] for image in page.images) == 2
    assert sum(HOSTILE in drawing["aria-label"] for drawing in page.drawings) == 2
    assert page.text.count(name) >= 3
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)


def test_an_empty_run_still_has_a_report(tmp_path):
    page = report(tmp_path)
    assert page.text.count("None were recorded.") == 1 and not page.images and not page.drawings
    assert "Images before and after" not in page.text and "Scores before and after" not in page.text


@pytest.mark.parametrize(
    ("change", "lower", "mark"),
    [(0.3, False, "▲ better"), (-0.3, False, "▼ worse"), (-0.3, True, "▲ better"), (0.1, False, "≈ within noise")],
)
def test_a_change_is_marked_by_more_than_its_colour(tmp_path, change, lower, mark):
    score = {"before": 1.0, "after": 1.0 + change, "change": change, "change_se": 0.1, "lower_is_better": lower}
    page = report(tmp_path, summary={"scores": {"some_score": score}})
    assert mark in page.text and f"{change:+.2f} ± 0.10" in page.text and "some score" in page.text
    assert ("lower is better" in page.text) == lower


def test_a_single_image_is_neither_better_nor_worse(tmp_path):
    scores = paired_scores({"s": np.zeros(1)}, {"s": np.ones(1)}, {})
    page = report(tmp_path, summary={"scores": scores})
    assert "+1" in page.text and "error unknown" in page.text
    assert not any("better" in attributes.get("class", "") for _, attributes in page.tags)


def test_unwritable_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "file")


def test_figures_of_a_method_have_their_own_sections(tmp_path):
    figure = Figure()
    figure.add_subplot().set_xlabel("the timestep")
    page = report(tmp_path, figures=[("Accuracy <1>", "by timestep & more", figure)])
    assert "Accuracy <1>" in page.text and "by timestep & more" in page.text and "the timestep" in page.text
    assert page.drawings[0]["aria-label"] == "Accuracy <1>. by timestep & more"


def test_text_can_be_read_on_its_ground_in_light_and_dark():
    """The contrast is at least 4.5 to 1, as WCAG asks of text; curves have 3 to 1, as it asks of graphics."""
    style = (ROOT / "spo_jax" / "run" / "report" / "template" / "page.css").read_text()
    blocks = re.findall(r":root {(.*?)}", style, re.DOTALL)[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks)
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for text, grounds in {
            "ink": ("page", "card", "flat-card", "good-card", "bad-card"),
            "soft": ("page", "card"),
            "mark": ("page",),
            "good": ("good-card",),
            "bad": ("bad-card",),
            "flat": ("flat-card",),
        }.items():
            assert all(contrast(colours[text], colours[ground]) >= 4.5 for ground in grounds), text
        lines = [name for name in colours if name.startswith(("kind", "order"))]
        assert len(lines) == 10 and all(contrast(colours[name], colours["card"]) >= 3 for name in lines)


def contrast(one, other):
    """The contrast ratio of two colours by WCAG 2."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_findings_stand_beside_the_curves_and_what_is_well_does_not(tmp_path):
    findings = [
        Finding("problem", f"Ratios {HOSTILE} explode.", "Lower it.", rule="clipped"),
        Finding("good", "All is well.", rule="speed"),
    ]
    page = report(tmp_path, rows=[{"step": 1, "loss": 0.5}], findings=findings)
    assert "clipped" in page.words and HOSTILE in page.text and "Lower it." in page.text
    assert "All is well." not in page.text
    assert 'class="findings"' not in report(tmp_path, rows=[{"step": 1, "loss": 0.5}], findings=findings[1:]).source
