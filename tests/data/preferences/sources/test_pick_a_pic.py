"""Parquet files in all their layouts become rows, and each refusal has its message."""

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import ImageFile
from spo_jax.data.preferences.parquet import patterns
from spo_jax.data.preferences.sources.pick_a_pic import Options, PickAPic, open_source


def named(split, part=0, parts=1, folder="data"):
    """Returns the name of one part of a split."""
    return f"{folder}/{split}-{part:05d}-of-{parts:05d}-0123abcd.parquet"


def test_several_parts_are_one_split_in_order(tmp_path, row, write_parquet):
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
def test_other_layouts_are_read(tmp_path, row, write_parquet, name):
    write_parquet(tmp_path / name, [row(0)])
    write_parquet(tmp_path / ".cache" / "train.parquet", [row(1)])  # an unfinished download of a client
    source = PickAPic(tmp_path)
    assert source.splits() == ("train",) and source.count("train") == 1


def test_images_may_be_structs(tmp_path, row, write_parquet, picture):
    (tmp_path / "b.jpg").write_bytes(picture(9))
    write_parquet(
        tmp_path / "train.parquet",
        [
            row(0, jpg_0={"bytes": picture(7), "path": None}, jpg_1={"bytes": None, "path": "b.jpg"}),
            row(1, jpg_0={"bytes": None, "path": None}, jpg_1=None),
        ],
    )
    first, second = PickAPic(tmp_path).rows("train")
    assert first.images == (picture(7), ImageFile(tmp_path, "b.jpg"))
    assert second.images == (None, None)


def test_optional_columns_may_be_missing(tmp_path, row, write_parquet):
    needed = ("jpg_0", "jpg_1", "caption", "label_0", "label_1")
    write_parquet(tmp_path / "train.parquet", [{name: row(4)[name] for name in needed}])
    (raw,) = PickAPic(tmp_path).rows("train")
    assert (raw.has_label, raw.are_different, raw.uids, raw.num_example_per_prompt) == (True, None, ("", ""), 0)


def test_missing_parts_are_refused_unless_the_data_are_partial(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("train", 2, 645), [row(0), row(1)])
    with pytest.raises(UserError, match=r"train: 644 of its 645 parquet files are missing \(the first is number 0\)"):
        PickAPic(tmp_path).count("train")
    partial = PickAPic(tmp_path, partial=True)
    assert partial.count("train") == 2
    before = partial.made_from("train")
    write_parquet(tmp_path / named("train", 3, 645), [row(2)])
    assert PickAPic(tmp_path, partial=True).made_from("train") != before


def test_changed_files_are_another_origin(tmp_path, row, write_parquet):
    """The origin depends on the sizes and names of the files."""
    write_parquet(tmp_path / "train.parquet", [row(0)])
    before = PickAPic(tmp_path).made_from("train")
    assert PickAPic(tmp_path).made_from("train") == before
    assert before["files"].startswith("1 (digest of names and sizes ")
    write_parquet(tmp_path / "train.parquet", [row(0), row(1)])
    assert PickAPic(tmp_path).made_from("train") != before


def test_the_usual_splits_are_the_published_ones_or_all(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("mine"), [row(0)])
    assert PickAPic(tmp_path).usual_splits() == ("mine",)
    write_parquet(tmp_path / named("train"), [row(0)])
    assert PickAPic(tmp_path).usual_splits() == ("train",)


def test_two_exports_of_a_split_are_not_mixed(tmp_path, row, write_parquet):
    write_parquet(tmp_path / named("train", 0, 1, "v1"), [row(0)])
    write_parquet(tmp_path / named("train", 0, 1, "v2"), [row(0)])
    with pytest.raises(UserError, match="split train: its parquet files belong to several exports: .*v1.*v2"):
        PickAPic(tmp_path).count("train")


def test_a_part_that_occurs_twice_is_refused(tmp_path, row, write_parquet):
    write_parquet(tmp_path / "data" / "train-00000-of-00001-a.parquet", [row(0)])
    write_parquet(tmp_path / "data" / "train-00000-of-00001-b.parquet", [row(0)])
    with pytest.raises(UserError, match="split train: a part of .*data .of 00001. occurs twice"):
        PickAPic(tmp_path).count("train")


def test_a_folder_without_parquet_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no parquet files of a split: expected names such as data/train-00000"):
        PickAPic(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder: expected one with parquet files"):
        PickAPic(tmp_path / "file")


def test_a_table_with_other_columns_is_refused(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [{"caption": "a", "image": b"x"}])
    message = f"{path}: no column jpg_0, jpg_1, label_0, label_1: expected Pick-a-Pic's, found caption, image"
    with pytest.raises(UserError, match=message):
        PickAPic(tmp_path).count("train")


def test_a_truncated_file_is_refused(tmp_path, row, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [row(i) for i in range(9)])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"cannot read {path} as parquet .*: it is damaged or cut off; download it aga"):
        PickAPic(tmp_path).count("train")


def test_a_file_with_damaged_rows_is_refused(tmp_path, row, write_parquet):
    """Its metadata, which are at the end, are intact."""
    path = write_parquet(tmp_path / "train.parquet", [row(i) for i in range(9)])
    content = bytearray(path.read_bytes())
    content[4:600] = b"\xff" * 596
    path.write_bytes(content)
    source = PickAPic(tmp_path)
    assert source.count("train") == 9
    with pytest.raises(UserError, match=f"cannot read {path} as parquet .*: it is damaged"):
        list(source.rows("train"))


def test_a_revision_is_only_for_hub_ids(tmp_path, row, write_parquet):
    write_parquet(tmp_path / "train.parquet", [row(0)])
    with pytest.raises(UserError, match="--revision=main is for hub ids, and --source=.* is a local folder"):
        open_source(Options(source=str(tmp_path), revision="main"), (), fetch=print)


def test_only_the_files_of_the_requested_splits_are_downloaded(tmp_path, row, write_parquet):
    write_parquet(tmp_path / "train.parquet", [row(0)])
    calls = []

    def fetch(*arguments, **options):
        calls.append((arguments, options))
        return tmp_path

    source = open_source(Options(source="owner/name", revision="v1"), ("train",), fetch)
    assert calls == [(("owner/name", "v1"), {"allow_patterns": patterns(("train",)), "repo_type": "dataset"})]
    origin = source.made_from("train")
    assert (origin["source"], origin["revision"]) == ("owner/name", "v1")


def test_the_patterns_match_the_requested_splits_only():
    """They are matched as the hub's client does."""
    from huggingface_hub.utils import filter_repo_objects

    splits = ("train", "validation", "validation_unique", "test_unique")
    names = [named(split) for split in splits] + ["train/0000.parquet", "test.parquet", "README.md"]
    found = set(filter_repo_objects(names, allow_patterns=patterns(("train", "validation_unique"))))
    assert found == {named("train"), named("validation_unique"), "train/0000.parquet"}
