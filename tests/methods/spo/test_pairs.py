"""Verdicts over pools, the pairs that are made from them, and their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.spo.pairs import make_pairs, rank, shuffled_order
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.resampler import Trajectory
from spo_jax.methods.spo.settings import ResamplerSettings

RNG = np.random.default_rng(0)
# Compiled, because op by op they take seconds.
ranked = jax.jit(rank, static_argnums=1)
order_of = jax.jit(shuffled_order)


def test_best_and_worst_do_not_depend_on_the_order_of_candidates():
    """A permutation of a pool moves the indices, but neither the candidates they point at nor the pool's validity."""
    scores = jnp.asarray(RNG.normal(0, 0.3, (3, 4, 5)).astype(np.float32))
    verdict = ranked(scores, 0.3)
    permutation = RNG.permutation(4)
    moved = ranked(scores[:, permutation], 0.3)
    np.testing.assert_array_equal(permutation[np.asarray(moved.win)], verdict.win)
    np.testing.assert_array_equal(permutation[np.asarray(moved.lose)], verdict.lose)
    np.testing.assert_array_equal(moved.valid, verdict.valid)
    assert 0 < verdict.valid.sum() < verdict.valid.size


def test_ties_rank_by_index_as_a_stable_descending_sort():
    scores = jnp.asarray(RNG.integers(0, 3, (6, 4, 50)).astype(np.float32))
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
    verdict = ranked(scores, 0.3)
    np.testing.assert_array_equal(verdict.win, order[:, 0])
    np.testing.assert_array_equal(verdict.lose, order[:, -1])


def test_an_indifferent_pool_gives_first_and_last_and_is_not_valid():
    verdict = ranked(jnp.full((1, 4, 1), 7.0), 0.0)
    assert (verdict.win.item(), verdict.lose.item(), verdict.valid.item()) == (0, 3, False)


def test_the_threshold_is_strict_and_compares_best_and_worst_alone():
    """tanh(gap / 2) > threshold, independent of the candidates between the two."""
    for between in (0.0, 0.4, 0.8):
        scores = jnp.array([0.0, between, 0.8]).reshape(1, 3, 1)
        difference = jax.nn.softmax(jnp.array([0.8, 0.0]))
        exact = float(difference[0] - difference[1])
        np.testing.assert_allclose(exact, np.tanh(0.4), rtol=1e-6)
        assert not rank(scores, exact).valid.item()
        assert rank(scores, float(np.nextafter(np.float32(exact), np.float32(0)))).valid.item()


def trajectory_of(settings, batch):
    """Latents that show record, candidate and prompt: 100 r + 10 k + b; parents are negative."""
    plan = make_plan(settings)
    k = settings.num_candidates
    r = len(plan.segment)
    s = len(plan.judged_at) + 1
    numbers = 100 * np.arange(r)[:, None, None] + 10 * np.arange(k)[:, None] + np.arange(batch) + 1
    latents = jnp.asarray(numbers[..., None, None, None] * np.ones((1, 2, 1)), jnp.float32)
    return plan, Trajectory(
        parents=-latents[:, 0] if plan.shares_parent else -latents,
        children=latents,
        timesteps=np.arange(r, dtype=np.int32)[::-1] * 50 + 1,
        judged=jnp.zeros((s, k, batch, 1, 2, 1)),
        judged_timesteps=np.zeros(s, np.int32),
    )


def pairs_of(plan, trajectory, scores):
    """The verdicts of scores, and the pairs made from them."""

    @jax.jit
    def program(scores):
        verdict = rank(scores, 0.3)
        return verdict, make_pairs(trajectory, verdict, plan)

    return jax.tree.map(np.asarray, program(scores))


@pytest.mark.parametrize(
    "settings",
    [ResamplerSettings(6, 1.0, 2, 3), ResamplerSettings(8, 1.0, 2, 3, num_inner_step=2, branch_at_last_step=False)],
    ids=["SD 1.5", "SDXL"],
)
def test_pairs_hold_what_the_verdicts_point_at(settings):
    batch = 2
    plan, trajectory = trajectory_of(settings, batch)
    judgements = len(plan.judged_at) + 1
    scores = jnp.asarray(RNG.normal(size=(judgements, settings.num_candidates, batch)).astype(np.float32))
    verdict, pairs = pairs_of(plan, trajectory, scores)
    assert pairs.x_t.shape[1] == (1 if plan.shares_parent else 2)
    for n in range(len(pairs.t)):
        record, b = divmod(n, batch)
        segment = plan.segment[record]
        members = [verdict.win[segment, b], verdict.lose[segment, b]]
        expected = [100 * record + 10 * member + b + 1 for member in members]
        assert pairs.x_prev[n, :, 0, 0, 0].tolist() == expected
        parents = [-(100 * record + b + 1)] if plan.shares_parent else [-number for number in expected]
        assert pairs.x_t[n, :, 0, 0, 0].tolist() == parents
        assert pairs.t[n] == trajectory.timesteps[record]
        assert pairs.row[n] == b
        assert pairs.valid[n] == verdict.valid[segment, b]


def test_permuting_the_candidates_of_a_rollout_leaves_its_pairs():
    plan, trajectory = trajectory_of(ResamplerSettings(6, 1.0, 2, 4), batch=3)
    scores = jnp.asarray(RNG.normal(size=(4, 4, 3)).astype(np.float32))
    permutation = jnp.asarray(RNG.permutation(4))
    moved = trajectory._replace(children=trajectory.children[:, permutation])
    _, one = pairs_of(plan, trajectory, scores)
    _, other = pairs_of(plan, moved, scores[:, permutation])
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_order_is_a_permutation_with_the_valid_first(share):
    valid = jnp.asarray(RNG.uniform(size=200) < share)
    order = np.asarray(order_of(jax.random.key(0), valid))
    assert sorted(order) == list(range(200))
    count = int(valid.sum())
    assert valid[order[:count]].all() and not valid[order[count:]].any()
    again, other = (np.asarray(order_of(jax.random.key(seed), valid)) for seed in (0, 1))
    assert (order == again).all()
    assert (order != other).any()


def test_every_valid_pair_comes_first_equally_often():
    valid = jnp.array([False, True, True, False, True, True])

    @jax.jit
    def firsts(key):
        return jax.vmap(lambda key: shuffled_order(key, valid)[0])(jax.random.split(key, 4000))

    first = firsts(jax.random.key(0))
    counts = np.bincount(first, minlength=6)
    assert counts[0] == counts[3] == 0
    assert (abs(counts[[1, 2, 4, 5]] - 1000) < 5 * np.sqrt(750)).all()  # five standard deviations
