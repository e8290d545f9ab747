"""Lists of prompts are read in all their forms, and other files are refused."""

import json

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.prompts import load_grouped_prompts, load_prompts
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
        ("p.csv", 'id,Prompt\n1,a red star\n\n2,"ein grüner Mond"\n3,two words\n'),
        ("p.csv", "text\r\na red star\r\nein grüner Mond\r\ntwo words"),
        ("p.tsv", "Prompt\tNote\na red star\t\nein grüner Mond\tx\ntwo words\t\n"),
    ],
    ids=["text", "JSON strings", "JSON objects", "JSONL strings", "JSONL objects", "CSV", "CSV of one column", "TSV"],
)
def test_all_forms_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_prompts(tmp_path / name) == PROMPTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a red star"),
        ("p.json", '["a red star"]'),
        ("p.jsonl", '"a red star"'),
        ("p.csv", "prompt\na red star"),
    ],
)
def test_a_byte_order_mark_is_not_part_of_a_prompt(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert load_prompts(tmp_path / name) == ["a red star"]


ODD = "a\x0cred\x85star\u2028in\u2029\x0bsnow\x1c"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", f"{ODD}.\r\n{ODD}.\n"),
        (
            "p.jsonl",
            json.dumps(f"{ODD}.", ensure_ascii=False) + "\n" + json.dumps(f"{ODD}."),
        ),
        ("p.csv", f'prompt\n{ODD}.\n"{ODD}."'),
    ],
)
def test_lines_end_at_newlines_only(tmp_path, name, content):
    """Otherwise one prompt would become several, and valid JSONL would be refused."""
    (tmp_path / name).write_bytes(content.encode())
    assert load_prompts(tmp_path / name) == [f"{ODD}."] * 2


def test_newlines_and_commas_in_the_quotes_of_a_csv_file_are_the_prompts(tmp_path):
    (tmp_path / "p.csv").write_bytes(b'prompt,n\r\n"a star,\r\nred",1\r\n"the ""moon""",2\r\n')
    assert load_prompts(tmp_path / "p.csv") == ["a star,\r\nred", 'the "moon"']


def test_quotes_in_a_file_with_tabs_are_characters(tmp_path):
    """PartiPrompts has prompts with words in quotes, which are not doubled."""
    (tmp_path / "p.tsv").write_text('Prompt\tCategory\nThe words "Fly, now" on a wall.\tArts\n"Go" says a sign\tArts\n')
    assert load_prompts(tmp_path / "p.tsv") == ['The words "Fly, now" on a wall.', '"Go" says a sign']


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '[{"text": "a", "group": "photo"}, "b", {"text": "c", "group": ""}]'),
        ("p.csv", "Group,prompt\nphoto,a\n,b\n,c\n"),
        ("p.tsv", "prompt\tgroup\na\tphoto\nb\t\nc\t\n"),
    ],
)
def test_prompts_may_belong_to_groups(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load_grouped_prompts(tmp_path / name) == (["a", "b", "c"], ["photo", "", ""])


def test_the_only_column_of_a_csv_file_may_have_any_name(tmp_path, caplog):
    (tmp_path / "p.csv").write_text("a red star\na blue moon\n")
    with caplog.at_level("WARNING"):
        assert load_prompts(tmp_path / "p.csv") == ["a blue moon"]
    assert "p.csv, line 1: 'a red star' is taken for the header; if it is a prompt, write prompt" in caplog.text


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
        ("absent.txt", None, "no prompt file .*absent.txt: check the path.*toy's are toy:train and toy:held_out"),
        ("p.txt", b"\n \n", r"p.txt holds no prompts: expected at least one"),
        ("p.json", b"[]", r"p.json holds no prompts"),
        ("p.jsonl", b"", r"p.jsonl holds no prompts"),
        ("p.xlsx", b"a red star", r"p.xlsx: expected a prompt file that ends in .txt, .csv, .tsv, .json or .jsonl"),
        ("p.tsv", b"n\tprompt\n1\ta\n2\n", r"p.tsv, line 3: 1 field, and the header has 2$"),
        ("p.tsv", b"n,prompt,x\n1,a,b\n", r"p.tsv, line 1: columns are separated by commas: expected tabs"),
        ("p.csv", b"id,name\n1,a", r"p.csv, line 1: expected a header with a column caption or .*found 'id', 'name'"),
        ("p.csv", b"id;Prompt\n1;a star\n", r"p.csv, line 1: columns are separated by semicolons: expected commas"),
        ("p.csv", b"text\tid\na star\t1\n", r"p.csv, line 1: columns are separated by tabs: expected commas"),
        ("p.csv", b"prompt\na star, red\n", r"p.csv, line 2: 2 fields, and the header has 1: a prompt with a comma"),
        ("p.csv", b'n,prompt\n1,"a\nb"\n\n2,\n', r"p.csv, line 5: expected a non-empty string"),
        ("p.csv", b'prompt\n"a star', r"p.csv, line 2: not CSV: unexpected end of data"),
        ("p.csv", b"prompt\na\nb \xe9\n", r"p.csv, line 3: byte 3 \(0xe9\) is not UTF-8: save the file as UTF-8"),
        ("p.json", b'{"a": 1}', r"p.json: expected a JSON list of prompts, found dict"),
        ("p.json", b"[", r"p.json: not JSON: "),
        ("p.json", b"[" * 100_000, r"p.json: not JSON that can be read: too many lists or objects inside each other$"),
        ("p.jsonl", b'"a"\n\n{', r"p.jsonl, line 3: not JSON: "),
        ("p.jsonl", b'"a"\n' + b"[" * 100_000, r"p.jsonl, line 2: not JSON that can be read: too many lists"),
        ("p.json", b'["a", 3]', r"p.json, entry 2: expected a non-empty string"),
        ("p.json", b'["a", " "]', r"p.json, entry 2: expected a non-empty string"),
        ("p.jsonl", b'{"caption": "a"}\n{"label": "b"}', r"p.jsonl, line 2: .*caption or prompt or text"),
        ("p.jsonl", b'"a"\n\n\n""\n', r"p.jsonl, line 4: expected a non-empty string"),
        ("p.txt", b"\xff\xfea", r"p.txt, line 1: byte 1 \(0xff\) is not UTF-8: save the file as UTF-8"),
        ("p.txt", "a\n\nein grüner Mond\n".encode("latin-1"), r"p.txt, line 3: byte 7 \(0xfc\) is not UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / name)


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: expected a prompt file that ends in .txt"):
        load_prompts(tmp_path)
