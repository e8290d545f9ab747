"""Judges of finished images: which scores count, and where they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common.final_judge import FinalJudge, SomeScores, chosen
from spo_jax.models.base import Decoder
from tests.e2e import redness
from tests.methods import darkness_on_host, redness_on_host

DEVICE, HOST, DARK = (module.load("", None) for module in (redness, redness_on_host, darkness_on_host))
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 6, 5, 3)).astype(np.float32)
PROMPTS = ["a", "a", "b", "b"]


def names_of(rewards, names=()):
    return [name for _, reward in chosen(rewards, names, "score") for name in reward.meanings]


def test_the_first_score_counts_or_those_that_are_named():
    assert names_of([("host", HOST)]) == ["darkness"]
    assert names_of([("host", HOST)], ["redness"]) == ["redness"]
    (_, reward), *_ = chosen([("device", DEVICE)], (), "score")
    assert reward is DEVICE


def test_scores_that_are_unknown_or_given_twice_and_rewards_without_any_are_refused():
    with pytest.raises(UserError, match="score names 'beauty': expected one of the scores darkness, redness"):
        chosen([("host", HOST)], ["beauty"], "score")
    with pytest.raises(UserError, match="score: several rewards give a score darkness; keep one of them"):
        chosen([("host", HOST), ("dark", DARK)], (), "score")
    with pytest.raises(UserError, match="score names no score of 'dark': expected one of darkness as well"):
        chosen([("host", HOST), ("dark", DARK)], ["redness"], "score")


def test_scores_of_a_program_are_those_of_the_host():
    """In a program images are decoded and scored in chunks; on the host they are decoded in a program."""
    decoder = Decoder({"scale": jnp.float32(2)}, lambda params, latents: latents * params["scale"])
    latents = jnp.asarray(IMAGES / 2)
    row = jnp.asarray([0, 0, 1, 1])
    device = FinalJudge((DEVICE,), decoder)
    host = FinalJudge((SomeScores(HOST, ["redness"]), DARK), decoder)
    assert not device.on_host and host.on_host and host.names == ["redness", "darkness"]
    assert host.loaded == [HOST, DARK]

    def finish(judge):
        return jax.jit(lambda params: judge.finish(params, latents, judge.features(["a", "b"]), row, 2))(judge.params)

    images = np.asarray(finish(host))
    np.testing.assert_allclose(images, IMAGES, rtol=1e-6)
    scores = host.measure(images, PROMPTS)
    assert scores.shape == (4, 2) and scores.dtype == np.float32
    np.testing.assert_allclose(finish(device)[:, 0], scores[:, 0], atol=1e-6)
    np.testing.assert_allclose(scores[:, 1], -IMAGES.mean((1, 2, 3)), atol=1e-6)


def test_rewards_of_both_kinds_are_all_measured_on_the_host():
    mixed = FinalJudge((DEVICE, DARK), None)
    assert mixed.on_host and mixed.params == {"rewards": {}} and mixed.features(["a"]) == ()
    np.testing.assert_allclose(
        mixed.measure(IMAGES, PROMPTS)[:, 0], HOST.measure(IMAGES, PROMPTS)["redness"], atol=1e-6
    )  # fmt: skip
