"""The training of latent reward models (LPO): noisy latents, scores, loss, and gradients of every kind of weight."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig
from spo_jax.methods.common.preference.loss import pair_losses
from spo_jax.methods.common.preference.update import gradients
from spo_jax.methods.lrm.inputs import LatentPairs, pair_scores
from spo_jax.parallel.chunks import cut
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.weights.rules import to_state


class OfTwoTimes(NamedTuple):
    """Pairs whose images may have different timesteps, as some of the arrays have; ours are trained on one."""

    t: jax.Array
    labels: jax.Array
    weights: jax.Array
    pairs: LatentPairs


class Case:
    """The pairs of one model, and what is computed of them."""

    def __init__(self, golden, inputs, name):
        folder = inputs.needs(name)
        self.golden, self.arrays = golden, golden.arrays(f"rewards/{name}/golden.npz")
        given = golden.arrays(f"rewards/{name}/inputs.npz")
        read = load_reward(f"lrm:{folder}", Context()).read
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        process = make_ddpm(ScheduleConfig.from_dict(scheduler), 20)
        np.testing.assert_allclose(process.alphas_cumprod, self.arrays["alphas_cumprod"], rtol=1e-6)

        def pairs(x):  # all images 0, then all images 1 -> [n 2 ...]
            return jnp.stack(jnp.split(jnp.asarray(x), 2), axis=1)

        latents = golden.nhwc(given["vae_latents"]) * given["vae_scaling_factor"].item()
        t = jnp.asarray(given["pair_timesteps"]).reshape(-1, 2)
        order = jnp.asarray(self.arrays["train_timesteps_order"])
        np.testing.assert_array_equal(pairs(order), t)
        self.noisy = process.add_noise(latents, golden.nhwc(given["noise"]), order)
        prompts = [inputs.prompts[index] for index in given["train_prompts"]]
        weights = 1 / given["num_examples_per_prompt"].astype(np.float32)
        labels = jnp.stack([given["label_0"], given["label_1"]], axis=1)
        ids = jnp.asarray(read.tokenize(prompts))
        self.batch = LatentPairs(pairs(self.noisy), t, ids, labels, jnp.asarray(weights / weights.sum()))
        self.params = read.params
        self.scores = functools.partial(pair_scores, read.model, empty=jnp.asarray(read.tokenize([""])))


@pytest.fixture(scope="module", params=["lrm_sd15", "lrm_sdxl"])
def case(request, golden, reward_inputs):
    return Case(golden, reward_inputs, request.param)


def test_noisy_latents(case):
    assert case.golden.relative_error(case.noisy, case.golden.nhwc(case.arrays["train_noisy_latents"])) < 1e-6


def test_scores_and_loss(case):
    scores = jax.jit(lambda params: case.scores(params, case.batch))(case.params)
    theirs = np.stack([case.arrays["train_scores_0"], case.arrays["train_scores_1"]], axis=1)
    assert case.golden.relative_error(scores, theirs) < 1e-4
    loss = (pair_losses(scores, case.batch.labels) * case.batch.weights).sum()
    np.testing.assert_allclose(loss, case.arrays["loss_pair"], rtol=1e-4)


def test_gradients(case):
    """Of all that is trained; chunk by chunk, as in training."""
    batch = case.batch
    one_at_a_time = cut(OfTwoTimes(batch.t[:, 0], batch.labels, batch.weights, batch), 1)

    @jax.jit
    def program(params):
        def scores(params, chunk):
            return case.scores(params, chunk.pairs)

        return gradients(scores, params, lambda chunk: chunk, one_at_a_time, timesteps=1000)

    found, metrics = program(case.params)
    np.testing.assert_allclose(metrics["loss"], case.arrays["loss_pair"], rtol=1e-4)
    np.testing.assert_allclose(optax.global_norm(found), case.arrays["grad_global_norm"], rtol=1e-4)
    names = [name for name in case.arrays if name.startswith("grad_") and name != "grad_global_norm"]
    # By component, because a number in the name of a module is an index for `to_state`, and not in text_encoder_2.
    parts = {part: tree for part, tree in found.items() if part != "logit_scale"}
    state = {f"{part}.{name}": value for part, tree in parts.items() for name, value in to_state(tree).items()}
    state["logit_scale"] = found["logit_scale"]
    assert len(names) > 8
    for name in names:
        ours = state[name.removeprefix("grad_")]
        assert case.golden.relative_error(ours, case.arrays[name]) < 1e-4, name
