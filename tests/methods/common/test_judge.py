"""Rewards that judge latents inside a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common import judge as judges
from spo_jax.methods.common.judge import open_judge
from spo_jax.rewards.base import DeviceReward
from spo_jax.rewards.common.spm_reward import SPMReward
from tests.support.networks import small_pipeline, small_spm

OPTIONS = {"decoder": "vae", "group": "spo"}


class LatentReward(DeviceReward):
    """The mean of latents, times the timestep, plus the length of the prompt."""

    READS = "latents"
    meanings = {"mean": "mean of the latents"}
    params = {"factor": jnp.float32(2.0)}

    def features(self, prompts):
        return np.array([len(prompt) for prompt in prompts], np.float32)

    def score(self, params, x, features, t):
        return params["factor"] * x.mean((1, 2, 3)) * t + features


class HostReward:
    """A reward that is computed on the host: it can evaluate, but not judge."""

    meanings = {"host": "computed on the host"}
    lower_is_better = ()

    def check(self, prompts, size):
        pass

    def measure(self, images, prompts):
        return {"host": np.zeros(len(images))}


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture
def give(monkeypatch):
    """Makes `open_judge` load a given reward, and returns the arguments it asked with."""

    def use(reward):
        asked = []
        monkeypatch.setattr(judges, "load_reward", lambda *arguments: asked.append(arguments) or reward)
        return asked

    return use


def latents_of(pipeline, count):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, *pipeline.latent_shape), np.float32))


def test_a_reward_of_latents_has_no_decoder(pipeline, give):
    give(LatentReward())
    judge = open_judge("my.reward", {}, pipeline, **OPTIONS)
    assert judge.decoder is None and set(judge.params) == {"reward"}
    latents = latents_of(pipeline, 2)
    t = jnp.array([0, 501], jnp.int32)
    features = judge.features(["a", "four"])
    scores = judge.score(judge.params, latents, features, t)
    np.testing.assert_allclose(scores, [1, 4 + 2 * 501 * latents[1].mean()], rtol=1e-5)


def test_a_reward_of_images_sees_decoded_latents(pipeline, give):
    """With weights of reward and decoder as arguments, not constants: other weights give other scores."""
    reward = SPMReward(small_spm())
    give(reward)
    judge = open_judge("spm", {}, pipeline, **OPTIONS)
    assert set(judge.params) == {"reward", "decoder"}
    features = jnp.asarray(judge.features(["a red star", "a blue moon"]))
    latents = latents_of(pipeline, 2)
    t = jnp.array([501, 0], jnp.int32)

    @jax.jit
    def score(params, decoder_params):
        images = pipeline.decode(decoder_params, latents)
        return judge.score(params, latents, features, t), reward.score(params["reward"], images, features, t)

    found, expected = score(judge.params, pipeline.params["vae"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    other = {**judge.params, "decoder": jax.tree.map(lambda x: 0.5 * x, judge.params["decoder"])}
    changed, _ = score(other, pipeline.params["vae"])
    assert np.abs(changed - found).max() > 1e-3


def test_what_the_reward_is_loaded_for(pipeline, give):
    """The pipeline's kind and dtype, the options of its group, and the field that names it."""
    asked = give(LatentReward())
    open_judge("my.reward", {"model": "folder"}, pipeline, **OPTIONS, abstract=True)
    [(spec, context)] = asked
    assert spec == "my.reward"
    assert (context.kind, context.dtype, context.abstract) == ("sd", jnp.float32, True)
    assert context.options == {"model": "folder"} and context.field == "spo.reward"


def test_a_reward_on_the_host_is_refused(pipeline, give):
    give(HostReward())
    with pytest.raises(UserError, match="config field spo.reward = 'host': this reward is computed on the host"):
        open_judge("host", {}, pipeline, **OPTIONS)


def test_a_reward_that_does_not_exist_is_refused(pipeline):
    with pytest.raises(UserError, match="config field spo.reward = 'smp': .*expected .*'spm'"):
        open_judge("smp", {}, pipeline, **OPTIONS)


def test_a_decoder_that_does_not_exist_is_refused(pipeline, give, tmp_path):
    give(SPMReward(small_spm()))
    with pytest.raises(UserError, match="taesd"):
        open_judge("spm", {}, pipeline, decoder=str(tmp_path / "taesd"), group="spo")
