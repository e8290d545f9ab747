"""GradSPO's objective and the running mean, on a network so small that every property can be seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.objectives import ScoreObjective
from spo_jax.methods.spo.pairs import NoisePairs, Verdict, make_noise_pairs
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.resampler import ResamplerSettings, Trajectory
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.state import MeanState, mean_of, sampling_params, with_mean
from spo_jax.methods.spo.update import batch_loss, update
from tests.methods.spo.test_update import CHANNELS, PROCESS, assert_close, make_lora, predict

SETTINGS = SPOSettings(objective="gradspo", ema_decay=0.75, train_batch_size=4)
OPTIMIZER = OptimizerSettings(learning_rate=1e-2)


def noise_pairs(count, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    shape = (count, 4, 4, CHANNELS)
    t = jnp.asarray(rng.choice(PROCESS.timesteps[4:], count))
    row = jnp.asarray(rng.integers(0, 3, count, np.int32))
    return NoisePairs(normal(*shape), normal(*shape) * np.float32(0.5**0.5), t, row, jnp.ones(count, bool))


def other(lora):
    """An adapter beside the first, as a running mean is."""
    return jax.tree.map(lambda x: 0.7 * x + 0.01, lora)


@jax.jit
def gradients(lora, mean, pairs):
    """((loss, metrics), gradients) with respect to the adapter and to its mean."""
    loss = functools.partial(batch_loss, predict=predict, process=PROCESS, settings=SETTINGS)
    weight = jnp.full(len(pairs.t), 1 / len(pairs.t))
    return jax.value_and_grad(lambda lora, mean: loss(lora, batch=pairs, weight=weight, mean=mean), (0, 1), True)(
        lora, mean
    )


def test_the_likelihoods_are_those_of_the_formula():
    """In float64 numpy, member by member."""
    pairs, lora, mean = noise_pairs(5), make_lora(), other(make_lora())
    found = ScoreObjective().likelihoods(lora, mean, predict, PROCESS, SETTINGS, pairs)
    prediction, center, reference = (
        np.asarray(predict(x, pairs.x_t, pairs.t, pairs.row), float) for x in (lora, mean, None)
    )
    spread = np.sqrt(1 - PROCESS.alphas_cumprod[pairs.t].astype(float)).reshape(-1, 1, 1, 1)
    for member, sign in enumerate((1, -1)):
        target = center - 0.5 * spread * sign * np.asarray(pairs.noise, float)
        for ours, of in ((found.policy, prediction), (found.reference, reference)):
            np.testing.assert_allclose(ours[:, member], -((of - target) ** 2).mean((1, 2, 3)), rtol=1e-4)


def test_a_gradient_passes_through_the_policy_alone():
    _, (of_policy, of_mean) = gradients(make_lora(), other(make_lora()), noise_pairs(4))
    assert all(leaf.any() for leaf in jax.tree.leaves(of_policy))
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_mean))


@pytest.mark.parametrize("mean", [None, "other"])
def test_policy_reference_and_mean_are_called_once_each(mean):
    """Without a mean the policy's own prediction is the center of the targets."""
    sizes = []

    def counting(lora, x, t, row):
        sizes.append(len(x))
        return predict(lora, x, t, row)

    lora = make_lora()
    arguments = (PROCESS, SETTINGS, noise_pairs(4), jnp.ones(4))
    jax.eval_shape(lambda: batch_loss(lora, counting, *arguments, other(lora) if mean else None))
    assert sizes == [4] * (3 if mean else 2)


def test_a_fresh_adapter_is_the_reference():
    fresh = make_lora(fresh=True)
    (loss, metrics), _ = gradients(fresh, fresh, noise_pairs(4))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose([metrics["ratio/win"], metrics["ratio/lose"]], 1, rtol=1e-6)


