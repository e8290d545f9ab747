"""DDPO against its original: advantages with their history, the loss, log-probabilities, and three updates.

Ratios are clipped at 1e-4, so log-probabilities have to agree to 1e-5; those of the cases are further from the clip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.process import log_prob
from spo_jax.methods.common.final_judge import FinalJudge
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Policy, step_log_probs
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import apply_gradients, init_state
from spo_jax.methods.common.trajectories import Noise, Trajectories, sample
from spo_jax.methods.common.trajectory_update import batch_gradients
from spo_jax.methods.ddpo.advantages import advantages, empty_history, statistics
from spo_jax.methods.ddpo.method import DDPO
from spo_jax.methods.ddpo.objective import ddpo_loss
from spo_jax.methods.ddpo.settings import DDPOSettings, DDPOTrainSettings
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from tests.golden import rivals as compare

LOG_PROB = 1e-5  # absolute


def test_advantages_and_the_history_after_each_epoch(rivals):
    case = rivals.case("ddpo_advantages")
    prompts = case["buffer_count"].shape[1]
    history = empty_history(prompts, int(case.number("buffer_size")))
    everyone = jnp.arange(prompts)
    for epoch, (prompt, rewards) in enumerate(zip(case["prompt_index"], case["rewards"], strict=True)):
        history, found, _ = advantages(history, jnp.asarray(prompt), jnp.asarray(rewards), case.number("min_count"))
        for name in ("advantages", "advantages_f64"):
            np.testing.assert_allclose(found, case[name][epoch], rtol=1e-4, atol=1e-5)
        mean, std, count = statistics(history, everyone)
        np.testing.assert_array_equal(count, case["buffer_count"][epoch])
        np.testing.assert_allclose(mean, case["buffer_mean"][epoch], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, case["buffer_std"][epoch], rtol=1e-4, atol=1e-6)


def test_advantages_without_a_history(rivals):
    case = rivals.case("ddpo_advantages")
    _, found, own = advantages(
        empty_history(case["buffer_count"].shape[1], 0),
        jnp.asarray(case["prompt_index"][0]),
        jnp.asarray(case["rewards"][0]),
        1,
    )
    np.testing.assert_allclose(found, case["advantages_no_tracking_epoch0"], rtol=1e-5, atol=1e-6)
    assert not own.any()


def test_whole_numbers_as_rewards_are_not_truncated(rivals):
    """The original's advantages of integers are integers; ours are what it truncated."""
    case = rivals.case("ddpo_advantages")
    rewards = jnp.asarray(case["int_rewards_epoch0"], jnp.float32)
    history = empty_history(case["buffer_count"].shape[1], int(case.number("buffer_size")))
    _, found, _ = advantages(history, jnp.asarray(case["prompt_index"][0]), rewards, case.number("min_count"))
    stored = case["advantages_int_rewards_epoch0"]
    certain = np.abs(found - np.round(found)) > 1e-4  # others may be truncated either way
    np.testing.assert_array_equal(np.trunc(found)[certain], stored[certain])
    assert (np.asarray(found) != stored).any()


def test_loss(rivals):
    case = rivals.case("ddpo_loss")
    clips = {name: case.number(name) for name in ("clip_range", "adv_clip_max")}

    def loss(logp):
        out = ddpo_loss(logp, jnp.asarray(case["old_log_prob"]), jnp.asarray(case["advantages"]), **clips)
        return out.loss.mean(), out

    (value, out), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(case["log_prob"]))
    compare.assert_close(value, case["loss"], compare.LOSS)
    compare.assert_close(out.loss, case["loss_per_sample"], compare.LOSS)
    compare.assert_close(out.ratio, case["ratio"], compare.LOSS)
    compare.assert_close(gradient, case["grad_log_prob"], compare.GRADIENT)
    difference = case["log_prob"] - case["old_log_prob"]
    compare.assert_close(0.5 * np.square(difference).mean(), case["approx_kl"], compare.GRADIENT)
    clipped = (np.abs(out.ratio - 1) > clips["clip_range"]).mean()
    assert float(clipped) == pytest.approx(case.number("clipfrac"))


def test_log_probabilities_of_ddim_steps(rivals):
    case = rivals.case("ddim_logprob")
    process = rivals.process(int(case.number("num_inference_steps")))
    x_t, x_prev, t = jnp.asarray(case.images("x_t")), jnp.asarray(case.images("x_prev")), jnp.asarray(case["timesteps"])
    row, eta = jnp.arange(len(t)), case.number("eta")

    def log_probs(eps):
        predict = lambda x, t, row: eps  # noqa: E731
        return step_log_probs(predict, process, eta, x_t[:, None], x_prev[:, None], t, row)[:, 0]

    eps = jnp.asarray(case.images("eps"))
    found = log_probs(eps)
    np.testing.assert_allclose(found, case["log_prob"], atol=LOG_PROB)
    np.testing.assert_allclose(found, case["log_prob_f64"], atol=LOG_PROB)
    gradient = jax.grad(lambda eps: log_probs(eps).sum())(eps)
    for ours, theirs in zip(gradient, case.images("grad_eps_of_sum_log_prob"), strict=True):
        compare.assert_close(ours, theirs, 10 * compare.GRADIENT)
    x0, direction = process.split(x_t, eps, t)
    mean, std = process.step(x0, direction, t, eta)
    compare.assert_close(x0, case.images("x0_f64"), compare.GRADIENT)
    compare.assert_close(mean, case.images("mean_f64"), compare.GRADIENT)
    np.testing.assert_allclose(std.reshape(-1), case["std_f64"], rtol=1e-4)
    drawn = mean + std * case.images("noise")
    np.testing.assert_allclose(log_prob(drawn, mean, std), found, atol=10 * LOG_PROB)


