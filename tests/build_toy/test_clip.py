"""The plain CLIP, from which a preference model can start: its captions are true, and its loss is CLIP's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.build_toy import clip
from spo_jax.build_toy.clip import WORDS, captions, contrastive_loss, train_clip
from spo_jax.build_toy.preference import clip_config
from spo_jax.methods.spm.init import load_start
from spo_jax.nn.clip import CLIPModel
from spo_jax.toy import world

CAN_BE_SAID = {word: name for name in WORDS if name in {*world.FACTORS, "shift"} for word in WORDS[name]}


def test_captions_say_what_stands_out_and_nothing_else():
    rng = np.random.default_rng(0)
    prompts = [str(prompt) for prompt in rng.choice(world.TRAIN_PROMPTS, 2000)]
    factors = world.sample_factors(rng, 2000)
    seen = set()
    plain = 0
    for row, (prompt, said) in enumerate(zip(prompts, captions(rng, prompts, factors), strict=True)):
        if said == prompt:
            plain += 1
            continue
        article, word, colour, shape = said.split()
        assert article == "a" and [colour, shape] == prompt.split()[1:]
        name = CAN_BE_SAID[word]
        seen.add(word)
        if name == "shift":
            value, high = np.hypot(factors["shift_x"][row], factors["shift_y"][row]), np.hypot(2, 2)
            low = 0
        else:
            low, high = world.FACTORS[name]
            low = max(low, 0)
            value = abs(factors[name][row])
        height = (value - low) / (high - low)
        assert height > 0.7 if word == WORDS[name][1] else height < 0.3
    assert seen == set(CAN_BE_SAID)
    assert clip.PLAIN - 0.03 < plain / 2000 < clip.PLAIN + 0.1


class Matching(CLIPModel):
    """A CLIP of perfect features: an image has its number in its first pixel, a caption in its first id."""

    def apply(self, variables, *inputs, method):
        if method == "scale":
            return 50.0
        first = inputs[0].reshape(len(inputs[0]), -1)[:, 0]
        _, numbers = np.unique(np.asarray(first), return_inverse=True)
        return jax.nn.one_hot(numbers, 4)


def loss(numbers, ids):
    images = jnp.zeros((4, 2, 2, 3)).at[:, 0, 0, 0].set(jnp.array(numbers))
    ids = jnp.array(ids)
    same = (ids[:, None] == ids[None]).astype(jnp.float32)
    return float(contrastive_loss(Matching(clip_config(600, 16, 599)), {}, images, ids[:, None], same))


def test_the_loss_is_that_of_clip():
    """Images of equal captions need not be told apart, and cannot be told apart without a loss of log 2."""
    assert loss([0, 1, 2, 3], [0, 1, 2, 3]) == pytest.approx(0, abs=1e-6)
    assert loss([0, 1, 2, 3], [1, 0, 2, 3]) == pytest.approx(25)  # two of four are wrong, by 50
    assert loss([0, 0, 1, 2], [0, 0, 1, 2]) == pytest.approx(np.log(2) / 2, rel=1e-5)


@pytest.mark.slow
def test_a_preference_model_starts_from_what_is_written(tmp_path):
    train_clip(tmp_path, steps=3)
    start = load_start(tmp_path, jax.random.key(0))
    assert start.is_plain and start.clip.config.time_conditioned
