"""PickScore, CLIPScore and LAION's aesthetic score of small random CLIPs, as their original code computes them.

Token ids are equal. Pixels are equal as bytes, and to 1e-6 after the normalisation. Features and scores are float32 on
both sides: 1e-5 of the largest entry for features, 1e-4 for scores, of which those with the scale of the logits or
behind five linear layers multiply the rounding of the features.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.affine_head import fold_head, head_shapes
from spo_jax.weights import rules
from spo_jax.weights.store import read_file

FEATURES, SCORES = 1e-5, 1e-4


@functools.cache
def pixels_of(inputs, pixels, side):
    """CLIP's input of every image; rewards that prepare images alike share it, because every size is a program."""
    program = jax.jit(pixels, static_argnums=1)
    return np.concatenate([program(inputs.image(name), side) for name in inputs.names])


class Case:
    """A reward, its arrays, and what it was computed from."""

    def __init__(self, golden, inputs, spec):
        name, _, folder = spec.partition(":")
        source = inputs.needs(folder)
        check_reward(f"{name}:{source}", Context())
        self.reward = load_reward(f"{name}:{source}", Context())
        self.arrays = golden.arrays(f"rewards/{folder}/golden.npz")
        self.inputs = inputs
        self.golden = golden
        self.pixels = pixels_of(inputs, self.reward.pixels, self.reward.clip.config.vision.image_size)

    def scores(self):
        """Scores [prompts, images], all from pixels that are made before; `measure` has to agree about an image."""
        prompts = self.inputs.prompts
        reward = copy.copy(self.reward)
        reward.pixels = lambda pixels, side: pixels
        pixels = np.tile(self.pixels, (len(prompts), 1, 1, 1))
        features = reward.features([prompt for prompt in prompts for _ in self.inputs.names])
        scores = jax.jit(reward.score)(reward.params, pixels, features, jnp.zeros(len(pixels), jnp.int32))
        scores = np.asarray(scores).reshape(len(prompts), -1)
        image = np.repeat(self.inputs.image(self.inputs.names[0]), len(prompts), axis=0)
        (measured,) = self.reward.measure(image, prompts).values()
        np.testing.assert_allclose(measured, scores[:, 0], rtol=1e-5, atol=1e-5 * np.abs(scores).max())
        return scores

    def apply(self, method, *arguments):
        """Calls a function of the network and its arguments in a program."""
        return jax.jit(lambda params, *given: self.reward.clip.apply({"params": params}, *given, method=method))(
            self.reward.params, *arguments
        )

    def close(self, ours, name, tolerance):
        """Compares with the array of this name."""
        error = self.golden.relative_error(ours, self.arrays[name])
        assert error < tolerance, f"{name}: {error}"

    def check_pixels(self, name):
        np.testing.assert_allclose(self.pixels, self.golden.nhwc(self.arrays[name]), atol=1e-6)


def unit(features):
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def check_features(case, pixels, ids, image, text):
    """Compares both towers, and what `embed` and `features` return, which is scaled to length 1."""
    image_features = np.asarray(case.apply("encode_image", case.golden.nhwc(case.arrays[pixels])))
    case.close(image_features, image, FEATURES)
    text_features = np.asarray(case.apply("encode_text", jnp.asarray(case.arrays[ids])))
    case.close(text_features, text, FEATURES)
    embedded = case.reward.embed(case.inputs.image(case.inputs.names[0]))
    assert case.golden.relative_error(embedded, unit(case.arrays[image])[:1]) < FEATURES
    assert case.golden.relative_error(case.reward.features(case.inputs.prompts), unit(case.arrays[text])) < FEATURES
    np.testing.assert_array_equal(case.reward.tokenize(case.inputs.prompts), case.arrays[ids])


