"""The files: complete, readable by others, and safe against what users put into prompts and names."""

import csv
import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.work.evaluate.compare import compare
from spo_jax.work.evaluate.gallery import gallery
from spo_jax.work.evaluate.outputs import write_results
from spo_jax.work.evaluate.result import Contestant
from spo_jax.work.evaluate.wording import made_fields, percent_text, protocol_fields, remarks
from tests.run.report.test_page import Page
from tests.work.evaluate.made_up import HOSTILE, made_up


def data_of(page):
    return json.loads(page.source.partition('id="data">')[2].partition("</script>")[0])


def test_every_form_has_the_same_numbers(tmp_path):
    evaluation = made_up(tmp_path, prompts=12)
    files = write_results(compare(evaluation), tmp_path)
    assert [file.name for file in files] == ["results.json", "results.csv", "scores.csv", "results.md", "index.html"]
    results = json.loads(files[0].read_text())
    value = results["scores"]["spo@1"]["pickscore"]["value"]
    assert value == pytest.approx(evaluation.scores["spo@1"]["pickscore"].mean())
    rows = list(csv.DictReader(files[1].open(newline="")))
    (row,) = [row for row in rows if (row["contestant"], row["score"]) == ("spo@1", "pickscore")]
    assert float(row["value"]) == pytest.approx(value) and row["outcome"] == "better" and row["trained"] == "1"
    assert float(row["wins_against_first"]) == 1
    images = list(csv.DictReader(files[2].open(newline="")))
    assert len(images) == 5 * 12 * 2
    assert images[1]["file"] == "images/base/00000_1.png" and images[1]["prompt"] == "a panda number 0"
    assert float(images[1]["hpsv21"]) == pytest.approx(evaluation.scores["base"]["hpsv21"][0, 1])
    assert images[-1]["hpsv21"] == ""  # which this contestant does not have
    assert f"{value:.2f}"[:4] in files[3].read_text()
    assert data_of(Page(files[4].read_text()))["values"]["spo@1"]["pickscore"] == pytest.approx(value)


def test_the_protocol_stands_with_every_table(tmp_path):
    evaluation = made_up(tmp_path, prompts=12, overridden=("steps",), groups=["anime"] * 6 + ["photo"] * 6)
    files = write_results(compare(evaluation), tmp_path)
    markdown, page = files[3].read_text(), files[4].read_text()
    tables = [part for part in markdown.split("\n## ") if "| ---" in part]
    assert len(tables) == 6 and all(part.index("but with steps=20") < part.index("| ---") for part in tables)
    for section in ("scores", "wins", "scatter", "protocol"):
        assert "but with steps=20" in page.partition(f'<section id="{section}">')[2].partition("</section>")[0]


def test_contestants_with_a_guidance_of_their_own_are_named(tmp_path):
    evaluation = made_up(tmp_path, prompts=3)
    others = [dataclasses.replace(evaluation.contestants[0], guidance=7.5), *evaluation.contestants[1:]]
    assert protocol_fields(evaluation)["guidance"] == "5"
    assert protocol_fields(dataclasses.replace(evaluation, contestants=others))["guidance"] == "5, but base 7.5"


def test_images_from_elsewhere_are_complete_and_their_noise_is_not_known(tmp_path):
    """They lack a sign that others have, as 8 bits do not show all of them."""
    evaluation = made_up(tmp_path, prompts=12)
    del evaluation.scores["theirs"]["saturation"]
    files = write_results(compare(evaluation), tmp_path)
    results, page = json.loads(files[0].read_text()), files[4].read_text()
    assert [each["guidance"] for each in results["contestants"]] == [5.0] * 4 + [None]
    assert any(remark.startswith("The images of theirs come from elsewhere") for remark in results["remarks"])
    assert not any("Not complete" in remark for remark in results["remarks"])
    assert "initial noise; the images of theirs come from elsewhere," in page
    drawn = dataclasses.replace(evaluation, contestants=evaluation.contestants[:4])
    assert not any("elsewhere" in remark for remark in remarks(compare(drawn)))


@pytest.mark.parametrize(
    ("name", "shown"), [("evaluations/toy", "evaluations/toy/images"), ("my run", "'my run/images'")]
)
def test_the_page_names_the_folder_of_the_images_as_the_user_did(tmp_path, monkeypatch, name, shown):
    monkeypatch.chdir(tmp_path)
    evaluation = made_up(tmp_path / name, prompts=1)
    page = write_results(compare(evaluation), Path(name))[-1].read_text()
    assert f" --source={shown.replace(chr(39), '&#39;')} --data-dir" in page
    page = write_results(compare(evaluation), Path("other"))[-1].read_text()
    assert html.escape(f"{tmp_path / name / 'images'}") in page  # which are not below the page


