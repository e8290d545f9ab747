"""Drawings in the documents that a script makes."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def draw_method():
    spec = importlib.util.spec_from_file_location("draw_method", FOLDER / "draw_method.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_of_the_method_stands_alone():
    """It is small, loads nothing (GitHub forbids it), follows dark mode, and has a text for those who cannot see it."""
    text = (FOLDER / "method.svg").read_text()
    assert len(text.encode()) < 60_000
    assert not re.search(r"href|url\(|@import|<script|<image|@font-face", text)
    assert "prefers-color-scheme: dark" in text
    root = ET.fromstring(text)
    assert root.find(f"{SVG}title").text and "one parent four candidates" in root.find(f"{SVG}desc").text
    words = [item.text for item in root.iter(f"{SVG}text")]
    assert {"One parent", "Four candidates", "Winner", "Loser"} <= set(words)


def test_the_pool_of_the_drawing_is_in_order():
    """The winner's score is the largest of the four and the loser's the smallest."""
    root = ET.parse(FOLDER / "method.svg").getroot()
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.get("height") == "18"]
    widths = {bar.get("class"): float(bar.get("width")) for bar in bars}
    assert len(bars) == 4 and widths["won"] > widths["bar"] > widths["lost"]


def test_an_image_is_written_as_paths(draw_method):
    """Painting the paths gives the image back, if it has few colours."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[1, 1:3] = (255, 0, 0)
    image[2:, 3] = (0, 0, 255)
    group = ET.fromstring(draw_method.pixels(image, 3, 5, 8))
    assert group.get("transform") == "translate(3 5) scale(2)"
    painted = np.full_like(image, 7)
    for path in group:
        colour = Image.new("RGB", (1, 1), path.get("fill")).getpixel((0, 0))
        for x, y, width, height in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", path.get("d")):
            painted[int(y) : int(y) + int(height), int(x) : int(x) + int(width)] = colour
    np.testing.assert_array_equal(painted, image)
