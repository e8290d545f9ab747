"""One program for images, loss and update: chunks, devices and a cache do not change what is learned.

Networks have random weights and one block each. Tolerances are float32 rounding through a dozen layers and three
updates. Adam's epsilon is large, because Adam divides gradients by their own size and would turn the rounding of those
that are 0 into updates of full size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.trees import flatten
from spo_jax.data.preferences.loading import LoadedBatch
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods.common.latents import encode_pairs, model_range
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.common.preference.update import optimizer_of, state_shardings
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import init_state
from spo_jax.methods.spm.inputs import draw, predictions, training_pixels
from spo_jax.methods.spm.programs import SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.models.base import Guidance, denoise, repeat_rows
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import make
from tests.e2e.micro import TOKENIZER as FOLDER
from tests.support.networks import SIDE, labelled_pairs, small_clip, small_pipeline, small_sdxl
from tests.support.precisions import FULL, precisions

TOKENIZER = Tokenizer(FOLDER)
COUNT = 16
SETTINGS = SPMTrainSettings(
    batch_size=COUNT,
    chunk=COUNT,
    train_steps=10,
    posterior="mean",
    optimizer=OptimizerSettings(
        learning_rate=1e-2, schedule="linear", warmup_steps=1, adam_epsilon=1e-2, weight_decay=0.3
    ),
)


class Built:
    """Everything that a step takes, on a mesh of its own."""

    def __init__(self, settings=SETTINGS, mesh=None):
        self.mesh = make_mesh(mesh or MeshSettings(data=1))
        with jax.set_mesh(self.mesh):
            pipeline = small_pipeline(self.mesh)
            clip, self.params = small_clip(self.mesh)
            self.training = SPMTraining(pipeline, clip, settings, self.mesh)
            self.frozen = self.training.frozen()
            self.split = Split.of(labelled_pairs(COUNT), pipeline, TOKENIZER)
            images = np.random.default_rng(0).integers(0, 256, (COUNT, 2, SIDE, SIDE, 3), np.uint8)
            batch = LoadedBatch(images, np.arange(COUNT, dtype=np.int32))
            self.rows = self.training.feed(self.split.feed(batch))
            self.key = make(lambda: jax.random.key(3), self.mesh)

    def state(self):
        optimizer = optimizer_of(self.training.settings)

        def fresh(params):
            return init_state(params, optimizer)

        with jax.set_mesh(self.mesh):
            shardings = state_shardings(jax.eval_shape(fresh, self.params), self.mesh)
            return jax.jit(fresh, out_shardings=shardings)(self.params)

    def trained(self, steps=3):
        """(weights on the host, metrics of every step, the last state)."""
        state, seen = self.state(), []
        with jax.set_mesh(self.mesh):
            step = self.training.trace(state)["step"].lower().compile()
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
    """Weights agree to a thousandth of the distance that they have moved; metrics to 1e-4."""
    start = flatten(jax.tree.map(np.asarray, small_clip()[1]))
    moved = max(np.abs(value - start[name]).max() for name, value in wanted[0].items())
    assert moved > 1e-3  # or there would be nothing to compare
    for name, value in wanted[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=0, atol=1e-3 * moved, err_msg=name)
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        for name in ("loss", "grad_norm", "logit_scale", "right", "decided"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow  # eight devices are compared in chunks as well
def test_chunks_equal_one_batch(whole):
    assert_same(Built(dataclasses.replace(SETTINGS, chunk=2)).trained(), whole)


LAYOUTS = {"data=8": MeshSettings(8, 1), "fsdp=8": MeshSettings(1, 8), "data=2, fsdp=4": MeshSettings(2, 4)}
SLOW = {"data=8", "fsdp=8"}  # the mixed layout, which is both, is always run


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LAYOUTS]
)
def test_eight_devices_equal_one(whole, layout):
    """In two chunks of a row per device."""
    mesh = LAYOUTS[layout]
    built = Built(dataclasses.replace(SETTINGS, chunk=1), mesh)
    assert built.training._chunk(COUNT) == COUNT // 2
    found = built.trained()
    assert_same(found, whole)

    def kernel(tree):
        return tree["vision_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]

    moments = found[2].opt_state[1][0]
    for array in (kernel(found[2].params), kernel(moments.mu), kernel(moments.nu)):
        assert array.addressable_shards[0].data.size == array.size // mesh.fsdp  # not a full copy


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_cached_latents_equal_those_of_the_images(built, posterior):
    """Up to float32 rounding. Everything after the latents is the same program."""
    training, frozen, rows = built.training, built.frozen, built.rows
    draws = draw(jax.random.key(0), COUNT, training.latent_shape, 1000, 1.0, posterior == "sample", flip=False)
    with jax.set_mesh(built.mesh):
        moments = jax.jit(lambda vae, images: encode_pairs(training.pipeline, vae, images))(frozen.vae, rows.images)
        cached = jnp.concatenate(moments, -1) if posterior == "sample" else moments[0]
        latents = jax.jit(training.clean_latents)
        found, wanted = latents(frozen, cached, draws), latents(frozen, rows.images, draws)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_every_step_draws_anew(whole):
    timesteps = [tuple(metrics["decided"]) for metrics in whole[1]]
    assert len(set(timesteps)) > 1
    assert all(sum(counts) == 11 for counts in timesteps)  # five of the pairs are ties


def test_judged_images_equal_those_of_the_pipelines_own_functions():
    """With SDXL's conditions, and each function called by itself."""
    pipeline = small_sdxl()
    clip, _ = small_clip()
    settings = SPMTrainSettings(guidance_scale=3.0, posterior="mean", chunk=2)
    training = SPMTraining(pipeline, clip, settings)
    split = Split.of(labelled_pairs(2), pipeline, TOKENIZER)
    images = np.random.default_rng(0).integers(0, 256, (2, 2, SIDE, SIDE, 3), np.uint8)
    rows = training.feed(split.feed(LoadedBatch(images, np.arange(2, dtype=np.int32))))
    draws = draw(jax.random.key(0), 2, training.latent_shape, 1000, 1.0, sample=False, flip=False)
    found = jax.jit(training.batch)(training.frozen(), rows, draws)

    prompts = [split.pairs.prompts[index] for index in split.pairs.prompt]
    condition, unconditional = pipeline.encode_prompts(prompts), pipeline.encode_unconditional()
    np.testing.assert_array_equal(unconditional.time_ids, [[SIDE, SIDE, 0, 0, SIDE, SIDE]])

    @jax.jit
    def expected(params, images, draws):
        vae = params["vae"]
        latents = pipeline.scale_latents(pipeline.encode(vae, model_range(images).reshape(4, SIDE, SIDE, 3))[0])
        guidance = Guidance(repeat_rows(condition, 2), unconditional, 3.0)
        judged = predictions(
            draws.noise,
            training.process,
            lambda x, t: denoise(pipeline, params["unet"], None, guidance, x, t),
            lambda x: pipeline.decode(vae, x),
            latents.reshape(2, 2, *latents.shape[1:]),
            draws.t,
        )
        return training_pixels(judged.reshape(4, SIDE, SIDE, 3), clip.config.vision.image_size)

    wanted = expected(pipeline.params, images, draws).reshape(found.pixels.shape)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found.pixels, wanted, atol=1e-4)
    np.testing.assert_array_equal(found.t, draws.t)
    np.testing.assert_array_equal(found.ids, TOKENIZER(prompts))


