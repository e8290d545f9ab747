"""A user's JSONL files as rows; lines that are none are rows with a reason."""

import json

import pytest
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.sources.folder import PreferenceFolder

from spo_jax.core.errors import UserError


@pytest.fixture
def folder(tmp_path, picture):
    for name, shade in (("a.png", 1), ("b.png", 200)):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(picture(shade, "png"))
    return tmp_path


def lines(folder, *entries, split="train"):
    text = "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return PreferenceFolder(folder)


def entry(**changes):
    return {"prompt": "a star", "image_0": "pictures/a.png", "image_1": "pictures/b.png", "label": 0} | changes


@pytest.mark.parametrize(
    ("label", "labels"), [(0, (1, 0)), (1, (0, 1)), (0.5, (0.5, 0.5)), (1.0, (0, 1))], ids=["0", "1", "0.5", "1.0"]
)
def test_the_label_says_which_picture_is_preferred(folder, picture, label, labels):
    (raw,) = lines(folder, entry(label=label)).rows("train")
    pair = check(raw)
    assert pair.labels == labels and pair.images == (picture(1, "png"), picture(200, "png"))
    assert pair.caption == "a star" and pair.has_label and pair.are_different


def test_two_labels_and_other_names_of_the_prompt(folder):
    line = entry(caption="a moon", label_0=0, label_1=1)
    del line["prompt"], line["label"]
    (raw,) = lines(folder, line).rows("train")
    assert check(raw).labels == (0, 1) and check(raw).caption == "a moon"


def test_blank_lines_and_a_byte_order_mark(folder):
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
        (entry(label=2), "label is 2, expected 0 or 1 (which picture is preferred) or 0.5"),
        (entry(label=True), "label is True, expected 0 or 1"),
        (entry(label="0"), "label is '0', expected 0 or 1"),
        (entry(label=None), "label is None, expected 0 or 1"),
        (entry(label=[1]), "label is [1], expected 0 or 1"),
        (entry(image_1="pictures/absent.png"), "image_1 is missing: "),
        (entry(image_0=None), "image_0 is missing"),
        ({"image_0": "pictures/a.png", "image_1": "pictures/b.png", "label": 0}, "the caption is None"),
        ({"prompt": "x", "image_0": "pictures/a.png", "image_1": "pictures/b.png"}, "the labels are None and None"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_lines_that_are_no_pair(folder, line, reason):
    (raw,) = lines(folder, line).rows("train")
    assert check(raw).startswith(reason)


def test_every_file_is_a_split(folder):
    lines(folder, entry(), split="mine")
    assert lines(folder, entry()).splits() == ("mine", "train")


def test_no_folder_and_no_files(tmp_path):
    with pytest.raises(UserError, match="absent is not a folder: expected one with a JSONL file per split"):
        PreferenceFolder(tmp_path / "absent")
    with pytest.raises(UserError, match="no JSONL file in it, expected one per split, e.g. train.jsonl"):
        PreferenceFolder(tmp_path)