class Updates:
    """The fixed rollout of the case ``ddpo_e2e``, and three updates on it."""

    def __init__(self, rivals):
        self.case = case = rivals.case("ddpo_e2e")
        self.pipeline = rivals.pipeline_of(case)
        prompts, steps = case["old_log_probs"].shape
        own = DDPOSettings(
            num_steps=steps,
            samples_per_prompt=1,
            train_batch_size=prompts,
            guidance_scale=case.number("guidance_scale"),
            clip_range=case.number("clip_range"),
            adv_clip_max=case.number("adv_clip_max"),
        )
        settings = DDPOTrainSettings(prompts_per_batch=prompts, ddpo=own)
        self.method = DDPO(settings, self.pipeline, FinalJudge((), None))
        self.lora = case.lora("lora_init")
        latents = jnp.moveaxis(jnp.asarray(case.images("latents")), 1, 0)
        self.trajectories = Trajectories(latents, jnp.asarray(case["old_log_probs"]).T)
        policy = Policy(self.pipeline, own.guidance_scale, 1.0)
        condition = Conditioning(jnp.asarray(case["prompt_embeds"]))
        unconditional = Conditioning(jnp.asarray(case["neg_prompt_embed"]))
        self.predict = policy.predictor(self.pipeline.params["unet"], condition, unconditional)

    @functools.cached_property
    def run(self):
        """States and (gradients, metrics) of the three updates."""
        case, method = self.case, self.method
        optimizer = make_optimizer(
            OptimizerSettings(
                learning_rate=case.number("lr"),
                weight_decay=case.number("weight_decay"),
                max_grad_norm=case.number("max_grad_norm"),
            )
        )
        loss = method.loss(self.predict, self.trajectories, jnp.asarray(case["advantages"]))
        times = jnp.asarray(case["time_perms"])

        @jax.jit
        def update(state):
            items = jnp.arange(len(times))
            gradients, metrics = batch_gradients(
                state.params, loss, method.settings.own, items, times, method.METRICS
            )  # fmt: skip
            return apply_gradients(state, gradients, optimizer), gradients, metrics

        states, rows = [init_state(self.lora, optimizer)], []
        for _ in range(3):
            state, *row = update(states[-1])
            states.append(state)
            rows.append(row)
        return states, rows

    @functools.cached_property
    def log_probs(self):
        """(adapter) to log-probabilities [b s], new and old, in the order in which timesteps are trained on."""
        method = self.method
        times = jnp.asarray(self.case["time_perms"])
        item = jnp.repeat(jnp.arange(len(times)), times.shape[1])

        @jax.jit
        def log_probs(lora):
            steps = method.steps(self.trajectories)(item, times.reshape(-1))
            policy = functools.partial(self.predict, lora)
            new = step_log_probs(policy, method.process, 1.0, steps.x_t, steps.x_prev, steps.t, steps.row)
            return new.reshape(times.shape), steps.log_probs.reshape(times.shape)

        return log_probs


@pytest.fixture(scope="module")
def updates(rivals):
    return Updates(rivals)


def test_the_rollout_is_the_reference_s(updates):
    case, method = updates.case, updates.method
    np.testing.assert_array_equal(method.process.timesteps, case["timesteps"])
    noise = jnp.moveaxis(jnp.asarray(case.images("noise")), 1, 0)
    start = updates.trajectories.latents[0]

    @jax.jit
    def rollout(lora):
        predict = functools.partial(updates.predict, lora)
        return sample(predict, method.process, 1.0, Noise(start, noise), jnp.arange(len(start)), 1)

    found = rollout(updates.lora)
    compare.assert_close(found.latents, updates.trajectories.latents, 10 * compare.OUTPUT)
    np.testing.assert_allclose(found.log_probs, updates.trajectories.log_probs, atol=LOG_PROB)


def test_ratios_of_every_update(updates):
    states, rows = updates.run
    clip = updates.case.number("clip_range")
    for index, (_, metrics) in enumerate(rows):
        new, old = updates.log_probs(states[index].params)
        np.testing.assert_allclose(new, updates.case["new_log_prob"][index], atol=LOG_PROB)
        np.testing.assert_allclose(jnp.exp(new - old), updates.case["ratio"][index], atol=2 * LOG_PROB)
        expected = (np.abs(updates.case["ratio"][index] - 1) > clip).mean()
        assert float(metrics["clip_fraction"]) == pytest.approx(expected)
        assert float(metrics["loss"]) == pytest.approx(updates.case["loss"][index].mean(), abs=2 * LOG_PROB)


def test_gradients_and_lora(updates):
    case = updates.case
    states, rows = updates.run
    for index in (0, 1):
        compare.assert_gradients_close(rows[index][0], case.lora(f"grad_update{index + 1}_preclip"))
    norms = [jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(gradients))) for gradients, _ in rows]
    np.testing.assert_allclose(norms, case["grad_norm_preclip"], rtol=compare.LORA_GRADIENT)
    first = case.lora("grad_update1_preclip")
    compare.assert_stepped(states[1].params, case.lora("lora_update1"), case.number("lr"), first)
    compare.assert_stepped(states[3].params, case.lora("lora_update3"), case.number("lr"), first, steps=3)
