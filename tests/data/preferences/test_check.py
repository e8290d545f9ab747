"""A valid row becomes a pair, and an invalid one is rejected with a reason."""

import dataclasses
from pathlib import Path

import pytest

from spo_jax.data.preferences.check import Pair, RawPair, check


@pytest.fixture
def raw(picture) -> RawPair:
    return RawPair("row 0", (picture(1), picture(2)), "a star", (1, 0))


def test_a_good_row_is_kept_as_it_is(raw):
    pair = check(dataclasses.replace(raw, has_label=False, uids=("a", "b"), num_example_per_prompt=3))
    assert pair == Pair(raw.images, "a star", (1.0, 0.0), False, True, ("a", "b"), 3)


def test_images_are_compared_if_the_source_does_not_say_whether_they_differ(raw, picture):
    assert check(raw).are_different is True
    same = dataclasses.replace(raw, images=(picture(1), picture(1)))
    assert check(same).are_different is False
    assert check(dataclasses.replace(same, are_different=True)).are_different is True


def test_images_may_be_files_in_any_format_that_pillow_reads(raw, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(3, "png", mode="RGBA"))
    pair = check(dataclasses.replace(raw, images=(tmp_path / "a.png", picture(4, "webp"))))
    assert pair.images == (picture(3, "png", mode="RGBA"), picture(4, "webp"))


def test_an_image_with_damage_in_its_last_bytes_is_rejected(raw, picture):
    """Its header is intact, so that only decoding all of it shows the damage."""
    cut = picture(1, size=(300, 300))[:-200]
    assert check(dataclasses.replace(raw, images=(cut, picture(2)))).startswith(
        "jpg_0 cannot be decoded: image file is"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem": "not JSON"}, "not JSON"),
        ({"caption": None}, "the caption is None, expected text"),
        ({"caption": " "}, "the caption is ' ', expected text"),
        ({"images": (None, b"")}, "jpg_0 is missing"),
        ({"images": (Path("absent.png"), b"")}, "jpg_0 is missing: absent.png: No such file or directory"),
        ({"images": ("text", b"")}, "jpg_0 is str, expected an encoded image"),
        ({"images": (b"not an image", b"")}, "jpg_0 is not an image in a known format"),
        ({"labels": (1, 1)}, "the labels are 1 and 1, expected 1 and 0, 0 and 1, or 0.5 and 0.5"),
        ({"labels": (None, 0.0)}, "the labels are None and 0.0, expected 1 and 0"),
        ({"labels": (float("nan"), 0.0)}, "the labels are nan and 0.0, expected 1 and 0"),
        ({"labels": (10**400, 0)}, "the labels are 1000"),
        ({"caption": "a \ud83d"}, "the caption 'a \\ud83d' contains half of a character"),
        ({"images": (Path("a\0.png"), b"")}, "jpg_0 is missing: 'a\\x00.png': "),
        ({"images": (Path("a\ud83d.png"), b"")}, "jpg_0 is missing: 'a\\ud83d.png': "),
        ({"num_example_per_prompt": float("nan")}, "num_example_per_prompt is nan, expected a whole number"),
        ({"num_example_per_prompt": 2**40}, "num_example_per_prompt is 1099511627776, expected"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_row_is_rejected_with_a_reason(raw, changes, reason):
    assert check(dataclasses.replace(raw, **changes)).startswith(reason)


def test_a_line_of_pixels_is_rejected(raw, picture):
    """At a side of 512 pixels, it would take a gigabyte while it is loaded."""
    reason = "jpg_1 is 4000 x 1 pixels: one side is more than 32 times the other"
    assert check(dataclasses.replace(raw, images=(picture(1), picture(2, size=(4000, 1))))) == reason


def test_the_second_image_is_checked_as_well(raw, picture):
    assert check(dataclasses.replace(raw, images=(picture(1), b"?"))).startswith("jpg_1 is not an image")
