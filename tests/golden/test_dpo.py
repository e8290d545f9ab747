"""Diffusion-DPO and its relatives against the original implementations: losses, gradients, LoRA after 1 and 3 steps.

The tolerances are those of `tests/golden/rivals.py`: 1e-5 for losses of given predictions, 1e-4 of the largest value
for their gradients, and 1e-3 absolute where a beta of thousands multiplies small differences of errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import apply_gradients, init_state
from spo_jax.methods.diffusion_dpo.inputs import Inputs, noised
from spo_jax.methods.diffusion_dpo.inversion import invert
from spo_jax.methods.diffusion_dpo.labels import smoothed_weights
from spo_jax.methods.diffusion_dpo.objective import mapo_score, margins, objective, ordered_right
from spo_jax.methods.diffusion_dpo.settings import DPOSettings
from spo_jax.methods.diffusion_dpo.update import chunk_loss, errors, metric_names
from tests.golden.rivals import (
    GRADIENT,
    LOSS,
    LOSS_OF_NETWORK,
    OUTPUT,
    assert_close,
    assert_gradients_close,
    assert_stepped,
)


def pairs_of(win, lose):
    """Winners and losers, [n h w c] each, as [n 2 h w c]."""
    return jnp.stack([win, lose], axis=1)


def halves(x):
    """Stacked [winners; losers] as [n 2 ...]."""
    win, lose = np.split(np.asarray(x), 2)
    return pairs_of(win, lose)


def errors_of(prediction, target):
    """The mean squared errors [n 2] of predictions [n 2 h w c]."""
    return jnp.square(prediction - target).mean((2, 3, 4))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=LOSS, atol=1e-7)


# Diffusion-DPO


class Loss:
    """The case ``dpo_loss``: predictions and the shared target."""

    def __init__(self, case):
        self.case = case
        self.target = case.images("noise")[:, None]
        self.policy = pairs_of(case.images("pred_w"), case.images("pred_l"))
        self.reference = errors_of(pairs_of(case.images("ref_w"), case.images("ref_l")), self.target)
        self.beta = case.number("beta")
        self.weight = jnp.ones(len(self.policy))

    def outputs(self, policy, name="dpo", beta=None):
        """Losses and logits of pairs, from predictions of the policy."""
        found = errors_of(policy, self.target)
        return objective(name, found, self.reference, self.weight, self.beta if beta is None else beta)

    def check(self, loss, prefix=""):
        """Compares a scalar function of the policy's predictions with the stored loss and its gradients."""
        value, gradient = jax.value_and_grad(loss)(self.policy)
        close(value, self.case[f"{prefix}loss"])
        for column, which in enumerate("wl"):
            assert_close(gradient[:, column], self.case.images(f"{prefix}grad_pred_{which}"), GRADIENT, which)


@pytest.fixture(scope="module")
def loss(rivals):
    return Loss(rivals.case("dpo_loss"))


def test_dpo_pairs(loss):
    case = loss.case
    policy = errors_of(loss.policy, loss.target)
    for column, which in enumerate("wl"):
        close(policy[:, column], case[f"mse_policy_{which}"])
        close(loss.reference[:, column], case[f"mse_ref_{which}"])
    out = loss.outputs(loss.policy)
    # The margin is a difference of four errors, which rounds with their size.
    size = np.abs(case["mse_policy_w"]).max() * loss.beta
    np.testing.assert_allclose(out.logit, case["inside"], rtol=LOSS, atol=1e-6 * size)
    np.testing.assert_allclose(out.loss, case["loss_per_pair"], rtol=LOSS, atol=1e-6 * size)
    close(ordered_right(out.logit).mean(), case["implicit_acc_diffusers"])
    close((out.logit > 0).mean(), case["implicit_acc"])
    close(policy.mean(), case["log_model_mse"])
    close(loss.reference.mean(), case["log_ref_mse"])


def test_dpo(loss):
    loss.check(lambda policy: loss.outputs(policy).loss.mean())


def test_dpo_of_diffusers_has_twice_the_beta(loss):
    """Its script for SD 1.5 has no ½: beta_dpo = 2500 there is β = 5000 here."""
    prefix = "hf_sigmoid_nohalf_"
    loss.check(lambda policy: loss.outputs(policy, beta=2 * loss.beta).loss.mean(), prefix)


@pytest.mark.parametrize("name", ["hinge", "ipo"])
def test_dpo_variants_of_diffusers(loss, name):
    loss.check(lambda policy: loss.outputs(policy, name).loss.mean(), f"hf_{name}_")


