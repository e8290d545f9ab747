"""Training steps (g): log-probabilities, ratios, loss, gradients, and the LoRA after 1 and 3 optimiser steps.

float32 against float32. Log-probabilities 1e-5 absolute (the reference moved by 1e-6 in float64), ratios 2e-5.
Gradients 1e-3 of each tensor's largest value. AdamW divides by the gradient's own size, so that where a gradient is
near its epsilon a weight may move either way by a whole step (6e-5): weights are compared at the 99th percentile of
differences, and bounded by a few steps everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.trees import flatten, take_rows
from spo_jax.methods.spo.pairs import Pairs
from spo_jax.methods.spo.update import UpdateConfig, init_state, make_optimiser, pair_log_probs, train_batch
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from spo_jax.models.base import Guidance, denoise
from spo_jax.models.lora import read_lora

KINDS = ["sd15", "sdxl"]
NO_CLIP = 1e9


class Step:
    """The fixed batch of a folder ``g_<kind>``."""

    def __init__(self, golden, kind):
        self.golden, self.pipe, self.folder = golden, golden.pipeline(kind), golden.folder / f"g_{kind}"
        self.arrays = a = golden.arrays(f"g_{kind}/step.npz")
        pair = lambda name: jnp.stack([golden.nhwc(a[f"{name}_{i}"]) for i in (0, 1)], axis=1)  # noqa: E731
        x_t, n = pair("latents"), len(a["timesteps"])
        shared = bool((x_t[:, 0] == x_t[:, 1]).all())
        self.pairs = Pairs(
            x_t[:, :1] if shared else x_t, pair("next_latents"), jnp.asarray(a["timesteps"]), jnp.arange(n),
            jnp.ones(n, bool),
        )  # fmt: skip
        self.guidance = self._guidance(n)
        self.base = {"params": self.pipe.unet_params}

    def _guidance(self, n):
        a = {key: jnp.asarray(value) for key, value in self.arrays.items()}
        one = Conditioning(a["prompt_embeds"]), Conditioning(a["negative_prompt_embeds"])
        if "add_text_embeds" in a:
            ids = a["add_time_ids"]
            one = (
                Conditioning(a["prompt_embeds"], a["add_text_embeds"], ids[n:]),
                Conditioning(a["negative_prompt_embeds"], a["negative_pooled_prompt_embeds"], ids[:1]),
            )
        return Guidance(*one, float(a["hp/guidance_scale"]))

    def predict(self, lora, x, t, row):
        guidance = self.guidance._replace(condition=take_rows(self.guidance.condition, row))
        scale = float(self.arrays["hp/lora_alpha"] / self.arrays["hp/lora_rank"])
        return denoise(self.pipe.unet, self.pipe.unet_params, lora, guidance, x, t, scale)

    def config(self, max_grad_norm):
        hp = {key[3:]: float(value) for key, value in self.arrays.items() if key.startswith("hp/")}
        return UpdateConfig(
            beta=hp["beta"], eps=hp["eps"], eta=hp["eta"], train_batch_size=len(self.pairs.t),
            learning_rate=hp["lr"], adam_beta1=hp["adam_beta1"], adam_beta2=hp["adam_beta2"],
            adam_epsilon=hp["adam_eps"], weight_decay=hp["weight_decay"], max_grad_norm=max_grad_norm,
        )  # fmt: skip

    def run(self, max_grad_norm, steps):
        """States, metrics and gradients of ``steps`` optimiser steps on the same batch."""
        config, n = self.config(max_grad_norm), len(self.pairs.t)
        arguments = self.predict, self.pipe.schedule, config, self.pairs, jnp.arange(n), jnp.int32(n)
        step = jax.jit(lambda state: train_batch(state, *arguments))
        lora = jax.tree.map(jnp.asarray, read_lora(self.folder / "lora_init.safetensors").tree)
        states = [init_state(lora, make_optimiser(config))]
        rows = []
        for _ in range(steps):
            state, metrics, gradients = step(states[-1])
            states.append(state)
            rows.append((metrics, gradients))
        return states, rows


@pytest.fixture(scope="module", params=KINDS)
def case(request, golden):
    return Step(golden, request.param)


def lora_of(case, name):
    return flatten(read_lora(case.folder / f"{name}.safetensors").tree)


def assert_same_weights(ours, theirs, steps, learning_rate):
    ours, theirs = flatten(ours), theirs
    assert ours.keys() == theirs.keys()
    differences = np.concatenate([np.abs(np.asarray(ours[key]) - theirs[key]).ravel() for key in theirs])
    assert np.quantile(differences, 0.99) < 2e-6
    assert differences.max() < 2.5 * steps * learning_rate


def test_reference_log_probs(case):
    log_probs = jax.jit(
        lambda pairs: pair_log_probs(lambda *args: case.predict(None, *args), case.pipe.schedule, 1.0, pairs)
    )(case.pairs)
    expected = np.stack([case.arrays["logprob_ref_0"], case.arrays["logprob_ref_1"]], axis=1)
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)


def test_steps_without_clip(case):
    a = case.arrays
    states, rows = case.run(NO_CLIP, 3)
    for index, (metrics, _) in enumerate(rows):
        stored = {name: a[f"official_noclip/step{index}/{name}"] for name in
                  ("loss", "ratio_0_unclamped", "ratio_1_unclamped", "grad_norm_true")}  # fmt: skip
        np.testing.assert_allclose(metrics["loss"], stored["loss"], atol=2e-5)
        np.testing.assert_allclose(metrics["ratio/win"], stored["ratio_0_unclamped"].mean(), atol=2e-5)
        np.testing.assert_allclose(metrics["ratio/lose"], stored["ratio_1_unclamped"].mean(), atol=2e-5)
        np.testing.assert_allclose(metrics["grad_norm"], stored["grad_norm_true"], rtol=1e-3)
        clamped = [np.abs(stored[f"ratio_{i}_unclamped"] - 1) > a["hp/eps"] for i in (0, 1)]
        assert float(metrics["clip_fraction/win"]) == pytest.approx(clamped[0].mean())
        assert float(metrics["clip_fraction/lose"]) == pytest.approx(clamped[1].mean())
    gradients, expected = flatten(rows[0][1]), lora_of(case, "lora_grad_step0")
    for key, value in expected.items():
        assert case.golden.relative_error(gradients[key], value) < 1e-3, key
    rate = float(a["hp/lr"])
    assert_same_weights(states[1].lora, lora_of(case, "lora_after1_official_noclip"), 1, rate)
    assert_same_weights(states[3].lora, lora_of(case, "lora_after3_official_noclip"), 3, rate)


@pytest.mark.parametrize("mode", ["clip", "clip_small"])
def test_steps_with_clip(case, mode):
    limit = float(case.arrays[f"{mode}/max_grad_norm"])
    states, rows = case.run(limit, 3)
    assert_same_weights(states[3].lora, lora_of(case, f"lora_after3_{mode}"), 3, float(case.arrays["hp/lr"]))
    for index, (metrics, _) in enumerate(rows):
        np.testing.assert_allclose(metrics["loss"], case.arrays[f"{mode}/step{index}/loss"], atol=2e-5)


def test_clip_acts_on_the_gradients(case):
    """AdamW forgives a scale, so the clip is shown where it happens: on the first moments, (1 - b1) · clipped."""
    limit = float(case.arrays["clip_small/max_grad_norm"])
    (_, state), ((metrics, gradients),) = case.run(limit, 1)
    factor = limit / float(metrics["grad_norm"])
    assert factor < 0.9
    moments = flatten(state.opt_state[1][0].mu)
    for key, gradient in flatten(gradients).items():
        np.testing.assert_allclose(moments[key], 0.1 * factor * gradient, rtol=1e-3, atol=1e-9)
