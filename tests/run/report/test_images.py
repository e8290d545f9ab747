"""Images of the report: their very pixels if they are small, few bytes if they are large, and the sheet."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.run.report.images import ImagePair, read_sheet, sheet, shown, write_sheet


def pairs(count, side):
    images = np.random.default_rng(0).integers(0, 255, (2, count, side, side, 3), np.uint8)
    return [
        ImagePair(f"prompt {index}", before, after) for index, (before, after) in enumerate(zip(*images, strict=True))
    ]


def decoded(uri):
    head, _, data = uri.partition(",")
    return head, Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_images_keep_their_pixels():
    (pair,) = pairs(1, 32)
    page = shown(pair)
    assert page["small"] and page["prompt"] == "prompt 0" and (page["width"], page["height"]) == (32, 32)
    for when, image in (("before", pair.before), ("after", pair.after)):
        head, picture = decoded(page[when])
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_large_images_are_small_files():
    """A smooth image of SDXL's size takes a few kilobytes, and loses nothing that is seen."""
    ramp = np.linspace(0, 255, 1024).round().astype(np.uint8)
    image = np.broadcast_to(ramp[:, None, None], (1024, 1024, 3)).copy()
    page = shown(ImagePair("a ramp", image, image))
    head, picture = decoded(page["after"])
    assert not page["small"] and head == "data:image/webp;base64" and picture.size == (768, 768)
    assert len(page["after"]) < 50_000
    small = np.asarray(Image.fromarray(image).resize((768, 768), Image.Resampling.LANCZOS), int)
    assert np.abs(np.asarray(picture, int) - small).max() < 10


def test_the_sheet_has_the_images_before_above_those_after():
    """In rows of eight, enlarged to sharp squares."""
    given = pairs(20, 32)
    grid = sheet(given)
    side, row = 3 * 32, 3 * 32 + 2
    assert grid.shape == (2 * (2 * row - 2) + 16, 8 * row - 2, 3)
    for index, pair in enumerate(given[:16]):
        top, left = index // 8 * row, index % 8 * row
        for image, start in ((pair.before, top), (pair.after, top + 2 * row - 2 + 16)):
            np.testing.assert_array_equal(grid[start : start + side : 3, left : left + side : 3], image)
    assert sheet(pairs(2, 512)).shape == sheet(pairs(2, 1024)).shape == (2 * 512 + 16, 8 * 514 - 2, 3)


@pytest.mark.parametrize(("count", "side", "factor"), [(20, 32, 3), (3, 100, 1), (9, 17, 5), (1, 96, 1)])
def test_pairs_are_read_back_from_the_sheet(tmp_path, count, side, factor):
    given = pairs(count, side)
    write_sheet(tmp_path / "sheet.png", given)
    read = read_sheet(tmp_path / "sheet.png")
    assert [pair.prompt for pair in read] == [pair.prompt for pair in given[:16]]
    for ours, theirs in zip(read, given, strict=False):
        for one, other in ((ours.before, theirs.before), (ours.after, theirs.after)):
            np.testing.assert_array_equal(one, other.repeat(factor, 0).repeat(factor, 1))


def test_a_sheet_without_prompts_holds_no_pairs(tmp_path):
    Image.fromarray(sheet(pairs(2, 32))).save(tmp_path / "sheet.png")
    assert read_sheet(tmp_path / "sheet.png") == read_sheet(tmp_path / "absent.png") == []
    (tmp_path / "sheet.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot read images before and after training from .*sheet.png"):
        read_sheet(tmp_path / "sheet.png")
