"""Latent reward models (LPO) of SD 1.5 and SDXL with small random weights, as their original code computes them.

Token ids are equal. Features are float32 on both sides and agree to 1e-5 of the largest entry; scores, which are
multiplied by the scale, to 1e-4.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.data.original_tokenizer import open_tokenizer
from spo_jax.methods.spo.pairs import rank
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context

FEATURES, SCORES = 1e-5, 1e-4


class Case:
    """A reward, its arrays, and what it was computed from."""

    def __init__(self, golden, inputs, name):
        self.folder = inputs.needs(name)
        kind = name.removeprefix("lrm_").removesuffix("15")
        context = Context(kind=kind, noisy=True, channels=4, timesteps=(1, 951))
        check_reward(f"lrm:{self.folder}", context, judges=True)
        self.reward = load_reward(f"lrm:{self.folder}", context)
        self.model, self.params = self.reward.model, self.reward.params["model"]
        self.arrays = golden.arrays(f"rewards/{name}/golden.npz")
        self.inputs = golden.arrays(f"rewards/{name}/inputs.npz")
        self.golden = golden
        self.latents = golden.nhwc(self.inputs["latents"])
        self.t = jnp.asarray(self.inputs["timesteps"])
        self.prompts = inputs.prompts
        self.features = self.reward.features(self.prompts)
        self.empty = self.reward.params["empty"]

    def close(self, ours, name, tolerance=FEATURES):
        error = self.golden.relative_error(ours, self.arrays[name])
        assert error < tolerance, f"{name}: {error}"

    @functools.cached_property
    def halves(self):
        """Outputs of the down blocks and of the middle block, for the prompts and for the empty one."""

        @jax.jit
        def program(params, condition):
            return self.model.unet.apply({"params": params["unet"]}, self.latents, self.t, *condition)

        empty = jax.tree.map(lambda row: jnp.repeat(row, len(self.latents), axis=0), self.empty)
        return {"text": program(self.params, self.features.condition), "uncond": program(self.params, empty)}

    def variant(self, **options):
        """Scores and what is projected, with other options of the network."""
        model = dataclasses.replace(self.model, **options)

        @jax.jit
        def program(params, features):
            return model.pooled(params, self.latents, self.t, features.condition, self.empty)

        reward = type(self.reward)(dataclasses.replace(self.reward.read, model=model))
        scores = jax.jit(reward.score)(reward.params, self.latents, self.features, self.t)
        return scores, program(self.params, self.features)


@pytest.fixture(scope="module", params=["lrm_sd15", "lrm_sdxl"])
def case(request, golden, reward_inputs):
    return Case(golden, reward_inputs, request.param)


def test_tokens(case):
    ids, empty = case.reward.read.tokenize(case.prompts), case.reward.read.tokenize([""])
    for index in range(ids.shape[1]):
        suffix = f"_{index + 1}" if index else ""
        np.testing.assert_array_equal(ids[:, index], case.arrays[f"input_ids{suffix}"])
        np.testing.assert_array_equal(empty[:, index], case.arrays[f"neg_input_ids{suffix}"])
    fast = open_tokenizer(case.folder / "tokenizer")(case.prompts)  # that of LPO's own prompts, which is not used
    np.testing.assert_array_equal(fast, case.arrays["input_ids_fast"])


def test_texts(case):
    condition = case.features.condition
    case.close(condition.states, "encoder_hidden_states_text")
    case.close(case.empty.states, "encoder_hidden_states_uncond")
    texts = case.arrays["text_features"]
    unit = texts / np.linalg.norm(texts, axis=-1, keepdims=True)
    assert case.golden.relative_error(case.features.features, unit) < FEATURES
    if "pooled_text" in case.arrays:
        case.close(condition.pooled, "pooled_text")
        case.close(case.empty.pooled, "pooled_uncond")
        np.testing.assert_array_equal(condition.time_ids[:1], case.arrays["time_ids"])


@pytest.mark.parametrize("half", ["text", "uncond"])
def test_outputs_of_the_first_half_of_the_network(case, half):
    taps, middle = case.halves[half]
    for index, tap in enumerate(taps):
        case.close(tap.mean((1, 2)), f"stage{index}_pooled_{half}")
    case.close(middle.mean((1, 2)), f"mid_pooled_{half}")
    case.close(jnp.moveaxis(middle[0], -1, 0), f"mid_sample0_{half}")
    residuals = sorted(name for name in case.arrays if name.startswith("down_res"))
    assert len(taps) == len(residuals) // 3  # two layers and a halving, or in the first place the first convolution
    if half == "text":
        for index, tap in enumerate(taps):
            case.close(jnp.moveaxis(tap[0], -1, 0), f"down_res{3 * index + 2:02d}_sample0_text")


def test_features_and_scores(case):
    scores, pooled = case.variant()
    case.close(pooled, "pooled_concat")
    case.close(pooled[:, -case.arrays["mid_vfe"].shape[1] :], "mid_vfe")
    image = case.model.image_features(case.params, case.latents, case.t, case.features.condition, case.empty)
    case.close(image, "image_features")
    np.testing.assert_allclose(case.params["logit_scale"], case.arrays["logit_scale"], rtol=1e-6)
    case.close(scores, "scores", SCORES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("guidance3", {"guidance_scale": 3.0}),
        ("guidance1", {"guidance_scale": 1.0}),
        ("multiscale_cfg", {"guides_all": True}),
    ],
)
def test_variants(case, name, options):
    scores, pooled = case.variant(**options)
    case.close(pooled, f"pooled_concat_{name}")
    case.close(scores, f"scores_{name}", SCORES)


def test_named_variants_are_the_published_ones(case):
    for variant, name in (("unguided", "guidance1"), ("all_scales", "multiscale_cfg")):
        model = load_reward(f"lrm@{variant}:{case.folder}", Context()).model
        options = {field: getattr(model, field) for field in ("guidance_scale", "guides_all")}
        case.close(case.variant(**options)[0], f"scores_{name}", SCORES)


def test_scores_of_candidates(case):
    """K candidates of each prompt at one timestep, and the pair that is made of them."""
    latents = case.golden.nhwc(case.inputs["k_latents"])
    k, b = case.arrays["k_scores"].shape
    features = jax.tree.map(lambda x: jnp.tile(jnp.asarray(x[:b]), (k, *[1] * (x.ndim - 1))), case.features)
    t = jnp.full(len(latents), case.inputs["k_timestep"])
    scores = jax.jit(case.reward.score)(case.reward.params, latents, features, t).reshape(k, b)
    case.close(scores, "k_scores", SCORES)
    verdict = rank(scores[None], 0.0)
    np.testing.assert_array_equal(jnp.concatenate([verdict.win, verdict.lose]), case.arrays["k_indices"])
