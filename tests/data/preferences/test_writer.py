"""Preparing never leaves a half-written split, and keeps a split that is already prepared."""

import itertools
import json
import os
import resource
import sys

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences import writer
from spo_jax.data.preferences.format import open_preferences
from spo_jax.data.preferences.sources.pick_a_pic import PickAPic
from spo_jax.data.preferences.writer import Prepared, prepare_split, preparing


def left(data_dir):
    """Returns the names in the folder, except the lock."""
    return sorted(path.name for path in data_dir.iterdir() if path.name != ".lock")


def test_rejected_rows_are_listed_with_reasons(make_source, prepare, data_dir, row):
    rows = [row(0), row(1, jpg_0=None), row(2, label_1=1.0), row(3)]
    assert prepare(make_source(rows), max_bad=0.5).rejected == 2
    entries = [json.loads(line) for line in (data_dir / "rejected-train.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in entries] == ["train.parquet, row 1", "train.parquet, row 2"]
    assert entries[0]["image_uids"] == ["uid-1-0", "uid-1-1"] and entries[0]["reason"] == "jpg_0 is missing"
    assert entries[1]["reason"].startswith("the labels are 0.5 and 1.0, expected")
    assert left(data_dir) == ["rejected-train.jsonl", "train"]


@pytest.mark.parametrize("max_bad", [0.0, 0.24])
def test_too_many_rejected_rows_are_an_error(make_source, prepare, data_dir, row, max_bad):
    """One of four rows is rejected."""
    rows = [row(0), row(1), row(2, jpg_0=b"?"), row(3)]
    with pytest.raises(UserError) as caught:
        prepare(make_source(rows), max_bad=max_bad)
    assert str(caught.value) == (
        f"split train: 1 of 4 rows (25.00%) cannot be used, which is more than --max-bad={max_bad:g} allows, for "
        "example train.parquet, row 2: jpg_0 is not an image in a known format; the rejected rows are listed in "
        f"{data_dir}/rejected-train.jsonl, and this split was not prepared"
    )
    assert left(data_dir) == ["rejected-train.jsonl"]
    assert prepare(make_source([row(0)]), max_bad=max_bad).pairs == 1
    assert left(data_dir) == ["train"]  # the earlier list is gone


def test_a_shard_may_consist_of_rejected_rows_only(make_source, prepare, data_dir, row):
    rows = [row(i, **({"jpg_0": None} if i in (2, 3) else {})) for i in range(6)]
    prepare(make_source(rows), max_bad=0.5)
    preferences = open_preferences(data_dir, "train")
    assert [preferences.images(i)[0] for i in range(4)] == [row(i)["jpg_0"] for i in (0, 1, 4, 5)]


def test_a_split_without_valid_rows_is_an_error(make_source, prepare, data_dir, row):
    with pytest.raises(
        UserError, match=r"2 of 2 rows \(100.00%\) cannot be used, which leaves none, for example train.parquet"
    ):
        prepare(make_source([row(0, jpg_0=None), row(1, jpg_0=None)]), max_bad=1.0)
    assert left(data_dir) == ["rejected-train.jsonl"]


def test_a_hopeless_split_is_abandoned_early(make_source, prepare, monkeypatch, row):
    monkeypatch.setattr(writer, "_ENOUGH", 3)
    rows = [row(i, jpg_0=None) for i in range(50)]
    with pytest.raises(
        UserError, match=r"4 of 4 rows \(100.00%\) cannot be used, which is more than --max-bad=0.01 allows"
    ):
        prepare(make_source(rows))


def test_a_split_without_rows_is_an_error(make_source, prepare, write_parquet, tmp_path, row):
    import pyarrow
    import pyarrow.parquet

    source = make_source([row(0)])
    path = tmp_path / "source" / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match="split train: the source has no rows in it"):
        prepare(source)


def test_limit_uses_only_the_first_rows(make_source, prepare, data_dir, row):
    assert prepare(make_source([row(i) for i in range(9)]), limit=5).pairs == 5
    assert open_preferences(data_dir, "train").images(4)[0] == row(4)["jpg_0"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_in_the_middle_leaves_nothing(make_source, prepare, data_dir, monkeypatch, row, error):
    """The failure comes after the first shard; the next command starts again from the beginning."""
    source = make_source([row(i) for i in range(200)])
    calls = itertools.count()

    def breaking(raw, check=writer.check):
        if next(calls) == 150:
            raise error("in the middle")
        return check(raw)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(writer, "check", breaking)
        prepare(source)
    assert left(data_dir) == []
    with pytest.raises(UserError, match="no prepared split train .available: none."):
        open_preferences(data_dir, "train")
    assert prepare(source).pairs == 200


def test_a_failure_between_the_records_and_the_index_leaves_nothing(make_source, prepare, data_dir, monkeypatch, row):
    def breaking(*_, **__):
        raise OSError(28, "No space left on device")

    source = make_source([row(0)])
    with monkeypatch.context() as patch:
        patch.setattr(writer.np, "savez", breaking)
        with pytest.raises(UserError, match=f"cannot write {data_dir}/train: No space left on device"):
            prepare(source)
    assert left(data_dir) == []
    assert prepare(source).pairs == 1


def test_a_full_disk_is_an_error(make_source, prepare, data_dir, row):
    """A limit on the size of files replaces the full disk, because array_record reports both in the same way."""
    source = make_source([row(i) | {"jpg_0": row(i)["jpg_0"] + os.urandom(5000)} for i in range(50)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=f"cannot write to {data_dir}/.preparing/train: File too large"):
            prepare(source, shard=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(data_dir) == []


def test_the_remains_of_a_killed_command_are_removed(make_source, prepare, data_dir, row):
    """A process cannot clean up after SIGKILL."""
    aside = data_dir / ".preparing" / "train" / "preference_pairs" / "1.0.0.incompleteABC"
    aside.mkdir(parents=True)
    (aside / "preference_pairs-train.array_record-00000-of-00001").write_bytes(b"half")
    assert prepare(make_source([row(0)])).pairs == 1
    assert left(data_dir) == ["train"]


def test_a_finished_split_is_kept(make_source, prepare, data_dir, row):
    rows = [row(0), row(1), row(2, jpg_0=None)]
    prepare(make_source(rows), max_bad=0.5)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.name != ".lock"}
    assert prepare(make_source(rows), max_bad=0.5) == Prepared(2, 1, kept=True)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.name != ".lock"} == before


def test_a_finished_split_of_something_else_is_an_error(make_source, prepare, data_dir, tmp_path, row):
    source = make_source([row(0), row(1)])
    prepare(source)
    with pytest.raises(
        UserError, match=f"{data_dir}/train was prepared with limit = 0, but now it is 1; choose another --"
    ):
        prepare(source, limit=1)
    elsewhere = PickAPic(tmp_path / "source", name="acme/pairs")
    with pytest.raises(UserError, match=r"was prepared with source = '.*source', but now it is 'acme/pairs'; choose"):
        prepare(elsewhere)


def test_a_folder_that_is_not_a_prepared_split_is_an_error(make_source, prepare, data_dir, row):
    (data_dir / "train").mkdir(parents=True)
    with pytest.raises(
        UserError, match=f"{data_dir}/train exists but is not a prepared split; choose another --data-dir, or"
    ):
        prepare(make_source([row(0)]))


def test_two_commands_at_once_are_an_error(data_dir):
    with (
        preparing(data_dir),
        pytest.raises(UserError, match="another command is preparing data in this folder; wait for"),
    ):
        with preparing(data_dir):
            pass
    with preparing(data_dir):
        pass


@pytest.mark.parametrize("split", ["all", "my-split", "../train", ""])
def test_invalid_names_of_splits_are_errors(make_source, data_dir, row, split):
    with pytest.raises(UserError, match=f"split '{split}': expected letters, digits and underscores, a letter first"):
        prepare_split(make_source([row(0)]), split, data_dir)


def test_a_split_that_the_source_does_not_have_is_an_error(make_source, data_dir, row):
    with pytest.raises(UserError, match="split 'test_unique' is not in the source: expected one of train"):
        prepare_split(make_source([row(0)]), "test_unique", data_dir)


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record.python.array_record_data_source"])
def test_a_missing_extra_is_an_error(make_source, prepare, monkeypatch, row, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=r"preference pairs need tensorflow-datasets and array_record .*pip install -e .\.\[data\]"
    ):
        prepare(make_source([row(0)]))


def test_a_missing_pyarrow_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"reading parquet files needs pyarrow: run pip install pyarrow"):
        PickAPic(tmp_path)
