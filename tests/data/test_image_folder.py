"""Images are numbered on from those that are there, and nothing is replaced unless the caller asks for it."""

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data.contact_sheet import LIMIT, ContactSheet
from spo_jax.data.image_folder import ImageFolder

IMAGE = np.zeros((4, 6, 3), np.uint8)


def test_names_count_on_from_the_highest_number(tmp_path):
    """Names that are not numbers of images, such as dates, do not count."""
    for name in ("0003.png", "0041.png", "grid-0042.png", "20251125.png", "0100.jpg", "77.png"):
        (tmp_path / name).write_text("kept")
    folder = ImageFolder(tmp_path)
    assert folder.write(1, IMAGE, {}) == tmp_path / "0044.png"
    assert (tmp_path / "0041.png").read_text() == "kept"
    assert (
        ImageFolder(tmp_path / "new").write(0, IMAGE, {"prompt": "ein Mond ☾", "lora": "\udcfc"})
        == tmp_path / "new" / "0000.png"
    )
    image = Image.open(tmp_path / "new" / "0000.png")
    assert image.text == {"prompt": "ein Mond ☾", "lora": "?"} and image.size == (6, 4)


def test_numbers_beyond_those_that_are_counted_are_skipped(tmp_path):
    for name in ("9999999.png", "10000000.png", "10000001.png"):
        (tmp_path / name).write_text("kept")
    written = ImageFolder(tmp_path)
    assert [written.write(index, IMAGE, {}).name for index in (0, 1)] == ["10000002.png", "10000003.png"]


def test_two_processes_do_not_replace_each_others_images(tmp_path):
    first = ImageFolder(tmp_path)
    second = ImageFolder(tmp_path)
    written = [
        first.write(0, IMAGE, {}),
        second.write(0, IMAGE, {}),
        first.write(1, IMAGE, {}),
        second.write(1, IMAGE, {}),
    ]
    assert len(set(written)) == 4 and all(path.is_file() for path in written)


def test_overwriting_begins_again(tmp_path):
    for name in ("0000.png", "0001.png", "grid.png"):
        (tmp_path / name).write_text("older")
    folder = ImageFolder(tmp_path, overwrite=True)
    assert folder.write(0, IMAGE, {}).name == "0000.png" and folder.write_sheet(IMAGE, {}).name == "grid.png"
    assert Image.open(tmp_path / "0000.png").size == Image.open(tmp_path / "grid.png").size == (6, 4)
    assert (tmp_path / "0001.png").read_text() == "older"


def test_an_older_contact_sheet_is_kept(tmp_path):
    folder = ImageFolder(tmp_path)
    folder.write(0, IMAGE, {})
    assert folder.write_sheet(IMAGE, {}).name == "grid.png"
    folder = ImageFolder(tmp_path)
    folder.write(0, IMAGE, {})
    assert folder.write_sheet(IMAGE, {}).name == "grid-0001.png"
    assert ImageFolder(tmp_path).first == 2


def test_an_image_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="cannot write .*0000.png: No space left on device"):
        ImageFolder(tmp_path).write(0, IMAGE, {})
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_shows_images_above_their_prompts():
    sheet = ContactSheet(columns=2)
    for index in range(3):
        sheet.add(f"000{index}.png", "a red star " * 20, np.full((32, 48, 3), 40 * index, np.uint8))
    image = sheet.image()
    # Cells are twice the images, which were small, and as wide apart as the gap; below each image is its text.
    assert image.shape[1] == 2 * 96 + 4
    assert (image[:64, :96] == 0).all() and (image[:64, 100:] == 40).all()
    text = image[64 : image.shape[0] // 2 - 2, :96]
    assert (text == 0).any() and (text == 255).any()
    assert sheet.prompts["0002.png"] == "a red star " * 20


def test_large_images_are_reduced_and_long_sheets_are_cut():
    sheet = ContactSheet()
    for index in range(LIMIT + 3):
        sheet.add(f"{index}", "", np.zeros((4, 4, 3), np.uint8))
    assert len(sheet) == len(sheet.prompts) == LIMIT
    large = ContactSheet()
    large.add("a", "", np.zeros((1024, 512, 3), np.uint8))
    assert large.image().shape[1] == 128
