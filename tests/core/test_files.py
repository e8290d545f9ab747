"""Files are complete or absent, and a folder that cannot be written is refused before any work."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import (
    check_free,
    check_writable,
    local_path,
    lock,
    read_json,
    read_json_object,
    write_atomic,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "numbers.txt"
    write_text(path, "old")

    def half(temporary):
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text("ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomic(path, half)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_is_readable_by_others(tmp_path):
    write_text(tmp_path / "a", "ü")
    assert (tmp_path / "a").read_bytes() == "ü".encode()
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o644


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/below: "):
        write_text(tmp_path / "file" / "below", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write .*folder: "):
        write_text(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_name_of_a_user_is_a_path_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/absent") == tmp_path / "absent" and local_path("owner/name") == Path("owner/name")
    for name, message in (
        ("~nobody_here/x", "'~nobody_here/x': there is no such user"),
        ("x" * 300, "'x*' cannot be a path: File name too long"),
        ("a\0b", r"'a.x00b' cannot be a path: embedded null byte"),
    ):
        with pytest.raises(UserError, match=message):
            local_path(name)


def test_json_comes_back_and_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"], ids=["missing", "cut off", "not UTF-8"])
def test_unreadable_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{'missing file' if content is None else 'cannot read'}.*a.json"):
        read_json(path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(("content", "found"), [("[]", "list"), ("3", "int"), ("null", "NoneType"), ('"a"', "str")])
def test_other_json_than_an_object_is_refused(tmp_path, content, found):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=f"a.json: expected a JSON object, found {found}"):
        read_json_object(tmp_path / "a.json")


def test_existing_files_are_kept_unless_they_may_be_overwritten(tmp_path):
    path = tmp_path / "a"
    check_free(path, overwrite=False)
    path.symlink_to(tmp_path / "nowhere")
    check_free(path, overwrite=True)
    with pytest.raises(UserError, match=f"{path} exists already: .*--overwrite"):
        check_free(path, overwrite=False)


def test_check_writable_creates_nothing(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match=f"cannot write to {folder}: {tmp_path}/file is not a folder"):
            check_writable(folder)


def test_check_writable_asks_for_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=f"no permission to write in {tmp_path}"):
        check_writable(tmp_path / "a")


def test_check_writable_tries_it():
    """Root has every permission in /proc, where there can be no files."""
    with pytest.raises(UserError, match="cannot write to /proc/a/b: no (file can be made|permission) .*in /proc"):
        check_writable("/proc/a/b")


def test_buckets_are_not_mistaken_for_folders():
    with pytest.raises(UserError, match="cannot write to gs://bucket/run, a bucket: use a folder"):
        check_writable("gs://bucket/run")


def test_a_drive_of_windows_is_no_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("D:/cache")
    check_writable("D:\\cache")


def test_a_home_is_found_in_folders_to_write_to(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(UserError, match="home is not a folder"):
        check_writable("~/runs")


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "new" / ".lock"
    with lock(path, "taken"):
        with pytest.raises(UserError, match="^another process is here; wait$"):
            lock(path, "another process is here; wait")
    lock(path, "taken").close()  # the file stays, and is free


def test_a_disk_without_locks_can_be_written_to(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock(tmp_path / ".lock", "taken").close()
    assert "cannot be locked" in caplog.text and "No locks available" in caplog.text


def test_a_lock_in_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/.lock: "):
        lock(tmp_path / "file" / ".lock", "taken")