def test_pickscore(golden, reward_inputs):
    case = Case(golden, reward_inputs, "pickscore:pickscore")
    case.check_pixels("pixel_values")
    check_features(case, "pixel_values", "input_ids", "image_embeds", "text_embeds")
    arrays = case.arrays
    for name in ("image", "text"):
        assert golden.relative_error(unit(arrays[f"{name}_embeds"]), arrays[f"{name}_embeds_normed"]) < FEATURES

    pixels = golden.nhwc(arrays["pixel_values"])
    hidden = case.apply(lambda clip, x: clip.vision_model(x).last, pixels[: len(arrays["vision_last_hidden"])])
    case.close(hidden, "vision_last_hidden", FEATURES)
    case.close(case.apply(lambda clip, x: clip.vision_model(x).pooled, pixels), "vision_pooled", FEATURES)
    # The array has the tokens of the first prompt without padding, which comes after them and changes nothing.
    length = arrays["text_last_hidden_prompt0"].shape[1]
    ids = jnp.asarray(arrays["input_ids"][:1, :length])
    case.close(case.apply(lambda clip, x: clip.text_model(x).last, ids), "text_last_hidden_prompt0", FEATURES)
    np.testing.assert_allclose(case.apply("scale"), np.exp(arrays["logit_scale"]), rtol=1e-6)

    scores = case.scores()
    case.close(scores, "scores", SCORES)
    case.close(jax.nn.softmax(scores, axis=1), "probs", SCORES)


def test_aesthetic(golden, reward_inputs):
    case = Case(golden, reward_inputs, "aesthetic:aesthetic")
    case.check_pixels("pixel_values")
    features = np.asarray(case.apply("encode_image", golden.nhwc(case.arrays["pixel_values"])))
    case.close(features, "image_embeds", FEATURES)
    case.close(unit(features), "image_embeds_normed", FEATURES)
    scores = case.scores()
    np.testing.assert_array_equal(scores, scores[:1].repeat(len(scores), axis=0))  # prompts do not matter
    case.close(scores[0], "scores", SCORES)


def test_the_folded_head_of_the_aesthetic_score(golden, reward_inputs):
    """It is the affine map of the original's layers, whose outputs one after the other are in the arrays as well."""
    folder = reward_inputs.needs("aesthetic")
    arrays = golden.arrays("rewards/aesthetic/golden.npz")
    (file,) = folder.glob("*.pth")
    state = read_file(file)
    layers = rules.to_tree(state, head_shapes(arrays["image_embeds"].shape[1]), str(file))
    head = fold_head(layers)
    assert golden.relative_error(head["kernel"], arrays["affine_weight_f64"]) < 1e-7  # the rounding to float32
    np.testing.assert_allclose(head["bias"], arrays["affine_bias_f64"], rtol=1e-6)
    x = arrays["image_embeds_normed"].astype(np.float64)
    for number in (0, 2, 4, 6):
        x = x @ layers[f"layers_{number}"]["kernel"].astype(np.float64) + layers[f"layers_{number}"]["bias"]
        assert golden.relative_error(x, arrays[f"layer{number}"]) < FEATURES


def test_the_aesthetic_score_with_openais_crop(golden, reward_inputs):
    case = Case(golden, reward_inputs, "aesthetic@openai:aesthetic")
    case.check_pixels("pixel_values_openai")
    case.close(
        case.apply("encode_image", golden.nhwc(case.arrays["pixel_values_openai"])), "image_embeds_openai", FEATURES
    )
    case.close(case.scores()[0], "scores_openai", SCORES)


# Score name -> (array [images, prompts], pixels, token ids, image features, text features).
TRANSFORMERS = ("pixel_values", "input_ids", "image_embeds", "text_embeds")
OPENAI = ("openai_pixel_values", "openai_input_ids", "openai_image_features", "openai_text_features")
PREFIXED = (*OPENAI[:1], "openai_input_ids_prefixed", OPENAI[2], "openai_text_features_prefixed")
CLIP_SCORES = {
    "clip_score": ("logits_over_100", TRANSFORMERS),
    "clip_score@logits": ("logits_per_image", TRANSFORMERS),
    "clip_score@cosine": ("cos_openai", OPENAI),
    "clip_score@hessel": ("hessel_prefixed", PREFIXED),
    "clip_score@hessel_no_prefix": ("hessel_noprefix", OPENAI),
}


@pytest.mark.parametrize("spec", CLIP_SCORES)
def test_clip_score(golden, reward_inputs, spec):
    case = Case(golden, reward_inputs, f"{spec}:clipscore")
    scores, inputs = CLIP_SCORES[spec]
    case.check_pixels(inputs[0])
    check_features(case, *inputs)
    case.close(case.scores().T, scores, SCORES)
    if scores == "logits_per_image":
        np.testing.assert_allclose(case.apply("scale"), np.exp(case.arrays["logit_scale"]), rtol=1e-6)
        for name in ("image_embeds", "text_embeds"):
            assert golden.relative_error(unit(case.arrays[name]), case.arrays[f"{name}_normed"]) < FEATURES
