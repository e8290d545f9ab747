"""Damage of a checkpoint's list of files is named, whatever the list has become."""

import pytest
from etils import epath

from spo_jax.run.damage import Damaged
from spo_jax.run.file_list import FILE_LIST, check_file_list, write_file_list


def test_files_are_those_of_the_list(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "a").write_text("abc")
    check_file_list(folder)  # without a list
    write_file_list(folder)
    check_file_list(folder)
    for content, message in ((None, "a is missing"), ("ab", "a has 2 bytes instead of 3")):
        (folder / "a").unlink() if content is None else (folder / "a").write_text(content)
        with pytest.raises(Damaged, match=message):
            check_file_list(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is not JSON"), ("[" * 10**5, "is not JSON"), ("[1]", "is not a list of files"), (b"\xff", "is not JSON")],
)
def test_a_damaged_list_is_named(tmp_path, content, message):
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / FILE_LIST).write_bytes(content)
    with pytest.raises(Damaged, match=message):
        check_file_list(epath.Path(tmp_path))
