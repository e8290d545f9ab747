"""Rollouts whose candidates are judged with their noise, and settings and judges that do not go together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common import judge
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spo.checks import check
from spo_jax.methods.spo.judging import judged_rollout
from spo_jax.methods.spo.pairs import rank
from spo_jax.methods.spo.plan import judged_timesteps
from spo_jax.methods.spo.programs import SPO, open_rollout_judge
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.thresholds import threshold_at
from spo_jax.models import base, open_pipeline
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion
from spo_jax.models.stable_diffusion.unet import UNetEncoder
from spo_jax.nn.lora import init_lora
from spo_jax.rewards.base import DeviceReward
from spo_jax.toy.world import TRAIN_PROMPTS
from tests.methods.spo.test_resampler import denoise, numpy_draws, process_of
from tests.support.latent_models import write_published
from tests.support.networks import small_pipeline

LPO = SPOSettings(
    judged="noisy", num_steps=5, divert_start_step=2, num_candidates=3, decode_chunk=4, threshold_rule="sigma",
    threshold=0.0, threshold_high=0.2,
)  # fmt: skip


def score(latents, t, row):
    return 3 * latents.mean((1, 2, 3)) + 0.01 * t + row


def loop(settings, process, draws, pick):
    """The rollout as a plain loop: parents, children and scores of every step that branches."""
    x = draws.init_latents
    parents, children, scores = [], [], []
    for step, t in enumerate(jnp.asarray(process.timesteps)):
        mean, std = process.step(*process.split(x, denoise(x, t), t), t, settings.eta)
        if step < settings.divert_start_step:
            x = mean + std * draws.shared[step]
            continue
        pool = mean[None] + std[None] * draws.pool[len(children)]
        rows = jnp.arange(len(x))
        scores.append(jnp.stack([score(each, jnp.full(len(x), t), rows) for each in pool]))
        chosen = pick(len(children), scores[-1])
        parents.append(x)
        children.append(pool)
        x = pool[chosen, rows]
    return jnp.stack(parents), jnp.stack(children), jnp.stack(scores)


@pytest.mark.parametrize("settings", [LPO, dataclasses.replace(LPO, divert_start_step=0)], ids=["later", "first"])
@pytest.mark.parametrize("parent", ["random", "best"])
def test_the_scan_equals_a_plain_loop(settings, parent):
    """Every candidate is judged at the timestep of the step that drew it; the last ones too."""
    settings = dataclasses.replace(settings, next_parent=parent)
    process, draws = process_of(settings), numpy_draws(settings, batch=2)
    choices = [*np.asarray(draws.choice), np.zeros(2, int)]
    found = jax.jit(lambda draws: judged_rollout(denoise, score, settings, process, draws))(draws)
    parents, children, scores = loop(
        settings, process, draws, lambda step, scores: choices[step] if parent == "random" else scores.argmax(0)
    )
    np.testing.assert_allclose(found.trajectory.parents, parents, atol=3e-5)
    np.testing.assert_allclose(found.trajectory.children, children, atol=3e-5)
    np.testing.assert_array_equal(found.trajectory.judged, found.trajectory.children)
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    timesteps = process.timesteps[settings.divert_start_step :]
    np.testing.assert_array_equal(found.trajectory.judged_timesteps, timesteps)
    expected = rank(found.scores, threshold_at(settings, timesteps))
    np.testing.assert_array_equal(found.verdict.valid, expected.valid)
    assert found.verdict.valid.any()


def test_thresholds_rise_with_noise_and_are_one_number_by_default():
    limits = threshold_at(LPO, judged_timesteps(LPO, process_of(LPO).timesteps))
    assert (np.diff(limits) < 0).all()  # timesteps descend
    assert threshold_at(SPOSettings(), np.array([951, 1])) == SPOSettings().threshold
    whole = dataclasses.replace(LPO, threshold=0.35, threshold_high=0.5)
    np.testing.assert_allclose(threshold_at(whole, np.array([1, 951])), [0.35, 0.5], rtol=1e-6)


def test_ties_are_no_pairs_of_finished_images_where_the_threshold_is_linear():
    """LPO's formula counts from t = 1, and finished images are judged at t = 0."""
    linear = SPOSettings(threshold_rule="linear", threshold=0.0, threshold_high=0.5)
    assert not rank(jnp.full((1, 4, 1), 7.0), threshold_at(linear, np.array([0]))).valid.any()
    beyond = dataclasses.replace(linear, threshold=0.35)
    np.testing.assert_allclose(threshold_at(beyond, np.array([0, 981])), 0.35 + 0.15 * np.array([-1, 980]) / 950, 1e-6)


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def lrm(tmp_path_factory, pipeline):
    return f"lrm:{write_published(tmp_path_factory.mktemp('lrm') / 'sd', pipeline)}"


@pytest.fixture(scope="module")
def settings(toy_settings, lrm):
    spo = dataclasses.replace(toy_settings.spo, judged="noisy", reward=lrm, num_candidates=3, divert_start_step=0)
    return dataclasses.replace(toy_settings, spo=spo)


