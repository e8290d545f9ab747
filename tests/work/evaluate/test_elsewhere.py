"""Images from elsewhere are found by their numbers or by a manifest, and every prompt has to have its images."""

import json

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.work.evaluate.elsewhere import find_images, sizes

PROMPTS = ["a red star", "a blue moon", "a red star"]


def write(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / name)
    return str(folder)


def found(folder, count=1, prompts=PROMPTS):
    return [[file.name for file in files] for files in find_images("mj", folder, prompts, count)]


def test_a_number_is_that_of_the_prompt(tmp_path):
    folder = write(tmp_path / "a", "0000.png", "1.jpg", "002.webp", "0003.png", "grid.png")
    assert found(folder) == [["0000.png"], ["1.jpg"], ["002.webp"]]
    assert sizes(find_images("mj", folder, PROMPTS, 1)[0]) == {(4, 6)}


def test_the_names_that_evaluations_write(tmp_path):
    folder = write(tmp_path / "a", *(f"{prompt:04d}-{image}.png" for prompt in range(3) for image in range(3)))
    assert found(folder, 2) == [[f"{prompt:04d}-{image}.png" for image in range(2)] for prompt in range(3)]


def test_the_numbers_that_sample_writes_with_several_images_of_a_prompt(tmp_path):
    folder = write(tmp_path / "a", *(f"{number:04d}.png" for number in range(6)))
    assert found(folder, 2) == [["0000.png", "0001.png"], ["0002.png", "0003.png"], ["0004.png", "0005.png"]]


def test_a_manifest_names_the_images_of_each_prompt(tmp_path):
    """A prompt that is there twice takes its images in order."""
    folder = write(tmp_path / "a", "a.png", "b.png", "c.png", "0000.png")
    lines = [("b.png", "a blue moon"), ("c.png", "a red star"), ("a.png", "a red star")]
    text = "".join(json.dumps({"file_name": name, "text": prompt}) + "\n" for name, prompt in lines)
    (tmp_path / "a" / "metadata.jsonl").write_text(text)
    assert found(folder) == [["c.png"], ["b.png"], ["a.png"]]
    with pytest.raises(UserError, match=r"prompt 1 \('a blue moon'\) has 1 of 2 images .*, in metadata.jsonl"):
        found(folder, 2, PROMPTS[:2])


def test_prompts_without_images(tmp_path):
    folder = write(tmp_path / "a", "0000.png")
    with pytest.raises(UserError) as refused:
        found(folder)
    assert str(refused.value) == (
        f"--images mj: prompt 1 ('a blue moon') has no image in {folder}; 1 other prompt lacks images too: expected 1 "
        "image for every prompt, such as 0001.png, or a metadata.jsonl that names them"
    )


def test_two_images_of_one_number(tmp_path):
    with pytest.raises(UserError, match=r"1.png and .*001.jpg are both image 0 of prompt 1|001.jpg and .*1.png"):
        found(write(tmp_path / "a", "0.png", "1.png", "001.jpg", "2.png"))


@pytest.mark.parametrize("damage", ["text", "cut", "byte"])
def test_a_damaged_image(tmp_path, damage):
    folder = write(tmp_path / "a", "0.png", "1.png", "2.png")
    file = tmp_path / "a" / "1.png"
    data = bytearray(file.read_bytes())
    if damage == "byte":
        data[len(data) // 2 + 4] ^= 1  # in the compressed pixels, whose checksum tells
    file.write_bytes({"text": b"hello", "cut": data[:-15], "byte": data}[damage])
    with pytest.raises(UserError, match=r"^--images mj: .*1.png (is|cannot) .*: replace it$"):
        found(folder)


def test_no_folder():
    with pytest.raises(UserError, match="--images mj: no folder absent: expected one with an image for every prompt"):
        found("absent")
