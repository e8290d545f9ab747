"""The measurement of the resize modes of HPSv2, which `spo_jax/rewards/hpsv21.py` and the documents quote."""

import json
from pathlib import Path

import numpy as np

from benchmarks.natural_images import dead_leaves, photographs
from benchmarks.resize_modes import as_markdown, compare_pixels, compare_scores, prepare

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MODES = ("antialias and no_antialias", "antialias and pil")


def test_dead_leaves_differ_without_antialiasing_and_not_by_pillows_rounding():
    rng = np.random.default_rng(0)
    images = [dead_leaves(rng, 96) for _ in range(2)]
    found = compare_pixels(prepare(images, 28))
    plain, pillow = (found["differences"][modes] for modes in MODES)
    assert pillow["mean"] < 1 < 5 < plain["mean"] < plain["percentile_99"] < plain["largest"]
    assert found["images"] == 2


def test_dead_leaves_cover_an_image_and_have_edges_of_one_pixel():
    image = dead_leaves(np.random.default_rng(0), 64).astype(int)
    assert image.shape == (64, 64, 3) and 80 < image.mean() < 175 and image.std() > 30
    assert np.abs(np.diff(image, axis=0)).max() > 60
    assert (np.abs(image - 127.5).max(-1) < 1).mean() < 0.02  # what no leaf covers


def test_photographs_are_never_enlarged():
    """Those of matplotlib are always there."""
    assert all(image.shape == (512, 512, 3) for image in photographs(512).values())
    assert "matplotlib/mpl-data/sample_data/grace_hopper.jpg" in photographs(512)
    assert photographs(5000) == {}


def test_differences_of_scores_stand_beside_the_deviation_over_images():
    scores = {
        "antialias": np.array([[1.0, 3.0], [2.0, 4.0]]),
        "no_antialias": np.array([[1.0, 4.0], [2.0, 5.0]]),
        "pil": np.array([[1.0, 3.0], [2.0, 4.0]]),
    }
    found = compare_scores(scores)
    assert found["differences"][MODES[0]] == {"mean": 0.5, "rms": np.sqrt(0.5)}
    assert found["differences"][MODES[1]] == {"mean": 0.0, "rms": 0.0}
    assert found["deviation"] == np.sqrt(2) and found["images"] == 2


def test_the_published_tables_are_those_of_the_published_numbers():
    found = json.loads((RESULTS / "resize_modes.json").read_text())
    assert as_markdown(found["results"]) == (RESULTS / "resize_modes.md").read_text()
    # What the documents say: antialiasing is within a grey level of Pillow, and far from the other mode.
    for row in found["results"]["pixels"]:
        plain, pillow = (row["differences"][modes]["mean"] for modes in MODES)
        assert pillow < 0.5 < plain
    for row in found["results"]["scores"]:
        plain, pillow = (row["differences"][modes]["rms"] for modes in MODES)
        assert pillow < plain
