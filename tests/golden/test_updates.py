"""Training steps (g): log-probabilities, ratios, loss, gradients, and the LoRA after 1 and 3 optimizer steps.

float32 against float32. Log-probabilities 1e-5 absolute (the reference moved by 1e-6 in float64), ratios 2e-5.
Gradients 1e-3 of each tensor's largest value. AdamW divides by the gradient's own size, so that where a gradient is
near its epsilon a weight may move either way by a whole step (6e-5): weights are compared at the 99th percentile of
differences, and bounded by a few steps everywhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spo_jax.core.trees import flatten
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs, Policy, pair_log_probs
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import apply_gradients, init_state
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.update import train_batch
from spo_jax.models.lora import read_lora
from spo_jax.models.stable_diffusion.conditioning import Conditioning

KINDS = ["sd15", "sdxl"]
NO_CLIP = 1e9


class Step:
    """The fixed batch of a folder ``g_<kind>``."""

    def __init__(self, golden, kind):
        self.golden = golden
        self.pipeline = golden.pipeline(kind)
        self.process = golden.process(kind)
        self.folder = golden.folder / f"g_{kind}"
        self.arrays = golden.arrays(f"g_{kind}/step.npz")
        self.hp = {key[3:]: float(value) for key, value in self.arrays.items() if key.startswith("hp/")}
        self.count = len(self.arrays["timesteps"])
        self.pairs = self._pairs()
        self.settings = SPOSettings(
            beta=self.hp["beta"], eps=self.hp["eps"], eta=self.hp["eta"], train_batch_size=self.count
        )

    def _pairs(self):
        a = self.arrays

        def both(name):  # [n 2 h w c]
            return jnp.stack([self.golden.nhwc(a[f"{name}_{i}"]) for i in (0, 1)], axis=1)

        x_t = both("latents")
        shared = bool((x_t[:, 0] == x_t[:, 1]).all())
        return Pairs(
            x_t=x_t[:, :1] if shared else x_t,
            x_prev=both("next_latents"),
            t=jnp.asarray(a["timesteps"]),
            row=jnp.arange(self.count),
            valid=jnp.ones(self.count, bool),
        )

    def predictor(self, unet_params):
        a = {key: jnp.asarray(value) for key, value in self.arrays.items()}
        condition = Conditioning(a["prompt_embeds"])
        unconditional = Conditioning(a["negative_prompt_embeds"])
        if "add_text_embeds" in a:
            ids = a["add_time_ids"]
            condition = condition._replace(pooled=a["add_text_embeds"], time_ids=ids[self.count :])
            unconditional = unconditional._replace(pooled=a["negative_pooled_prompt_embeds"], time_ids=ids[:1])
        policy = Policy(self.pipeline, self.hp["guidance_scale"], self.hp["lora_alpha"] / self.hp["lora_rank"])
        return policy.predictor(unet_params, condition, unconditional)

    @functools.cached_property
    def gradients(self):
        """(adapter) to (metrics, gradients) of a training batch: one compiled program for all optimizers."""
        without = optax.identity()

        @jax.jit
        def program(unet_params, lora):
            state = init_state(lora, without)
            rows = jnp.arange(self.count)
            predict = self.predictor(unet_params)
            batch = (self.pairs, rows, jnp.int32(self.count))
            _, metrics, gradients = train_batch(state, predict, self.process, self.settings, without, *batch)
            return metrics, gradients

        return functools.partial(program, self.pipeline.params["unet"])

    @functools.cache  # noqa: B019  two instances a session
    def run(self, max_grad_norm):
        """States, and (metrics, gradients), of three optimizer steps on the same batch."""
        optimizer = make_optimizer(
            OptimizerSettings(
                learning_rate=self.hp["lr"],
                adam_beta1=self.hp["adam_beta1"],
                adam_beta2=self.hp["adam_beta2"],
                adam_epsilon=self.hp["adam_eps"],
                weight_decay=self.hp["weight_decay"],
                max_grad_norm=max_grad_norm,
            )
        )
        apply = jax.jit(lambda state, gradients: apply_gradients(state, gradients, optimizer))
        lora = jax.tree.map(jnp.asarray, read_lora(self.folder / "lora_init.safetensors").tree)
        states = [init_state(lora, optimizer)]
        rows = []
        for _ in range(3):
            rows.append(self.gradients(states[-1].params))
            states.append(apply(states[-1], rows[-1][1]))
        return states, rows


@pytest.fixture(scope="module", params=KINDS)
def case(request, golden):
    return Step(golden, request.param)


def lora_of(case, name):
    return flatten(read_lora(case.folder / f"{name}.safetensors").tree)


def assert_same_weights(ours, theirs, steps, learning_rate):
    ours = flatten(ours)
    assert ours.keys() == theirs.keys()
    differences = np.concatenate([np.abs(np.asarray(ours[key]) - theirs[key]).ravel() for key in theirs])
    assert np.quantile(differences, 0.99) < 2e-6
    assert differences.max() < 2.5 * steps * learning_rate


def test_reference_log_probs(case):
    @jax.jit
    def log_probs(unet_params, pairs):
        predict = functools.partial(case.predictor(unet_params), None)
        return pair_log_probs(predict, case.process, 1.0, pairs)

    expected = np.stack([case.arrays["logprob_ref_0"], case.arrays["logprob_ref_1"]], axis=1)
    np.testing.assert_allclose(log_probs(case.pipeline.params["unet"], case.pairs), expected, atol=1e-5)


def test_steps_without_clip(case):
    a = case.arrays
    states, rows = case.run(NO_CLIP)
    for index, (metrics, _) in enumerate(rows):
        stored = {
            name: a[f"official_noclip/step{index}/{name}"]
            for name in ("loss", "ratio_0_unclamped", "ratio_1_unclamped", "grad_norm_true")
        }
        np.testing.assert_allclose(metrics["loss"], stored["loss"], atol=2e-5)
        np.testing.assert_allclose(metrics["ratio/win"], stored["ratio_0_unclamped"].mean(), atol=2e-5)
        np.testing.assert_allclose(metrics["ratio/lose"], stored["ratio_1_unclamped"].mean(), atol=2e-5)
        np.testing.assert_allclose(metrics["grad_norm"], stored["grad_norm_true"], rtol=1e-3)
        clamped = [np.abs(stored[f"ratio_{i}_unclamped"] - 1) > a["hp/eps"] for i in (0, 1)]
        assert float(metrics["clip_fraction/win"]) == pytest.approx(clamped[0].mean())
        assert float(metrics["clip_fraction/lose"]) == pytest.approx(clamped[1].mean())
    gradients = flatten(rows[0][1])
    for key, value in lora_of(case, "lora_grad_step0").items():
        assert case.golden.relative_error(gradients[key], value) < 1e-3, key
    rate = case.hp["lr"]
    assert_same_weights(states[1].params, lora_of(case, "lora_after1_official_noclip"), 1, rate)
    assert_same_weights(states[3].params, lora_of(case, "lora_after3_official_noclip"), 3, rate)


@pytest.mark.parametrize("mode", ["clip", "clip_small"])
def test_steps_with_clip(case, mode):
    limit = float(case.arrays[f"{mode}/max_grad_norm"])
    states, rows = case.run(limit)
    assert_same_weights(states[3].params, lora_of(case, f"lora_after3_{mode}"), 3, case.hp["lr"])
    for index, (metrics, _) in enumerate(rows):
        np.testing.assert_allclose(metrics["loss"], case.arrays[f"{mode}/step{index}/loss"], atol=2e-5)


def test_the_clip_acts_on_the_gradients(case):
    """AdamW forgives a scale, so the clip is shown where it happens: on the first moments, (1 - b1) · clipped."""
    limit = float(case.arrays["clip_small/max_grad_norm"])
    states, rows = case.run(limit)
    metrics, gradients = rows[0]
    factor = limit / float(metrics["grad_norm"])
    assert factor < 0.9
    moments = flatten(states[1].opt_state[1][0].mu)
    for key, gradient in flatten(gradients).items():
        np.testing.assert_allclose(moments[key], 0.1 * factor * gradient, rtol=1e-3, atol=1e-9)