def test_dpo_as_diffusers_had_it_for_some_days(loss):
    """The mean inside the logarithm, a mistake that is not copied: its numbers follow from our logits."""
    loss.check(lambda policy: -jax.nn.log_sigmoid(loss.outputs(policy).logit.mean()), "hf_bug_mean_inside_")


# Steps of the optimizer


class Steps:
    """A case of three optimizer steps, through the method's own functions."""

    def __init__(self, rivals, name):
        self.case = rivals.case(name)
        self.pipeline = rivals.pipeline_of(self.case)
        self.process = self.pipeline.process(20)
        self.settings = DPOSettings(beta=self.case.number("beta"))
        self.optimizer = make_optimizer(
            OptimizerSettings(
                learning_rate=self.case.number("lr"),
                weight_decay=self.case.number("weight_decay"),
                max_grad_norm=self.case.number("max_grad_norm"),
            )
        )
        self.program = jax.jit(self._step)

    def inputs(self, index):
        case = self.case
        latents = pairs_of(case.images("latents_w")[index], case.images("latents_l")[index])
        t = jnp.asarray(case["timesteps"][index])
        x, target = noised(self.process, latents, t, case.images("noise")[index])
        return Inputs(x, target, t, case.condition(index), jnp.ones(len(t)))

    def _step(self, params, state, inputs):
        """As `DPO.update`, with a pair in memory at a time."""
        count = len(inputs.t)

        def predict(lora, x, t, condition):
            return self.pipeline.predict(params, lora, x, t, condition)

        def chunk_at(index):
            one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), inputs)
            return one._replace(reference=errors(predict, None, one))

        def loss(lora, one):
            return chunk_loss(lora, predict, self.settings, 1000, one, count)

        zeros = dict.fromkeys(metric_names(self.settings), jnp.zeros(()))
        metrics, gradients = chunked_gradients(loss, state.params, chunk_at, count, zeros)
        metrics["grad_norm"] = optax.global_norm(gradients)
        return apply_gradients(state, gradients, self.optimizer), metrics, gradients

    @functools.cached_property
    def run(self):
        """States before and after each step, and (metrics, gradients) of each."""
        states = [init_state(self.case.lora("lora_init"), self.optimizer)]
        rows = []
        for index in range(len(self.case["loss"])):
            state, *row = self.program(self.pipeline.params["unet"], states[-1], self.inputs(index))
            states.append(state)
            rows.append(row)
        return states, rows


@pytest.fixture(scope="module", params=["dpo_e2e", "dpo_e2e_sdxl"])
def steps(rivals, request):
    return Steps(rivals, request.param)


def test_losses_and_norms_of_three_steps(steps):
    _, rows = steps.run
    for index, (metrics, _) in enumerate(rows):
        np.testing.assert_allclose(metrics["loss"], steps.case["loss"][index], atol=LOSS_OF_NETWORK)
        np.testing.assert_allclose(metrics["grad_norm"], steps.case["grad_norm_preclip"][index], rtol=1e-3)
        assert metrics["implicit_accuracy"] == pytest.approx(float(steps.case["implicit_acc"][index]))
        inside = steps.settings.beta / 2 * metrics["margin"]
        np.testing.assert_allclose(inside, steps.case["inside"][index].mean(), atol=LOSS_OF_NETWORK)


def test_gradients_of_the_first_step(steps):
    _, rows = steps.run
    assert_gradients_close(rows[0][1], steps.case.lora("grad_step1_preclip"))


@pytest.mark.parametrize("count", [1, 3])
def test_the_lora_after_steps(steps, count):
    states, _ = steps.run
    case = steps.case
    theirs = case.lora(f"lora_step{count}")
    assert_stepped(states[count].params, theirs, case.number("lr"), case.lora("grad_step1_preclip"), count)


# SmPO and InPO


@pytest.fixture(scope="module")
def smoothed(rivals):
    return rivals.case("smpo_loss")


def smoothed_loss(case, policy, weight):
    target = halves(case.images("target"))
    reference = errors_of(halves(case.images("ref")), target)
    return objective("smpo", errors_of(policy, target), reference, weight, case.number("beta"))


def check_smoothed(case, weight, prefix="", suffix=""):
    policy = halves(case.images("pred"))
    out = smoothed_loss(case, policy, weight)
    np.testing.assert_allclose(out.logit, case[f"{prefix}inside{suffix}"], atol=LOSS_OF_NETWORK)
    value, gradient = jax.value_and_grad(lambda policy: smoothed_loss(case, policy, weight).loss.mean())(policy)
    np.testing.assert_allclose(value, case[f"{prefix}loss{suffix}"], atol=LOSS_OF_NETWORK)
    stacked = jnp.concatenate([gradient[:, 0], gradient[:, 1]])
    assert_close(stacked, case.images(f"{prefix}grad_pred{suffix}"), GRADIENT)


