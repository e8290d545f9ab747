"""The optimizer: its clip, its decay, accumulated batches and the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import Adafactor, get_linear_schedule_with_warmup

from spo_jax.methods.common.optimizer import learning_rate, learning_rate_at, make_optimizer
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import apply_gradients, init_state

PARAMS = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": {"c": jnp.array([2.0, -3.0])}}
GRADIENTS = {"a": jnp.full((2, 3), 0.5), "b": {"c": jnp.array([-1.0, 2.0])}}
NORM = np.sqrt(6 * 0.25 + 1 + 4)


def step(settings, gradients=GRADIENTS, total=0):
    """The weights' movement in one training batch, and the state after it."""
    optimizer = make_optimizer(settings, total)
    state = apply_gradients(init_state(PARAMS, optimizer), gradients, optimizer)
    return jax.tree.map(jnp.subtract, state.params, PARAMS), state


@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_the_global_norm_is_clipped(limit):
    """With an epsilon far above any gradient AdamW is plain gradient descent, which shows the clip."""
    settings = OptimizerSettings(max_grad_norm=limit, adam_epsilon=1.0, learning_rate=10.0, weight_decay=0.0)
    moved, _ = step(settings, jax.tree.map(lambda g: 1e-3 * g, GRADIENTS))
    np.testing.assert_allclose(optax.global_norm(moved), 10 * min(limit, 1e-3 * NORM), rtol=5e-3)


def test_weight_decay_is_decoupled():
    settings = OptimizerSettings(learning_rate=1e-2, weight_decay=0.5)
    moved, _ = step(settings, gradients=jax.tree.map(jnp.zeros_like, PARAMS))
    for found, value in zip(jax.tree.leaves(moved), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(found, -1e-2 * 0.5 * value, rtol=1e-4)


def test_the_step_is_adamw_s():
    """The first step is -rate · (sign of the gradient + decay · weight) for a gradient of any size."""
    moved, state = step(OptimizerSettings(learning_rate=1e-2, weight_decay=0.1))
    expected = jax.tree.map(lambda g, p: -1e-2 * (jnp.sign(g) + 0.1 * p), GRADIENTS, PARAMS)
    for found, value in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4)
    assert state.step == 1 and state.step.dtype == jnp.int32


def test_batches_are_accumulated():
    """Every second batch takes a step, with the mean of two gradients; the state counts batches."""
    settings = OptimizerSettings(learning_rate=1e-2, gradient_accumulation_steps=2, adam_epsilon=1.0)
    optimizer = make_optimizer(settings)
    state = init_state(PARAMS, optimizer)
    state = apply_gradients(state, jax.tree.map(jnp.zeros_like, GRADIENTS), optimizer)
    for found, value in zip(jax.tree.leaves(state.params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(found, value)
    state = apply_gradients(state, jax.tree.map(lambda g: 2 * g, GRADIENTS), optimizer)
    assert state.step == 2
    _, once = step(OptimizerSettings(learning_rate=1e-2, adam_epsilon=1.0))
    for found, value in zip(jax.tree.leaves(state.params), jax.tree.leaves(once.params), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_linear_schedule_is_transformers(warmup):
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_linear_schedule_with_warmup(theirs, warmup, 10)
    rate = learning_rate(OptimizerSettings(learning_rate=0.5, schedule="linear", warmup_steps=warmup), total=10)
    for number in range(10):
        np.testing.assert_allclose(rate(number), schedule.get_last_lr()[0], rtol=1e-6, atol=1e-9)
        theirs.step()
        schedule.step()


def test_a_constant_rate_rises_first():
    assert learning_rate(OptimizerSettings(learning_rate=0.5)) == 0.5
    rate = learning_rate(OptimizerSettings(learning_rate=0.5, warmup_steps=2))
    np.testing.assert_allclose([rate(number) for number in range(4)], [0, 0.25, 0.5, 0.5])


def test_the_rate_of_a_batch_is_that_of_its_optimizer_step():
    """With two batches a step, batches 2 and 3 belong to step 1; the schedule's length is counted in steps."""
    settings = OptimizerSettings(learning_rate=1.0, schedule="linear", gradient_accumulation_steps=2)
    rates = [float(learning_rate_at(settings, 8, jnp.int32(batch))) for batch in range(8)]
    np.testing.assert_allclose(rates, np.repeat([1, 0.75, 0.5, 0.25], 2))
    assert learning_rate_at(OptimizerSettings(learning_rate=0.5), 8, jnp.int32(3)) == 0.5


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adafactor_is_transformers(decay):
    """As Diffusion-DPO and SmPO call it: no scale by parameters, no relative step, clip_threshold 1.

    Over several steps with gradients of very different sizes, so that both means and the clip of the step count.
    """
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=5), jnp.float32)}
    settings = OptimizerSettings(name="adafactor", learning_rate=1e-2, weight_decay=decay, max_grad_norm=1e9)
    ours = make_optimizer(settings)
    state = init_state(params, ours)
    theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in params.items()}
    fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0}
    optimizer = Adafactor(theirs.values(), lr=1e-2, weight_decay=decay, **fixed)
    for number in range(4):
        gradients = {name: 10.0**number * rng.normal(size=p.shape).astype(np.float32) for name, p in params.items()}
        state = apply_gradients(state, gradients, ours)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        optimizer.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(state.params[name], parameter.detach(), rtol=1e-5, atol=1e-6)