def test_the_protocol_is_told_from_what_was_changed_and_nothing_is_said_twice(tmp_path):
    evaluation = made_up(tmp_path, prompts=3, overridden=("count",))
    evaluation = dataclasses.replace(
        evaluation,
        protocol=evaluation.protocol | {"size": None, "count": 3},
        about={"seed": 0, "size": "512x512", "dtype": "float32"},
    )
    assert protocol_fields(evaluation)["size"] == "512x512, the model's own"
    assert protocol_fields(evaluation)["limit"] == "3" and made_fields(evaluation) == {"dtype": "float32"}
    files = write_results(compare(evaluation), tmp_path)
    for file in files[3:]:
        assert "The unchanged protocol: 500 prompts of" in file.read_text().replace("\\_", "_")


def test_halves_are_rounded_as_the_script_of_the_page_does():
    assert [percent_text(share) for share in (0.0, 0.005, 0.625, 0.635, 1.0)] == ["0 %", "1 %", "63 %", "64 %", "100 %"]


def test_texts_of_others_are_never_markup(tmp_path):
    evaluation = made_up(tmp_path, prompts=3)
    hostile = [Contestant(HOSTILE, HOSTILE, HOSTILE), *evaluation.contestants[1:]]
    named = {
        name: {HOSTILE: found["base"], **found} for name, found in (("s", evaluation.scores), ("i", evaluation.images))
    }
    evaluation = dataclasses.replace(
        evaluation,
        prompts=[HOSTILE] * 3,
        contestants=hostile,
        scores=named["s"],
        images=named["i"],
        meanings={"pickscore": HOSTILE},
        groups=[HOSTILE] * 3,
        about={"command": HOSTILE},
    )
    files = write_results(compare(evaluation), tmp_path)
    page = Page(files[4].read_text())
    assert page.source.count("<script") == 2 and page.source.count("</script>") == 2  # the data, and the page's own
    assert not page.images[0].get("src") and not any("onerror" in dict(attributes) for _, attributes in page.tags)
    assert data_of(page)["items"][0]["text"] == HOSTILE
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)
    assert "<img" not in re.sub(r"`[^`\n]*`", "", files[3].read_text()).replace("\\<img", "")
    assert next(csv.DictReader(files[2].open(newline="")))["prompt"] == HOSTILE
    assert json.loads(files[0].read_text())["contestants"][0]["name"] == HOSTILE


def test_part_of_an_evaluation_can_be_written(tmp_path):
    evaluation = made_up(tmp_path, prompts=12)
    evaluation.scores["spo@2"]["pickscore"][:] = np.nan
    evaluation.scores["spo@1"]["pickscore"][5:] = np.nan
    for image in (tmp_path / "images" / "spo@2").iterdir():
        image.unlink()
    files = write_results(compare(evaluation), tmp_path)
    assert "NaN" not in files[0].read_text() and "nan" not in files[3].read_text()
    assert "Not complete: " in files[3].read_text()
    data = data_of(Page(files[4].read_text()))
    assert "spo@2" not in data["items"][0]["shown"] and "pickscore" not in data["items"][11]["shown"]["spo@1"]["scores"]
    nothing = {name: {} for name in evaluation.scores}
    write_results(compare(dataclasses.replace(evaluation, scores=nothing, images={})), tmp_path / "nothing")


def test_images_in_the_page_are_spread_and_few_enough(tmp_path):
    evaluation = made_up(tmp_path, prompts=16)
    whole = gallery(evaluation, tmp_path)
    assert len(whole["items"]) == whole["total"] == 32 and whole["folder"] == "images"
    assert [(item["prompt"], item["image"]) for item in whole["items"][:3]] == [(0, 0), (0, 1), (1, 0)]
    weight = sum(len(entry["source"]) for entry in whole["items"][0]["shown"].values())
    part = gallery(evaluation, tmp_path, most_bytes=5 * weight - 1)
    assert [(item["prompt"], item["image"]) for item in part["items"]] == [(0, 0), (4, 0), (8, 0), (12, 0)]
    assert len(gallery(evaluation, tmp_path, most_bytes=1)["items"]) == 1


def test_large_images_are_reduced(tmp_path):
    evaluation = made_up(tmp_path, prompts=1, images=1, side=700)
    (item,) = gallery(evaluation, tmp_path)["items"]
    assert all(entry["source"].startswith("data:image/webp;base64,") for entry in item["shown"].values())
    assert item["shown"]["base"]["file"] == "base/00000_0.png"


def test_votes_of_other_evaluations_are_not_mixed_up(tmp_path):
    evaluation = made_up(tmp_path, prompts=2)
    other_prompts = dataclasses.replace(evaluation, prompts=["a", "b"])
    redrawn = dataclasses.replace(evaluation, images=evaluation.images | {"spo@1": evaluation.images["spo@2"]})
    keys = {gallery(each, tmp_path)["key"] for each in (evaluation, other_prompts, redrawn)}
    assert len(keys) == 3


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_results(compare(made_up(tmp_path, prompts=1)), tmp_path / "file")
