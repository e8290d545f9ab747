"""A user's folder is opened in the form that it has; of JSONL, an invalid line becomes a row with a reason."""

import json
import os

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.sources.folder import Options, open_form, open_source


@pytest.fixture
def folder(tmp_path, picture):
    """A folder with two image files."""
    (tmp_path / "images").mkdir()
    for name, shade in (("a.png", 1), ("b.png", 200)):
        (tmp_path / "images" / name).write_bytes(picture(shade, "png"))
    return tmp_path


def lines(folder, *entries, split="train"):
    """Writes the lines of a split, and opens the folder."""
    text = "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return open_form(folder)


def entry(**changes):
    """Makes a valid entry with some changes."""
    return {"prompt": "a star", "image_0": "images/a.png", "image_1": "images/b.png", "label": 0} | changes


@pytest.mark.parametrize(
    ("label", "labels"), [(0, (1, 0)), (1, (0, 1)), (0.5, (0.5, 0.5)), (1.0, (0, 1))], ids=["0", "1", "0.5", "1.0"]
)
def test_the_label_says_which_image_is_preferred(folder, picture, label, labels):
    (raw,) = lines(folder, entry(label=label)).rows("train")
    pair = check(raw)
    assert pair.labels == labels and pair.images == (picture(1, "png"), picture(200, "png"))
    assert pair.caption == "a star" and pair.has_label and pair.are_different


def test_two_labels_and_another_name_of_the_prompt_are_read(folder):
    line = entry(caption="a moon", label_0=0, label_1=1)
    del line["prompt"], line["label"]
    (raw,) = lines(folder, line).rows("train")
    assert check(raw).labels == (0, 1) and check(raw).caption == "a moon"


def test_blank_lines_and_a_byte_order_mark_are_skipped(folder):
    source = lines(folder, "\ufeff" + json.dumps(entry()), "", json.dumps(entry(label=1)), " ")
    rows = list(source.rows("train"))
    assert source.count("train") == 2
    assert [raw.where for raw in rows] == ["train.jsonl, line 1", "train.jsonl, line 3"]
    assert not any(raw.problem for raw in rows)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{nonsense", "the line is not JSON: "),
        ("[" * 100_000, "the line is not JSON: "),
        ("[1]", "the line is list, expected a JSON object"),
        (entry(label=2), "label is 2, expected 0 or 1 (which image is preferred) or 0.5"),
        (entry(label=True), "label is True, expected 0 or 1"),
        (entry(label="0"), "label is '0', expected 0 or 1"),
        (entry(label=None), "label is None, expected 0 or 1"),
        (entry(label=[1]), "label is [1], expected 0 or 1"),
        (entry(image_1="images/absent.png"), "image_1 is missing: "),
        (entry(image_0=None), "image_0 is missing"),
        (entry(image_0="/dev/zero"), "image_0 is '/dev/zero': expected a file below "),
        (entry(image_0="images/../../a.png"), "image_0 is 'images/../../a.png': expected a file below "),
        (entry(image_1="link.png"), "image_1 is 'link.png', a link that leads out of "),
        (entry(image_1="circle.png"), "image_1 is "),
        (entry(image_1="pipe.png"), "image_1 is not a regular file: "),
        (entry(image_1="images"), "image_1 is not a regular file: "),
        (entry(image_1="x" * 300), "image_1 is missing: "),
        ({"image_0": "images/a.png", "image_1": "images/b.png", "label": 0}, "the caption is None"),
        ({"prompt": "x", "image_0": "images/a.png", "image_1": "images/b.png"}, "the labels are None and None"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_an_invalid_line_becomes_a_row_with_a_reason(folder, line, reason):
    """A pipe would keep whoever opens it waiting, a device would never end, and other files are nobody's business."""
    (folder / "link.png").symlink_to("/dev/zero")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    (raw,) = lines(folder, line).rows("train")
    assert check(raw).startswith(reason)


def test_each_file_is_a_split(folder):
    lines(folder, entry(), split="mine")
    assert lines(folder, entry()).splits() == ("mine", "train")


def test_fields_that_are_not_named_here_are_nobodys_business(folder):
    """The page for voting notes who voted, when, and how the images were drawn."""
    (raw,) = lines(folder, entry(voter="ann", time="2026-01-01T00:00:00+00:00", seed=3, rows=[0, 4])).rows("train")
    assert check(raw).labels == (1, 0)


def test_what_holds_no_preferences_or_several_forms_of_them_is_refused(folder):
    """A guess between two forms would train on half of somebody's votes, or on the wrong ones."""
    cases = [(folder / "absent", "absent is not a folder: expected one with JSONL files")]
    cases += [(folder / "images" / "a.png", "a.png is a file: expected the folder that it is in")]
    cases += [(folder, "holds no preferences: expected JSONL files .*, CSV files .*, or two folders better and worse")]
    (folder / "votes" / "preferences").mkdir(parents=True)
    (folder / "votes" / "preferences" / "train.jsonl").touch()
    cases += [(folder / "votes", r"votes holds no preferences \(.*/votes/preferences holds some\): expected")]
    (folder / "sorted" / "mine" / "better").mkdir(parents=True)
    (folder / "sorted" / "mine" / "worse").mkdir()
    cases += [(folder / "sorted", r"\(.*/sorted/mine holds some\)")]
    for where, message in cases:
        with pytest.raises(UserError, match=message):
            open_form(where)
    (folder / "better").mkdir()
    with pytest.raises(UserError, match="has a folder better and none worse: expected"):
        open_form(folder)
    (folder / "worse").mkdir()
    (folder / "votes.csv").write_text("")
    with pytest.raises(UserError, match="in several forms, votes.csv and better and worse .folders.: expected one of"):
        open_form(folder)
    with pytest.raises(UserError, match="in several forms, train.jsonl, votes.csv and better and worse .folders.: "):
        lines(folder, entry())


def test_the_source_is_a_required_option(folder):
    lines(folder, entry())
    with pytest.raises(UserError, match="--source = '': expected a folder"):
        Options()
    opened = open_source(Options(source=str(folder)), (), fetch=print)
    assert opened.usual_splits() == ("train",) and opened.made_from("train")["source"] == str(folder)
