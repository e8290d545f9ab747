"""Whole rollouts replayed from the reference's noises and choices: SD 1.5 (e) and SDXL with 0 and 3 inner steps (f).

Every decision has to be equal: winners, losers, validity and the order of the pairs. Latents agree to 1e-4 of their
largest value after 20 float32 steps with guidance 5, scores (about ±10) to 2e-3, which is below the smallest gap
that decides anything.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.spo.judging import judge
from spo_jax.methods.spo.pairs import make_pairs, rank
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.resampler import Draws, rollout
from spo_jax.methods.spo.settings import ResamplerSettings
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.models.stable_diffusion.conditioning import Conditioning
from spo_jax.rewards.common.clip_score import score_images, text_features

CASES = {
    "sd15": ("e_multi_sample_sd15.npz", "sd15", True),
    "sdxl-0": ("f_multi_sample_sdxl_inner0.npz", "sdxl", False),
    "sdxl-3": ("f_multi_sample_sdxl_inner3.npz", "sdxl", False),
}


def steps_of(arrays, name):
    return [arrays[key] for key in sorted(arrays) if key.startswith("step") and key.endswith(f"/{name}")]


def scores_of(arrays, name, prefix=""):
    return np.stack([arrays[key] for key in sorted(arrays) if key.startswith(f"{prefix}score") and key.endswith(name)])


class Replay:
    """A case of the folder, run by our code."""

    def __init__(self, golden, name):
        file, kind, branches_at_last_step = CASES[name]
        self.golden = golden
        self.arrays = golden.arrays(file)
        self.pipeline = golden.pipeline(kind)
        self.process = golden.process(kind)
        a = self.arrays
        self.settings = ResamplerSettings(
            num_steps=int(a["num_inference_steps"]),
            eta=float(a["eta"]),
            branch_at_last_step=branches_at_last_step,
            divert_start_step=int(a["divert_start_step"]),
            num_candidates=int(a["num_samples_each_step"]),
            num_inner_step=int(a.get("num_inner_step", 0)),
        )
        self.batch = len(a["init_latents"])
        self.plan = make_plan(self.settings)
        params = self.pipeline.params
        self.trajectory = jax.jit(self._rollout)(params["unet"], self.draws())
        self.scores = jax.jit(self._judge)(params["vae"], golden.spm.params, self.trajectory)

    def pairs(self, threshold):
        return make_pairs(self.trajectory, rank(self.scores, threshold), self.plan)

    def draws(self):
        a = self.arrays
        first = self.settings.divert_start_step
        noises = [self.golden.nhwc(noise) for noise in steps_of(a, "noise")]
        # [k·b h w c] or [k b h w c] -> [k b h w c]
        pool = [noise.reshape(self.settings.num_candidates, self.batch, *noise.shape[-3:]) for noise in noises[first:]]
        picks = {int(key[4:6]): a[key] for key in a if key.endswith("/denoise_idx")}
        unused = np.zeros(self.batch, int)  # of steps that do not branch
        choice = [picks.get(step, unused) for step in range(first + 1, self.settings.num_steps)]
        return Draws(
            init_latents=self.golden.nhwc(a["init_latents"]),
            shared=jnp.stack(noises[:first]),
            pool=jnp.stack(pool),
            choice=jnp.asarray(np.stack(choice)),
        )

    def _guidance(self):
        a = self.arrays

        def condition(sign):
            states = jnp.asarray(a[f"{sign}prompt_embeds"])
            if "pooled_prompt_embeds" not in a:
                return Conditioning(states)
            ids = jnp.tile(jnp.asarray(a["out/log_add_time_ids"]), (len(states), 1))
            return Conditioning(states, jnp.asarray(a[f"{sign}pooled_prompt_embeds"]), ids)

        return Guidance(condition(""), condition("negative_"), float(a["guidance_scale"]))

    def _rollout(self, unet_params, draws):
        denoise = bind_denoise(self.pipeline, unet_params, None, self._guidance())
        return rollout(denoise, self.settings, self.process, draws)

    def _judge(self, vae_params, spm_params, trajectory):
        clip = self.golden.spm.clip
        text = text_features(clip, spm_params, jnp.asarray(self.arrays["preference_input_ids"]))

        def score(latents, t, row):
            return score_images(clip, spm_params, self.pipeline.decode(vae_params, latents), t, text[row])

        return judge(score, trajectory, chunk=5)


@pytest.fixture(scope="module", params=list(CASES))
def replay(request, golden):
    return Replay(golden, request.param)


def test_latents(replay):
    children = replay.trajectory.children
    children = children.reshape(len(children), -1, *children.shape[-3:])  # [r k b h w c] -> [r k·b h w c]
    first = replay.settings.divert_start_step
    for step, expected in enumerate(steps_of(replay.arrays, "latents_in")[first + 1 :]):
        expected = replay.golden.nhwc(expected)
        if len(expected) != replay.batch:  # The pool; after a pick, the parent is only the candidate that continues.
            assert replay.golden.relative_error(children[step], expected) < 1e-4, step


def test_scores_and_decisions(replay):
    a = replay.arrays
    expected = scores_of(a, "/scores")
    np.testing.assert_allclose(replay.scores, expected, atol=2e-3)
    np.testing.assert_array_equal(replay.trajectory.judged_timesteps, scores_of(a, "/timesteps_given")[:, 0])
    np.testing.assert_allclose(replay.scores.reshape(-1), a["out/preference_score_logs"], atol=2e-3)
    thresholds = {"": float(a["threshold"])}
    thresholds |= {f"{key.split('/')[0]}/": float(a[key]) for key in a if key.endswith("/threshold")}
    for prefix, threshold in thresholds.items():
        verdict = rank(replay.scores, threshold)
        decided = np.stack([verdict.win, verdict.lose], axis=1)
        np.testing.assert_array_equal(decided, scores_of(a, "/indices", prefix))
        np.testing.assert_array_equal(verdict.valid, scores_of(a, "/valid", prefix))


def test_pairs(replay):
    a = replay.arrays
    nhwc = replay.golden.nhwc
    prefixes = [key.removesuffix("out/valid_timesteps") for key in a if key.endswith("out/valid_timesteps")]
    for prefix in prefixes:
        pairs = replay.pairs(float(a[f"{prefix}threshold"]))
        kept = np.flatnonzero(pairs.valid)
        np.testing.assert_array_equal(pairs.t[kept], a[f"{prefix}out/valid_timesteps"][:, 0])
        if f"{prefix}out/valid_next_latents" not in a:
            continue
        for ours, name in ((pairs.x_prev, "next"), (pairs.x_t, "current")):
            expected = nhwc(a[f"{prefix}out/valid_{name}_latents"])
            # Where parents are shared we keep one and the SDXL code two equal ones; never the other way round.
            ours = jnp.broadcast_to(ours[kept], expected.shape)
            assert replay.golden.relative_error(ours, expected) < 1e-4, (prefix, name)
        if f"{prefix}out/valid_prompt_embeds" in a:
            embeds = a["prompt_embeds"][np.asarray(pairs.row[kept])]
            np.testing.assert_array_equal(embeds, a[f"{prefix}out/valid_prompt_embeds"][:, 0])


def test_the_text_encoder_makes_the_stored_embeddings(golden):
    a = golden.arrays("e_multi_sample_sd15.npz")
    pipeline = golden.pipeline("sd15")
    for ids, embeds in (("input_ids", "prompt_embeds"), ("uncond_input_ids", "negative_prompt_embeds")):
        tokens = jnp.asarray(a[ids])[:, None]  # [b l] -> [b 1 l], for one text encoder
        condition = pipeline.encode_tokens(pipeline.text_params, tokens)
        assert golden.relative_error(condition.states, a[embeds]) < 1e-4


def test_decoded_images(golden):
    a = golden.arrays("e_multi_sample_sd15.npz")
    pipeline = golden.pipeline("sd15")
    decode = jax.jit(functools.partial(pipeline.decode, pipeline.params["vae"]))
    for key in (key for key in a if key.endswith("/images_first2")):
        if a[key.replace("images_first2", "timesteps_given")][0] == 0:
            continue  # the finished latents, which no step takes in
        step = int(a[key.replace("images_first2", "at_step")])
        images = decode(golden.nhwc(a[f"step{step:02d}/x0"][:2]))
        assert golden.relative_error(images, golden.nhwc(a[key])) < 1e-4, key
