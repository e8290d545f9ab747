"""Knees and fronts: by hand, and against scipy's convex hull."""

import numpy as np
import scipy.spatial

from spo_jax.work.evaluate.compare import compare
from spo_jax.work.evaluate.front import convex_front, fronts_of
from spo_jax.work.evaluate.wording import knee_text
from tests.work.evaluate.made_up import made_up


def test_the_front_is_the_upper_right_part_of_the_convex_hull():
    points = np.random.default_rng(0).normal(size=(60, 2))
    front = convex_front(*points.T.tolist())
    hull = set(scipy.spatial.ConvexHull(points).vertices)
    assert set(front) <= hull
    for direction in np.linspace(0.001, np.pi / 2 - 0.001, 500):  # the best point for each mixture of the two
        best = int(np.argmax(points @ [np.cos(direction), np.sin(direction)]))
        assert best in front
    assert (np.diff(points[front, 0]) > 0).all() and (np.diff(points[front, 1]) < 0).all()


def test_fronts_of_few_points():
    assert convex_front([], []) == []
    assert convex_front([1.0], [2.0]) == [0]
    assert convex_front([1.0, 2.0], [1.0, 2.0]) == [1]  # better in both
    assert convex_front([1.0, 1.0, 1.0], [1.0, 3.0, 2.0]) == [1]
    assert convex_front([0.0, 1.0, 2.0], [2.0, 0.5, 0.0]) == [0, 2]  # a mixture beats the middle
    assert convex_front([0.0, 1.0, 2.0], [2.0, 1.5, 0.0]) == [0, 1, 2]


def test_fronts_are_over_the_strengths_of_a_lora(tmp_path):
    evaluation = made_up(tmp_path)
    values = {"base": (0, 0), "spo@0.5": (1, 3), "spo@1": (2, 2.5), "spo@2": (3, 0), "theirs": (9, 9)}
    values = {name: dict(zip(("pickscore", "hpsv21"), map(float, pair), strict=True)) for name, pair in values.items()}
    assert fronts_of(evaluation, values, "pickscore", "hpsv21") == {"spo": ["spo@0.5", "spo@1", "spo@2"]}


def test_the_knee_is_the_smallest_strength_that_is_not_worse_beyond_noise(tmp_path):
    evaluation = made_up(tmp_path)
    knee = compare(evaluation).knees["spo"]
    assert (knee.knee, knee.best) == ("spo@1", "spo@1")
    assert knee.rewards == ["hpsv21"] and knee.held_out  # pickscore, which still rises, is what it was trained on
    # The gain by hand: in standard deviations of base.
    base, lora = evaluation.scores["base"]["hpsv21"], evaluation.scores["spo@1"]["hpsv21"]
    assert np.isclose(knee.gains["spo@1"], (lora - base).mean() / base.std())
    evaluation.scores["spo@0.5"]["hpsv21"][:] = evaluation.scores["spo@1"]["hpsv21"] - 1e-3
    evaluation.scores["spo@0.5"]["hpsv21"][::2] += 3e-3
    assert compare(evaluation).knees["spo"].knee == "spo@0.5"


def test_the_knee_is_told_by_its_strength_and_leaves_out_what_has_no_better_direction(tmp_path):
    comparison = compare(made_up(tmp_path))
    assert knee_text(comparison, "spo", comparison.knees["spo"]).startswith("spo has its knee at strength 1 (judged by")
    knee = compare(made_up(tmp_path, signs=("saturation", "hpsv21"))).knees["spo"]
    assert knee.rewards == ["pickscore"] and not knee.held_out


def test_the_total_counts_no_reward_twice(tmp_path):
    evaluation = made_up(tmp_path)
    for scores in evaluation.scores.values():
        scores["total"] = 3 * scores["pickscore"]
    knee = compare(evaluation).knees["spo"]
    assert knee.rewards == ["hpsv21"] and knee.gains == compare(made_up(tmp_path)).knees["spo"].gains


def test_without_a_gain_there_is_no_knee(tmp_path):
    evaluation = made_up(tmp_path)
    for name in ("spo@0.5", "spo@1", "spo@2"):
        evaluation.scores[name]["hpsv21"][:] = evaluation.scores["base"]["hpsv21"] - 1
    comparison = compare(evaluation)
    assert comparison.knees["spo"].knee is None
    assert "no strength is better than base" in knee_text(comparison, "spo", comparison.knees["spo"])


def test_a_lora_at_one_strength_has_no_knee(tmp_path):
    evaluation = made_up(tmp_path)
    one = made_up(tmp_path, contestants=[evaluation.contestants[0], evaluation.contestants[2]])
    assert compare(one).knees == {}
