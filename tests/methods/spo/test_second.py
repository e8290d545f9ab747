"""A second judge for the last pools: what it sees, how both scores are combined, and what does not go together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common import judge as judges
from spo_jax.methods.common.judged import is_judge
from spo_jax.methods.spo.checks import check
from spo_jax.methods.spo.judging import judged_rollout
from spo_jax.methods.spo.memory import SD15, estimate
from spo_jax.methods.spo.programs import SPO, TwoJudges, open_rollout_judge
from spo_jax.methods.spo.resampler import draw
from spo_jax.methods.spo.second import JudgedTwice, Predicted, agreement
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion
from spo_jax.nn.lora import init_lora
from spo_jax.parallel.mesh import make_mesh
from spo_jax.rewards.base import DeviceReward
from spo_jax.toy.world import TRAIN_PROMPTS
from tests.methods.spo.test_noisy import score
from tests.methods.spo.test_resampler import denoise, numpy_draws, process_of
from tests.support.networks import small_pipeline

ONE = SPOSettings(
    judged="noisy", num_steps=5, divert_start_step=1, num_candidates=3, decode_chunk=4, threshold=0.0,
    second_reward="images", second_weight=0.25,
)  # fmt: skip
BOTH = dataclasses.replace(ONE, second_steps=3)
LPO = dataclasses.replace(ONE, second_reward="", second_weight=SPOSettings.second_weight)
STEPS = pytest.mark.parametrize("settings", [ONE, BOTH], ids=["finished images", "three pools"])


def second(latents, t, row):
    return jnp.tanh(latents).sum((1, 2, 3)) - 0.02 * t + 2 * row


def rolled(settings, draws, denoise=denoise):
    other = second if settings.second_reward else None
    program = jax.jit(lambda draws: judged_rollout(denoise, score, settings, process_of(settings), draws, other))
    return jax.tree.map(np.asarray, program(draws))


@STEPS
def test_the_rollout_is_that_of_lpo_and_the_second_judge_sees_what_is_predicted_from_the_last_pools(settings):
    draws = numpy_draws(settings, batch=2)
    plain, found = rolled(LPO, draws), rolled(settings, draws)
    for name in ("parents", "children", "judged_timesteps"):
        np.testing.assert_allclose(getattr(found.trajectory, name), getattr(plain.trajectory, name), atol=3e-5)
    # What the second judge should see, pool by pool.
    process, count = process_of(settings), settings.second_steps
    rows = jnp.arange(2)
    expected = []
    for pool, t in zip(
        found.trajectory.children[-count:], [*process.timesteps[-(count - 1) :], 0][-count:], strict=True
    ):
        x0 = pool = jnp.asarray(pool)
        if t:
            x0, _ = process.split(pool, denoise(pool, jnp.int32(t)), jnp.int32(t))
        expected.append([second(each, jnp.full(2, t), rows) for each in x0])
    np.testing.assert_allclose(found.twice.second, np.asarray(expected), atol=2e-4)
    np.testing.assert_array_equal(found.scores[:-count], plain.scores[:-count])
    np.testing.assert_allclose(found.scores[-count:], 0.75 * found.twice.first + 0.25 * found.twice.second, rtol=1e-6)
    assert (found.scores.argmax(1) == found.verdict.win).all()


@STEPS
def test_a_weight_of_zero_leaves_one_judge(settings):
    draws = numpy_draws(settings, batch=2)
    first = rolled(dataclasses.replace(settings, second_weight=0.0), draws)
    np.testing.assert_array_equal(first.scores, rolled(LPO, draws).scores)
    other = rolled(dataclasses.replace(settings, second_weight=1.0), draws)
    np.testing.assert_array_equal(other.scores[-settings.second_steps :], other.twice.second)
    np.testing.assert_array_equal(other.scores[: -settings.second_steps], first.scores[: -settings.second_steps])


@pytest.mark.parametrize(("steps", "expected"), [(1, [(2,)]), (3, [(2,), (3, 2)]), (4, [(2,), (3, 2)])])
def test_the_network_predicts_from_all_candidates_at_the_last_steps_only(steps, expected):
    """Every scan traces the network once: for one parent of a prompt, and then for all candidates."""
    settings = dataclasses.replace(ONE, second_steps=steps, divert_start_step=0 if steps < 4 else 1)
    shapes = []

    def counting(x, t):
        shapes.append(x.shape[:-3])
        return denoise(x, t)

    rolled(settings, numpy_draws(settings, batch=2), counting)
    assert list(dict.fromkeys(shapes)) == expected


def test_eight_devices_are_one():
    settings = dataclasses.replace(BOTH, num_candidates=2)

    def run():
        draws = draw(jax.random.key(3), settings, 8, (4, 4, 2))
        return judged_rollout(denoise, score, settings, process_of(settings), draws, second)

    alone = jax.jit(run)()
    with jax.set_mesh(make_mesh()):
        together = jax.jit(run)()
    for one, eight in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, eight, atol=2e-5)


def test_gaps_and_agreement_are_measured():
    first = jnp.array([[[0.0, 1.0], [2.0, 0.0]]])  # one pool of two candidates for each of two prompts
    seen = Predicted(jnp.zeros((1, 2, 2, 1, 1, 1)), np.zeros(1, np.int32))
    found = agreement(JudgedTwice(first, jnp.array([[[3.0, 0.0], [0.0, 1.0]]]), seen))
    assert {name: float(value) for name, value in found.items()} == {
        "judges/first_gap": 1.5,
        "judges/second_gap": 2.0,
        "judges/agree": 0.0,
    }


# Bound to models


class Noisy(DeviceReward):
    READS = "noisy latents"
    meanings = {"noisy": "mean of the latents"}
    params = {"factor": jnp.float32(20.0)}

    def score(self, params, x, features, t):
        return params["factor"] * x.mean((1, 2, 3))


class Red(DeviceReward):
    meanings = {"red": "mean of red"}

    def features(self, prompts):
        return np.array([len(prompt) for prompt in prompts], np.float32)

    def score(self, params, x, features, t):
        return x[..., 0].mean((1, 2)) + features


def with_spo(settings, **changes):
    return dataclasses.replace(settings, spo=dataclasses.replace(settings.spo, **changes))


@pytest.fixture
def settings(toy_settings, monkeypatch):
    """Settings of the toy with two judges that have no weights to speak of."""
    rewards = {"lrm:x": Noisy(), "red": Red()}
    monkeypatch.setattr(judges, "load_reward", lambda spec, context: rewards[spec])
    return with_spo(
        toy_settings, judged="noisy", reward="lrm:x", second_reward="red", num_candidates=3, divert_start_step=0
    )


def test_images_are_decoded_for_the_last_pools_only(settings, monkeypatch):
    decoded, decode = [], StableDiffusion.decode

    def counting(self, params, latents, *rest):
        decoded.append(latents.shape[0])
        return decode(self, params, latents, *rest)

    monkeypatch.setattr(StableDiffusion, "decode", counting)
    pipeline = small_pipeline()
    judge = open_rollout_judge(settings, pipeline)
    assert isinstance(judge, TwoJudges) and judge.params.keys() == {"first", "reward", "decoder"}
    spo = SPO(settings, pipeline, judge)
    lora = init_lora(jax.random.key(0), pipeline.params["unet"], 4)
    inputs = spo.features(TRAIN_PROMPTS[:2])
    pairs, metrics = jax.eval_shape(spo.collect, lora, spo.frozen(), inputs, jax.random.key(0))
    # Two prompts, of which each has three finished images: six in chunks, where all pools have six times as many.
    assert decoded == [min(6, settings.spo.decode_chunk or 4)]
    assert metrics["judges/agree"].shape == () and metrics["judge_score"].shape == (settings.spo.num_steps,)
    assert len(pairs.t) == 2 * settings.spo.num_steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judged": "clean"}, "spo.second_reward = 'red': expected none for spo.judged = 'clean'"),
        ({"next_parent": "best"}, "spo.next_parent = 'best': expected 'random' for spo.second_reward"),
        ({"second_steps": 1000}, "spo.second_steps = 1000: expected 1 to .*, the number of pools"),
        ({"second_steps": 0}, "spo.second_steps = 0: expected"),
        ({"second_weight": 1.5}, "spo.second_weight = 1.5: expected"),
    ],
)
def test_settings_have_to_go_together(settings, changes, message):
    with pytest.raises(UserError, match=message):
        with_spo(settings, **changes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toy", "spo.second_reward = 'toy': this reward is computed on the host"),
        ("absent", "spo.second_reward = 'absent': expected"),
        ("lrm:x", "spo.second_reward = 'lrm:x': this reward judges noisy latents"),
    ],
)
def test_a_second_judge_has_to_judge_clean_predictions(settings, spec, message):
    with pytest.raises(UserError, match=message):
        check(with_spo(settings, reward="lrm:toy_people", second_reward=spec))


def test_both_are_judges_of_the_run(settings):
    named = with_spo(settings, second_reward="spm:toy")
    assert is_judge("lrm:x", named) and is_judge("spm:toy", named) and not is_judge("toy", named)


def test_memory_counts_both(toy_settings):
    noisy = with_spo(toy_settings, judged="noisy", reward="lrm:x")
    both = with_spo(noisy, second_reward="spm")
    more = estimate(both, SD15).weights - estimate(noisy, SD15).weights
    each = 2 if toy_settings.dtype == "bfloat16" else 4
    assert more == pytest.approx(each * (SD15.judge + SD15.vae), abs=2)
    assert estimate(with_spo(both, second_steps=2), SD15).rollout >= estimate(both, SD15).rollout