def weights_of(case):
    scores = np.stack([case["score_0"], case["score_1"]], axis=1)
    low, high = case.number("score_min"), case.number("score_max")
    return scores, smoothed_weights(scores.max(1), scores.min(1), low, high, case.number("gamma"))


def test_smoothed_labels(smoothed):
    scores, weight = weights_of(smoothed)
    np.testing.assert_array_equal(scores[:, 0] > scores[:, 1], smoothed["label_0"] == 1)
    # The reference's softmax rounds in float32, and its scores differ in their third digit.
    np.testing.assert_allclose(weight, smoothed["weight"], atol=1e-5)


def test_smpo_with_each_pair_s_own_label(smoothed):
    check_smoothed(smoothed, jnp.asarray(weights_of(smoothed)[1]))
    policy = halves(smoothed.images("pred"))
    out = smoothed_loss(smoothed, policy, jnp.asarray(weights_of(smoothed)[1]))
    np.testing.assert_allclose(out.loss, smoothed["loss_per_pair"], atol=LOSS_OF_NETWORK)


def test_smpo_as_released_takes_the_first_pair_s_label_for_all(smoothed):
    """A quirk that is not copied: right for batches of one pair, which the published runs had on each device."""
    weight = jnp.full(len(smoothed["weight"]), weights_of(smoothed)[1][0])
    check_smoothed(smoothed, weight, suffix="_first_weight_only")


def test_inpo_has_the_weight_1(smoothed):
    check_smoothed(smoothed, jnp.ones(len(smoothed["weight"])), prefix="inpo_")


def test_inversions(rivals):
    """Every case of the file: kind, grid size and timestep are in its name; one program for each kind and size."""
    case = rivals.case("smpo_inversion")
    pipeline = rivals.pipeline_of(case)
    params = pipeline.params["unet"]
    latents = case.images("latents")
    condition = case.condition()
    found = case.matching(r"(smpo|inpo)_n(\d+)_t(\d+)(_eta0)?_x")
    assert found

    @functools.cache
    def program(kind, steps):
        process = pipeline.process(int(steps))
        np.testing.assert_array_equal(process.timesteps[::-1], case[f"inv_timesteps_{steps}"])

        @jax.jit
        def run(params, t, noise):
            def denoise(x, t):
                return pipeline.predict(params, None, x, t, condition)

            if kind == "smpo":
                return invert(denoise, process, "renoise", latents, t)
            return invert(denoise, process, "ddim", latents, t, noise, 0.1)

        return run

    for kind, steps, t, still in found:
        name = f"{kind}_n{steps}_t{t}{still or ''}"
        noise = 0 * case.images("inpo_noise") if still else case.images("inpo_noise")
        out = program(kind, steps)(params, jnp.full(len(latents), int(t)), noise)
        assert_close(out.x, case.images(f"{name}_x"), OUTPUT, name)
        assert_close(out.noise, case.images(f"{name}_noise"), OUTPUT, name)


# MaPO


def test_mapo(rivals):
    case = rivals.case("mapo")
    policy, target = halves(case.images("pred")), halves(case.images("target"))
    beta, timesteps = case.number("beta"), case.number("num_train_timesteps")
    found = errors_of(policy, target)
    close(found[:, 0], case["mse_w"])
    close(found[:, 1], case["mse_l"])
    scores = mapo_score(found, case.number("snr_value"))
    close(scores[:, 0], case["score_w"])
    close(scores[:, 1], case["score_l"])

    def out(policy):
        return objective("mapo", errors_of(policy, target), None, jnp.ones(len(policy)), beta, timesteps)

    # The reference computes e^x - 1 in float32, and loses up to 3e-6 of its score; ours agrees with float64 to 1e-7.
    np.testing.assert_allclose(out(policy).logit, case["log_odds"], atol=1e-5)
    np.testing.assert_allclose(out(policy).loss, case["loss_per_pair"], atol=1e-5 * timesteps * beta)
    value, gradient = jax.value_and_grad(lambda policy: out(policy).loss.mean())(policy)
    np.testing.assert_allclose(value, case["loss"], atol=1e-5 * timesteps * beta)
    # T = 1000 times that rounding is inside of the sigmoid whose value the gradient is multiplied with.
    assert_close(jnp.concatenate([gradient[:, 0], gradient[:, 1]]), case.images("grad_pred"), 1e-3)


def test_the_margin_is_the_dpo_s(loss):
    """`margins` is what the curve shows: the logit over half of beta."""
    found = margins(errors_of(loss.policy, loss.target), loss.reference)
    np.testing.assert_allclose(found * loss.beta / 2, loss.outputs(loss.policy).logit, rtol=LOSS)
