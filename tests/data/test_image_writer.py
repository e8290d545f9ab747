"""Images are written while they are drawn, and whatever goes wrong first is what the user reads."""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.image_folder import ImageFolder
from spo_jax.data.image_writer import ImageWriter

PROMPTS = ["a red star", "a blue moon"]


@pytest.fixture
def writer(tmp_path):
    """A writer of two images, one per prompt."""
    return ImageWriter(ImageFolder(tmp_path), PROMPTS, {"model": "toy", "guidance": 5.0}, 1)


def _batches(images, error=None):
    yield np.asarray(images, np.float32)
    if error is not None:
        raise error


def _break_the_sheet(writer, monkeypatch):
    def full(*_):
        raise UserError("cannot write grid.png: No space left on device")

    monkeypatch.setattr(writer._folder, "write_sheet", full)


def test_an_image_that_is_not_finite_is_named_and_not_written(writer, tmp_path, capsys):
    writer.write(_batches([np.zeros((4, 4, 3)), np.full((4, 4, 3), np.nan)]))
    writer.finish(tmp_path)
    assert capsys.readouterr().out == f"wrote 1 of 2 images to {tmp_path}\n"
    assert [file.name for file in writer.files] == ["0000.png"]
    with pytest.raises(UserError, match=r"1 of 2 images .* not finite and were not written: index 1 \('a blue moon'\)"):
        writer.check_finite()


def test_a_sheet_that_cannot_be_written_is_an_error(writer, tmp_path, monkeypatch, capsys):
    _break_the_sheet(writer, monkeypatch)
    writer.write(_batches(np.zeros((2, 4, 4, 3))))
    with pytest.raises(UserError, match="cannot write grid.png"):
        writer.finish(tmp_path)
    assert capsys.readouterr().out == f"wrote 2 images to {tmp_path}\n"


def test_a_sheet_that_cannot_be_written_does_not_replace_an_earlier_error(writer, tmp_path, monkeypatch, capsys):
    _break_the_sheet(writer, monkeypatch)
    with pytest.raises(UserError, match="first"):
        try:
            writer.write(_batches(np.zeros((2, 4, 4, 3)), UserError("first")))
        finally:
            writer.finish(tmp_path)
    assert capsys.readouterr().out == f"wrote 2 images to {tmp_path}\n"
