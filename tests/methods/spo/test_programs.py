"""The two compiled programs of a run, on the embedded pipeline."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.trees import take_rows
from spo_jax.methods.spo.batch import run_batch
from spo_jax.methods.spo.programs import Networks, compile_programs
from spo_jax.methods.spo.resampler import judged_timesteps
from spo_jax.methods.spo.update import init_state, make_optimiser
from spo_jax.models.stable_diffusion import functions
from spo_jax.nn.lora import init_lora
from spo_jax.toy.world import TRAIN_PROMPTS


@pytest.fixture(scope="module")
def run(embedded, tiny_settings):
    """Everything that `run_batch` takes, with a batch of two prompts; ``state()`` is a fresh one."""
    networks = Networks.build(embedded.pipeline, embedded.spm, tiny_settings.spo, tiny_settings.lora.scale)
    unet = embedded.pipeline.params["unet"]

    def state():
        return init_state(init_lora(jax.random.key(0), unet, 4), make_optimiser(tiny_settings.spo))

    frozen, inputs = networks.frozen(), networks.inputs(TRAIN_PROMPTS[:4])
    programs = compile_programs(networks, state(), frozen, take_rows(inputs, np.arange(2)))
    timesteps = judged_timesteps(tiny_settings.spo, networks.schedule)
    return SimpleNamespace(
        networks=networks, state=state, frozen=frozen, inputs=inputs, programs=programs, timesteps=timesteps
    )


def batch(run, state, number):
    rows, key = take_rows(run.inputs, np.array([number % 4, (number + 1) % 4])), jax.random.key(1)
    return run_batch(run.programs, run.frozen, rows, run.timesteps, state, jax.random.fold_in(key, number))


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
    assert compilations  # the listener hears of compilations
    compilations.clear()
    for number in (1, 2):
        state, _ = batch(run, state, number)
    assert compilations == []


def test_another_shape_is_an_error_and_no_compilation(run):
    with pytest.raises(TypeError, match="compiled"):
        run.programs.collect(run.state().lora, run.frozen, take_rows(run.inputs, np.arange(3)), jax.random.key(0))


def test_the_programs_are_functions_of_their_arguments(run):
    arguments = (run.frozen, take_rows(run.inputs, np.arange(2)))
    (one, _), (again, _), (other, _) = (
        run.programs.collect(run.state().lora, *arguments, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert not (one.x_prev == other.x_prev).all()
    states = [run.programs.update(run.state(), *arguments, one, jax.random.key(2))[0] for _ in range(2)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_array_leaves_or_enters_while_they_run(run):
    inputs, keys = run.programs.feed(take_rows(run.inputs, np.arange(2))), jax.random.split(jax.random.key(0))
    arguments, state, keys = (run.frozen, inputs), run.state(), (keys[0], keys[1])
    with jax.transfer_guard("disallow"):
        pairs, _ = run.programs.collect(state.lora, *arguments, keys[0])
        run.programs.update(state, *arguments, pairs, keys[1])


def test_the_state_is_donated(run):
    state = run.state()
    arguments = (run.frozen, take_rows(run.inputs, np.arange(2)))
    pairs, _ = run.programs.collect(state.lora, *arguments, jax.random.key(0))
    run.programs.update(state, *arguments, pairs, jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.lora, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.frozen))


def test_as_few_copies_of_the_unet_as_can_be(run, monkeypatch):
    """The rollout holds two (a scan over the shared steps, one over the pools), the update policy and reference."""
    sizes = []

    def counting(predict, x, *rest):
        sizes.append(len(x))
        return guided(predict, x, *rest)

    guided = functions.guided
    monkeypatch.setattr(functions, "guided", counting)
    inputs, state = take_rows(run.inputs, np.arange(2)), run.state()
    pairs, _ = jax.eval_shape(run.networks.collect, state.lora, run.frozen, inputs, jax.random.key(0))
    assert sorted(sizes) == [2, 4]  # two prompts; two candidates of each
    sizes.clear()
    jax.eval_shape(run.networks.update, state, run.frozen, inputs, pairs, jax.random.key(0))
    assert sizes == [4, 4]  # pairs share x_t: one row a pair


def test_the_policy_is_in_one_piece_only_where_that_costs_no_digits(run, monkeypatch):
    """float32 on a CPU; bfloat16 weights, and accelerators, keep the adapter apart."""
    networks, unet, lora = run.networks, run.frozen.unet, run.state().lora
    merged, none = networks._policy(unet, lora)
    assert none is None and merged is not unet
    rounded = dataclasses.replace(networks.pipeline, unet=networks.pipeline.unet.clone(dtype=jnp.bfloat16))
    apart = dataclasses.replace(networks, pipeline=rounded)._policy(unet, lora)
    assert apart[0] is unet and apart[1] is lora
    monkeypatch.setattr("spo_jax.methods.spo.programs.platform_in_context", lambda: "tpu")
    apart = networks._policy(unet, lora)
    assert apart[0] is unet and apart[1] is lora


def test_a_fresh_adapter_is_the_reference(run):
    """In the very first training batch; any after it has moved."""
    arguments = (run.frozen, take_rows(run.inputs, np.arange(2)))
    pairs, _ = run.programs.collect(run.state().lora, *arguments, jax.random.key(0))
    one_batch = pairs._replace(valid=jnp.arange(6) < 3)
    state, metrics = run.programs.update(run.state(), *arguments, one_batch, jax.random.key(1))
    assert metrics["train_batches"] == state.step == 1
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose([metrics["ratio/win"], metrics["ratio/lose"]], 1, rtol=1e-5)
    assert 0 < metrics["grad_norm"] < 1e3


def test_a_schedule_that_ends_at_zero_is_refused(run, tiny_settings):
    """From t = 0 to t = 0 the standard deviation is 0: every loss would be NaN."""
    pipeline = run.networks.pipeline
    for changes in ({"timestep_spacing": "linspace"}, {"steps_offset": 0}):
        broken = dataclasses.replace(pipeline, scheduler=dataclasses.replace(pipeline.scheduler, **changes))
        with pytest.raises(UserError, match="scheduler_config.json: the last sampling step is at t = 0"):
            Networks.build(broken, run.networks.spm, tiny_settings.spo, 1.0)
