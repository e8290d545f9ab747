"""Looks as rows of the curves, and back."""

import dataclasses
import json
import math

import numpy as np

from spo_jax.run.guard.look import Look, Measured, looks_of

LOOK = Look(
    batch=20,
    trained={"spm_score": 4.5},
    held_out={"aesthetic": 0.4, "accuracy/all": 0.9},
    signs={"saturation": 0.5, "out_of_range": 0.01},
    rise=3.0,
    gain=-4.0,
    limit=3.2,
    worse=1,
    best=10,
)


def test_a_look_is_a_row_of_curves_and_back():
    row = LOOK.row()
    assert row["guard_trained_spm_score"] == 4.5 and row["guard_accuracy/all"] == 0.9
    assert row["guard_sign_saturation"] == 0.5 and row["guard_change/held_out"] == -4.0
    assert row["guard_change/limit"] == -3.2 and row["guard_worse_looks"] == 1 and row["guard_best_batch"] == 10


def test_rows_without_a_look_are_skipped():
    look = LOOK
    rows = [{"step": 1, "loss": 0.7}, json.loads(json.dumps({"step": 20, "loss": 0.7, **look.row()}))]
    assert looks_of(rows) == [look]


def test_looks_of_other_scores_are_left_out():
    """A run was resumed with other held-out rewards."""
    now = dataclasses.replace(LOOK, batch=30, held_out={"image_reward": 0.1})
    assert looks_of([{"step": look.batch, **look.row()} for look in (LOOK, now)]) == [now]


def test_what_is_not_known_is_not_in_the_row():
    first = Look(0, {}, {"aesthetic": math.nan}, {}, None, None, math.inf, 0, 0)
    assert "guard_change/held_out" not in first.row() and "guard_change/limit" not in first.row()
    (found,) = looks_of([{"step": 0, "guard_aesthetic": None, "guard_worse_looks": 0, "guard_best_batch": 0}])
    assert math.isnan(found.held_out["aesthetic"]) and found.limit == math.inf and found.gain is None


def test_measured_scores_survive_json_bit_for_bit():
    values = np.random.default_rng(0).normal(0, 1, 9).astype(np.float32)
    measured = Measured({"judge": values}, {"a": values / 3}, {"saturation": values}, ("a",))
    found = Measured.from_json(json.loads(json.dumps(measured.to_json())))
    assert found.lower_is_better == ("a",)
    np.testing.assert_array_equal(found.held_out["a"], (values / 3).astype(np.float64))
