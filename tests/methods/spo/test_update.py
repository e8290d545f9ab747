"""Collection and update, with a network so small that every property can be seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.pairs import shuffled_order
from spo_jax.methods.spo.plan import recorded_timesteps
from spo_jax.methods.spo.resampler import draw
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.update import TIMESTEP_METRICS, batch_gradients, batch_loss, collect, train_batch, update

CHANNELS = 3
LOSS_METRICS = ("loss", "ratio/win", "ratio/lose", "clip_fraction/win", "clip_fraction/lose")
SCHEDULE = ScheduleConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
PROCESS = make_ddpm(SCHEDULE, 20)
SETTINGS = SPOSettings(train_batch_size=4)
WHOLE = SPOSettings(train_batch_size=8)
# Every gradient is clipped, which AdamW's steps do not show.
EVERY_BATCH = OptimizerSettings(learning_rate=1e-2, max_grad_norm=1e-3)
EVERY_SECOND = dataclasses.replace(EVERY_BATCH, gradient_accumulation_steps=2)


def predict(lora, x, t, row):
    """A prediction that depends on everything: latents, timestep, prompt, and the adapter if there is one."""
    base = jnp.tanh(x) * (0.5 + t / 2000.0).reshape(-1, 1, 1, 1) + 0.1 * row.reshape(-1, 1, 1, 1)
    return base if lora is None else base + jnp.tanh(x) @ lora["to_q"]["lora_A"] @ lora["to_q"]["lora_B"]


@functools.cache
def make_lora(fresh=False):
    a, b = np.random.default_rng(0).normal(0, 0.1, (2, CHANNELS, CHANNELS)).astype(np.float32)
    return {"to_q": {"lora_A": jnp.asarray(a), "lora_B": jnp.zeros((CHANNELS, CHANNELS)) if fresh else jnp.asarray(b)}}


def state_of(optimizer=EVERY_BATCH, fresh=False):
    return init_state(jax.tree.map(jnp.copy, make_lora(fresh)), make_optimizer(optimizer))


def pairs_of(valid, seed=0):
    """Pairs whose members are drawn from the reference, as a rollout at the start of training draws them."""
    n = len(valid)
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    x_t = normal(n, 1, 4, 4, CHANNELS)
    t = jnp.asarray(rng.choice(PROCESS.timesteps[4:], n))
    row = jnp.asarray(rng.integers(0, 3, n, np.int32))
    x0, noise = PROCESS.split(x_t[:, 0], predict(None, x_t[:, 0], t, row), t)
    mean, std = PROCESS.step(x0, noise, t, 1.0)
    x_prev = mean[:, None] + std[:, None] * normal(n, 2, 4, 4, CHANNELS)
    return Pairs(x_t, x_prev, t, row, jnp.asarray(valid))


def assert_close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def rows(pairs, index):
    return jax.tree.map(lambda x: x[jnp.asarray(index)], pairs)


@jax.jit
def gradient(lora, batch, weight):
    """((loss, metrics), gradients) of the mean over the rows with weight 1."""
    mean = weight / jnp.maximum(weight.sum(), 1)
    return jax.value_and_grad(batch_loss, has_aux=True)(lora, predict, PROCESS, SETTINGS, batch, mean)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_update(settings, optimizer, state, pairs, key):
    return update(state, predict, PROCESS, settings, make_optimizer(optimizer), pairs, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_batch(settings, optimizer, state, batch):
    """One training batch of all the pairs in ``batch``."""
    count = len(batch.t)
    everything = (batch, jnp.arange(count), jnp.int32(count))
    return train_batch(state, predict, PROCESS, settings, make_optimizer(optimizer), *everything)


def test_masked_rows_change_nothing():
    """The result is that of the batch without them, independent of what they hold."""
    pairs = pairs_of([True] * 4)
    weight = jnp.array([1.0, 0, 1, 0])
    masked = (weight == 0).reshape(-1, 1, 1, 1, 1)
    alone = gradient(make_lora(), rows(pairs, [0, 2]), jnp.ones(2))
    assert_close(gradient(make_lora(), pairs, weight), alone, rtol=1e-5, atol=1e-7)
    other = pairs._replace(
        x_t=pairs.x_t + 3 * masked, x_prev=pairs.x_prev - 2 * masked, t=jnp.where(weight == 1, pairs.t, pairs.t + 50)
    )
    assert_close(gradient(make_lora(), other, weight), alone, rtol=1e-5, atol=1e-7)


def test_a_batch_of_nothing_is_zero_and_not_nan():
    (loss, metrics), gradients = gradient(make_lora(), pairs_of([True] * 4), jnp.zeros(4))
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves((metrics, gradients)))


def test_a_shared_x_t_changes_no_result():
    """The reference implementation of SDXL keeps it twice."""
    pairs = pairs_of([True] * 4)
    separate = pairs._replace(x_t=jnp.repeat(pairs.x_t, 2, axis=1))
    ones = jnp.ones(4)
    found = gradient(make_lora(), separate, ones)
    assert_close(gradient(make_lora(), pairs, ones), found, rtol=1e-5, atol=1e-7)


def test_policy_and_reference_are_called_once_each():
    """The work of a batch: one row for a pair that shares x_t, otherwise two."""
    pairs = pairs_of([True] * 4)
    separate = pairs._replace(x_t=jnp.repeat(pairs.x_t, 2, axis=1))
    for batch, expected in ((pairs, [4, 4]), (separate, [8, 8])):
        sizes = []

        def counting(lora, x, t, row, sizes=sizes):
            sizes.append(len(x))
            return predict(lora, x, t, row)

        jax.eval_shape(lambda lora: batch_loss(lora, counting, PROCESS, SETTINGS, batch, jnp.ones(4)), make_lora())  # noqa: B023
        assert sizes == expected


def test_the_reference_is_the_policy_without_its_adapter():
    """At the start B is 0: ratios are 1, the loss is log 2, and only B has a gradient."""
    (loss, metrics), gradients = gradient(make_lora(fresh=True), pairs_of([True] * 4), jnp.ones(4))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    np.testing.assert_allclose([metrics["ratio/win"], metrics["ratio/lose"]], 1, rtol=1e-5)
    assert metrics["clip_fraction/win"] == metrics["clip_fraction/lose"] == 0
    assert not gradients["to_q"]["lora_A"].any()
    assert gradients["to_q"]["lora_B"].any()


def test_the_metrics_count_clipped_members():
    """With a faint adapter no ratio leaves the trust region, with a wild one all do."""
    for factor, share in ((0.01, 0.0), (100.0, 1.0)):
        lora = jax.tree.map(lambda x, factor=factor: factor * x, make_lora())
        (_, metrics), _ = gradient(lora, pairs_of([True] * 4), jnp.ones(4))
        assert metrics["clip_fraction/win"] == metrics["clip_fraction/lose"] == share


def test_metrics_by_timestep_are_those_of_its_pairs():
    """Pairs with weight 0 count nowhere; the widest adapter clips some members and not others."""
    pairs = pairs_of([True] * 40)
    lora = jax.tree.map(lambda x: 8 * x, make_lora())
    weight = jnp.asarray(np.arange(40) % 4 > 0, jnp.float32)
    (_, metrics), _ = gradient(lora, pairs, weight)
    timesteps = recorded_timesteps(SETTINGS, PROCESS.timesteps)
    assert timesteps.tolist() == list(range(751, 0, -50))
    assert metrics["pairs_at"].sum() == 30
    for index, t in enumerate(timesteps):
        of_t = weight * (pairs.t == t)
        count = of_t.sum()
        assert metrics["pairs_at"][index] == count
        (_, alone), _ = gradient(lora, pairs, of_t)
        for name in ("ratio", "clip_fraction"):
            both = (alone[f"{name}/win"] + alone[f"{name}/lose"]) / 2
            np.testing.assert_allclose(metrics[f"{name}_at"][index], both * count, rtol=1e-4, atol=1e-5)
    assert 0 < metrics["clip_fraction_at"].sum() < 30


def test_the_error_of_the_first_batch_is_that_of_its_worst_timestep():
    """For a fresh adapter it is rounding alone; for another one the distance of the ratio from 1 before any update."""
    pairs = pairs_of([True] * 8)
    _, fresh = run_update(SETTINGS, EVERY_BATCH, state_of(fresh=True), pairs, jax.random.key(0))
    assert fresh["first_ratio_error"] < 1e-5
    _, moved = run_update(SETTINGS, EVERY_BATCH, state_of(), pairs, jax.random.key(0))
    first = rows(pairs, shuffled_order(jax.random.key(0), pairs.valid)[:4])
    (_, metrics), _ = gradient(make_lora(), first, jnp.ones(4))
    errors = metrics["error_at"] / jnp.maximum(metrics["pairs_at"], 1)
    np.testing.assert_allclose(moved["first_ratio_error"], errors.max(), rtol=1e-4)
    assert errors.max() > 1e-3


def test_the_norm_in_the_metrics_is_that_before_the_clip():
    _, metrics, gradients = run_batch(SETTINGS, EVERY_BATCH, state_of(), pairs_of([True] * 4))
    norm = optax.global_norm(gradients)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    assert 1e-2 < norm < 1e3


def test_the_last_batch_is_the_plain_mean_of_what_it_holds():
    """5 valid pairs of 7 in batches of 4: one full batch, then one of a single pair."""
    pairs = pairs_of([True, False, True, True, False, True, True])
    key = jax.random.key(3)
    state, metrics = run_update(SETTINGS, EVERY_BATCH, state_of(), pairs, key)
    order = shuffled_order(key, pairs.valid)
    expected = state_of()
    metrics_of_batches = []
    for index in (order[:4], order[4:5]):
        expected, row, _ = run_batch(SETTINGS, EVERY_BATCH, expected, rows(pairs, index))
        metrics_of_batches.append(row)
    assert_close(state, expected, rtol=1e-5, atol=1e-7)
    assert metrics["train_batches"] == 2 and state.step == 2
    for name in (*LOSS_METRICS, "grad_norm"):
        mean = np.mean([row[name] for row in metrics_of_batches])
        np.testing.assert_allclose(metrics[name], mean, rtol=1e-5, atol=1e-7)
    # By timestep it is the mean over pairs, whichever batch they are in.
    sums = jax.tree.map(lambda *rows: np.sum(rows, axis=0), *metrics_of_batches)
    assert sums["pairs_at"].sum() == 5
    for name in TIMESTEP_METRICS:
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(metrics[name], sums[name] / sums["pairs_at"], rtol=1e-5, atol=1e-7)


def test_chunks_add_up_to_the_batch():
    """11 valid pairs of 13 in batches of 8 by 3: the last chunk of the full batch is cut, as is that of the rest."""
    pairs = pairs_of([True] * 6 + [False] * 2 + [True] * 5)
    key = jax.random.key(5)
    cut = dataclasses.replace(WHOLE, train_chunk=3)
    one, metrics = run_update(WHOLE, EVERY_BATCH, state_of(), pairs, key)
    two, metrics_two = run_update(cut, EVERY_BATCH, state_of(), pairs, key)
    assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert_close(metrics_two, metrics, rtol=1e-5, atol=1e-6)
    assert metrics["train_batches"] == 2 and metrics["loss"] > 0


def test_chunks_without_a_pair_are_not_computed():
    """A pair of NaN spoils the chunk that it is in, even with weight 0, and no other chunk."""
    pairs = pairs_of([True] * 6)
    pairs = pairs._replace(x_t=pairs.x_t.at[5].set(jnp.nan))
    for chunk, finite in ((3, True), (6, False)):
        settings = SPOSettings(train_batch_size=6, train_chunk=chunk)

        @jax.jit
        def gradients_of(rows, settings=settings):
            return batch_gradients(make_lora(), predict, PROCESS, settings, pairs, rows, jnp.int32(3))

        gradients, metrics = gradients_of(jnp.arange(6))
        assert all(np.isfinite(leaf).all() == finite for leaf in jax.tree.leaves((metrics["loss"], gradients)))


def test_two_accumulated_halves_equal_one_batch():
    pairs = pairs_of([True] * 8)
    key = jax.random.key(0)
    one, metrics = run_update(WHOLE, EVERY_BATCH, state_of(), pairs, key)
    two, metrics_two = run_update(SETTINGS, EVERY_SECOND, state_of(EVERY_SECOND), pairs, key)
    assert_close(two.params, one.params, rtol=1e-4, atol=1e-6)
    assert (one.step, two.step) == (1, 2)
    np.testing.assert_allclose(metrics_two["loss"], metrics["loss"], rtol=1e-5)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one.params, make_lora())
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_accumulation_continues_over_rollouts():
    """One batch of a rollout leaves the adapter unchanged; the first batch of the next rollout completes the step."""
    half = [True] * 4 + [False] * 4
    state, _ = run_update(SETTINGS, EVERY_SECOND, state_of(EVERY_SECOND), pairs_of(half), jax.random.key(0))
    assert_close(state.params, make_lora(), rtol=0)
    state, _ = run_update(SETTINGS, EVERY_SECOND, state, pairs_of(half, seed=1), jax.random.key(1))
    assert not np.allclose(state.params["to_q"]["lora_A"], make_lora()["to_q"]["lora_A"], atol=1e-3)


def test_no_valid_pair_leaves_the_state_untouched():
    before = state_of()
    state, metrics = run_update(SETTINGS, EVERY_BATCH, before, pairs_of([False] * 7), jax.random.key(0))
    assert_close(state, before, rtol=0)
    assert all(np.isnan(metrics.pop(name)).all() for name in TIMESTEP_METRICS)
    assert all(value == 0 for value in metrics.values())


def test_training_makes_winners_likelier_than_losers():
    pairs = pairs_of([True] * 8)
    state = state_of(fresh=True)
    losses = []
    for seed in range(30):
        state, metrics = run_update(WHOLE, EVERY_BATCH, state, pairs, jax.random.key(seed))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.01
    assert metrics["ratio/win"] > metrics["ratio/lose"]
    ratio = np.log(metrics["ratio/win"]) - np.log(metrics["ratio/lose"])
    np.testing.assert_allclose(metrics["margin"], ratio, rtol=0.05)  # a mean of logarithms, not the one of a mean


def test_collect_reports_what_it_found():
    settings = SPOSettings(num_steps=6, divert_start_step=3, num_candidates=3, threshold=0.3, decode_chunk=4)
    process = make_ddpm(SCHEDULE, 6)

    def score(latents, t, row):
        return 20 * latents.mean((1, 2, 3)) + row

    def denoise(x, t):
        flat = x.reshape(-1, *x.shape[-3:])
        out = predict(None, flat, jnp.full(len(flat), t), jnp.zeros(len(flat), int))
        return out.reshape(x.shape)

    @jax.jit
    def program(key):
        return collect(denoise, score, settings, process, draw(key, settings, 2, (4, 4, CHANNELS)))

    pairs, metrics = jax.tree.map(np.asarray, program(jax.random.key(0)))
    assert jax.tree.map(np.shape, pairs) == ((6, 1, 4, 4, 3), (6, 2, 4, 4, 3), (6,), (6,), (6,))
    assert metrics["valid_pairs"] == pairs.valid.sum() and 0 < metrics["valid_pairs"] < 6
    np.testing.assert_allclose(metrics["valid_share"], pairs.valid.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["valid_share_at"], pairs.valid.reshape(3, 2).mean(1), rtol=1e-6)
    assert metrics["judge_score"].shape == metrics["judge_gap"].shape == (3,)
    assert (metrics["judge_gap"] > 0).all()
    # The finished latents are judged unchanged: their gap is that of the last pairs' own scores.
    scores = 20 * pairs.x_prev[-2:].mean((2, 3, 4))
    np.testing.assert_allclose(metrics["judge_gap"][-1], (scores[:, 0] - scores[:, 1]).mean(), rtol=1e-4)
