"""GradSPO (rivals): its loss, its rollouts for SD 1.5 and SDXL, and the LoRA with its running mean after 1 and 3 steps.

Every decision of a rollout has to be equal. Latents agree to 1e-4 of their largest value after all sampling steps with
guidance, scores to the same share of the largest score. Two things of the reference are not ours (`docs/parity.md`):
it judges SD 1.5's finished images as if they were at the last timestep, and for SDXL it makes the last pair from the
noises of a step that the pair is not about.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.policy import Policy
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.judging import judged_rollout
from spo_jax.methods.spo.objective import spo_loss
from spo_jax.methods.spo.objectives import ScoreObjective, noise_targets, objective_of, score_likelihoods
from spo_jax.methods.spo.pairs import NoisePairs, certainty, make_noise_pairs, make_pairs, rank
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.resampler import Draws, Trajectory
from spo_jax.methods.spo.settings import ResamplerSettings, SPOSettings
from spo_jax.methods.spo.state import MeanState
from spo_jax.methods.spo.update import train_batch
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from tests.golden.rivals import (
    GRADIENT,
    LORA_GRADIENT,
    LOSS,
    OUTPUT,
    assert_close,
    assert_gradients_close,
    assert_stepped,
)

ROLLOUT = 1e-4  # of the largest value, after all sampling steps


# The loss


def test_pairs_of_noises(rivals):
    case = rivals.case("gradspo_loss")
    scores, noise = jnp.asarray(case["scores"])[None], jnp.asarray(case.images("noise"))[None]  # [1 k b ...]
    k, b = scores.shape[1:]
    verdict = rank(scores, case.number("threshold"))
    np.testing.assert_array_equal(jnp.concatenate([verdict.win, verdict.lose]), case["sorted_pair_idx"])
    np.testing.assert_array_equal(verdict.valid[0], case["valid"])
    assert_close(certainty(scores.max(1), scores.min(1))[0], case["softmax_gap"], LOSS)
    plan = make_plan(ResamplerSettings(num_steps=1, divert_start_step=0, num_candidates=k))
    trajectory = Trajectory(noise[:, 0], noise, np.zeros(1, np.int32), noise, np.zeros(1, np.int32))
    pairs = make_noise_pairs(trajectory, noise, verdict, plan)
    assert len(pairs.t) == b
    assert_close(pairs.noise, case.images("noise_win"), LOSS)
    assert_close(-pairs.noise, case.images("noise_lose"), LOSS)


def test_loss_and_its_gradient(rivals):
    case = rivals.case("gradspo_loss")
    process = rivals.process(20)
    np.testing.assert_allclose(process.alphas_cumprod, case["alphas_cumprod"], rtol=1e-6)
    center, noise, t = case.images("eps_ema"), case.images("noise_win"), jnp.asarray(case["timesteps"])

    @jax.jit
    def program(prediction):
        targets = noise_targets(jnp.asarray(center), jnp.asarray(noise), t, process, case.number("grad_scale"))
        policy, reference = (score_likelihoods(x, targets) for x in (prediction, jnp.asarray(case.images("eps_ref"))))
        beta, eps = case.number("beta"), case.number("clip_eps")
        out = spo_loss(*policy.T, *reference.T, beta=beta, eps=eps)
        return out.loss.mean(), (policy, reference, out)

    prediction = jnp.asarray(case.images("eps_theta"))
    (loss, (policy, reference, out)), gradient = jax.value_and_grad(program, has_aux=True)(prediction)
    for index, which in enumerate(("win", "lose")):
        assert_close(policy[:, index], case[f"ell_{which}"], LOSS)
        assert_close(reference[:, index], case[f"ell_ref_{which}"], LOSS)
        ratio = np.clip(getattr(out, f"ratio_{which}"), 1 - case.number("clip_eps"), 1 + case.number("clip_eps"))
        assert_close(ratio, case[f"ratio_{which}"], LOSS)
    assert_close(out.loss, case["loss_per_sample"], LOSS)
    assert_close(loss, case["loss"], LOSS)
    assert_close(gradient, case.images("grad_eps_theta"), GRADIENT)


# Rollouts


class Replay:
    """A rollout of the folder, run by our code."""

    def __init__(self, rivals, name):
        self.case = case = rivals.case(name)
        self.sdxl = name.endswith("_sdxl")
        pipeline = rivals.pipeline_of(case)
        steps = len(case["timesteps_schedule"])
        self.process = pipeline.process(steps)
        self.batch = len(case["init_latents"])
        self.settings = SPOSettings(
            objective="gradspo",
            num_steps=steps,
            divert_start_step=case.number("divert_start_step"),
            num_candidates=case.number("num_samples"),
            threshold=case.number("threshold"),
            branch_at_last_step=not self.sdxl,
            accept_last_step=not self.sdxl,
            decode_chunk=5,
        )
        self.plan = make_plan(self.settings)
        self.draws = self._draws()
        guidance = Guidance(self._condition(""), self._condition("neg_"), case.number("guidance_scale"))
        lora = case.lora("policy_lora")
        weight = jnp.asarray(np.moveaxis(case["score_weight"], 0, -1)) / case.number("vae_scaling")

        def score(latents, t, row):
            return case.number("score_scale") * (weight[None] * latents).sum((1, 2, 3))

        @jax.jit
        def program(network, draws):
            denoise = bind_denoise(pipeline, network, lora, guidance, 1.0)
            judged = judged_rollout(denoise, score, self.settings, self.process, draws)
            return judged, objective_of(self.settings).pairs(judged, draws, self.plan)

        self.judged, self.pairs = program(pipeline.params["unet"], self.draws)
        self.kept = np.flatnonzero(self.pairs.valid)

    def _condition(self, prefix):
        case = self.case
        states = jnp.asarray(case["neg_prompt_embed" if prefix else "prompt_embeds"])
        if "pooled" not in case:
            return Conditioning(states)
        ids = jnp.broadcast_to(jnp.asarray(case["time_ids"]), (len(states), case["time_ids"].shape[-1]))
        return Conditioning(states, jnp.asarray(case[f"{prefix}pooled"]), ids)

    def _draws(self):
        case = self.case
        pool, choice = case.images("noise_branch"), case["denoise_idx"]
        if self.sdxl:  # a last step that does not branch
            last = case.images("noise_last")
            pool = np.concatenate([pool, last.reshape(1, *pool.shape[1:])])  # [k·b h w c] -> [1 k b h w c]
            choice = np.concatenate([choice, np.zeros((1, self.batch), np.int32)])
        arrays = (case.images("init_latents"), case.images("noise_pre"), pool, choice)
        return Draws(*map(jnp.asarray, arrays))


@pytest.fixture(scope="module", params=["gradspo_collect", "gradspo_collect_sdxl"])
def replay(request, rivals):
    return Replay(rivals, request.param)


def test_scores_and_decisions(replay):
    case, scores = replay.case, replay.judged.scores
    np.testing.assert_array_equal(replay.process.timesteps, case["timesteps_schedule"])
    assert_close(scores, case["compare_scores"], ROLLOUT)
    verdict = rank(scores, replay.settings.threshold)
    np.testing.assert_array_equal(jnp.stack([verdict.win, verdict.lose], axis=1), case["compare_indices"])
    np.testing.assert_array_equal(verdict.valid, case["compare_valid_raw"])


def test_timesteps_of_the_judgements(replay):
    """Those of the reference, but for SD 1.5's finished images, which it scores twice and as if at the last step."""
    ours = replay.judged.trajectory.judged_timesteps
    calls = replay.case["score_call_timesteps"][:, 0]
    np.testing.assert_array_equal(ours[:-1], calls[: len(ours) - 1])
    assert ours[-1] == 0
    assert set(calls[len(ours) - 1 :]) == ({0} if replay.sdxl else {replay.process.timesteps[-1]})


