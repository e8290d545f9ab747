"""One program for pictures, loss and update: neither chunks nor devices nor a cache change what it learns.

Networks have random weights and one block each. Tolerances are float32 rounding through a dozen layers and three
updates; Adam's epsilon is large, for it divides gradients by their own size and would turn rounding of those that are
0 into updates of full size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spo_jax.data.preferences.loading import LoadedBatch

from spo_jax.core.trees import flatten
from spo_jax.methods.common.latents import encode_pairs, model_range
from spo_jax.methods.spm.inputs import draw, predictions, training_pixels
from spo_jax.methods.spm.programs import Networks, compile_programs
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.split import Split
from spo_jax.methods.spm.update import init_state, make_optimiser, state_shardings
from spo_jax.models.base import Guidance, denoise
from spo_jax.models.stable_diffusion.functions import decode, encode_image
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import make
from tests.networks import SIDE, labelled_pairs, small_clip, small_pipeline, small_sdxl

COUNT = 8
SETTINGS = SPMTrainSettings(
    batch_size=COUNT, chunk=COUNT, num_steps=10, warmup_steps=1, learning_rate=1e-2, adam_epsilon=1e-2,
    posterior="mean",
)  # fmt: skip


class Built:
    """Everything that a step takes, on a mesh of its own."""

    def __init__(self, settings=SETTINGS, mesh=None):
        self.mesh = make_mesh(mesh or MeshSettings(data=1))
        with jax.set_mesh(self.mesh):
            pipeline = small_pipeline(self.mesh)
            clip, self.params = small_clip(self.mesh)
            self.networks = Networks(pipeline, clip, settings, self.mesh)
            self.frozen = self.networks.frozen()
            self.split = Split.of(labelled_pairs(COUNT), pipeline, pipeline.tokenizer)
            images = np.random.default_rng(0).integers(0, 256, (COUNT, 2, SIDE, SIDE, 3), np.uint8)
            batch = LoadedBatch(images, np.arange(COUNT, dtype=np.int32))
            self.rows = self.networks.feed(self.split.feed(batch))
            self.key = make(lambda: jax.random.key(3), self.mesh)

    def state(self):
        optimiser = make_optimiser(self.networks.settings)
        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(lambda params: init_state(params, optimiser), self.params)
            return jax.jit(lambda x: init_state(x, optimiser), out_shardings=state_shardings(shapes, self.mesh))(
                self.params
            )

    def trained(self, steps=3):
        """(weights on the host, metrics of every step, the last state)."""
        state, seen = self.state(), []
        with jax.set_mesh(self.mesh):
            step = compile_programs(self.networks, state, self.frozen, self.rows).step
            for _ in range(steps):
                state, metrics = step(state, self.frozen, self.rows, self.key)
                seen.append(jax.device_get(metrics))
        return flatten(jax.tree.map(np.asarray, state.params)), seen, state


@pytest.fixture(scope="module")
def built():
    """A batch in one piece on one device."""
    return Built()


@pytest.fixture(scope="module")
def whole(built):
    return built.trained()


def assert_same(found, wanted):
    """Weights, to a part of the way that they have come; metrics."""
    start = flatten(jax.tree.map(np.asarray, small_clip()[1]))
    moved = max(np.abs(value - start[name]).max() for name, value in wanted[0].items())
    assert moved > 1e-3  # or there would be nothing to compare
    for name, value in wanted[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=0, atol=1e-3 * moved, err_msg=name)
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        for name in ("loss", "grad_norm", "logit_scale", "right", "decided"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


def test_chunks_equal_one_batch(whole):
    assert_same(Built(dataclasses.replace(SETTINGS, chunk=2)).trained(), whole)


@pytest.mark.parametrize("mesh", [MeshSettings(data=8, fsdp=1), MeshSettings(data=1, fsdp=8)], ids=["data", "fsdp"])
def test_eight_devices_equal_one(whole, mesh):
    built = Built(mesh=mesh)
    found = built.trained()
    assert_same(found, whole)
    kernel = lambda tree: tree["vision_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]  # noqa: E731
    moments = found[2].opt_state[1][0]
    for array in (kernel(found[2].params), kernel(moments.mu), kernel(moments.nu)):
        assert array.addressable_shards[0].data.size == array.size // mesh.fsdp  # a share, and no copy


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_cached_latents_equal_pictures(built, posterior):
    """What is noised, predicted and judged is the same, and so is all that follows from it; to float32 rounding."""
    networks, frozen, rows = built.networks, built.frozen, built.rows
    draws = draw(jax.random.key(0), COUNT, networks.latent_shape, 1000, 1.0, posterior == "sample", flip=False)
    with jax.set_mesh(built.mesh):
        moments = jax.jit(encode_pairs, static_argnums=0)(networks.pipeline.vae, frozen.vae, rows.images)
        cached = jnp.concatenate(moments, -1) if posterior == "sample" else moments[0]
        latents = jax.jit(networks._latents)
        found, wanted = latents(frozen, cached, draws), latents(frozen, rows.images, draws)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_every_step_draws_anew(whole):
    timesteps = [tuple(metrics["decided"]) for metrics in whole[1]]
    assert len(set(timesteps)) > 1
    assert all(sum(counts) == 6 for counts in timesteps)  # two of the pairs are ties


def test_what_is_judged_is_what_the_parts_make_of_it():
    """SDXL's conditions included: against the pipeline's own functions, one after the other."""
    pipeline = small_sdxl()
    clip, _ = small_clip()
    settings = SPMTrainSettings(guidance_scale=3.0, posterior="mean", chunk=2)
    networks = Networks(pipeline, clip, settings)
    split = Split.of(labelled_pairs(2), pipeline, pipeline.tokenizer)
    images = np.random.default_rng(0).integers(0, 256, (2, 2, SIDE, SIDE, 3), np.uint8)
    rows = networks.feed(split.feed(LoadedBatch(images, np.arange(2, dtype=np.int32))))
    draws = draw(jax.random.key(0), 2, networks.latent_shape, 1000, 1.0, sample=False, flip=False)
    found = jax.jit(networks.batch)(networks.frozen(), rows, draws)

    prompts = [split.pairs.prompts[index] for index in split.pairs.prompt]
    condition, unconditional = pipeline.encode_prompts(prompts), pipeline.encode_unconditional()
    np.testing.assert_array_equal(unconditional.time_ids, [[SIDE, SIDE, 0, 0, SIDE, SIDE]])

    @jax.jit
    def expected(params, images, draws):
        vae = params["vae"]
        latents = encode_image(pipeline.vae, vae, model_range(images).reshape(4, SIDE, SIDE, 3))
        guidance = Guidance(condition.repeated(2), unconditional, 3.0)
        pictures = predictions(
            draws.noise,
            networks.schedule,
            lambda x, t: denoise(pipeline.unet, params["unet"], None, guidance, x, t),
            lambda x: decode(pipeline.vae, vae, x),
            latents.reshape(2, 2, *latents.shape[1:]),
            draws.t,
        )
        return training_pixels(pictures.reshape(4, SIDE, SIDE, 3), clip.config.vision.image_size)

    wanted = expected(pipeline.params, images, draws).reshape(found.pixels.shape)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found.pixels, wanted, atol=1e-4)
    np.testing.assert_array_equal(found.t, draws.t)
    np.testing.assert_array_equal(found.ids, pipeline.tokenizer(prompts))


def test_mirrored_pairs_are_mirrored_on_both_sides(built):
    networks, frozen, rows = built.networks, built.frozen, built.rows
    draws = draw(jax.random.key(0), COUNT, networks.latent_shape, 1000, 1.0, sample=False, flip=True)
    assert 0 < int(draws.flip.sum()) < COUNT
    latents = jax.jit(networks._latents)
    mirrored = jnp.where(draws.flip[:, None, None, None, None], rows.images[:, :, :, ::-1], rows.images)
    with jax.set_mesh(built.mesh):
        found = latents(frozen, rows.images, draws)
        wanted = latents(frozen, mirrored, draws._replace(flip=None))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
