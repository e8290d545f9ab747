"""Two folders of equal file names become pairs; what has no partner is a row with a reason, and named."""

import json

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.own.better_worse import BetterAndWorse


@pytest.fixture
def folder(tmp_path, picture):
    """Folders better and worse with two images each, and captions as kohya's scripts have them."""
    for side, shades in (("better", (1, 2)), ("worse", (101, 102))):
        (tmp_path / side).mkdir()
        for name, shade in zip("ab", shades, strict=True):
            (tmp_path / side / f"{name}.png").write_bytes(picture(shade, "png"))
    (tmp_path / "better" / "a.txt").write_text("a star,\nred\n")
    (tmp_path / "better" / "b.txt").write_text("a moon")
    return tmp_path


def test_images_of_equal_names_are_pairs(folder, picture):
    (folder / "worse" / "a.txt").write_text("captions of worse are not read")
    (folder / "worse" / "._a.png").write_text("what some systems leave beside files")
    source = BetterAndWorse(folder)
    pairs = [check(raw) for raw in source.rows("train")]
    assert source.splits() == source.usual_splits() == ("train",) and source.count("train") == 2
    assert [(pair.caption, pair.labels) for pair in pairs] == [("a star,\nred", (1, 0)), ("a moon", (1, 0))]
    assert pairs[0].images == (picture(1, "png"), picture(101, "png"))


def test_captions_may_stand_in_one_file(folder):
    for name in "ab":
        (folder / "better" / f"{name}.txt").unlink()
    entries = [{"file_name": f"{name}.png", "text": f"the {name}"} for name in "ba"]
    (folder / "better" / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert [raw.caption for raw in BetterAndWorse(folder).rows("train")] == ["the a", "the b"]


def test_an_image_without_a_partner_is_a_row_with_a_reason(folder, picture):
    (folder / "worse" / "b.png").unlink()
    (folder / "worse" / "c.png").write_bytes(picture(3, "png"))
    source = BetterAndWorse(folder)
    reasons = {raw.where: check(raw) for raw in source.rows("train")}
    assert source.count("train") == 3 and not isinstance(reasons["a.png"], str)
    assert reasons["b.png"].startswith("worse/b.png is missing: ")
    assert reasons["c.png"] == "worse/c.png has no better/c.png: expected equal names in both"


def test_a_missing_caption_is_named_with_the_file_that_was_expected(folder):
    (folder / "better" / "b.txt").unlink()
    with pytest.raises(UserError, match="better/b.png has no caption: expected b.txt beside it, or metadata.jsonl"):
        BetterAndWorse(folder)


def test_a_changed_caption_or_image_is_another_source(folder, picture):
    seen = [BetterAndWorse(folder).made_from("train")]
    (folder / "better" / "b.txt").write_text("a sun")
    seen.append(BetterAndWorse(folder).made_from("train"))
    (folder / "worse" / "b.png").write_bytes(picture(7, "png", (60, 60)))
    seen.append(BetterAndWorse(folder).made_from("train"))
    assert len({facts["digest of better and worse"] for facts in seen}) == 3