def test_pairs(replay):
    case, kept, pairs = replay.case, replay.kept, replay.pairs
    np.testing.assert_array_equal(pairs.t[kept], case["row_timesteps"][:, 0])
    np.testing.assert_array_equal(pairs.row[kept], case["row_prompt"])
    for member in range(case["row_current_latents"].shape[1]):
        assert_close(pairs.x_t[kept], case.images("row_current_latents")[:, member], ROLLOUT)
    steps = make_pairs(replay.judged.trajectory, replay.judged.verdict, replay.plan)
    parted = np.isin(steps.t, replay.judged.trajectory.timesteps[replay.plan.branched])
    assert_close(steps.x_prev[parted][kept], case.images("row_next_latents"), ROLLOUT)


def test_noises(replay):
    """The last pair of SDXL is about the last step that branches; the reference takes the noises of the one after."""
    case, kept = replay.case, replay.kept
    last = kept >= len(replay.pairs.t) - replay.batch
    theirs = case.images("row_noise_pair")[:, 0]
    same = ~last if replay.sdxl else np.ones_like(last)
    assert_close(replay.pairs.noise[kept][same], theirs[same], LOSS)
    assert_close(-replay.pairs.noise[kept][same], case.images("row_noise_pair")[same, 1], LOSS)
    win, lose = case["compare_indices"][-1]
    prompts = np.arange(replay.batch)

    def half(noise):  # [k b h w c] -> [b h w c]
        return (noise[win, prompts] - noise[lose, prompts]) / 2

    rows = case["row_prompt"][last]
    pool = np.asarray(replay.draws.pool)
    assert_close(replay.pairs.noise[kept][last], half(pool[replay.plan.branched[-1]])[rows], LOSS)
    assert_close(theirs[last], half(pool[-1])[rows], LOSS)


