"""Ways to judge, compared by their operations."""

import pytest

from benchmarks.judging import row, table


def test_rows_are_compared_with_the_first_of_their_model():
    parts = dict.fromkeys(("sampling", "judging", "decoding", "encoding", "training"), 0.0)
    rows = [
        {"model": "sd15", "decoder": "vae", "parts": parts | {"decoding": 6e12}, "rollout": 8e12, "all": 10e12},
        {"model": "sd15", "decoder": "none", "parts": parts | {"judging": 1e12}, "rollout": 2e12, "all": 5e12},
        {"model": "sdxl", "decoder": "vae", "parts": parts, "rollout": 9e12, "all": 9e12},
    ]
    cells = [line.strip("| ").split(" | ") for line in table(rows).splitlines()[-3:]]
    assert cells[0][:2] == ["sd15", "SPO, autoencoder"] and cells[0][-2:] == ["1.00 times", "1.00 times"]
    assert cells[1][:4] == ["sd15", "LPO, nothing decoded", "–", "1.00"] and cells[1][-2:] == [
        "4.00 times",
        "2.00 times",
    ]
    assert cells[2][-2:] == ["1.00 times", "1.00 times"]


@pytest.mark.slow  # traces the networks at their true sizes
def test_lpo_decodes_nothing_and_samples_one_candidate_of_a_pool():
    exact, latent = (row("sd15", decoder) for decoder in ("vae", "none"))
    assert exact["parts"]["decoding"] > 0 and latent["parts"]["decoding"] == 0
    # 5 shared steps and 15 with 4 candidates each, and 20 with one.
    assert exact["parts"]["sampling"] / latent["parts"]["sampling"] == pytest.approx(65 / 20, rel=1e-3)
    assert latent["rollout"] < exact["rollout"] / 3
