"""The benchmark of rewards: its rates and table, a run of the smallest networks, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import rewards
from benchmarks.reward_models import FAMILIES
from spo_jax.core.files import read_json
from tests.support.commands import ROOT


def _rows(seconds):
    names = ("seconds", "core_seconds", "seconds_prepared", "core_seconds_prepared")
    return [dict(zip(names, (each, 2 * each, each / 10, each / 5), strict=True)) | {"peak_memory_bytes": 2**30}
            for each in seconds]  # fmt: skip


def test_rates_are_those_of_the_median_batch():
    found = rewards.results({"ours": _rows([2, 1, 90]), "theirs": _rows([8, 4, 1])}, batch=4)
    assert found["ours"]["images_per_second"] == 2 and found["ours"]["images_per_second_and_core"] == 1
    assert found["ours"]["prepared_per_second_and_core"] == 10
    expected = {"images_per_second": 2, "images_per_second_and_core": 2, "prepared_per_second_and_core": 2}
    assert found["ratios"] == expected | {"peak_memory": 1}


def test_every_reward_has_a_peer():
    assert set(rewards.REWARDS) == set(FAMILIES)


def test_scores_of_both_sides_are_compared():
    assert rewards.score_difference([1.0, -2.0], [1.0, -2.5]) == pytest.approx(0.2)


def test_images_are_no_noise_and_not_alike():
    images = rewards.make_images(2, 64)
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
    steps = np.abs(np.diff(images.astype(int), axis=2)).mean()
    assert 1 < steps < images.std() / 2 and (images[0] != images[1]).mean() > 0.9


def _command(out, *flags):
    line = [sys.executable, "-m", "benchmarks.rewards", "--size=tiny", f"--out={out}", *flags]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_rewards_are_measured_one_after_the_other(tmp_path):
    """A second command adds its reward to the results of the first."""
    for name in ("image_reward", "pickscore"):
        process = _command(tmp_path, f"--rewards={name}", "--repeats=2", "--batch=3", "--image_side=64")
        assert process.returncode == 0, process.stderr
    found = read_json(tmp_path / "rewards-cpu.json")
    assert list(found["rewards"]) == ["pickscore", "image_reward"]
    for row in found["rewards"].values():
        assert len(row["ours"]["seconds"]) == len(row["theirs"]["core_seconds"]) == 2
        assert row["score_difference"] < 1e-4
    table = (tmp_path / "rewards-cpu.md").read_text()
    assert "| `pickscore` |" in table and "| `image_reward` |" in table and "batches of 3 images of 64 pixels" in table


def test_a_reward_without_a_peer_is_refused(tmp_path):
    process = _command(tmp_path, "--rewards=toy")
    assert process.returncode == 2
    assert process.stderr.startswith("error: --rewards=toy: expected some of pickscore, clip_score, aesthetic")
