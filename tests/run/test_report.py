"""The report: complete in one file, safe against what users put into names, and complete without some of its parts."""

import base64
import io
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.statistics import paired_scores
from spo_jax.run.report import write_report

HOSTILE = "<script>alert(\"x\")</script> & 'quoted'"
VOID = {"meta", "link", "img", "br"}
CHARTS = {
    "loss": ("Loss", "of the pairs of a batch"),
    "ratio": ("Likelihood ratio", ""),
    "valid_share": ("Share of valid pairs", ""),
    "spm_score": ("Preference score by timestep", "mean score & more"),
    "grad_norm": ("Gradient norm", "global"),
    "seconds": ("Seconds per batch", "where the time goes"),
}


class Page(HTMLParser):
    """Tags with attributes and the text of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]

    @property
    def text(self):
        return " ".join(self.words)


def report(tmp_path, **changes):
    arguments = {"title": "Run", "settings": {"a": 1}, "rows": [], "summary": {}, "grids": []} | changes
    write_report(tmp_path / "report.html", **arguments)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def content(image, media_type):
    head, _, data = image["src"].partition(",")
    assert head == f"data:{media_type};base64"
    return base64.b64decode(data)


def full_run():
    rng = np.random.default_rng(0)
    rows = [
        {"step": step, "loss": 0.7 - step / 100, "ratio/win": 1.0 + step / 50, "ratio/lose": 1.0, "grad_norm": None}
        | {"seconds/rollout": 2.0, "seconds/update": 1.0, "valid_share": 0.6, "my_own": 1.0}
        | {f"spm_score/t{t:04d}": float(rng.normal()) for t in range(1, 802, 50)}
        for step in range(1, 40)
    ]
    score = {"before": 0.5, "before_se": 0.02, "after": 0.75, "after_se": 0.02, "change": 0.25, "change_se": 0.01}
    summary = {
        "scores": {"aesthetic": score | {"meaning": "closed form; higher is better"}},
        "images": 100,
        "wall_seconds": 300.0,
        "versions": {"jax": "0.10.2"},
    }
    before, after = rng.integers(0, 255, (2, 20, 30, 3), np.uint8)
    return {
        "rows": rows,
        "summary": summary,
        "settings": {"spo": {"beta": 10.0}},
        "grids": [("a red star", before, after)],
        "charts": CHARTS,
    }


def test_nothing_is_fetched(tmp_path):
    page = report(tmp_path, **full_run())
    targets = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert targets and all(target.startswith("data:") for target in targets)
    assert not any(tag in ("script", "iframe", "object") for tag, _ in page.tags)
    text = (tmp_path / "report.html").read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text


def test_images_are_those_given_and_have_a_description(tmp_path):
    run = full_run()
    page = report(tmp_path, **run)
    assert all(image["alt"] for image in page.images)
    images = [image for image in page.images if image["src"].startswith("data:image/png")]
    shown = [np.asarray(Image.open(io.BytesIO(content(image, "image/png")))) for image in images]
    np.testing.assert_array_equal(shown, run["grids"][0][1:])
    assert ["before" in image["alt"] for image in images] == [True, False]
    assert "100 images scored" in page.text and "5.0 minutes" in page.text and "jax 0.10.2" in page.text


def test_a_chart_for_each_group_of_curves(tmp_path):
    page = report(tmp_path, **full_run())
    charts = [image for image in page.images if image["src"].startswith("data:image/svg+xml")]
    titles = [chart["alt"].removeprefix("Curve over training steps: ") for chart in charts]
    known = ["loss", "ratio", "valid_share", "spm_score", "seconds"]  # in that order; grad_norm has no finite value
    assert titles == [CHARTS[name][0] for name in known] + ["my_own"]
    assert "of the pairs of a batch" in page.text and "mean score & more" in page.text
    for chart in charts:
        assert ElementTree.fromstring(content(chart, "image/svg+xml")).tag.endswith("svg")


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
    image = np.zeros((4, 4, 3), np.uint8)
    page = report(
        tmp_path,
        title=HOSTILE,
        settings={HOSTILE: HOSTILE},
        rows=[{"step": 1, HOSTILE.replace("/", "|"): 1.0}],  # after "/" comes the line within a chart
        summary={"scores": {HOSTILE: score}, "versions": {HOSTILE: HOSTILE}},
        grids=[(HOSTILE, image, image)],
    )
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.text.count(HOSTILE) >= 9
    assert sum(HOSTILE in image["alt"] for image in page.images) == 2
    assert HOSTILE.replace("/", "|") in page.text


def test_an_empty_run_still_has_a_report(tmp_path):
    page = report(tmp_path)
    assert page.text.count("None were recorded.") == 3 and not page.images


@pytest.mark.parametrize(
    ("change", "lower_is_better", "verdict"),
    [(0.3, False, "better"), (-0.3, False, "worse"), (-0.3, True, "better"), (0.3, True, "worse"), (0.1, False, None)],
)
def test_a_change_is_called_better_or_worse_beyond_two_standard_errors(tmp_path, change, lower_is_better, verdict):
    score = {
        "before": 1.0,
        "after": 1.0 + change,
        "change": change,
        "change_se": 0.1,
        "lower_is_better": lower_is_better,
    }
    page = report(tmp_path, summary={"scores": {"s": score}})
    marked = [attributes["class"] for tag, attributes in page.tags if tag == "span"]
    assert marked == ([verdict] if verdict else [])
    assert f"{change:+.4g}" in page.text


def test_a_single_image_is_neither_better_nor_worse(tmp_path):
    scores = paired_scores({"s": np.zeros(1)}, {"s": np.ones(1)}, {})
    page = report(tmp_path, summary={"scores": scores})
    assert "+1" in page.text and "±" not in page.text
    assert not any(tag == "span" for tag, _ in page.tags)


def test_unwritable_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "file")


def test_a_run_without_images_has_no_section_for_them(tmp_path):
    assert "Images before and after" in report(tmp_path).text
    assert "Images before and after" not in report(tmp_path, grids=None).text


def test_figures_of_a_method_have_their_own_sections(tmp_path):
    figure = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    page = report(tmp_path, grids=None, figures=[("Accuracy <1>", "by timestep & more", figure)])
    assert "Accuracy <1>" in page.text and "by timestep & more" in page.text
    [image] = page.images
    assert content(image, "image/svg+xml") == figure and image["alt"] == "by timestep & more"
