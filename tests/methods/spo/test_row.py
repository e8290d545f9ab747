"""The row of a batch: names by timestep, what is left out, and the warning about rounding."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.spo.row import MOST_TIMESTEPS, MetricTimesteps, flat_row
from spo_jax.methods.spo.settings import SPOSettings

SCHEDULE = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def timesteps_of(**changes):
    settings = dataclasses.replace(SPOSettings(), **changes)
    return MetricTimesteps.of(settings, make_ddpm(SCHEDULE, settings.num_steps))


def test_ratios_are_named_by_the_step_that_was_trained_on_and_scores_by_the_judgement():
    """A pool is drawn at a timestep and judged at the next one."""
    timesteps = timesteps_of()
    metrics = {"valid_pairs": jnp.int32(3), "ratio_at": jnp.arange(16.0), "judge_score": jnp.arange(16.0)}
    row = flat_row(metrics, timesteps)
    assert [row[f"ratio_at/t{t:04d}"] for t in (751, 51, 1)] == [0, 14, 15]
    assert [row[f"judge_score/t{t:04d}"] for t in (701, 1, 0)] == [0, 14, 15]


def test_timesteps_without_a_valid_pair_have_no_ratio():
    ratio = np.ones(16, np.float32)
    ratio[3] = np.nan
    row = flat_row({"valid_pairs": jnp.int32(3), "ratio_at": jnp.asarray(ratio)}, timesteps_of())
    assert "ratio_at/t0601" not in row and len(row) == 16


def test_many_timesteps_have_a_few_lines_from_the_first_to_the_last():
    timesteps = timesteps_of(num_steps=100)
    values = jnp.asarray(timesteps.recorded, jnp.float32)
    row = flat_row({"valid_pairs": jnp.int32(3), "ratio_at": values, "clip_fraction_at": values}, timesteps)
    named = {name: value for name, value in row.items() if name.startswith("ratio_at/")}
    assert len(named) == MOST_TIMESTEPS
    assert named["ratio_at/t0951"] == 951 and named["ratio_at/t0001"] == 1  # every value has its own name
    assert all(int(name[-4:]) == value for name, value in named.items())


def test_many_judgements_have_a_few_lines_as_well():
    timesteps = timesteps_of(num_steps=100)
    row = flat_row({"valid_pairs": jnp.int32(3), "judge_score": jnp.asarray(timesteps.judged, jnp.float32)}, timesteps)
    named = {int(name[-4:]): value for name, value in row.items() if name.startswith("judge_score/")}
    assert len(named) == MOST_TIMESTEPS and {0, int(timesteps.judged[0])} <= named.keys()
    assert all(timestep == value for timestep, value in named.items())


def test_without_training_nothing_is_reported_of_it():
    values = {"ratio_at": jnp.full(16, jnp.nan), "loss": jnp.float32(0), "first_ratio_error": jnp.float32(0)}
    assert flat_row({"valid_pairs": jnp.int32(0), **values}, timesteps_of()) == {"valid_pairs": 0}
