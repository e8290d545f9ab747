"""JSON is read strictly: what is ambiguous, endless or impossible to write again is refused, with its reason."""

import os
import random

import pytest

from spo_jax.core import json_text
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.json_text import BadJSON, parse_json
from tests.support import fuzzing


def test_what_json_allows_is_read():
    text = '{"a": [1, -2.5e3, true, null, "\\ud83d\\ude00", "é"], "b": {"c": 1000000000000000019884624838656}}'
    expected = {"a": [1, -2500.0, True, None, "😀", "é"], "b": {"c": 1000000000000000019884624838656}}
    for given in (text, text.encode(), text.encode("utf-8-sig")):
        assert parse_json(given) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice in an object"),
        ('{"a": NaN}', "NaN is not JSON: expected a finite number"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "the number 1e999 is too large"),
        ("1" * 41, "it has an integer of 41 digits"),
        ("1" * 5000, "it has an integer of 5000 digits"),
        ("[" * 66 + "]" * 66, "it is more than 64 lists and objects deep"),
        ("[" * 10**5 + "]" * 10**5, "it is more than 64 lists and objects deep"),
        ('{"a":' * 10**5, "it is more than 64 lists and objects deep"),
        ('["a red \\ud800 star"]', r"half of a character \(a lone surrogate\): 'a red .ud800'"),
        ('{"\\uDFFF": 1}', "half of a character"),
        (b'{"a": "\xff"}', r"it is not UTF-8 \(byte 7\)"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(BadJSON, match=message):
        parse_json(text)


def test_a_file_names_itself(tmp_path, monkeypatch):
    """A pipe is refused before it is opened, because opening it waits for a writer."""
    (tmp_path / "twice.json").write_text('{"a": 1, "a": 1}')
    with pytest.raises(UserError, match="cannot read .*twice.json as JSON: the key 'a' occurs twice"):
        read_json(tmp_path / "twice.json")

    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path} as JSON: it is not a file"):
            read_json(path)
    with pytest.raises(UserError, match="cannot read .*xxx as JSON: .*File name too long"):
        read_json(tmp_path / ("x" * 300))
    monkeypatch.setattr(json_text, "MAX_BYTES", 2**20)
    (tmp_path / "large.json").write_text(" " * (2**20 + 1))
    with pytest.raises(UserError, match="large.json as JSON: it is larger than 1 MiB"):
        read_json(tmp_path / "large.json")


def test_texts_damaged_at_random_are_read_or_refused():
    good = b'{"a": [1, 2.5, "x\\u00e9\\ud83d\\ude00", {"b": [null, true, -1e10]}], "c": {"d": {}}}'

    def read(case: random.Random):
        try:
            return parse_json(fuzzing.damaged(case, good))
        except BadJSON as error:
            raise UserError(str(error)) from error

    for case in fuzzing.cases(400):
        fuzzing.read_or_refused(case, lambda case=case: read(case))