def test_nothing_is_decoded_and_the_network_predicts_from_one_candidate(settings, pipeline, monkeypatch):
    """And the judge runs the first half of its network: both halves of guidance for a chunk of candidates."""
    spo = SPO(settings, pipeline, open_rollout_judge(settings, pipeline))
    assert spo.judge.decoder is None and "decoder" not in spo.judge.params
    sizes, judged = [], []

    def counting(predict, x, *rest):
        sizes.append(len(x))
        return guided(predict, x, *rest)

    def half(self, x, *rest):
        judged.append(len(x))
        return encode(self, x, *rest)

    def fail(*_):
        raise AssertionError("latents are decoded")

    guided, encode = base.guided, UNetEncoder.__call__
    monkeypatch.setattr(base, "guided", counting)
    monkeypatch.setattr(UNetEncoder, "__call__", half)
    monkeypatch.setattr(StableDiffusion, "decode", fail)
    lora = init_lora(jax.random.key(0), pipeline.params["unet"], 4)
    inputs = spo.features(TRAIN_PROMPTS[:2])
    pairs, metrics = jax.eval_shape(spo.collect, lora, spo.frozen(), inputs, jax.random.key(0))
    assert sizes == [2]  # two prompts, from the first step on
    assert judged == [2 * settings.spo.decode_chunk]
    assert len(pairs.t) == 2 * settings.spo.num_steps and metrics["judge_score"].shape == (settings.spo.num_steps,)


@pytest.mark.slow  # the test above has the same programs, and compiles none
def test_a_batch_trains_on_what_the_judge_says(settings, pipeline):
    spo = SPO(settings, pipeline, open_rollout_judge(settings, pipeline))
    optimizer = make_optimizer(settings.optimizer)
    state = init_state(init_lora(jax.random.key(0), pipeline.params["unet"], 4), optimizer)
    inputs, key = spo.features(TRAIN_PROMPTS[:2]), jax.random.key(0)
    pairs, metrics = jax.jit(spo.collect)(state.params, spo.frozen(), inputs, key)
    assert pairs.valid.all() and np.isfinite(metrics["judge_score"]).all()
    after, row = jax.jit(spo.update)(state, spo.frozen(), inputs, pairs, key)
    assert np.isfinite(row["loss"]) and after.step == row["train_batches"] > 0


# What does not go together


class Clean(DeviceReward):
    READS = "latents"
    meanings = {"clean": "reads clean latents"}


def test_judges_have_to_read_what_they_see(settings, toy_settings, lrm, monkeypatch):
    clean = dataclasses.replace(settings, spo=dataclasses.replace(settings.spo, judged="clean"))
    with pytest.raises(UserError, match="spo.reward = 'lrm:.*judges noisy latents.*spo.judged = 'noisy'"):
        check(clean)
    wrong = dataclasses.replace(toy_settings, spo=dataclasses.replace(toy_settings.spo, judged="noisy"))
    with pytest.raises(UserError, match="'spm': this reward reads images, but with spo.judged = 'noisy'"):
        check(wrong)
    monkeypatch.setattr(judge, "load_reward", lambda *_: Clean())
    with pytest.raises(UserError, match="this reward reads latents, but with spo.judged = 'noisy'"):
        open_rollout_judge(settings, small_pipeline())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("toy", "judges latents of 4 channels .* but the model's have 16"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "judges latents of Stable Diffusion 1.x or 2.x, but .* is SDXL"),
    ],
)
def test_a_judge_of_other_latents_is_refused_before_the_model_is_opened(toy_settings, lrm, model, message):
    """Here by the configs of the toy and of a model on the hub, whose weights need not be fetched for that."""
    spo = dataclasses.replace(toy_settings.spo, judged="noisy", reward=lrm)
    with pytest.raises(UserError, match=f"^config field spo.reward: .*{message}"):
        check(dataclasses.replace(toy_settings, model=model, spo=spo))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inner_step": 1}, "spo.num_inner_step = 1: expected 0 for spo.judged = 'noisy'"),
        ({"branch_at_last_step": False}, "spo.branch_at_last_step = False: expected True for spo.judged"),
        ({"shared_parent": False}, "spo.shared_parent = False: expected True for spo.judged"),
        ({"judge_timestep": "zero"}, "spo.judge_timestep = 'zero': expected 'step' for spo.judged"),
        ({"threshold": 0.6}, "spo.threshold_high = 0.2: expected at least spo.threshold = 0.6"),
    ],
)
def test_settings_have_to_go_together(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LPO, **fields)


def test_a_judge_for_other_latents_is_refused_before_anything_is_compiled(settings, pipeline):
    folder = settings.spo.reward.removeprefix("lrm:")
    other = dataclasses.replace(pipeline, text_encoder_2=pipeline.text_encoder)  # as SDXL has
    with pytest.raises(UserError, match=f"{folder} judges latents of Stable Diffusion 1.x.*model is SDXL"):
        open_rollout_judge(settings, other)


def test_the_judge_of_the_toy_is_refused_for_other_models_and_theirs_for_the_toy(settings, pipeline):
    """Both are for the family of SD, and their latents have other widths; weights are not even read."""
    toys = dataclasses.replace(settings, spo=dataclasses.replace(settings.spo, reward="lrm:toy_people"))
    with pytest.raises(UserError, match="lrm_people judges latents of 16 channels .* but the model's have 4: expected"):
        open_rollout_judge(toys, pipeline)
    toy = open_pipeline("toy", abstract=True)
    with pytest.raises(UserError, match="judges latents of 4 channels .* but the model's have 16: expected"):
        open_rollout_judge(settings, toy)
