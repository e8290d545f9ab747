"""Rewards are found by name, a user's own reward evaluates and judges, and rewards of latents cannot evaluate."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.resizing import to_bytes
from spo_jax.methods.common.judge import open_judge
from spo_jax.parallel.mesh import make_mesh, replicated
from spo_jax.rewards import Spec, base, check_reward, load_reward, parse_spec
from spo_jax.rewards.base import Context, DeviceReward, Reward
from spo_jax.rewards.common.spm_reward import SPMReward
from spo_jax.rewards.toy import ToyTruth
from spo_jax.toy import ASSETS

# A user's own reward: ten lines that are not blank.
REDNESS = '''\
"""How red an image is."""

from spo_jax.rewards.base import DeviceReward


class Redness(DeviceReward):
    meanings = {"redness": "mean of red minus mean of green and blue"}

    def score(self, params, x, features, t):
        return x[..., 0].mean((1, 2)) - x[..., 1:].mean((1, 2, 3))


def load(source, context):
    return Redness()
'''


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A function that writes a module of the package ``my_rewards`` to the current folder, which is not in the path."""
    (tmp_path / "my_rewards").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name, text):
        (tmp_path / "my_rewards" / f"{name}.py").write_text(text)
        return f"my_rewards.{name}"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "my_rewards"]:
        del sys.modules[name]


@pytest.fixture
def images():
    """One image more than are scored at a time; image i has the redness i / 26."""
    red = np.zeros((26, 4, 4, 3), np.float32)
    red[..., 0] = np.arange(26).reshape(-1, 1, 1) / 26
    return red


def test_a_users_own_reward_measures_images(user_module, images):
    assert sum(bool(line) for line in REDNESS.splitlines()) <= 10
    reward = load_reward(user_module("redness", REDNESS), Context())
    assert isinstance(reward, Reward) and isinstance(reward, DeviceReward)
    reward.check(["any prompt"], (4, 4))
    scores = reward.measure(images, ["any prompt"] * len(images))
    assert scores.keys() == reward.meanings.keys() == {"redness"}
    np.testing.assert_allclose(scores["redness"], np.arange(26) / 26, atol=1e-6)


@pytest.mark.parametrize("reads", ["images", "latents"])
def test_a_users_own_reward_judges_latents_in_a_program(user_module, toy, reads):
    """Latents are decoded if and only if the reward reads images."""
    text = REDNESS.replace("    meanings", f'    READS = "{reads}"\n    meanings')
    name = user_module(f"redness_of_{reads}", text)
    judge = open_judge(name, {}, toy.pipeline, decoder="vae", group="spo")
    assert judge.features(["a red star"]) is None and judge.reward.feature_shapes() is None
    latents = jax.random.normal(jax.random.key(0), (2, *toy.pipeline.latent_shape))
    timesteps = jnp.full(2, 501)
    if reads == "latents":
        assert judge.decoder is None and judge.params == {"reward": {}}

    @jax.jit
    def score_and_read(params):
        x = latents if reads == "latents" else toy.pipeline.decode(params["decoder"], latents)
        return judge.score(params, latents, None, timesteps), x

    scores, x = score_and_read(judge.params)
    np.testing.assert_allclose(scores, x[..., 0].mean((1, 2)) - x[..., 1:].mean((1, 2, 3)), atol=1e-5)


def test_a_reward_of_latents_cannot_evaluate():
    class LatentMean(DeviceReward):
        READS = "latents"
        meanings = {"latent_mean": "mean of the latents"}

        def score(self, params, x, features, t):
            return x.mean((1, 2, 3))

    with pytest.raises(UserError, match="reward latent_mean reads latents, but evaluation has images: choose another"):
        LatentMean().check(["a prompt"], (32, 32))


def test_features_and_the_timestep_0_are_passed_to_the_score(images):
    """The features of each prompt stay with its image, also where the images are cut into chunks."""

    class PromptLength(DeviceReward):
        meanings = {"prompt_length": "length of the prompt"}

        def features(self, prompts):
            return {"length": np.array([len(prompt) for prompt in prompts], np.float32)}

        def score(self, params, x, features, t):
            return features["length"] + t

    reward = PromptLength()
    prompts = ["x" * index for index in range(len(images))]
    np.testing.assert_array_equal(reward.measure(images, prompts)["prompt_length"], np.arange(26))
    assert reward.feature_shapes() == {"length": jax.ShapeDtypeStruct((1,), jnp.float32)}


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_image_that_is_not_finite_has_no_score(images, wrong):
    """Rewards that read images as bytes would take it for one with black or white pixels."""

    class Brightness(DeviceReward):
        meanings = {"brightness": "mean of the image in bytes"}

        def score(self, params, x, features, t):
            return to_bytes(x).astype(jnp.float32).mean((1, 2, 3))

    images[1, 2, 3, 0] = wrong
    scores = Brightness().measure(images[:3], ["a", "b", "c"])["brightness"]
    np.testing.assert_array_equal(np.isnan(scores), [False, True, False])


