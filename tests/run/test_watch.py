"""A run that is watched: drawn when something was added, from its files alone, and never in its way."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.notebook import Place
from spo_jax.run import watch as module
from spo_jax.run.metrics import MetricsWriter
from spo_jax.run.watch import picture, watch


class Shown(Place):
    """Stands in for the place below a cell."""

    def __init__(self):
        super().__init__()
        self.images = []
        self.drawn = threading.Event()

    def show(self, content):
        self.images.append(Image.open(io.BytesIO(content["image/png"])))
        self.drawn.set()


@pytest.fixture
def place(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(module, "Place", lambda: shown)
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    return shown


def write_rows(folder, count):
    with MetricsWriter(folder) as writer:
        for step in range(count):
            writer.write(
                step, {"loss": 1 / (step + 1), "eval_score": step, "learning_rate": 0.1, "judge_score/t0101": step}
            )


def write_grid(folder, step):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 60, 3), 200, np.uint8)).save(folder / "images" / f"{step:06d}.png")


def test_curves_that_move_are_drawn_and_the_latest_images_below_them(tmp_path):
    write_rows(tmp_path, 4)
    write_grid(tmp_path, 2)
    write_grid(tmp_path, 10)
    titles = [axes.get_title(loc="left") for axes in picture(tmp_path).axes]
    assert titles == ["eval score", "judge score", "loss", "images after batch 10"]  # the learning rate never changed


def test_there_is_nothing_to_draw_before_the_first_rows(tmp_path):
    assert picture(tmp_path) is None
    write_rows(tmp_path, 1)
    assert picture(tmp_path) is None


def test_a_run_is_drawn_while_it_trains_and_at_its_end(place, tmp_path):
    with watch(tmp_path, every=0.01):
        write_rows(tmp_path / "made", 3)
        (tmp_path / "made" / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")  # all rows at once
        assert place.drawn.wait(120)
        time.sleep(0.1)
        assert len(place.images) == 1  # nothing was added, so nothing is drawn
        write_grid(tmp_path, 3)
    assert len(place.images) == 2
    assert place.images[-1].height > place.images[0].height


def test_an_earlier_run_is_not_shown_as_this_one(place, tmp_path):
    write_rows(tmp_path, 3)
    with watch(tmp_path, every=0.01):
        time.sleep(0.1)
    assert place.images == []


def test_files_that_cannot_be_read_do_not_disturb_the_run(place, tmp_path):
    with watch(tmp_path, every=0.01):
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        time.sleep(0.1)
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "000001.png").write_text("not an image")
        time.sleep(0.1)
        (tmp_path / "images" / "000001.png").unlink()
        write_rows(tmp_path, 3)
    assert len(place.images) >= 1


def test_the_error_of_a_run_passes_through(place, tmp_path):
    with pytest.raises(ValueError, match="of the run"), watch(tmp_path):
        raise ValueError("of the run")


def test_nothing_is_shown_outside_of_a_notebook(place, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "in_notebook", lambda: False)
    with watch(tmp_path, every=0.01):
        write_rows(tmp_path, 3)
        time.sleep(0.05)
    assert place.images == []
