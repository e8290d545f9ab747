"""Folders of images with captions: both ways to write captions, and what is refused."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data.captioned_images import open_captioned_images


@pytest.fixture
def folder(tmp_path):
    """Three images: wide, tall and square; the wide one is black with a white middle."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    for name, image in (("a.png", wide), ("b.jpg", np.full((24, 8, 3), 128, np.uint8)), ("c.PNG", wide[:, :8])):
        Image.fromarray(image).save(tmp_path / name)
    return tmp_path


def _write_metadata(folder, entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_captions_of_a_metadata_file(folder):
    entries = [{"file_name": "c.PNG", "text": "third"}, "", {"file_name": "a.png", "caption": "first"}]
    _write_metadata(folder, entries)
    images = open_captioned_images(folder)
    assert len(images) == 2
    assert [file.name for file in images.files] == ["c.PNG", "a.png"]
    assert images.captions == ("third", "first")


def test_captions_beside_the_images(folder):
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"caption of {name}\n", encoding="utf-8")
    images = open_captioned_images(folder)
    assert [file.name for file in images.files] == ["a.png", "b.jpg", "c.PNG"]
    assert images.captions == ("caption of a", "caption of b", "caption of c")


def test_captions_are_cut_at_newlines_only_and_bytes_that_are_not_utf8_are_named(folder):
    _write_metadata(folder, [{"file_name": "c.PNG", "text": "x"}, '{"file_name": "a.png", "text": "red\u2028star"}'])
    assert open_captioned_images(folder).captions == ("x", "red\u2028star")
    (folder / "metadata.jsonl").unlink()
    for name in "abc":
        (folder / f"{name}.txt").write_bytes(b"a\r\n\r\nred star\n")
    assert open_captioned_images(folder).captions == ("a\n\nred star",) * 3
    (folder / "b.txt").write_bytes(b"a\nr\xfct\n")
    with pytest.raises(UserError, match=r"b.txt, line 2: byte 2 \(0xfc\) is not UTF-8: save the file as UTF-8"):
        open_captioned_images(folder)


def test_images_are_cut_to_their_middle_square(folder):
    _write_metadata(folder, [{"file_name": "a.png", "text": "white"}])
    image = open_captioned_images(folder).image(0, 8)
    assert image.shape == (8, 8, 3) and (image == 255).all()


def test_the_digest_is_that_of_the_content(folder):
    def digest(text):
        _write_metadata(folder, [{"file_name": "a.png", "text": text}])
        return open_captioned_images(folder).digest

    assert digest("one") == digest("one") != digest("two")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "metadata.jsonl, line 2: expected an object with file_name and text"),
        ("[1]", "metadata.jsonl, line 2: expected an object with file_name and text"),
        ({"file_name": "a.png"}, "metadata.jsonl, line 2: expected an object with file_name and text"),
        ({"text": "red"}, "metadata.jsonl, line 2: expected an object with file_name and text"),
        ({"file_name": "d.png", "text": "red"}, "metadata.jsonl, line 2: file_name is missing: .*d.png"),
        ({"file_name": "/etc/hosts", "text": "red"}, "line 2: file_name is '/etc/hosts': expected a file below "),
        ({"file_name": "../x.png", "text": "red"}, "line 2: file_name is '../x.png': expected a file below "),
        ({"file_name": "link.png", "text": "red"}, "line 2: file_name is 'link.png', a link that leads out of "),
        ({"file_name": "pipe.png", "text": "red"}, "line 2: file_name is not a regular file: .*pipe.png"),
        ({"file_name": "x" * 300, "text": "red"}, "line 2: file_name is missing: .*File name too long"),
        ({"file_name": "a\0b", "text": "red"}, "line 2: file_name is .*, which is no file: .*null"),
        ({"file_name": ["a.png"], "text": "red"}, "line 2: file_name is .'a.png'., expected a string"),
        ({"file_name": "a.png", "text": 3}, "metadata.jsonl, line 2: the text of a.png is 3, expected a string"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(folder, entry, message):
    (folder / "link.png").symlink_to("/etc/hosts")
    os.mkfifo(folder / "pipe.png")
    _write_metadata(folder, [{"file_name": "b.jpg", "text": "grey"}, entry])
    with pytest.raises(UserError, match=message):
        open_captioned_images(folder)


def test_an_image_without_a_caption_is_refused(folder):
    (folder / "a.txt").write_text("first")
    with pytest.raises(UserError, match="b.jpg has no caption: expected b.txt beside it, or metadata.jsonl for all"):
        open_captioned_images(folder)


def test_a_folder_that_holds_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images; expected .png"):
        open_captioned_images(tmp_path)
    with pytest.raises(UserError, match="no folder .*/absent with images and captions"):
        open_captioned_images(tmp_path / "absent")


def test_a_damaged_image_is_named(folder):
    (folder / "a.png").write_bytes(b"no image")
    _write_metadata(folder, [{"file_name": "a.png", "text": "red"}])
    with pytest.raises(UserError, match="a.png"):
        open_captioned_images(folder).image(0, 8)


def test_a_file_that_is_no_image_is_named_before_training(folder):
    (folder / "b.jpg").write_bytes(b"none")
    _write_metadata(folder, [{"file_name": "a.png", "text": "red"}, {"file_name": "b.jpg", "text": "grey"}])
    with pytest.raises(UserError, match="b.jpg is not an image in a known format: replace or remove it"):
        open_captioned_images(folder)
