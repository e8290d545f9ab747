"""The two compiled programs of a run, on the smallest networks of the right structure."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.rows import take_rows
from spo_jax.methods.common.judge import Judge
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.method import run_batch
from spo_jax.methods.spo.programs import SPO
from spo_jax.methods.spo.row import MetricTimesteps
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.models import base
from spo_jax.nn.lora import init_lora
from spo_jax.rewards.base import DeviceReward
from spo_jax.toy.world import TRAIN_PROMPTS
from tests.support.networks import small_pipeline


class LatentReward(DeviceReward):
    """A reward that reads latents, so that the rollout compiles without a decoder and without a CLIP."""

    READS = "latents"
    meanings = {"mean": "mean of the latents"}
    params = {"factor": jnp.float32(20.0)}

    def features(self, prompts):
        return np.array([len(prompt) for prompt in prompts], np.float32)

    def score(self, params, x, features, t):
        return params["factor"] * x.mean((1, 2, 3)) + features + t


@pytest.fixture(scope="module")
def run(toy_settings):
    """Everything that `run_batch` takes, with a batch of two prompts; ``state()`` makes a new state."""
    pipeline = small_pipeline()
    spo = SPO(toy_settings, pipeline, Judge(LatentReward(), None))

    @jax.jit
    def state():
        lora = init_lora(jax.random.key(0), pipeline.params["unet"], 4)
        return init_state(lora, make_optimizer(toy_settings.optimizer))

    inputs = spo.features(TRAIN_PROMPTS[:4])
    return SimpleNamespace(
        spo=spo,
        state=state,
        frozen=spo.frozen(),
        inputs=inputs,
        two=spo.feed(take_rows(inputs, np.arange(2))),
        programs={name: traced.lower().compile() for name, traced in spo.trace(state()).items()},
        timesteps=MetricTimesteps.of(toy_settings.spo, spo.process),
    )


def batch(run, state, number):
    rows = run.spo.feed(take_rows(run.inputs, np.array([number % 4, (number + 1) % 4])))
    key = jax.random.fold_in(jax.random.key(1), number)
    return run_batch(run.programs, run.frozen, rows, run.timesteps, state, key)


@pytest.fixture(scope="module")
def compilations():
    """The programs that were traced or compiled since the list was last cleared."""
    seen = []

    def listen(event, duration, **about):
        if event.startswith("/jax/core/compile/"):
            seen.append(about.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def test_after_the_first_batch_nothing_is_compiled(run, compilations):
    """Other prompts, another key, another number of valid pairs: still the same programs."""
    state, row = batch(run, run.state(), 0)
    assert row["valid_pairs"] == 6 and row["train_batches"] == 2
    compilations.clear()
    jax.jit(lambda x: x + 1)(jnp.zeros(7))
    assert compilations  # the listener notices compilations
    compilations.clear()
    for number in (1, 2):
        state, _ = batch(run, state, number)
    assert compilations == []


def test_another_shape_is_an_error_and_no_compilation(run):
    with pytest.raises(TypeError, match="compiled"):
        three = take_rows(run.inputs, np.arange(3))
        run.programs["collect"](run.state().params, run.frozen, three, jax.random.key(0))


def test_the_programs_are_functions_of_their_arguments(run):
    arguments = (run.frozen, run.two)
    one, again, other = (
        run.programs["collect"](run.state().params, *arguments, jax.random.key(seed))[0] for seed in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert not (one.x_prev == other.x_prev).all()
    states = [run.programs["update"](run.state(), *arguments, one, jax.random.key(2))[0] for _ in range(2)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_array_is_transferred_while_they_run(run):
    collect_key, update_key = jax.random.key(0), jax.random.key(1)
    state = run.state()
    with jax.transfer_guard("disallow"):
        pairs, _ = run.programs["collect"](state.params, run.frozen, run.two, collect_key)
        run.programs["update"](state, run.frozen, run.two, pairs, update_key)


def test_the_state_is_donated(run):
    state = run.state()
    pairs, _ = run.programs["collect"](state.params, run.frozen, run.two, jax.random.key(0))
    run.programs["update"](state, run.frozen, run.two, pairs, jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((run.frozen, run.two)))


def test_as_few_copies_of_the_network_as_possible(run, monkeypatch):
    """The rollout holds two (a scan over the shared steps, one over the pools), the update policy and reference."""
    sizes = []

    def counting(predict, x, *rest):
        sizes.append(len(x))
        return guided(predict, x, *rest)

    guided = base.guided
    monkeypatch.setattr(base, "guided", counting)
    state = run.state()
    pairs, _ = jax.eval_shape(run.spo.collect, state.params, run.frozen, run.two, jax.random.key(0))
    assert sorted(sizes) == [2, 4]  # two prompts; two candidates of each
    sizes.clear()
    jax.eval_shape(run.spo.update, state, run.frozen, run.two, pairs, jax.random.key(0))
    assert sizes == [4, 4]  # pairs share x_t: one row a pair


def test_a_fresh_adapter_is_the_reference(run):
    """In the very first training batch; any later one has moved."""
    pairs, _ = run.programs["collect"](run.state().params, run.frozen, run.two, jax.random.key(0))
    one_batch = pairs._replace(valid=jnp.arange(6) < 3)
    state, metrics = run.programs["update"](run.state(), run.frozen, run.two, one_batch, jax.random.key(1))
    assert metrics["train_batches"] == state.step == 1
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose([metrics["ratio/win"], metrics["ratio/lose"]], 1, rtol=1e-5)
    assert 0 < metrics["grad_norm"] < 1e3


def test_a_fresh_adapter_is_the_reference_in_bfloat16_too(toy_settings):
    """At t = 51, where a prediction weighs most, in the program that runs.

    Without its compiler option XLA rounds the two passes in different places. What remains are float32 sums in another
    order, which sometimes round to another bfloat16.
    """
    pipeline = small_pipeline(dtype=jnp.bfloat16)
    settings = dataclasses.replace(toy_settings, spo=SPOSettings(train_batch_size=16, train_chunk=16))
    spo = SPO(settings, pipeline, Judge(LatentReward(), None))
    lora = init_lora(jax.random.key(0), pipeline.params["unet"], 4)
    state = init_state(lora, make_optimizer(settings.optimizer))
    traced = spo.trace(state)
    frozen, features = spo.frozen(), spo.feed(take_rows(spo.features(TRAIN_PROMPTS[:2]), np.arange(2)))
    pairs = pairs_at(spo, frozen, features, 51, traced["collect"].out_info[0])
    _, metrics = traced["update"].lower().compile()(state, frozen, features, pairs, jax.random.key(1))
    assert metrics["train_batches"] == 1
    assert metrics["first_ratio_error"] < 1e-3
    np.testing.assert_allclose([metrics["ratio/win"], metrics["ratio/lose"]], 1, atol=1e-3)
    np.testing.assert_allclose(metrics["loss"], np.log(2), atol=5e-3)


def pairs_at(spo, frozen, features, t, shapes):
    """Pairs in the shapes of a rollout, 16 of them valid: drawn from the reference's step at ``t``."""
    keys = jax.random.split(jax.random.key(7), 2)
    count = len(shapes.valid)
    x = jax.random.normal(keys[0], shapes.x_t.shape)
    row = jnp.arange(count, dtype=jnp.int32) % 2
    t = jnp.full(count, t, jnp.int32)

    @jax.jit
    def step(x):
        predict = spo.policy.predictor(frozen.network, features.condition, frozen.unconditional)
        return spo.process.step(*spo.process.split(x, predict(None, x, t, row), t), t, 1.0)

    mean, std = step(x[:, 0])
    noise = jax.random.normal(keys[1], shapes.x_prev.shape)
    return Pairs(x, mean[:, None] + std[:, None] * noise, t, row, jnp.arange(count) < 16)


def test_traced_shapes_are_those_of_the_arrays(run):
    """Programs are traced for shapes, so that they can be compiled before there are weights or prompts."""

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert shapes(run.spo.frozen_shapes()) == shapes(run.frozen)
    assert shapes(run.spo.feature_shapes()) == shapes(run.two)


def test_a_schedule_that_ends_at_zero_is_refused(run):
    """From t = 0 to t = 0 the standard deviation is 0: every loss would be NaN."""
    pipeline = run.spo.pipeline
    for changes in ({"timestep_spacing": "linspace"}, {"steps_offset": 0}):
        broken = dataclasses.replace(pipeline, scheduler=dataclasses.replace(pipeline.scheduler, **changes))
        with pytest.raises(UserError, match="the last sampling step of its scheduler is at t = 0"):
            dataclasses.replace(run.spo, pipeline=broken)