# Training


class Steps:
    """The three training batches of the folder."""

    def __init__(self, rivals):
        self.case = case = rivals.case("gradspo_e2e")
        self.pipeline = rivals.pipeline_of(case)
        self.process = rivals.process(20)
        self.count = case["timesteps"].shape[1]
        self.settings = SPOSettings(
            objective="gradspo",
            grad_scale=case.number("grad_scale"),
            ema_decay=case.number("ema_decay"),
            beta=case.number("beta"),
            eps=case.number("clip_eps"),
            train_batch_size=self.count,
        )
        self.optimizer = make_optimizer(
            OptimizerSettings(
                learning_rate=case.number("lr"), weight_decay=case.number("weight_decay"), max_grad_norm=1e9
            )
        )

    def pairs(self, index):
        case = self.case
        x_t, noise = (jnp.asarray(case.images(name)[index]) for name in ("x_t", "noise_win"))
        t = jnp.asarray(case["timesteps"][index])
        return NoisePairs(x_t, noise, t, jnp.arange(self.count), jnp.ones(self.count, bool))

    def predict(self, network, condition):
        empty = Conditioning(jnp.asarray(self.case["neg_prompt_embed"]))
        return Policy(self.pipeline, self.case.number("guidance_scale"), 1.0).predictor(network, condition, empty)

    @functools.cached_property
    def step(self):
        """One compiled program: (network, state, condition, pairs) to a training batch and its likelihoods."""

        @jax.jit
        def step(network, state, condition, pairs):
            predict = self.predict(network, condition)
            likelihoods = ScoreObjective().likelihoods(
                state.params, state.mean, predict, self.process, self.settings, pairs
            )
            batch = (pairs, jnp.arange(self.count), jnp.int32(self.count))
            return train_batch(state, predict, self.process, self.settings, self.optimizer, *batch), likelihoods

        return functools.partial(step, self.pipeline.params["unet"])

    @functools.cached_property
    def run(self):
        """The states after each batch, and metrics, gradients and likelihoods of each."""
        state = MeanState(*init_state(self.case.lora("lora_init"), self.optimizer), self.case.lora("ema_init"))
        states, rows = [], []
        for index in range(len(self.case["loss"])):
            (state, metrics, gradients), likelihoods = self.step(state, self.case.condition(index), self.pairs(index))
            states.append(state)
            rows.append((metrics, gradients, likelihoods))
        return states, rows


@pytest.fixture(scope="module")
def steps(rivals):
    return Steps(rivals)


def test_predictions_of_policy_reference_and_mean(steps):
    case, pairs = steps.case, steps.pairs(0)

    @jax.jit
    def predictions(network, *adapters):
        predict = steps.predict(network, case.condition(0))
        return [predict(adapter, pairs.x_t, pairs.t, pairs.row) for adapter in (*adapters, None)]

    found = predictions(steps.pipeline.params["unet"], case.lora("lora_init"), case.lora("ema_init"))
    for ours, name in zip(found, ("theta", "ema", "ref"), strict=True):
        assert_close(ours, case.images(f"eps_{name}_step1"), OUTPUT)


def test_losses_and_likelihoods(steps):
    case = steps.case
    for index, (metrics, _, likelihoods) in enumerate(steps.run[1]):
        np.testing.assert_allclose(metrics["loss"], case["loss"][index], atol=1e-4)
        for member, which in enumerate(("win", "lose")):
            assert_close(likelihoods.policy[:, member], case[f"ell_{which}"][index], LORA_GRADIENT)
            assert_close(likelihoods.reference[:, member], case[f"ell_ref_{which}"][index], LORA_GRADIENT)
            ratio = np.exp(likelihoods.policy - likelihoods.reference)[:, member]
            eps = case.number("clip_eps")
            assert_close(np.clip(ratio, 1 - eps, 1 + eps), case[f"ratio_{which}"][index], ROLLOUT)
        np.testing.assert_allclose(metrics["grad_norm"], case["grad_norm"][index], rtol=LORA_GRADIENT)


def test_gradients(steps):
    assert_gradients_close(steps.run[1][0][1], steps.case.lora("grad_step1"))


@pytest.mark.parametrize("count", [1, 3])
def test_lora_and_mean_after_steps(steps, count):
    """The mean moves by 1 - d of a step, so that it is compared the more closely."""
    case, state = steps.case, steps.run[0][count - 1]
    gradients, rate = case.lora("grad_step1"), case.number("lr")
    assert_stepped(state.params, case.lora(f"lora_step{count}"), rate, gradients, count)
    slower = rate * (1 - case.number("ema_decay"))
    assert_stepped(state.mean, case.lora(f"ema_step{count}"), slower, gradients, count)
