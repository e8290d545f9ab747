"""Rows on disk are whole or partial, bound to what they were computed from, and safe against stops and full disks."""

import errno
import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.array_file import ArrayFile, Writer

ROWS = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)


def file_of(folder, dtype=np.float32, shape=ROWS.shape, **bound):
    return ArrayFile(folder / "rows.npy", shape, np.dtype(dtype), {"data": "a", "network": {"width": [1, 2]}, **bound})


def write(file, rows, **settings):
    with Writer(file, **settings) as writer:
        for row in rows:
            writer.append(row[None])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_round_trip_is_exact_to_the_bit(tmp_path, dtype):
    file = file_of(tmp_path / "new", dtype)
    rows = ROWS.astype(dtype)
    write(file, rows)
    assert file.rows_done() == 7 and not file.part.exists()
    assert file.open().dtype == dtype
    np.testing.assert_array_equal(file.open(), rows)


def test_a_stopped_file_is_resumed(tmp_path):
    """Half a row, and rows that are not on the card, are written again."""
    file = file_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), Writer(file) as writer:
        writer.append(ROWS[:4])
        raise KeyboardInterrupt
    assert file.rows_done() == 4 and not file.path.exists()
    with pytest.raises(UserError, match="rows.npy: the array is not complete yet"):
        file.open()
    with open(file.part, "ab") as stream:
        stream.write(b"half a row and more" * 2)
    write(file, ROWS[file.rows_done() :])
    np.testing.assert_array_equal(file.open(), ROWS)


def test_a_crash_loses_only_rows_that_were_not_synced(tmp_path):
    """A killed process does not run its exit code. The card is never ahead of the rows."""
    file = file_of(tmp_path)
    writer = Writer(file, flush_every=2)
    for row in ROWS[:5]:
        writer.append(row[None])
    assert file.rows_done() == 4


def test_a_truncated_file_counts_its_whole_rows(tmp_path):
    file = file_of(tmp_path)
    write(file, ROWS[:5])
    with open(file.part, "r+b") as stream:
        stream.truncate(len(file.header) + 3 * file.row_bytes + 1)
    assert file.rows_done() == 3


@pytest.mark.parametrize("rows", [3, 7])
@pytest.mark.parametrize(
    "other, message",
    [
        (dict(data="b"), "data is a there and b here"),
        (dict(network={"width": [1, 3]}), r"network.width is \[1, 2\] there and \[1, 3\] here"),
        (dict(more=1), "more is nothing there and 1 here"),
        (dict(dtype=np.float16), "dtype is float32 there and float16 here"),
        (dict(shape=(7, 3, 2)), r"shape is \[7, 2, 3\] there and \[7, 3, 2\] here"),
    ],
)
def test_rows_of_something_else_are_refused(tmp_path, rows, other, message):
    write(file_of(tmp_path), ROWS[:rows])
    with pytest.raises(UserError, match=f"{message}; choose another folder, or delete this one"):
        file_of(tmp_path, **other).rows_done()


def test_deleted_rows_do_not_bind_new_ones(tmp_path):
    write(file_of(tmp_path), ROWS)
    (tmp_path / "rows.npy").unlink()
    write(file_of(tmp_path, data="b"), ROWS)
    assert json.loads((tmp_path / "rows.json").read_text())["bound"]["data"] == "b"


def test_damage_is_an_error(tmp_path):
    file = file_of(tmp_path)
    write(file, ROWS)
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"cannot read .*rows\.npy"):
        file.rows_done()
    np.save(file.path, ROWS[:3])
    with pytest.raises(UserError, match=r"damaged: it holds float32\[3, 2, 3\]: expected float32\[7, 2, 3\]"):
        file.rows_done()
    file.card.unlink()
    with pytest.raises(UserError, match=r"missing file: .*rows\.json"):
        file.rows_done()


def test_only_one_process_at_a_time_may_write(tmp_path):
    """A second one would begin at the same row and cut off what the first has written since."""
    file = file_of(tmp_path)
    with Writer(file) as writer:
        writer.append(ROWS[:4])
        with pytest.raises(UserError, match=r"rows\.npy is being written by another process; wait for it, or choose"):
            Writer(file)
        writer.append(ROWS[4:])
    np.testing.assert_array_equal(file.open(), ROWS)


def test_a_writer_that_was_refused_or_stopped_releases_the_lock(tmp_path):
    file = file_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), Writer(file):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="data is a there and b here"):
        Writer(file_of(tmp_path, data="b"))
    write(file, ROWS)
    np.testing.assert_array_equal(file.open(), ROWS)


def test_a_complete_file_without_its_final_name(tmp_path):
    """After a stop between the last row and the renaming, the next writer renames the file without appending."""
    file = file_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), Writer(file) as writer:
        writer.append(ROWS)
        raise KeyboardInterrupt
    assert file.rows_done() == 7 and not file.path.exists()
    write(file, [])
    np.testing.assert_array_equal(file.open(), ROWS)
    assert not file.part.exists()


def test_a_file_that_another_process_finished_in_the_meantime(tmp_path):
    file = file_of(tmp_path)
    write(file, ROWS)
    with Writer(file) as writer:
        assert writer.done == 7
    np.testing.assert_array_equal(file.open(), ROWS)


def test_a_stop_before_the_first_row_is_not_an_obstacle(tmp_path, monkeypatch):
    """The card comes first, because nobody could say what rows without a card belong to."""
    file = file_of(tmp_path)
    real_open = open

    def killed(path, *arguments, **options):
        if path == file.part:
            raise KeyboardInterrupt
        return real_open(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", killed)
    with pytest.raises(KeyboardInterrupt):
        Writer(file)
    monkeypatch.undo()
    assert file.card.is_file() and not file.part.exists()
    write(file, ROWS)
    np.testing.assert_array_equal(file.open(), ROWS)


def test_too_little_space_is_reported_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 7 * 24 - 1))
    with pytest.raises(UserError, match="not enough space: rows.npy needs 168 bytes, but only 167 bytes are free"):
        Writer(file_of(tmp_path))


def test_only_the_remaining_rows_need_space(tmp_path, monkeypatch):
    write(file_of(tmp_path), ROWS[:5])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 2 * 24))
    write(file_of(tmp_path), ROWS[5:])
    np.testing.assert_array_equal(file_of(tmp_path).open(), ROWS)


def test_a_disk_that_fills_up_keeps_the_safe_rows(tmp_path):
    file = file_of(tmp_path)

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device; 4 of 7 rows are done, and the same command resumes"):
        with Writer(file, flush_every=1) as writer:
            writer.append(ROWS[:4])
            writer._stream = Full(writer._stream)
            writer.append(ROWS[4:])
    assert file.rows_done() == 4
    write(file, ROWS[4:])
    np.testing.assert_array_equal(file.open(), ROWS)


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken is not a folder"):
        Writer(file_of(tmp_path / "taken"))
