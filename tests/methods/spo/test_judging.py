"""Judging a rollout: in chunks, with what each judgement is told, and where the judge says how it goes on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.methods.spo.judging import judge, judged_rollout
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.resampler import Trajectory, draw
from spo_jax.methods.spo.settings import SPOSettings
from tests.support.networks import SCHEDULE

SHAPE = (2, 3, 1)
SETTINGS = SPOSettings(num_steps=7, divert_start_step=2, num_candidates=3, decode_chunk=4)
INNER = dataclasses.replace(SETTINGS, num_inner_step=1, branch_at_last_step=False)


def denoise(x, t):
    """A smooth function that depends on latents and timestep."""
    return jnp.tanh(x * (0.4 + t / 2000.0))


def score(latents, t, row):
    """Distinct scores that depend on the timestep."""
    return latents.sum((1, 2, 3)) + 1e-3 * t


@functools.cache
def judged(settings):
    """A judged rollout of two prompts."""

    @jax.jit
    def program(key):
        draws = draw(key, settings, 2, SHAPE)
        return judged_rollout(denoise, score, settings, make_ddpm(SCHEDULE, settings.num_steps), draws)

    return jax.tree.map(np.asarray, program(jax.random.key(0)))


@pytest.mark.parametrize("settings", [SETTINGS, INNER], ids=["every step", "inner steps"])
def test_the_best_candidate_is_the_next_parent(settings):
    settings = dataclasses.replace(settings, next_parent="best")
    plan = make_plan(settings)
    found = judged(settings)
    trajectory = found.trajectory
    again = judge(score, trajectory._replace(judged=jnp.asarray(trajectory.judged)), 5)
    np.testing.assert_allclose(found.scores, again, rtol=1e-5)
    for judgement, transition in enumerate(plan.branched[1:]):
        parents = trajectory.parents[transition] if plan.shares_parent else trajectory.parents[transition, 0]
        for prompt, best in enumerate(found.scores[judgement].argmax(0)):
            np.testing.assert_array_equal(parents[prompt], trajectory.children[transition - 1, best, prompt])
    chosen_at_random = judged(dataclasses.replace(settings, next_parent="random")).trajectory
    assert (chosen_at_random.parents != trajectory.parents).any()


def test_a_judge_can_be_told_that_every_prediction_is_a_finished_image():
    found, blind = judged(SETTINGS), judged(dataclasses.replace(SETTINGS, judge_timestep="zero"))
    np.testing.assert_array_equal(found.trajectory.judged, blind.trajectory.judged)
    told = 1e-3 * found.trajectory.judged_timesteps.reshape(-1, 1, 1)
    np.testing.assert_allclose(found.scores - told, blind.scores, atol=1e-5)
    assert told[0] > 0.1 and told[-1] == 0


def test_the_last_step_can_be_accepted_whatever_its_scores():
    strict = dataclasses.replace(SETTINGS, threshold=0.999)
    found, kept = judged(strict), judged(dataclasses.replace(strict, accept_last_step=True))
    assert not found.verdict.valid[-1].all() and kept.verdict.valid[-1].all()
    np.testing.assert_array_equal(found.verdict.valid[:-1], kept.verdict.valid[:-1])


@pytest.mark.parametrize("chunk", [1, 4, 7, 12, 100])
def test_judging_does_not_depend_on_the_chunk(chunk):
    """3 judgements of 2 candidates of 2 prompts; each receives its own timestep and prompt."""
    judged = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, *SHAPE), np.float32))
    timesteps = np.array([501, 251, 0], np.int32)
    trajectory = Trajectory(jnp.zeros((3, 2, *SHAPE)), judged, timesteps, judged, timesteps)
    sizes = []

    def score(latents, t, row):
        sizes.append(len(latents))
        return latents.sum((1, 2, 3)) + 10.0 * t + 100_000.0 * row

    expected = judged.sum((3, 4, 5)) + 10.0 * timesteps.reshape(3, 1, 1) + jnp.array([[[0.0, 100_000.0]]])
    found = judge(score, trajectory, chunk)
    assert set(sizes) == {min(chunk, 12)}
    np.testing.assert_allclose(found, expected, rtol=1e-6)
