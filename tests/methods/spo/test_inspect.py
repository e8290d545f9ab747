"""A rollout that is opened up shows what training makes of it; by training's own functions, so to the bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spo_jax
from spo_jax.core.errors import UserError
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.methods.common.judge import Judge
from spo_jax.methods.common.settings import LoRASettings
from spo_jax.methods.spo import inspect
from spo_jax.methods.spo.judging import judged_rollout
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.programs import SPO
from spo_jax.methods.spo.resampler import draw
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.models.base import Decoder
from spo_jax.models.lora import write_lora
from spo_jax.nn.lora import init_lora
from spo_jax.rewards.base import DeviceReward
from spo_jax.weights.lora import LoRA
from tests.models.helpers import RANK, random_adapter
from tests.support.networks import SCHEDULE, small_pipeline

PROMPTS = ("a red star", "a blue moon", "a red star")


class Brightness(DeviceReward):
    """The mean of an image, and the timestep, so that neither can belong to another candidate."""

    meanings = {"brightness": "mean of the image"}

    def score(self, params, x, features, t):
        return 10 * x.mean((1, 2, 3)) + t


@pytest.fixture(scope="module")
def spo(toy_settings):
    pipeline = small_pipeline()
    settings = dataclasses.replace(toy_settings, spo=dataclasses.replace(toy_settings.spo, threshold=0.02))
    return SPO(settings, pipeline, Judge(Brightness(), Decoder(pipeline.params["vae"], pipeline.decode)))


@pytest.fixture(scope="module")
def adapter(spo):
    return init_lora(jax.random.key(0), spo.pipeline.params["unet"], 2)


@pytest.fixture(scope="module")
def looked(spo, adapter):
    return inspect._roll(spo, adapter, PROMPTS, seed=5)


def test_scores_and_pairs_are_those_of_training(spo, adapter, looked):
    pairs, metrics = jax.jit(spo.collect)(adapter, spo.frozen(), spo.feed(spo.features(PROMPTS)), jax.random.key(5))
    np.testing.assert_allclose(looked.scores.mean((1, 2)), metrics["judge_score"], rtol=1e-5)
    gap = np.take_along_axis(looked.scores, looked.win[:, None], 1) - np.take_along_axis(
        looked.scores, looked.lose[:, None], 1
    )
    np.testing.assert_allclose(gap.mean((1, 2)), metrics["judge_gap"], rtol=1e-3)
    np.testing.assert_array_equal(looked.valid.reshape(-1), pairs.valid)
    np.testing.assert_array_equal(looked.valid, looked.certainty > looked.threshold)
    assert 0 < looked.valid.mean() < 1  # so that an exchange would show


def test_images_scores_and_timesteps_belong_together(looked, spo):
    assert looked.images.shape == (3, 2, 3, *spo.pipeline.image_size, 3)
    expected = 10 * looked.images.mean((3, 4, 5)) + looked.timesteps[:, None, None]
    np.testing.assert_allclose(looked.scores, expected, rtol=1e-4)
    assert looked.timesteps[-1] == 0 and (np.diff(looked.timesteps) < 0).all()


def test_prompts_that_are_given_twice_have_trajectories_of_their_own(looked):
    assert np.abs(looked.images[:, :, 0] - looked.images[:, :, 2]).mean() > 1e-2


@pytest.mark.parametrize(
    "form",
    [{}, {"num_inner_step": 1}, {"num_inner_step": 2, "branch_at_last_step": False}, {"next_parent": "best"}],
    ids=str,
)
def test_the_chosen_candidate_is_the_parent_of_the_next_pool(form):
    """With a network that is a function: the pools of SD 1.5, and those whose candidates take steps on their own."""
    settings = SPOSettings(num_steps=7, divert_start_step=1, num_candidates=3, **form)
    process = make_ddpm(SCHEDULE, 7)

    @jax.jit
    def roll(key):
        draws = draw(key, settings, 2, (4, 4, 2))
        score = lambda x, t, row: x.mean((1, 2, 3))  # noqa: E731
        return judged_rollout(lambda x, t: 0.1 * x, score, settings, process, draws), draws

    judged, draws = roll(jax.random.key(0))
    images = np.zeros((len(judged.scores), 3, 2, 1, 1, 3), np.float32)
    looked = inspect.view(settings, PROMPTS[:2], judged, draws, images)
    plan = make_plan(settings)
    parents, children = (np.asarray(part) for part in (judged.trajectory.parents, judged.trajectory.children))
    branching = 1 + np.flatnonzero(plan.branches)  # transitions that begin a pool
    assert len(looked.chosen) == len(branching) == len(looked.timesteps) - 1
    for chosen, transition in zip(looked.chosen, branching, strict=True):
        for prompt, candidate in enumerate(chosen):
            parent = parents[transition]
            parent = parent[prompt] if looked.shares_parent else parent[0, prompt]
            np.testing.assert_array_equal(parent, children[transition - 1, candidate, prompt])
    assert looked.shares_parent == ("num_inner_step" not in form)


def test_a_lora_keeps_its_own_scale(spo, tmp_path):
    """Its update is B A alpha / r of the file, whatever rank and alpha the settings have."""
    tree = jax.tree.map(np.asarray, random_adapter(spo.pipeline.params["unet"]))
    file = tmp_path / "lora.safetensors"
    write_lora(file, LoRA(tree, RANK / 4, RANK))
    settings = dataclasses.replace(spo.settings, lora=LoRASettings(rank=8, alpha=16.0))
    policy = inspect.open_adapter(settings, spo.pipeline, file)

    def update(adapter, scale):
        attention = adapter["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]
        return scale * jnp.asarray(attention["lora_A"]) @ jnp.asarray(attention["lora_B"])

    np.testing.assert_allclose(update(policy, settings.lora.scale), update(tree, 1 / 4), rtol=1e-5)
    fresh = inspect.open_adapter(settings, spo.pipeline, None)
    np.testing.assert_array_equal(update(fresh, 1.0), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "a red star"}, "expected a list of prompts"),
        ({"prompts": []}, "expected a list of prompts"),
        ({"lora": "runs/missing"}, "no such file or folder: runs/missing"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_inspected_is_named(toy_settings, change, message):
    given = {"settings": toy_settings, "prompts": PROMPTS, "lora": ""} | change
    with pytest.raises(UserError, match=message):
        spo_jax.inspect_rollout(given.pop("settings"), given.pop("prompts"), **given)


@pytest.mark.slow
def test_the_toy_is_inspected_by_its_public_name(toy_settings):
    looked = spo_jax.inspect_rollout(toy_settings, ["a red star", "a blue moon"], seed=1)
    assert looked.images.shape == (3, 2, 2, 32, 32, 3) and np.isfinite(looked.scores).all()
