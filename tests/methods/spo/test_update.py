"""The update, with a network so small that every property can be seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spo_jax.core.errors import UserError

from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.methods.spo.pairs import Pairs, shuffled_order
from spo_jax.methods.spo.resampler import ResamplerConfig, draw
from spo_jax.methods.spo.update import (
    UpdateConfig,
    batch_gradients,
    batch_loss,
    collect,
    init_state,
    make_optimiser,
    train_batch,
    update,
)

CHANNELS = 3
PROCESS = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
SCHEDULE = make_ddpm(PROCESS, 20)
CONFIG = UpdateConfig(train_batch_size=4, learning_rate=1e-2)


def predict(lora, x, t, row):
    """A prediction that depends on everything: latents, timestep, prompt, and the adapter if there is one."""
    base = jnp.tanh(x) * (0.5 + t / 2000.0).reshape(-1, 1, 1, 1) + 0.1 * row.reshape(-1, 1, 1, 1)
    return base if lora is None else base + jnp.tanh(x) @ lora["to_q"]["lora_A"] @ lora["to_q"]["lora_B"]


@functools.cache
def make_lora(fresh=False):
    a, b = np.random.default_rng(0).normal(0, 0.1, (2, CHANNELS, CHANNELS)).astype(np.float32)
    return {"to_q": {"lora_A": jnp.asarray(a), "lora_B": jnp.zeros((CHANNELS, CHANNELS)) if fresh else jnp.asarray(b)}}


def state_of(config, fresh=False):
    return init_state(jax.tree.map(jnp.copy, make_lora(fresh)), make_optimiser(config))


def pairs_of(valid, seed=0):
    """Pairs whose members are drawn from the reference, as a rollout at the start of training draws them."""
    n, rng = len(valid), np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    x_t, t = normal(n, 1, 4, 4, CHANNELS), jnp.asarray(rng.choice(SCHEDULE.timesteps[4:], n))
    row = jnp.asarray(rng.integers(0, 3, n, np.int32))
    x0, eps = SCHEDULE.split(x_t[:, 0], predict(None, x_t[:, 0], t, row), t)
    mean, std = SCHEDULE.step(x0, eps, t, 1.0)
    x_prev = mean[:, None] + std[:, None] * normal(n, 2, 4, 4, CHANNELS)
    return Pairs(x_t, x_prev, t, row, jnp.asarray(valid))


def assert_close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def rows(pairs, index):
    return jax.tree.map(lambda x: x[jnp.asarray(index)], pairs)


gradient = jax.jit(
    lambda lora, batch, weight: jax.value_and_grad(batch_loss, has_aux=True)(
        lora, predict, SCHEDULE, CONFIG, batch, weight / jnp.maximum(weight.sum(), 1)
    )
)
run_update = jax.jit(
    lambda config, state, pairs, key: update(state, predict, SCHEDULE, config, pairs, key), static_argnums=0
)
run_batch = jax.jit(
    lambda config, state, batch: train_batch(
        state, predict, SCHEDULE, config, batch, jnp.arange(len(batch.t)), jnp.int32(len(batch.t))
    ),
    static_argnums=0,
)


def test_masked_rows_change_nothing():
    """Whatever they hold, the result is that of the batch without them."""
    pairs = pairs_of([True] * 4)
    weight = jnp.array([1.0, 0, 1, 0])
    masked = (weight == 0).reshape(-1, 1, 1, 1, 1)
    alone = gradient(make_lora(), rows(pairs, [0, 2]), jnp.ones(2))
    assert_close(gradient(make_lora(), pairs, weight), alone, rtol=1e-5, atol=1e-7)
    other = pairs._replace(x_t=pairs.x_t + 3 * masked, x_prev=pairs.x_prev - 2 * masked, t=pairs.t + 50)
    other = other._replace(t=jnp.where(weight == 1, pairs.t, other.t))
    assert_close(gradient(make_lora(), other, weight), alone, rtol=1e-5, atol=1e-7)


def test_a_batch_of_nothing_is_zero_and_not_nan():
    (loss, metrics), gradients = gradient(make_lora(), pairs_of([True] * 4), jnp.zeros(4))
    assert loss == 0 and not any(leaf.any() for leaf in jax.tree.leaves((metrics, gradients)))


def test_sharing_x_t_changes_nothing_but_the_work():
    pairs = pairs_of([True] * 4)
    separate = pairs._replace(x_t=jnp.repeat(pairs.x_t, 2, axis=1))
    assert_close(
        gradient(make_lora(), pairs, jnp.ones(4)), gradient(make_lora(), separate, jnp.ones(4)), rtol=1e-5, atol=1e-7
    )
    for batch, expected in ((pairs, [4, 4]), (separate, [8, 8])):
        sizes = []

        def counting(lora, x, t, row, sizes=sizes):
            sizes.append(len(x))
            return predict(lora, x, t, row)

        batch_loss(make_lora(), counting, SCHEDULE, CONFIG, batch, jnp.ones(4))
        assert sizes == expected  # policy and reference, once each


def test_the_reference_is_the_policy_without_its_adapter():
    """At the start B is 0: ratios are 1, the loss is log 2, and only B has a gradient."""
    (loss, metrics), gradients = gradient(make_lora(fresh=True), pairs_of([True] * 4), jnp.ones(4))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    np.testing.assert_allclose([metrics["ratio/win"], metrics["ratio/lose"]], 1, rtol=1e-5)
    assert metrics["clip_fraction/win"] == metrics["clip_fraction/lose"] == 0
    assert not gradients["to_q"]["lora_A"].any() and gradients["to_q"]["lora_B"].any()


def test_the_metrics_count_clipped_members():
    """With a faint adapter no ratio leaves the trust region, with a wild one all do."""
    for factor, share in ((0.01, 0.0), (100.0, 1.0)):
        lora = jax.tree.map(lambda x, factor=factor: factor * x, make_lora())
        (_, metrics), _ = gradient(lora, pairs_of([True] * 4), jnp.ones(4))
        assert metrics["clip_fraction/win"] == metrics["clip_fraction/lose"] == share


def test_the_last_batch_is_the_plain_mean_of_what_it_holds():
    """5 valid pairs of 7 in batches of 4: one full batch, then one of a single pair."""
    pairs, key = pairs_of([True, False, True, True, False, True, True]), jax.random.key(3)
    state, metrics = run_update(CONFIG, state_of(CONFIG), pairs, key)
    order = shuffled_order(key, pairs.valid)
    expected, rows_of_metrics = state_of(CONFIG), []
    for index in (order[:4], order[4:5]):
        expected, row, _ = run_batch(CONFIG, expected, rows(pairs, index))
        rows_of_metrics.append(row)
    assert_close(state, expected, rtol=1e-5, atol=1e-7)
    assert metrics["train_batches"] == 2 and state.step == 2
    for name in rows_of_metrics[0]:
        np.testing.assert_allclose(metrics[name], np.mean([row[name] for row in rows_of_metrics]), rtol=1e-5, atol=1e-7)


def test_chunks_add_up_to_the_batch():
    """11 valid pairs of 13 in batches of 8 by 3: the last chunk of the full batch is cut, as is that of the rest."""
    pairs, key = pairs_of([True] * 6 + [False] * 2 + [True] * 5), jax.random.key(5)
    whole = UpdateConfig(train_batch_size=8, learning_rate=1e-2)
    cut = dataclasses.replace(whole, train_chunk=3)
    one, metrics = run_update(whole, state_of(whole), pairs, key)
    two, metrics_two = run_update(cut, state_of(cut), pairs, key)
    assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert_close(metrics_two, metrics, rtol=1e-5, atol=1e-6)
    assert metrics["train_batches"] == 2 and metrics["loss"] > 0


def test_chunks_are_equal_parts():
    """24 by at most 10 a device: three of 8 on one device, two of 12 on two; never more than the batch."""
    config = UpdateConfig(train_batch_size=24, train_chunk=10)
    assert [config.chunk(devices) for devices in (1, 2, 4, 8)] == [8, 12, 24, 24]


def test_chunks_without_a_pair_are_not_computed():
    """A pair of NaN spoils the chunk that it is in, even with weight 0, and no other."""
    pairs = pairs_of([True] * 6)
    pairs = pairs._replace(x_t=pairs.x_t.at[5].set(jnp.nan))
    for chunk, finite in ((3, True), (6, False)):
        config = UpdateConfig(train_batch_size=6, train_chunk=chunk)
        metrics, gradients = jax.jit(
            lambda rows, config=config: batch_gradients(
                make_lora(), predict, SCHEDULE, config, pairs, rows, jnp.int32(3)
            )
        )(jnp.arange(6))
        assert all(np.isfinite(leaf).all() == finite for leaf in jax.tree.leaves((metrics["loss"], gradients)))


def test_two_accumulated_halves_equal_one_batch():
    pairs, key = pairs_of([True] * 8), jax.random.key(0)
    whole = UpdateConfig(train_batch_size=8, learning_rate=1e-2)
    halves = UpdateConfig(train_batch_size=4, learning_rate=1e-2, gradient_accumulation_steps=2)
    one, metrics = run_update(whole, state_of(whole), pairs, key)
    two, metrics_two = run_update(halves, state_of(halves), pairs, key)
    assert_close(two.lora, one.lora, rtol=1e-4, atol=1e-6)
    assert (one.step, two.step) == (1, 2)
    np.testing.assert_allclose(metrics_two["loss"], metrics["loss"], rtol=1e-5)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one.lora, make_lora())
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_accumulation_goes_on_over_rollouts():
    """One batch of a rollout leaves the adapter alone; the first of the next one completes the step."""
    config = UpdateConfig(train_batch_size=4, learning_rate=1e-2, gradient_accumulation_steps=2)
    state, _ = run_update(config, state_of(config), pairs_of([True] * 4), jax.random.key(0))
    assert_close(state.lora, make_lora(), rtol=0)
    state, _ = run_update(config, state, pairs_of([True] * 4, seed=1), jax.random.key(1))
    assert not np.allclose(state.lora["to_q"]["lora_A"], make_lora()["to_q"]["lora_A"], atol=1e-3)


def test_no_valid_pair_leaves_the_state_untouched():
    before = state_of(CONFIG)
    state, metrics = run_update(CONFIG, before, pairs_of([False] * 7), jax.random.key(0))
    assert_close(state, before, rtol=0)
    assert all(value == 0 for value in metrics.values())


def test_training_makes_winners_likelier_than_losers():
    pairs = pairs_of([True] * 8)
    config = UpdateConfig(train_batch_size=8, learning_rate=1e-2)
    state, losses = state_of(config, fresh=True), []
    for seed in range(30):
        state, metrics = run_update(config, state, pairs, jax.random.key(seed))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.01
    assert metrics["ratio/win"] > metrics["ratio/lose"]


@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_the_global_norm_is_clipped(limit):
    """With an epsilon far above any gradient AdamW is plain gradient descent, which shows the clip."""
    config = UpdateConfig(max_grad_norm=limit, adam_epsilon=1e4, learning_rate=1e4, weight_decay=0.0)
    state, metrics, gradients = run_batch(config, state_of(config), pairs_of([True] * 8))
    norm = optax.global_norm(gradients)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)  # of the gradients as they were
    assert 1e-2 < norm < 1e3
    moved = jax.tree.map(jnp.subtract, state.lora, make_lora())
    np.testing.assert_allclose(optax.global_norm(moved), min(limit, float(norm)), rtol=2e-3)


def test_weight_decay_is_decoupled():
    config = UpdateConfig(learning_rate=1e-2, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, make_lora())
    optimiser = make_optimiser(config)
    updates, _ = optimiser.update(zeros, optimiser.init(make_lora()), make_lora())
    assert_close(updates, jax.tree.map(lambda x: -1e-2 * 0.5 * x, make_lora()), rtol=1e-6)


def test_collect_reports_what_it_found():
    config = ResamplerConfig(num_steps=6, divert_start_step=3, num_candidates=3)
    schedule = make_ddpm(PROCESS, 6)
    draws = draw(jax.random.key(0), config, 2, (4, 4, CHANNELS))

    def score(latents, t, row):
        return 20 * latents.mean((1, 2, 3)) + row

    def denoise(x, t):
        flat = x.reshape(-1, *x.shape[-3:])
        out = predict(None, flat, jnp.full(len(flat), t), jnp.zeros(len(flat), int))
        return out.reshape(x.shape)

    program = jax.jit(lambda draws: collect(denoise, score, config, schedule, draws, 0.3, 4))
    pairs, metrics = program(draws)
    assert jax.tree.map(jnp.shape, pairs) == ((6, 1, 4, 4, 3), (6, 2, 4, 4, 3), (6,), (6,), (6,))
    assert metrics["valid_pairs"] == pairs.valid.sum() and 0 < metrics["valid_pairs"] < 6
    np.testing.assert_allclose(metrics["valid_share"], pairs.valid.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["valid_share_at"], pairs.valid.reshape(3, 2).mean(1), rtol=1e-6)
    assert metrics["spm_score"].shape == metrics["spm_gap"].shape == (3,) and (metrics["spm_gap"] > 0).all()
    # The finished latents are judged as they are: their gap is that of the last pairs' own scores.
    scores = 20 * pairs.x_prev[-2:].mean((2, 3, 4))
    np.testing.assert_allclose(metrics["spm_gap"][-1], (scores[:, 0] - scores[:, 1]).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "spo.beta = 0.0: expected more than 0"),
        ({"eps": 1.0}, "spo.eps = 1.0: expected less than 1"),
        ({"train_batch_size": 0}, "spo.train_batch_size = 0"),
        ({"train_chunk": 0}, "spo.train_chunk = 0"),
        ({"gradient_accumulation_steps": 0}, "spo.gradient_accumulation_steps = 0"),
        ({"learning_rate": -1e-4}, "spo.learning_rate"),
        ({"weight_decay": -1.0}, "spo.weight_decay = -1.0: expected 0 or more"),
        ({"max_grad_norm": 0.0}, "spo.max_grad_norm"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(UserError, match=message):
        UpdateConfig(**fields)