def test_measurements_are_in_full_precision_and_training_is_not(built):
    """On the way from images to scores; TPUs and NVIDIA GPUs multiply float32 in fewer bits unless asked."""
    training = built.training
    t = jnp.int32(500)
    noised = precisions(training.scores, built.params, built.frozen, built.rows, t, jnp.int32(0), built.key)
    clean = precisions(training.clean_scores, built.params, built.rows)
    step = precisions(training.step, built.state(), built.frozen, built.rows, built.key)
    assert {name for name, _ in noised} == {"dot_general", "conv_general_dilated"}
    assert {precision for _, precision in noised + clean} == {FULL}
    assert None in {precision for _, precision in step}


def test_mirrored_pairs_are_mirrored_on_both_sides(built):
    training, frozen, rows = built.training, built.frozen, built.rows
    draws = draw(jax.random.key(0), COUNT, training.latent_shape, 1000, 1.0, sample=False, flip=True)
    assert 0 < int(draws.flip.sum()) < COUNT
    latents = jax.jit(training.clean_latents)
    mirrored = jnp.where(draws.flip[:, None, None, None, None], rows.images[:, :, :, ::-1], rows.images)
    with jax.set_mesh(built.mesh):
        found = latents(frozen, rows.images, draws)
        wanted = latents(frozen, mirrored, draws._replace(flip=None))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
