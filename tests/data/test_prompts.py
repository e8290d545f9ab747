"""Lists of prompts are read in all their forms, and other files are refused."""

import json

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.prompts import load_prompts
from spo_jax.toy import world

PROMPTS = ["a red star", "ein grüner Mond", "two words"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a red star\n\n  ein grüner Mond \ntwo words"),
        ("p.json", json.dumps(PROMPTS)),
        ("p.json", json.dumps([{"caption": PROMPTS[0]}, {"prompt": PROMPTS[1], "id": 3}, {"text": PROMPTS[2]}])),
        ("p.jsonl", "\n".join(json.dumps(prompt) for prompt in PROMPTS) + "\n\n"),
        ("p.jsonl", '{"caption": "a red star"}\n{"text": "ein grüner Mond"}\n"two words"\n'),
    ],
    ids=["text", "JSON strings", "JSON objects", "JSONL strings", "JSONL objects"],
)
def test_all_forms_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_prompts(tmp_path / name) == PROMPTS


@pytest.mark.parametrize(
    ("name", "content"), [("p.txt", "a red star"), ("p.json", '["a red star"]'), ("p.jsonl", '"a red star"')]
)
def test_a_byte_order_mark_is_not_part_of_a_prompt(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert load_prompts(tmp_path / name) == ["a red star"]


def test_the_toy_lists_divide_the_prompts_of_the_toy_world():
    train = load_prompts("toy:train")
    held_out = load_prompts("toy:held_out")
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(world.PROMPTS)
    train.append("changed")
    assert "changed" not in load_prompts("toy:train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "no prompt file .*absent.txt: python -m .*toy's are toy:train and toy:held_out"),
        ("p.txt", b"\n \n", r"p.txt holds no prompts: expected at least one"),
        ("p.json", b"[]", r"p.json holds no prompts"),
        ("p.jsonl", b"", r"p.jsonl holds no prompts"),
        ("p.csv", b"a red star", r"p.csv: expected a prompt file that ends in .txt, .json or .jsonl"),
        ("p.json", b'{"a": 1}', r"p.json: expected a JSON list of prompts, found dict"),
        ("p.json", b"[", r"cannot read .*p.json as JSON"),
        ("p.jsonl", b'"a"\n{', r"cannot read prompts from .*p.jsonl"),
        ("p.json", b'["a", 3]', r"p.json, entry 2: expected a non-empty string"),
        ("p.json", b'["a", " "]', r"p.json, entry 2: expected a non-empty string"),
        ("p.jsonl", b'{"caption": "a"}\n{"label": "b"}', r"p.jsonl, entry 2: .*caption or prompt or text"),
        ("p.txt", b"\xff\xfea", r"cannot read prompts from .*p.txt"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / name)


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(UserError, match=f"no prompt file {tmp_path}"):
        load_prompts(tmp_path)
