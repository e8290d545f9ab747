"""The loading benchmark: its cost model is the documented one, and its numbers agree with each other."""

import pytest

from benchmarks import loading
from spo_jax.data.preferences.images import decode


def test_cost_of_a_step():
    """For SD 1.5 it is 2 (1.117 + 2 · 0.803 + 2.515) + 3 (2 · 0.335 + 0.047), and likewise for SDXL."""
    assert loading.step_tflop("sd15", cached=False) == pytest.approx(10.476 + 2.151)
    assert loading.step_tflop("sd15", cached=True) == pytest.approx(10.476 - 2 * 1.117 + 2.151)
    assert loading.step_tflop("sdxl", cached=False) == pytest.approx(2 * (4.879 + 13.522 + 10.470) + 2.151)


def test_images_that_chips_take():
    """A v5e at half of its 197 TFLOP/s takes 98.5 / 12.627 pairs per second, with two images each."""
    rates = loading.required(0.5)
    assert rates["sd15"]["TPU v5e"] == pytest.approx(2 * 98.5 / 12.627)
    assert rates["sd15"]["TPU v5p"] / rates["sd15"]["TPU v5e"] == pytest.approx(459 / 197)
    assert loading.required(1.0)["sdxl"]["H100"] == pytest.approx(2 * loading.required(0.5)["sdxl"]["H100"])


def test_made_images_can_be_decoded():
    pairs = loading.MadePairs(1, 64)
    first, second = (decode(data, 64) for data in pairs.images(0))
    assert first.std() > 10 and (first != second).any()
    assert pairs.image_bytes == pytest.approx((len(pairs.images(0)[0]) + len(pairs.images(0)[1])) / 2)


def test_results_and_their_table(monkeypatch):
    monkeypatch.setattr(loading, "SIZES", ((64, 512), (32, 512), (32, 1024)))
    results = loading.run_sizes(count=2, batch=2, repeats=2, threads=1, utilisation=0.5)
    assert results["loader"].keys() == {"64 -> 512", "32 -> 512", "32 -> 1024"}
    rates = {name: row["pictures_per_second_and_core"] for name, row in results["loader"].items()}
    for row in results["loader"].values():
        assert row["pictures_per_second"] == pytest.approx(8 / sum(row["seconds"]["all"]))
    cores = results["cores_per_chip"]["sd15"]["A100"]
    expected = results["needed_pictures_per_second"]["sd15"]["A100"] / min(rates["64 -> 512"], rates["32 -> 512"])
    assert cores == pytest.approx(expected)
    lines = loading.table({"results": results, "settings": {"utilisation": 0.5}})
    assert len(lines) == 1 + 3 + 1 + 2 * len(loading.CHIPS)
