"""A weighted sum of rewards as one reward, for judging and for evaluation.

Sums of float32 scores agree to 1e-5.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common.judge import open_judge
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context
from spo_jax.toy import world
from tests.support.networks import small_pipeline

OWN = """
from spo_jax.rewards.base import DeviceReward

class Redness(DeviceReward):
    READS = "{reads}"
    meanings = {{"redness": "red"}}
    lower_is_better = {lower}

    def score(self, params, x, features, t):
        return x[..., 0].mean((1, 2))

def load(source, context):
    return Redness()
"""
ON_HOST = """
class Host:
    meanings = {"host": "nothing"}
    lower_is_better = ()

    def check(self, prompts, size):
        pass

    def measure(self, images, prompts):
        raise NotImplementedError

def load(source, context):
    return Host()
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Rewards of the user's own, in the current folder."""
    modules = {"red": OWN.format(reads="images", lower=()), "latent": OWN.format(reads="latents", lower=())}
    modules |= {"stain": OWN.format(reads="images", lower=("redness",)), "host": ON_HOST}
    (tmp_path / "my_sum").mkdir()
    for name, text in modules.items():
        (tmp_path / "my_sum" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("my_sum")]:
        del sys.modules[name]


def test_the_sum_is_that_of_the_scores_as_they_are():
    prompts = list(world.PROMPTS[:3])
    images, _ = world.draw(np.random.default_rng(0), prompts)
    judged = load_reward("sum:0.5*spm:toy + -3*my_sum.red", Context())
    judged.check(prompts, images.shape[1:3])
    alone = load_reward("spm:toy", Context()).measure(images, prompts)["spm_score"]
    expected = 0.5 * alone - 3 * images[..., 0].mean((1, 2))
    np.testing.assert_allclose(judged.measure(images, prompts)["sum"], expected, rtol=1e-5, atol=1e-5)
    assert judged.meanings == {"sum": "0.5 × spm_score - 3 × redness, the scores as they are"}
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), judged.features(["a prompt"]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), judged.feature_shapes()) == shapes


def test_a_score_that_improves_by_falling_has_a_negative_weight():
    options = {"decoder": "vae", "group": "spo"}
    message = r"config field spo.reward = '{}': a lower score of this reward is better, .* as in 'sum:-1\*my_sum.stain'"
    for spec in ("my_sum.stain", "sum:1*my_sum.red+0.5*my_sum.stain"):
        with pytest.raises(UserError, match=message.format("my_sum.stain")):
            open_judge(spec, {}, small_pipeline(), **options)
    check_reward("sum:-1*my_sum.stain", Context(field="spo.reward"), judges=True)
    judge = open_judge("sum:-1*my_sum.stain", {}, small_pipeline(), **options)
    assert judge.reward.meanings == {"sum": "- 1 × redness, the scores as they are"}
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    scores = judge.reward.measure(images, ["", ""])["sum"]
    np.testing.assert_allclose(scores, -images[..., 0].mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_it_judges_what_is_decoded_once():
    pipeline = small_pipeline()
    options = {"decoder": "vae", "group": "spo"}
    judge = open_judge("sum:1*my_sum.red+2e-1*my_sum.red", {}, pipeline, **options)
    alone = open_judge("my_sum.red", {}, pipeline, **options)
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((2, *pipeline.latent_shape), np.float32))
    t = jnp.zeros(2, jnp.int32)
    features = judge.features(["a", "b"])

    def score(params):
        return judge.score(params, latents, features, t)

    np.testing.assert_allclose(score(judge.params), 1.2 * alone.score(alone.params, latents, None, t), rtol=1e-5)
    decoder = jax.make_jaxpr(lambda params: alone.score(params, latents, None, t))(alone.params)
    both = jax.make_jaxpr(score)(judge.params)
    assert str(both).count("conv_general_dilated") == str(decoder).count("conv_general_dilated") > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sum", "config field spo.reward = 'sum:': expected weights and rewards, such as sum:1\\*pickscore"),
        ("sum:1*spm:toy", "expected weights and rewards"),
        ("sum:spm:toy+my_sum.red", "expected weights and rewards"),
        ("sum:1*spm:toy+nan*my_sum.red", "expected weights and rewards"),
        ("sum:1*+2*spm:toy", "expected weights and rewards"),
        ("sum:1*spm+1*spm:toy", "spo.reward = 'spm': name the preference model, as in spm:FOLDER_OR_ID"),
        ("sum:1*spm:./nothing+1*spm:toy", "no such file or folder: ./nothing"),
        ("sum:1*toy+1*spm:toy", "spo.reward = 'toy': this reward is computed on the host"),
        ("sum:1*my_sum.host+1*spm:toy", "spo.reward = 'my_sum.host': this reward is computed on the host"),
        ("sum:1*my_sum.red+1*my_sum.latent", "some rewards of the sum read images and others latents"),
    ],
)
def test_what_is_no_sum_is_refused(spec, message):
    context = Context(field="spo.reward")
    with pytest.raises(UserError, match=message):
        check_reward(spec, context, judges=True)
        load_reward(spec, context)
