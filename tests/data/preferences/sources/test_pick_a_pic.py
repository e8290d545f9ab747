"""Parquet files in the layouts that there are, read as rows; every refusal by its text."""

import pytest
from spo_jax.data.preferences.sources.pick_a_pic import PickAPic, patterns

from spo_jax.core.errors import UserError


def named(split, part=0, parts=1, folder="data"):
    return f"{folder}/{split}-{part:05d}-of-{parts:05d}-0123abcd.parquet"


def test_files_of_several_parts_are_one_split_in_order(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("train", 1, 2), [row(i) for i in range(5, 7)])
    write_parquet(tmp_path / named("train", 0, 2), [row(i) for i in range(5)])
    write_parquet(tmp_path / named("validation_unique"), [row(9)])
    source = PickAPic(tmp_path)
    assert sorted(source.splits()) == ["train", "validation_unique"]
    assert source.count("train") == 7
    rows = list(source.rows("train"))
    assert [raw.uids for raw in rows] == [(f"uid-{i}-0", f"uid-{i}-1") for i in range(7)]
    assert [raw.where for raw in rows[4:6]] == [f"{named('train', 0, 2)}, row 4", f"{named('train', 1, 2)}, row 0"]
    assert rows[3].images == (row(3)["jpg_0"], row(3)["jpg_1"])
    assert (rows[4].has_label, rows[4].are_different, rows[4].num_example_per_prompt) == (False, True, 7)
    assert rows[2].labels == (0.5, 0.5) and rows[2].caption == "a pícture of 2"


@pytest.mark.parametrize(
    "name", ["train/0000.parquet", "train.parquet", "default/train/x.parquet", "data/train.parquet"]
)
def test_plainer_layouts(tmp_path, row, write_parquet, name):
    write_parquet(tmp_path / name, [row(0)])
    write_parquet(tmp_path / ".cache" / "train.parquet", [row(1)])  # unfinished downloads of a client
    source = PickAPic(tmp_path)
    assert source.splits() == ("train",) and source.count("train") == 1


def test_pictures_may_be_structs(tmp_path, row, write_parquet, picture):
    (tmp_path / "b.jpg").write_bytes(picture(9))
    write_parquet(
        tmp_path / "train.parquet",
        [
            row(0, jpg_0={"bytes": picture(7), "path": None}, jpg_1={"bytes": None, "path": "b.jpg"}),
            row(1, jpg_0={"bytes": None, "path": None}, jpg_1=None),
        ],
    )
    first, second = PickAPic(tmp_path).rows("train")
    assert first.images == (picture(7), tmp_path / "b.jpg")
    assert second.images == (None, None)


def test_columns_that_some_exports_lack(tmp_path, row, write_parquet):
    needed = ("jpg_0", "jpg_1", "caption", "label_0", "label_1")
    write_parquet(tmp_path / "train.parquet", [{name: row(4)[name] for name in needed}])
    (raw,) = PickAPic(tmp_path).rows("train")
    assert (raw.has_label, raw.are_different, raw.uids, raw.num_example_per_prompt) == (True, None, ("", ""), 0)


def test_a_missing_part_is_named_unless_it_was_said(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("train", 2, 645), [row(0), row(1)])
    with pytest.raises(UserError, match=r"split train: 644 of its 645 parquet files are not there \(number 0 is the"):
        PickAPic(tmp_path).count("train")
    partial = PickAPic(tmp_path, partial=True)
    assert partial.count("train") == 2
    before = partial.made_from("train")
    write_parquet(tmp_path / named("train", 3, 645), [row(2)])
    assert PickAPic(tmp_path, partial=True).made_from("train") != before


def test_files_that_have_changed_are_another_origin(tmp_path, row, write_parquet):
    """By their sizes and names."""
    write_parquet(tmp_path / "train.parquet", [row(0)])
    before = PickAPic(tmp_path).made_from("train")
    assert PickAPic(tmp_path).made_from("train") == before
    assert before["files"].startswith("1 (digest of names and sizes ")
    write_parquet(tmp_path / "train.parquet", [row(0), row(1)])
    assert PickAPic(tmp_path).made_from("train") != before


def test_without_names_the_published_splits_or_all(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("mine"), [row(0)])
    assert PickAPic(tmp_path).usual_splits() == ("mine",)
    write_parquet(tmp_path / named("train"), [row(0)])
    assert PickAPic(tmp_path).usual_splits() == ("train",)


def test_two_exports_of_a_split_are_not_mixed(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("train", 0, 1, "v1"), [row(0)])
    write_parquet(tmp_path / named("train", 0, 1, "v2"), [row(0)])
    with pytest.raises(UserError, match="split train: its parquet files are of several exports: .*v1.*v2"):
        PickAPic(tmp_path).count("train")


def test_a_part_that_is_there_twice(tmp_path, row, write_parquet):
    write_parquet(tmp_path / "data" / "train-00000-of-00001-a.parquet", [row(0)])
    write_parquet(tmp_path / "data" / "train-00000-of-00001-b.parquet", [row(0)])
    with pytest.raises(UserError, match="split train: a part of .*data .of 00001. is there twice"):
        PickAPic(tmp_path).count("train")


def test_a_folder_without_parquet_files(tmp_path):
    with pytest.raises(UserError, match="no parquet files of a split there, expected names as data/train-00000"):
        PickAPic(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder: expected one with parquet files"):
        PickAPic(tmp_path / "file")


def test_another_table(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [{"caption": "a", "image": b"x"}])
    with pytest.raises(
        UserError, match=f"{path}: no column jpg_0, jpg_1, label_0, label_1; expected Pick-a-Pic's, fou"
    ):
        PickAPic(tmp_path).count("train")


def test_a_file_that_was_cut_off(tmp_path, row, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [row(i) for i in range(9)])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"cannot read {path} as parquet .*: it is damaged or cut off, fetch it again"):
        PickAPic(tmp_path).count("train")


def test_a_file_damaged_in_the_middle(tmp_path, row, write_parquet):
    """Its metadata, at the end, are whole."""
    path = write_parquet(tmp_path / "train.parquet", [row(i) for i in range(9)])
    content = bytearray(path.read_bytes())
    content[4:600] = b"\xff" * 596
    path.write_bytes(content)
    source = PickAPic(tmp_path)
    assert source.count("train") == 9
    with pytest.raises(UserError, match=f"cannot read {path} as parquet .*: it is damaged"):
        list(source.rows("train"))


def test_patterns_of_the_hub_take_the_splits_that_were_asked_for():
    """Matched as the hub's client does."""
    from huggingface_hub.utils import filter_repo_objects

    splits = ("train", "validation", "validation_unique", "test_unique")
    names = [named(split) for split in splits] + ["train/0000.parquet", "test.parquet", "README.md"]
    found = set(filter_repo_objects(names, allow_patterns=patterns(("train", "validation_unique"))))
    assert found == {named("train"), named("validation_unique"), "train/0000.parquet"}
