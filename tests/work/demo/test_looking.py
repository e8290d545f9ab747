"""What the tab Try shows of two drawings."""

import re

import numpy as np
from PIL import Image

from spo_jax.work.demo.looking import AMPLIFICATIONS, Drawing, difference, enlarged, strip
from spo_jax.work.studio import Frame


def frame(number, score, images=None):
    image = np.full((1, 8, 8, 3), number / 10, np.float32)
    scores = None if score is None else np.array([score], np.float32)
    finished = {} if images is None else {"images": images, "image_scores": scores}
    return Frame(number, 2, 1000 - number, image, scores, **finished)


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_are_left_alone():
    image = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    large = enlarged(image, 9)
    assert large.shape == (8, 6, 3)
    np.testing.assert_array_equal(large[::2, ::2], image)
    assert enlarged(large, 4) is large or (enlarged(large, 4) == large).all()


def test_a_difference_is_grey_where_nothing_changes_and_as_strong_as_it_is_said():
    base = np.zeros((10, 10, 3), np.float32)
    tuned = base.copy()
    tuned[:5] += 0.2  # a tenth of the range, so 8 times is the largest power of 2 that fits
    shown, factor = difference(base, tuned)
    assert factor == 8
    np.testing.assert_array_equal(shown[5:], 128)
    np.testing.assert_allclose(shown[:5], 255 * (0.5 + 8 * 0.1 / 2), atol=1)
    assert difference(base, base)[1] == AMPLIFICATIONS[-1]
    assert difference(base - 1, base + 1)[1] == 1


def drawing(title, *frames):
    shown = Drawing(title)
    for each in frames:
        shown.add(each)
    return shown


def test_the_strip_has_a_column_for_each_step_with_its_score_and_at_the_end_the_image():
    done = drawing("Base <b>", frame(1, 0.5), frame(2, 0.25, images=np.zeros((1, 8, 8, 3), np.float32)))
    text = strip([done, drawing("With LoRA", frame(1, 1.5))])
    assert re.findall(r"<th scope='col'>(.*?)</th>", text) == ["t = 999", "t = 998", "image"]
    rows = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", text)
    assert [title for title, _ in rows] == ["Base &lt;b&gt;", "With LoRA"]
    assert [re.findall(r"<span>(.*?)</span>", cells) for _, cells in rows] == [["0.50", "0.25", "0.25"], ["1.50"]]
    assert text.count("<img src='data:image/webp;base64,") == 4
    assert "alt='Base &lt;b&gt; at t = 999'" in text and "alt='Base &lt;b&gt;: the finished image'" in text
    assert "<span>" not in strip([drawing("Base", frame(1, None))])  # without a judge


def test_a_drawing_shows_its_latest_image_and_the_score_of_the_finished_one():
    shown = drawing("Base", frame(1, 0.5))
    assert shown.score is None
    np.testing.assert_array_equal(shown.image, frame(1, 0.5).prediction[0])
    shown.add(frame(2, 0.25, images=np.ones((1, 8, 8, 3), np.float32)))
    assert shown.score == 0.25
    np.testing.assert_array_equal(shown.image, 1)


def test_an_image_is_encoded_once_however_often_the_strip_is_shown(monkeypatch):
    saved = []
    monkeypatch.setattr(Image.Image, "save", lambda image, file, *how, **more: saved.append(file))
    shown = Drawing("Base")
    for number in range(1, 6):
        shown.add(frame(number, 0.5))
        strip([shown])
    assert len(saved) == 5
