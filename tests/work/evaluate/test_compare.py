"""Comparisons: differences beyond noise, signs without a direction, blocks of prompts as HPSv2 has them, the words."""

import dataclasses

import numpy as np
import pytest

from spo_jax.run.verdict import noise_limit
from spo_jax.work.evaluate.compare import compare
from spo_jax.work.evaluate.tables import results_json
from spo_jax.work.evaluate.terminal import text_table
from spo_jax.work.evaluate.wording import caption, difference_text, finding, remarks
from tests.work.evaluate.made_up import made_up


def test_values_and_differences_are_those_of_the_arrays(tmp_path):
    evaluation = made_up(tmp_path)
    cells = compare(evaluation).cells
    base, lora = evaluation.scores["base"]["pickscore"], evaluation.scores["spo@1"]["pickscore"]
    cell = cells["spo@1"]["pickscore"]
    assert cell.estimate.value == pytest.approx(lora.mean())
    assert cell.difference.value == pytest.approx((lora - base).mean())
    by_prompt = (lora - base).mean(1)
    assert cell.difference.error == pytest.approx(by_prompt.std(ddof=1) / np.sqrt(20))
    assert cells["base"]["pickscore"].difference is None and cells["base"]["pickscore"].outcome == ""
    assert "hpsv21" not in cells["theirs"]


def test_outcomes_are_beyond_the_noise_of_all_that_is_looked_at(tmp_path):
    comparison = compare(made_up(tmp_path))
    outcomes = {name: {score: cell.outcome for score, cell in row.items()} for name, row in comparison.cells.items()}
    assert outcomes["spo@1"] == {"pickscore": "better", "hpsv21": "better", "saturation": "higher"}
    assert outcomes["spo@2"] == {"pickscore": "better", "hpsv21": "unchanged", "saturation": "higher"}
    assert outcomes["theirs"] == {"pickscore": "unchanged", "saturation": "unchanged"}
    assert comparison.compared == 11 and comparison.limit == noise_limit(11, 20)


def test_lower_is_better_turns_the_outcome_and_the_wins(tmp_path):
    comparison = compare(made_up(tmp_path, lower_is_better=("pickscore",)))
    assert comparison.cells["spo@1"]["pickscore"].outcome == "worse"
    assert comparison.wins["pickscore"]["spo@1"]["base"].value == 0
    assert compare(made_up(tmp_path)).wins["pickscore"]["spo@1"]["base"].value == 1


def test_win_rates_of_two_sum_to_one_and_signs_have_none(tmp_path):
    comparison = compare(made_up(tmp_path))
    wins = comparison.wins["pickscore"]
    assert all(
        share.value + wins[other][name].value == pytest.approx(1)
        for name in wins
        for other, share in wins[name].items()
    )
    assert set(comparison.wins) == {"pickscore", "hpsv21"} and "theirs" not in comparison.wins["hpsv21"]


def test_what_is_not_scored_yet_is_left_out_of_both(tmp_path):
    evaluation = made_up(tmp_path)
    complete = compare(evaluation)
    evaluation.scores["spo@1"]["pickscore"][3:] = np.nan
    comparison = compare(evaluation)
    cell = comparison.cells["spo@1"]["pickscore"]
    known = evaluation.scores["spo@1"]["pickscore"][:3] - evaluation.scores["base"]["pickscore"][:3]
    assert cell.difference.value == pytest.approx(known.mean()) and cell.difference.clusters == 3
    assert comparison.cells["spo@2"] == complete.cells["spo@2"]
    assert any("spo@1 lacks scores of 34 images" in remark for remark in remarks(comparison))


