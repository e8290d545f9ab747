"""A LoRA on a frozen model as a policy, and the log-probabilities of pairs of its steps."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.process import log_prob
from spo_jax.methods.common.policy import Pairs, Policy, pair_log_probs
from spo_jax.nn.lora import init_lora
from tests.support.networks import SCHEDULE, random_weights, small_pipeline

PROCESS = make_ddpm(SCHEDULE, 20)
SHAPE = (4, 4, 3)
N = 3


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def predict(x, t, row):
    """A prediction that depends on everything."""
    return jnp.tanh(x) * (0.5 + t / 2000.0).reshape(-1, 1, 1, 1) + 0.1 * row.reshape(-1, 1, 1, 1)


def pairs_of(members):
    """Pairs whose winner and loser share x_t (``members`` 1) or do not (2)."""
    return Pairs(
        x_t=normal(0, N, members, *SHAPE),
        x_prev=normal(1, N, 2, *SHAPE),
        t=jnp.array([951, 501, 251], jnp.int32),
        row=jnp.array([0, 2, 1], jnp.int32),
        valid=jnp.ones(N, bool),
    )


@pytest.mark.parametrize("members", [1, 2])
def test_log_probs_are_those_of_each_member_alone(members):
    pairs = pairs_of(members)
    found = jax.jit(lambda pairs: pair_log_probs(predict, PROCESS, 1.0, pairs))(pairs)
    assert found.shape == (N, 2)
    for member in range(2):
        x = pairs.x_t[:, member if members == 2 else 0]
        x0, noise = PROCESS.split(x, predict(x, pairs.t, pairs.row), pairs.t)
        mean, std = PROCESS.step(x0, noise, pairs.t, 1.0)
        np.testing.assert_allclose(found[:, member], log_prob(pairs.x_prev[:, member], mean, std), rtol=1e-5)


def test_a_shared_x_t_is_half_the_work_and_the_same_number():
    shared = pairs_of(1)
    separate = shared._replace(x_t=jnp.repeat(shared.x_t, 2, axis=1))
    found = []
    for pairs, rows in ((shared, N), (separate, 2 * N)):
        sizes = []

        def counting(x, t, row, sizes=sizes):
            sizes.append((len(x), len(t), len(row)))
            return predict(x, t, row)

        found.append(pair_log_probs(counting, PROCESS, 1.0, pairs))
        assert sizes == [(rows, rows, rows)]
    np.testing.assert_allclose(*found, rtol=1e-6)


# The policy of a model


@pytest.fixture(scope="module")
def model():
    """A policy, its base weights, an adapter that changes its predictions, and what three prompts are encoded to."""
    pipeline = small_pipeline()
    shapes = jax.eval_shape(lambda: init_lora(jax.random.key(0), pipeline.params["unet"], 2))
    condition, unconditional = jax.device_put(
        (pipeline.encode_prompts(["a red star", "a blue moon", "a green disc"]), pipeline.encode_unconditional())
    )
    policy = Policy(pipeline, guidance_scale=3.0, lora_scale=0.5)

    @jax.jit
    def sample(network, lora, x):
        return policy.sampler(network, lora, condition, unconditional)(x, jnp.int32(501))

    @jax.jit
    def predict(network, lora, x, row):
        return policy.predictor(network, condition, unconditional)(lora, x, jnp.full(len(x), 501), row)

    return SimpleNamespace(
        policy=policy,
        network=pipeline.params["unet"],
        lora=jax.tree.map(lambda x: 0.3 * x, random_weights(3, shapes)),
        x=normal(2, 3, *pipeline.latent_shape),
        sample=sample,
        predict=predict,
    )


def test_every_latent_has_the_row_it_names(model):
    """`predictor` takes rows in any order; `sampler` takes them in order, with copies in front; both agree."""
    order = jnp.array([2, 0, 1])
    by_rows = model.predict(model.network, model.lora, model.x[order], order)
    copies = model.sample(model.network, model.lora, jnp.stack([model.x, model.x]))
    np.testing.assert_allclose(copies[0], copies[1], atol=1e-5)
    np.testing.assert_allclose(by_rows, copies[0, order], atol=1e-4)
    assert np.abs(by_rows - copies[0]).max() > 1e-2


def test_at_rest_it_is_merged_only_where_that_costs_no_digits(model, monkeypatch):
    """float32 on a CPU; bfloat16 weights, and accelerators, keep the adapter apart."""
    policy, network, lora = model.policy, model.network, model.lora
    merged, none = policy.at_rest(network, lora)
    assert none is None and merged is not network
    x = jnp.stack([model.x, model.x])
    found = model.sample(merged, None, x)
    np.testing.assert_allclose(found, model.sample(network, lora, x), atol=1e-4)
    assert np.abs(found - model.sample(network, None, x)).max() > 1e-2

    pipeline = policy.pipeline
    rounded = dataclasses.replace(pipeline, unet=pipeline.unet.clone(dtype=jnp.bfloat16))
    apart = dataclasses.replace(policy, pipeline=rounded).at_rest(network, lora)
    assert apart[0] is network and apart[1] is lora
    monkeypatch.setattr("spo_jax.methods.common.policy.platform_in_context", lambda: "tpu")
    apart = policy.at_rest(network, lora)
    assert apart[0] is network and apart[1] is lora
