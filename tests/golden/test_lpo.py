"""LPO (rivals): its threshold, its loss, a rollout whose noisy candidates are judged, and the LoRA after 1 and 3 steps.

It is SPO with other settings. Every decision of the rollout has to be equal; latents and scores agree to 1e-4 of their
largest value after all sampling steps with guidance. LPO's own loss, log(sigmoid(x)), is infinite in some cases.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Pairs, Policy
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.judging import judged_rollout
from spo_jax.methods.spo.objective import spo_loss
from spo_jax.methods.spo.objectives import StepObjective, objective_of
from spo_jax.methods.spo.pairs import certainty, rank
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.resampler import Draws
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.thresholds import SIGMA, VARIANCE, threshold_at
from spo_jax.methods.spo.update import train_batch
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from tests.golden import rivals as compare
from tests.golden.rivals import (
    LORA_GRADIENT,
    LOSS,
    LOSS_OF_NETWORK,
    OUTPUT,
    STEP,
    assert_close,
    assert_gradients_close,
    assert_stepped,
)

ROLLOUT = 1e-4  # of the largest value, after all sampling steps
RULES = ("sigma", "variance", "linear")


def settings_of(rule, low, high):
    return SPOSettings(threshold_rule=rule, threshold=low, threshold_high=high)


# The threshold


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_and_pairs(rivals, rule):
    """Every column of scores is a pool at a timestep of its own."""
    case = rivals.case("lpo_threshold")
    settings = settings_of(rule, case.number("threshold_min"), case.number("threshold_max"))
    found = threshold_at(settings, case["timesteps"])
    assert_close(found, case[f"threshold_{rule}"], LOSS)
    scores = jnp.asarray(case["scores"]).T[:, :, None]  # [k s] -> [s k 1]
    verdict = rank(scores, found)
    np.testing.assert_array_equal(jnp.stack([verdict.win[:, 0], verdict.lose[:, 0]]), case["pair_idx"])
    np.testing.assert_array_equal(verdict.valid[:, 0], case[f"valid_{rule}"])
    assert_close(certainty(scores.max(1), scores.min(1))[:, 0], case["softmax_gap"], LOSS)
    np.testing.assert_array_equal(rank(scores, 0.3).valid[:, 0], case["valid_fixed"])
    np.testing.assert_allclose(SIGMA, case["sigma_table"], rtol=1e-6)
    np.testing.assert_allclose(VARIANCE, case["variance_table"], rtol=1e-6)


def test_thresholds_of_the_reward_models(golden, reward_inputs):
    reward_inputs.needs("lpo_threshold")
    arrays = golden.arrays("rewards/lpo_threshold/golden.npz")
    named = [name.split("_") for name in arrays if name.startswith(RULES) and name.count("_") == 3]
    assert len(named) > 2
    for rule, model, low, high in named:
        found = threshold_at(settings_of(rule, float(low), float(high)), arrays["timesteps"])
        np.testing.assert_allclose(found, arrays[f"{rule}_{model}_{low}_{high}"], rtol=LOSS)
    scores = jnp.asarray(arrays["cmp_scores"]).T[:, :, None]
    for rule in RULES:
        verdict = rank(scores, threshold_at(settings_of(rule, 0.35, 0.5), arrays["cmp_timesteps"]))
        np.testing.assert_array_equal(verdict.valid[:, 0], arrays[f"cmp_valid_{rule}"])
    np.testing.assert_array_equal(jnp.stack([verdict.win[:, 0], verdict.lose[:, 0]]), arrays["cmp_indices"])
    np.testing.assert_array_equal(rank(scores, 0.3).valid[:, 0], arrays["cmp_valid_fixed03"])
    np.testing.assert_allclose(certainty(scores.max(1), scores.min(1))[:, 0], arrays["cmp_gap"], rtol=LOSS, atol=1e-7)


# The loss


def test_loss(rivals):
    case = rivals.case("lpo_loss")
    log_probs = [jnp.asarray(case[name]) for name in ("logp_win", "logp_lose", "logp_ref_win", "logp_ref_lose")]
    beta, eps = case.number("beta"), case.number("clip_eps")
    out = spo_loss(*log_probs, beta=beta, eps=eps)
    for ratio, name in ((out.ratio_win, "ratio_win"), (out.ratio_lose, "ratio_lose")):
        compare.assert_close(np.clip(ratio, 1 - eps, 1 + eps), case[name], compare.LOSS)
    np.testing.assert_allclose(out.loss, case["loss_per_sample"], atol=compare.LOSS_OF_NETWORK)


def test_losses_of_clipped_ratios_are_finite(rivals):
    """With log(sigmoid(x)) in place of log-sigmoid they are infinite in float32."""
    case = rivals.case("lpo_loss")
    beta, eps = case.number("beta"), case.number("clip_eps")

    def loss(win, lose):
        zeros = jnp.zeros_like(win)
        out = spo_loss(win, lose, zeros, zeros, beta=beta, eps=eps)
        return out.loss.sum(), out.loss

    ratios = jnp.asarray(case["extreme_logr_win"]), jnp.asarray(case["extreme_logr_lose"])
    (_, losses), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*ratios)
    np.testing.assert_allclose(losses, case["extreme_loss_per_sample_exact"], rtol=1e-4, atol=1e-6)
    for gradient, name in zip(gradients, ("win", "lose"), strict=True):
        np.testing.assert_allclose(gradient, case[f"extreme_grad_{name}_original"], rtol=1e-3, atol=1e-6)


def test_log_probs_of_given_predictions_and_the_gradient(rivals):
    case = rivals.case("lpo_loss")
    process = rivals.process(int(case.number("num_inference_steps")))
    np.testing.assert_allclose(process.alphas_cumprod, case["alphas_cumprod"], rtol=1e-6)
    settings = SPOSettings(beta=case.number("beta"), eps=case.number("clip_eps"), eta=case.number("eta"))
    count = len(case["timesteps"])
    members = jnp.stack([case.images("x_prev_win"), case.images("x_prev_lose")], axis=1)
    t, rows = jnp.asarray(case["timesteps"]), jnp.arange(count)
    pairs = Pairs(case.images("x_t")[:, None], members, t, rows, jnp.ones(count, bool))
    reference = jnp.asarray(case.images("eps_ref"))

    @jax.jit
    def program(prediction):
        def predict(adapter, *inputs):
            return reference if adapter is None else prediction

        found = StepObjective().likelihoods({}, None, predict, process, settings, pairs)
        out = spo_loss(*found.policy.T, *found.reference.T, beta=settings.beta, eps=settings.eps)
        return out.loss.mean(), found

    (loss, found), gradient = jax.value_and_grad(program, has_aux=True)(jnp.asarray(case.images("eps_theta")))
    for index, which in enumerate(("win", "lose")):
        assert_close(found.policy[:, index], case[f"logp_{which}"], LOSS)
        assert_close(found.reference[:, index], case[f"logp_ref_{which}"], LOSS)
    np.testing.assert_allclose(loss, case["loss"], atol=LOSS_OF_NETWORK)
    assert_close(gradient, case.images("grad_eps_total"), LORA_GRADIENT)  # beta multiplies the rounding of log-probs


# The rollout


class Replay:
    """A rollout of the folder, run by our code."""

    def __init__(self, rivals, name):
        self.case = case = rivals.case(name)
        pipeline = rivals.pipeline_of(case)
        steps = len(case["noise_branch"])  # the arrays may be of a rollout that was ended early
        process = pipeline.process(len(case["timesteps_schedule"]))
        np.testing.assert_array_equal(process.timesteps, case["timesteps_schedule"])
        self.process = dataclasses.replace(process, timesteps=process.timesteps[:steps])
        self.settings = SPOSettings(
            judged="noisy",
            num_steps=steps,
            divert_start_step=case.number("divert_start_step"),
            num_candidates=int(case.number("num_samples")),
            threshold_rule="sigma",
            threshold=case.number("threshold_min"),
            threshold_high=case.number("threshold_max"),
            decode_chunk=5,
        )
        guidance = Guidance(self._condition(""), self._condition("neg_"), case.number("guidance_scale"))
        lora = case.lora("policy_lora")
        weight = jnp.asarray(np.moveaxis(case["score_weight"], 0, -1))
        arrays = (case.images("init_latents"), jnp.zeros((0, *case.images("init_latents").shape)))
        draws = Draws(*arrays, case.images("noise_branch"), jnp.asarray(case["denoise_idx"][:-1]))

        def score(latents, t, row):
            return case.number("score_scale") * (weight[None] * latents).sum((1, 2, 3))

        @jax.jit
        def program(network, draws):
            denoise = bind_denoise(pipeline, network, lora, guidance, 1.0)
            judged = judged_rollout(denoise, score, self.settings, self.process, draws)
            return judged, objective_of(self.settings).pairs(judged, draws, make_plan(self.settings))

        self.judged, self.pairs = program(pipeline.params["unet"], draws)

    def _condition(self, prefix):
        states = jnp.asarray(self.case["neg_prompt_embed" if prefix else "prompt_embeds"])
        if "pooled" not in self.case:
            return Conditioning(states)
        ids = self.case["time_ids"]
        ids = jnp.broadcast_to(jnp.asarray(ids), (len(states), ids.shape[-1]))
        return Conditioning(states, jnp.asarray(self.case[f"{prefix}pooled"]), ids)


@pytest.fixture(scope="module", params=["lpo_collect", "lpo_collect_sdxl"])
def replay(request, rivals):
    return Replay(rivals, request.param)


def test_scores_and_decisions(replay):
    """Scores are those of the noisy candidates, at the timestep of the step that drew them."""
    case, judged = replay.case, replay.judged
    assert_close(judged.scores, case["scores"], ROLLOUT)
    np.testing.assert_array_equal(judged.trajectory.judged_timesteps, case["score_call_timesteps"][:, 0])
    limits = threshold_at(replay.settings, np.asarray(judged.trajectory.judged_timesteps))
    np.testing.assert_allclose(limits, case["thresholds"][:, 0], rtol=LOSS)
    np.testing.assert_array_equal(jnp.stack([judged.verdict.win, judged.verdict.lose], axis=1), case["pair_idx"])
    np.testing.assert_array_equal(judged.verdict.valid, case["valid"])


def test_rows(replay):
    case, pairs = replay.case, replay.pairs
    kept = np.flatnonzero(pairs.valid)
    np.testing.assert_array_equal(pairs.t[kept], case["row_timesteps"][:, 0])
    np.testing.assert_array_equal(pairs.row[kept], case["row_prompt"])
    assert_close(pairs.x_t[kept], case.images("row_current_latents"), ROLLOUT)
    assert_close(pairs.x_prev[kept], case.images("row_next_latents"), ROLLOUT)


# Training


class Steps:
    """The three training batches of the folder."""

    def __init__(self, rivals):
        self.case = case = rivals.case("lpo_e2e")
        self.pipeline = rivals.pipeline_of(case)
        self.process = rivals.process(int(case.number("num_inference_steps")))
        self.count = case["timesteps"].shape[1]
        self.settings = SPOSettings(
            judged="noisy", beta=case.number("beta"), eps=case.number("clip_eps"), train_batch_size=self.count
        )
        self.optimizer = make_optimizer(
            OptimizerSettings(
                learning_rate=case.number("lr"), weight_decay=case.number("weight_decay"), max_grad_norm=1e9
            )
        )

    def pairs(self, index):
        case = self.case
        members = jnp.stack([case.images(name)[index] for name in ("x_prev_win", "x_prev_lose")], axis=1)
        t = jnp.asarray(case["timesteps"][index])
        return Pairs(
            case.images("x_t")[index][:, None], members, t, jnp.arange(self.count), jnp.ones(self.count, bool)
        )  # fmt: skip

    def predict(self, network, condition):
        empty = Conditioning(jnp.asarray(self.case["neg_prompt_embed"]))
        return Policy(self.pipeline, self.case.number("guidance_scale"), 1.0).predictor(network, condition, empty)

    @functools.cached_property
    def run(self):
        """The states after each batch, and metrics, gradients and likelihoods of each."""

        @jax.jit
        def step(network, state, condition, pairs):
            predict = self.predict(network, condition)
            likelihoods = StepObjective().likelihoods(state.params, None, predict, self.process, self.settings, pairs)
            batch = (pairs, jnp.arange(self.count), jnp.int32(self.count))
            return train_batch(state, predict, self.process, self.settings, self.optimizer, *batch), likelihoods

        network = self.pipeline.params["unet"]
        state = init_state(self.case.lora("lora_init"), self.optimizer)
        states, rows = [], []
        for index in range(len(self.case["loss"])):
            out = step(network, state, self.case.condition(index), self.pairs(index))
            (state, metrics, gradients), likelihoods = out
            states.append(state)
            rows.append((metrics, gradients, likelihoods))
        return states, rows


@pytest.fixture(scope="module")
def steps(rivals):
    return Steps(rivals)


def test_predictions_of_policy_and_reference(steps):
    case, pairs = steps.case, steps.pairs(0)

    @jax.jit
    def predictions(network, adapter):
        predict = steps.predict(network, case.condition(0))
        return [predict(lora, pairs.x_t[:, 0], pairs.t, pairs.row) for lora in (adapter, None)]

    found = predictions(steps.pipeline.params["unet"], case.lora("lora_init"))
    for ours, name in zip(found, ("theta", "ref"), strict=True):
        assert_close(ours, case.images(f"eps_{name}_step1"), OUTPUT)


def test_losses_and_likelihoods(steps):
    case = steps.case
    for index, (metrics, _, likelihoods) in enumerate(steps.run[1]):
        np.testing.assert_allclose(metrics["loss"], case["loss"][index], rtol=LORA_GRADIENT, atol=LOSS_OF_NETWORK)
        for member, which in enumerate(("win", "lose")):
            assert_close(likelihoods.policy[:, member], case[f"logp_{which}"][index], ROLLOUT)
            assert_close(likelihoods.reference[:, member], case[f"logp_ref_{which}"][index], ROLLOUT)
            ratio = np.exp(likelihoods.policy - likelihoods.reference)[:, member]
            eps = case.number("clip_eps")
            assert_close(np.clip(ratio, 1 - eps, 1 + eps), case[f"ratio_{which}"][index], ROLLOUT)


def test_gradients(steps):
    assert_gradients_close(steps.run[1][0][1], steps.case.lora("grad_step1"))


@pytest.mark.parametrize("count", [1, 3])
def test_lora_after_steps(steps, count):
    case, state = steps.case, steps.run[0][count - 1]
    gradients, rate = case.lora("grad_step1"), case.number("lr")
    # Gradients agree to a thousandth of a tensor's largest, and have to agree to a twentieth where steps do.
    assert_stepped(state.params, case.lora(f"lora_step{count}"), rate, gradients, count, share=LORA_GRADIENT / STEP)