def test_blocks_of_prompts_have_the_mean_and_deviation_of_their_averages(tmp_path):
    evaluation = made_up(tmp_path, prompts=10, groups=["anime"] * 6 + ["photo"] * 4)
    evaluation = dataclasses.replace(evaluation, protocol={**evaluation.protocol, "group_size": 2})
    evaluation.scores["base"]["pickscore"][:] = np.array([1, 3, 2, 4, 6, 8, 5, 5, 5, 9.0])[:, None]
    groups = compare(evaluation).groups
    assert list(groups) == ["anime", "photo"]
    averages = [2, 3, 7]
    value = groups["anime"]["base"]["pickscore"]
    assert value.value == np.mean(averages) and value.blocks == 3
    assert value.deviation == pytest.approx(np.std(averages))  # as hpsv2/evaluation.py takes it, not of a sample
    assert groups["photo"]["base"]["pickscore"].value == 6.0
    assert compare(made_up(tmp_path)).groups == {}


def test_a_median_is_one_wherever_it_stands(tmp_path):
    evaluation = made_up(tmp_path)
    evaluation = dataclasses.replace(evaluation, protocol={**evaluation.protocol, "statistic": "median"})
    cell = compare(evaluation).cells["spo@1"]["pickscore"]
    base, lora = evaluation.scores["base"]["pickscore"], evaluation.scores["spo@1"]["pickscore"]
    assert cell.estimate.value == np.median(lora)
    assert cell.difference.value == pytest.approx(np.median(lora) - np.median(base))
    assert cell.difference.low <= cell.difference.value <= cell.difference.high


def test_a_gain_only_on_what_was_trained_on_is_doubted(tmp_path):
    comparison = compare(made_up(tmp_path))
    assert "which is what reward hacking looks like" in finding(comparison, "spo@2")
    assert "hacking" not in finding(comparison, "spo@1")
    evaluation = made_up(tmp_path)
    evaluation.scores["spo@2"]["hpsv21"][:] -= 3
    assert finding(compare(evaluation), "spo@2").endswith(
        "It gained on what it was trained on and lost hpsv21: reward hacking."
    )


def test_few_prompts_are_a_hint(tmp_path):
    assert any("a hint and not a finding" in remark for remark in remarks(compare(made_up(tmp_path, prompts=5))))
    single = compare(made_up(tmp_path, prompts=1))
    assert single.cells["spo@1"]["pickscore"].outcome == "unknown"
    assert finding(single, "spo@1").startswith("Not known for pickscore and hpsv21")
    assert {cell.outcome for row in single.cells.values() for cell in row.values()} == {"", "unknown"}
    assert any("a single prompt has no standard error" in remark for remark in remarks(single))
    assert results_json(single)["noise_limit"] is None


def test_few_prompts_need_a_larger_difference(tmp_path):
    """Differences of 3.6 standard errors: beyond the limit of 11 exact ones, and not beyond that of 5 prompts."""
    evaluation = made_up(tmp_path, prompts=5)
    errors = np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5)
    for scores in evaluation.scores.values():
        scores["pickscore"][:] = np.arange(5.0)[:, None]
    evaluation.scores["spo@1"]["pickscore"] += (errors + 3.6 / np.sqrt(5))[:, None]
    cell = compare(evaluation).cells["spo@1"]["pickscore"]
    assert cell.difference.value / cell.difference.error == pytest.approx(3.6) and noise_limit(11) < 3
    assert cell.outcome == "unchanged"


def test_the_terminal_says_how_far_to_trust_verdicts(tmp_path):
    few = text_table(compare(made_up(tmp_path, prompts=5)))
    assert "A difference counts where it exceeds" in few and "estimated from 5 prompts" in few
    assert few.endswith("With only 5 prompts, all of this is a hint and not a finding.")
    assert "hint" not in text_table(compare(made_up(tmp_path, prompts=20)))


def test_overridden_fields_are_named_with_their_values(tmp_path):
    assert caption(made_up(tmp_path)) == "Protocol spo, unchanged."
    assert "but with steps=20 and images_per_prompt=2" in caption(
        made_up(tmp_path, overridden=("steps", "images_per_prompt"))
    )
    assert "but with limit=" in caption(made_up(tmp_path, overridden=("count",)))  # as the flag is called


def test_a_difference_is_written_with_the_places_of_its_error(tmp_path):
    cell = compare(made_up(tmp_path)).cells["spo@1"]["pickscore"]
    text = difference_text(cell.difference)
    assert text.startswith(f"+{cell.difference.value:.3f} [+") and text.endswith("]")