def test_a_prompt_is_encoded_once(images, monkeypatch):
    """Several images may have it, in one call or, as images of several contestants, in several ones."""

    class PromptLength(DeviceReward):
        meanings = {"prompt_length": "length of the prompt"}
        asked = []

        def features(self, prompts):
            self.asked.append(list(prompts))
            return np.array([len(prompt) for prompt in prompts], np.float32)

        def score(self, params, x, features, t):
            return features

    reward = PromptLength()
    prompts = ["long", "a"] * 3 + ["mid"] * 4
    np.testing.assert_array_equal(reward.measure(images[:10], prompts)["prompt_length"], [4, 1] * 3 + [3] * 4)
    np.testing.assert_array_equal(reward.measure(images[:2], ["mid", "other"])["prompt_length"], [3, 5])
    assert reward.asked == [["long", "a", "mid"], ["other"]]
    monkeypatch.setattr(base, "_KEPT_PROMPTS", 4)  # what was kept is given up for new prompts
    for _ in range(2):
        np.testing.assert_array_equal(reward.measure(images[:2], ["new", "a"])["prompt_length"], [3, 1])
    assert reward.asked[2:] == [["new", "a"]]


@pytest.mark.parametrize("count", [3, 26])
def test_images_are_scored_on_all_devices_that_hold_the_weights(images, count):
    """Each device gets an equal share of the rows, the last one filled up; one program serves all chunks."""
    mesh = make_mesh()

    class Weighted(DeviceReward):
        meanings = {"weighted": "mean of the pixels, weighted"}
        params = {"weight": jax.device_put(jnp.float32(2), replicated(mesh))}
        shapes = []

        def score(self, params, x, features, t):
            self.shapes.append(x.shape)
            jax.debug.inspect_array_sharding(
                x, callback=lambda sharding: self.shapes.append(sharding.shard_shape(x.shape))
            )
            return params["weight"] * x.mean((1, 2, 3))

    reward = Weighted()
    scores = reward.measure(images[:count], ["a"] * count)["weighted"]
    np.testing.assert_allclose(scores, 2 * images[:count].mean((1, 2, 3)), atol=1e-6)
    rows = -(-count // mesh.size)
    assert reward.shapes == [(rows * mesh.size, 4, 4, 3), (rows, 4, 4, 3)]


def test_rewards_are_found_by_name():
    assert isinstance(load_reward("toy", Context()), ToyTruth)
    reward = load_reward("spm", Context(kind="sd", options={"model": "toy"}))
    assert isinstance(reward, SPMReward) and isinstance(reward, Reward)


def test_the_source_is_the_text_after_the_colon(user_module):
    """It is passed on as it is, even if it contains another colon."""
    text = REDNESS.replace("    return Redness()", "    reward = Redness()\n    reward.given = source, context.field")
    name = user_module("redness_with_source", text + "    return reward\n")
    assert load_reward(f"{name}:folder:1", Context(field="spo.reward")).given == ("folder:1", "spo.reward")
    assert load_reward(name, Context()).given == ("", "eval.rewards")
    assert isinstance(load_reward(f"spm:{ASSETS / 'spm'}", Context()), SPMReward)
    with pytest.raises(UserError, match="no such file or folder: ./no/such/model"):
        load_reward("spm:./no/such/model", Context())


@pytest.mark.parametrize("find", [load_reward, check_reward])
def test_a_variant_is_the_text_after_an_at_sign(user_module, find):
    """It is passed on if the module lists it; a source may have at signs of its own."""
    assert parse_spec("a.b@c:d@e:f") == Spec("a.b", "c", "d@e:f")
    assert parse_spec(" toy ") == Spec("toy") and parse_spec("spm:a@b") == Spec("spm", "", "a@b")
    text = REDNESS.replace("    return Redness()", "    assert context.variant == 'deep'\n    return Redness()")
    name = user_module("redness_in_two_ways", f"{text}\n\nVARIANTS = {{'deep': 'dark', 'pale': 'light'}}\n")
    find(f"{name}@deep:somewhere@else", Context())
    for wrong in ("@blue", "@", "@Deep:x"):
        with pytest.raises(UserError, match=f"= '{name}{wrong}': expected {name}, {name}@deep, {name}@pale"):
            find(f"{name}{wrong}", Context())
    with pytest.raises(UserError, match="eval.rewards = 'image_reward@deep': the reward image_reward has no variants"):
        find("image_reward@deep", Context())


@pytest.mark.parametrize("find", [load_reward, check_reward])
def test_unknown_rewards_are_refused(user_module, find):
    with pytest.raises(UserError, match="eval.rewards = 'beauty': expected .*'spm', .*'toy', or the dotted path of a"):
        find("beauty", Context())
    for shared in ("base", "common"):
        with pytest.raises(UserError, match=f"eval.rewards = '{shared}': expected .*'spm', .*'toy'"):
            find(shared, Context())
    with pytest.raises(UserError, match="spo.reward = 'my_rewards.beauty': no module of that name can be imported"):
        find("my_rewards.beauty", Context(field="spo.reward"))
    name = user_module("empty", "")
    with pytest.raises(UserError, match="expected a module with a function load.source, context., but my_rewards.empt"):
        find(name, Context())


def test_a_reward_may_be_checked_before_it_is_loaded(user_module):
    """Its module's function ``check`` is called, if there is one."""
    check_reward("toy", Context())
    check_reward("spm:toy", Context())
    with pytest.raises(UserError, match="no such file or folder: ./no/such/model"):
        check_reward("spm:./no/such/model", Context())
    check_reward(user_module("redness_unchecked", REDNESS), Context())