def test_pairs_are_of_the_transitions_where_candidates_part():
    """Segments of 2 steps and a last one of 3: the noises of the first, and one of the equal parents."""
    settings = ResamplerSettings(7, 1.0, 0, 3, num_inner_step=1, branch_at_last_step=False)
    plan = make_plan(settings)
    assert plan.branched.tolist() == [0, 2, 4]
    rng = np.random.default_rng(0)
    children, noise = (jnp.asarray(rng.standard_normal((7, 3, 2, 1, 2, 1), np.float32)) for _ in range(2))
    parents = jnp.broadcast_to(jnp.arange(7.0).reshape(-1, 1, 1, 1, 1, 1), children.shape)
    timesteps = np.arange(7, dtype=np.int32)[::-1]
    trajectory = Trajectory(parents, children, timesteps, children[:3], timesteps[:3])
    win, lose = (jnp.asarray(rng.integers(0, 3, (3, 2), np.int32)) for _ in range(2))
    valid = jnp.asarray(rng.integers(0, 2, (3, 2)) > 0)
    pairs = make_noise_pairs(trajectory, noise, Verdict(win, lose, valid), plan)
    assert len(pairs.valid) == 2 * ScoreObjective().count(plan)
    for n, (segment, prompt) in enumerate(np.ndindex(3, 2)):
        record = plan.branched[segment]
        half = (noise[record, win[segment, prompt], prompt] - noise[record, lose[segment, prompt], prompt]) / 2
        np.testing.assert_allclose(pairs.noise[n], half, atol=1e-6)
        assert (pairs.x_t[n] == record).all() and pairs.t[n] == timesteps[record]
        assert pairs.row[n] == prompt and pairs.valid[n] == valid[segment, prompt]


# The running mean


def states_of(accumulation, batches):
    """The states before and after each of a few updates of one training batch."""
    optimizer = make_optimizer(dataclasses.replace(OPTIMIZER, gradient_accumulation_steps=accumulation))
    state = with_mean(init_state(jax.tree.map(jnp.copy, make_lora()), optimizer))

    @jax.jit
    def program(state, pairs, key):
        return update(state, predict, PROCESS, SETTINGS, optimizer, pairs, key, accumulation)

    states = [state]
    for seed in range(batches):
        state, metrics = program(state, noise_pairs(4, seed), jax.random.key(seed))
        assert metrics["train_batches"] == 1
        states.append(state)
    return states


def test_the_mean_follows_the_adapter():
    states = states_of(1, 3)
    for before, after in zip(states, states[1:], strict=False):
        expected = jax.tree.map(lambda mean, now: 0.75 * mean + 0.25 * now, before.mean, after.params)
        assert_close(after.mean, expected, rtol=1e-6)
    assert not np.allclose(states[-1].mean["to_q"]["lora_A"], states[-1].params["to_q"]["lora_A"], atol=1e-3)


def test_the_mean_moves_with_the_optimizer_s_steps():
    """Of two accumulated batches the first moves neither the adapter nor the mean, which differ by then."""
    start, first, second, third, _ = states_of(2, 4)
    assert_close(first.mean, start.mean, rtol=0)
    assert not np.allclose(second.mean["to_q"]["lora_A"], first.mean["to_q"]["lora_A"], rtol=0, atol=1e-4)
    assert_close(third.mean, second.mean, rtol=0)


def test_the_mean_draws_the_rollouts_where_there_is_one():
    plain = init_state(make_lora(), make_optimizer(OPTIMIZER))
    assert sampling_params(plain) is plain.params and mean_of(plain) is None
    state = MeanState(*plain, mean=other(make_lora()))
    assert sampling_params(state) is state.mean is mean_of(state)


def test_training_raises_the_margin():
    optimizer = make_optimizer(OPTIMIZER)
    state = with_mean(init_state(jax.tree.map(jnp.copy, make_lora(fresh=True)), optimizer))
    pairs = noise_pairs(4)
    program = jax.jit(lambda state, key: update(state, predict, PROCESS, SETTINGS, optimizer, pairs, key))
    for seed in range(30):
        state, metrics = program(state, jax.random.key(seed))
    assert metrics["loss"] < np.log(2) - 0.01 and metrics["margin"] > 0
