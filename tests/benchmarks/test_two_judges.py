"""What two judges know, from made-up scores: the share of right winners by weight, and of pools above a threshold."""

import numpy as np
import pytest

from benchmarks.two_judges import Pools, row_of, table
from spo_jax.methods.spo.settings import SPOSettings

TRUTH = np.array([[[0, 1, 0, 1], [1, 0, 1, 0]]], np.float32)  # of two candidates for each of four prompts
FIRST = np.array([[[1, 1, 1, 1], [0, 0, 0, 0]]], np.float32)  # right for every second prompt


def test_the_weight_moves_the_verdict_from_one_judge_to_the_other():
    pools = Pools(FIRST, 4 * TRUTH, TRUTH, np.array([1]), np.array([0]))
    alone, other, both = (row_of(pools, weight, 0.7) for weight in (0.0, 1.0, 0.5))
    assert alone.right == 0.5 and alone.valid == 0
    assert other == (1, 0, 1)  # scores are four apart: the probabilities differ by 0.96
    assert both.right == 1 and both.valid == pytest.approx(0.5)  # 2.5 apart where they agree, and 1.5 elsewhere


def test_there_is_a_row_for_each_step_and_one_for_all():
    two = [np.concatenate([x, x]) for x in (FIRST, 4 * TRUTH, TRUTH)]
    rows = table(SPOSettings(threshold=0.7), Pools(*two, np.array([51, 1]), np.array([1, 0])))
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| t = 1", "| t = 0", "| all"]
    assert rows[-1] == "| all | 50.0% ± 18.9% (0%) | 100.0% ± 0.0% (50%) | 100.0% ± 0.0% (100%) |"
