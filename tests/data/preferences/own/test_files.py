"""CSV files as spreadsheets write them become rows; what they leave open is refused, or is a row with a reason."""

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.own.files import PreferenceFiles


@pytest.fixture
def table(tmp_path, picture):
    """A function that writes a CSV file beside two images and opens it."""
    for name, shade in (("a.png", 1), ("b.png", 200)):
        (tmp_path / name).write_bytes(picture(shade, "png"))

    def write(content: str | bytes, name: str = "train.csv") -> PreferenceFiles:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return PreferenceFiles({"train": tmp_path / name})

    return write


HEADER = "prompt,image_0,image_1,label\n"


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (HEADER + "a star,a.png,b.png,0\n", (1, 0)),
        (HEADER + "a star,a.png,b.png,1.0", (0, 1)),
        ("\ufeff" + HEADER.replace("\n", "\r\n") + "\r\n a star , a.png ,b.png,0.5\r\n", (0.5, 0.5)),
        ("id; Label;IMAGE_1;image_0;caption\n7;0,5;b.png;a.png;a star\n", (0.5, 0.5)),
        ("text\timage_0\timage_1\tlabel_0\tlabel_1\na star\ta.png\tb.png\t0\t1\n", (0, 1)),
        ('"prompt","image_0","image_1","label_0","label_1"\n"a star","a.png","b.png","1","0"\n', (1, 0)),
        ('"prompt";"image_0";"image_1";"label"\n"a star";"a.png";"b.png";"1"\n', (0, 1)),
        ('"prompt"\t"image_0"\t"image_1"\t"label"\n"a star"\t"a.png"\t"b.png"\t1\n', (0, 1)),
        (";;;\nprompt;image_0;image_1;label\n;;;\na star;a.png;b.png;1\n;;;\n", (0, 1)),
    ],
    ids=[
        "plain",
        "no last newline",
        "mark and CRLF",
        "semicolons",
        "tabs",
        "quotes",
        "quotes, semicolons",
        "quotes, tabs",
        "blank rows",
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(table, picture, content, labels):
    source = table(content)
    (raw,) = source.rows("train")
    pair = check(raw)
    assert source.count("train") == 1
    assert (pair.caption, pair.labels) == ("a star", labels)
    assert pair.images == (picture(1, "png"), picture(200, "png"))


def test_separators_and_newlines_in_quotes_are_the_prompts(table):
    source = table(HEADER + '"a star,\nred; ""big""",a.png,b.png,0\na moon,a.png,b.png,0\n')
    first, second = source.rows("train")
    assert first.caption == 'a star,\nred; "big"' and first.where == "train.csv, line 2"
    assert second.caption == "a moon" and second.where == "train.csv, line 4"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a star,a.png,b.png,left", "label is 'left', expected 0 or 1 (which image is preferred) or 0.5"),
        ("a star,a.png,b.png,2", "label is 2.0, expected 0 or 1"),
        ("a star,a.png,b.png,nan", "label is nan, expected 0 or 1"),
        ("a star,a.png,b.png,", "the labels are None and None, expected 1 and 0"),
        (",a.png,b.png,0", "the caption is None, expected text"),
        ("a star,,b.png,0", "image_0 is missing"),
        ("a star,a.png,absent.png,0", "image_1 is missing: "),
        ("a star,../a.png,b.png,0", "image_0 is '../a.png': expected a file below "),
        ("a star, red,a.png,b.png,0", "it has 5 fields, and the header has 4: a prompt with the separator in it has"),
    ],
)
def test_an_invalid_row_becomes_a_row_with_a_reason(table, row, reason):
    (raw,) = table(f"{HEADER}{row}\n").rows("train")
    assert raw.where == "train.csv, line 2" and check(raw).startswith(reason)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.csv, line 1: expected a header with the columns prompt, image_0, .*, found nothing"),
        ("a star,a.png,b.png,0\n", "line 1: expected a header with the columns .*, found 'a star', 'a.png', 'b.png'"),
        ("\nprompt|image_0|image_1|label\n", r"line 2: expected a header .*, found 'prompt.image_0.image_1.label'"),
        ("image_0,image_1,label\n", "line 1: the header has no column prompt: expected prompt, image_0"),
        ("image_0;image_1;label_0\n", "line 1: the header has no column prompt and no column label: expected"),
        ("prompt,image_0,image_1,label,Label\n", "line 1: the column label is there twice: expected one"),
        (HEADER + '"a star,a.png,b.png,0\n', "line 2: not CSV: unexpected end of data"),
        ('"prompt', "line 1: not CSV: unexpected end of data"),
        (HEADER.encode() + b"b\xe9te,a.png,b.png,0\n", r"line 2: byte 2 \(0xe9\) is not UTF-8: save the file as UTF-8"),
    ],
)
def test_a_table_that_leaves_open_what_is_meant_is_refused(table, content, message):
    with pytest.raises(UserError, match=message):
        table(content).count("train")


def test_a_changed_table_is_another_source(table):
    source = table(HEADER)
    before = source.made_from("train")
    table(HEADER + "a star,a.png,b.png,0\n")
    assert source.made_from("train") != before and before.keys() == {"dataset", "source", "sha256 of train.csv"}
