"""A user's JSONL files become rows; an invalid line becomes a row with a reason."""

import json
import os

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.sources.folder import Options, PreferenceFolder, open_source


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
    return PreferenceFolder(folder)


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


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="absent is not a folder: expected one with a JSONL file per split"):
        PreferenceFolder(tmp_path / "absent")
    with pytest.raises(UserError, match="has no JSONL file: expected one per split, such as train.jsonl"):
        PreferenceFolder(tmp_path)


def test_the_source_is_a_required_option(folder):
    lines(folder, entry())
    with pytest.raises(UserError, match="--source = '': expected a folder"):
        Options()
    opened = open_source(Options(source=str(folder)), (), fetch=print)
    assert opened.usual_splits() == ("train",) and opened.made_from("train")["source"] == str(folder)
