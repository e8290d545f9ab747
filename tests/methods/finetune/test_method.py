"""One step of fine-tuning on a model with random weights.

Losses agree to 2e-5 and the norms of gradients to 2e-4: float32 sums in another order, through a network with random
weights. Written out from the definitions, the schedule's products are summed in another precision too: 1e-4.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods import load_method
from spo_jax.methods.base import Method, Run
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.finetune.method import Batch, FinetuneRun
from spo_jax.methods.finetune.settings import FinetuneSettings
from spo_jax.models import open_pipeline
from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch, replicated
from spo_jax.parallel.sharding import make, place
from tests.e2e.micro import write_micro
from tests.methods.runs import TINY_EVAL, assert_resumes_to_the_bit
from tests.support.pairs import encoded

CAPTIONS = ["a red star", "a blue heart", "a green moon", "a pink circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_micro(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="module")
def step(folder):
    """(captions, devices, settings' fields...) to the state and metrics after one step, from equal images and keys."""
    images = np.random.default_rng(0)
    mean, std = images.normal(size=(2, 4, 8, 8, 4)).astype(np.float32)

    @functools.cache
    def made(devices, **fields):
        """The run and its program, which is compiled once for all captions."""
        optimizer = OptimizerSettings(learning_rate=1e-2, weight_decay=0.0)
        fields = {"batch_size": 4, "chunk": 4, "caption_dropout": 0.0, "optimizer": optimizer} | fields
        settings = FinetuneSettings(**fields, mesh=MeshSettings(data=devices))
        mesh = make_mesh(settings.mesh)
        with jax.set_mesh(mesh):
            run = FinetuneRun(settings, open_pipeline(folder, mesh=mesh), mesh)
            return run, run.trace(run.init_state(jax.random.key(0)))["update"].lower().compile()

    def step(captions=CAPTIONS, devices=1, **fields):
        run, program = made(devices, **fields)
        pipeline, mesh = run.pipeline, run.mesh
        with jax.set_mesh(mesh):
            state = run.init_state(jax.random.key(0))
            # A fresh adapter has B = 0, which hides errors in A's gradients.
            state = jax.device_get(state)
            moved = jax.tree.map(
                lambda x: x + np.cos(np.arange(x.size).reshape(x.shape), dtype=x.dtype) / 100, state.params
            )
            state = place(state._replace(params=moved), replicated(mesh))
            batch = Batch(mean, 0.1 * np.abs(std), pipeline.encode_prompts(captions))
            empty = place(pipeline.encode_unconditional(), replicated(mesh))
            key = make(lambda: jax.random.key(1), mesh)
            start = jax.device_get(state.params)
            network = pipeline.params[pipeline.TRAINED]
            state, metrics = program(state, network, empty, place(batch, over_batch(mesh)), key)
            return SimpleNamespace(start=start, metrics=jax.device_get(metrics), run=run, batch=batch)

    return step


@pytest.fixture(scope="module")
def plain(step):
    return step()


def test_it_is_a_method_and_a_run(plain):
    assert isinstance(load_method("finetune"), Method)
    assert isinstance(plain.run, Run)


def test_the_loss_is_the_error_of_the_prediction_at_uniform_timesteps(plain, folder):
    """Loss and gradient, written out from the definitions for a whole batch."""
    pipeline, batch = open_pipeline(folder), plain.batch
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 4)
    latents = pipeline.scale_latents(batch.mean + batch.std * jax.random.normal(keys[0], batch.mean.shape))
    noise = jax.random.normal(keys[1], latents.shape)
    t = jax.random.randint(keys[2], (4,), 0, 1000)
    condition = jax.tree.map(jnp.asarray, batch.condition)
    alphas = jnp.asarray(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), jnp.float32)[t]
    a, s = jnp.sqrt(alphas).reshape(4, 1, 1, 1), jnp.sqrt(1 - alphas).reshape(4, 1, 1, 1)

    def loss(lora):
        x = a * latents + s * noise
        v = pipeline.predict(pipeline.params["unet"], lora, x, t, condition, 1.0)
        return jnp.square(v - (a * noise - s * latents)).mean()  # the micro model predicts v

    error, gradients = jax.jit(jax.value_and_grad(loss))(plain.start)
    assert plain.metrics["loss"] == pytest.approx(float(error), rel=1e-4)
    assert plain.metrics["grad_norm"] == pytest.approx(float(optax.global_norm(gradients)), rel=2e-4)


def test_a_step_needs_no_more_than_its_arguments(plain):
    """It makes the encoded empty caption itself, if no batches have been asked for."""

    def program(state, network, empty, batch, key):
        return state, {"loss": empty.states.mean()}

    state = TrainState({}, (), jnp.zeros((), jnp.int32))
    with jax.set_mesh(plain.run.mesh):
        _, row = plain.run.step({"update": program}, iter([plain.batch]), 0, state, jax.random.key(0))
    assert row["loss"] == pytest.approx(plain.run.pipeline.encode_unconditional().states.mean(), abs=1e-6)


@pytest.mark.parametrize("changed", [{"chunk": 1}, {"devices": 2, "chunk": 1}])
def test_chunks_and_devices_do_not_change_a_step(step, plain, changed):
    other = step(**changed)
    assert other.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=2e-5)
    assert other.metrics["grad_norm"] == pytest.approx(plain.metrics["grad_norm"], rel=2e-4)


def test_a_linear_learning_rate_ends_with_the_run(plain):
    """Equal gradients move a weight by the learning rate, because Adam divides them by their size."""
    optimizer = OptimizerSettings(learning_rate=1e-2, schedule="linear", weight_decay=0.0)
    settings = dataclasses.replace(plain.run.settings, train_steps=2, optimizer=optimizer)
    optimizer = FinetuneRun(settings, plain.run.pipeline, plain.run.mesh).optimizer
    weight = jnp.zeros(1)
    state, moved = optimizer.init(weight), []
    for _ in range(3):
        update, state = optimizer.update(-jnp.ones(1), state, weight)
        moved.append(update.item())
    np.testing.assert_allclose(moved, [1e-2, 5e-3, 0.0], rtol=1e-5, atol=1e-9)


def test_captions_count_except_where_they_are_dropped(step, plain):
    others = ["a grey cross"] * 4
    assert abs(step(others).metrics["loss"] - plain.metrics["loss"]) > 1e-4
    dropped = [step(captions, caption_dropout=1.0).metrics["loss"] for captions in (CAPTIONS, others)]
    assert dropped[0] == dropped[1] != plain.metrics["loss"]


@pytest.mark.slow
def test_a_run_that_was_interrupted_is_resumed_to_the_bit(folder, tmp_path):
    """The batches are cut from permutations of the epochs laid end to end, and 3 batches of 4 cross two epochs of 5."""
    for index, caption in enumerate([*CAPTIONS, "a red cross"]):
        (tmp_path / f"{index}.png").write_bytes(encoded(index, 16, 16))
        (tmp_path / f"{index}.txt").write_text(caption)
    optimizer = OptimizerSettings(learning_rate=1e-2, schedule="linear")
    fields = {"train_steps": 3, "batch_size": 4, "optimizer": optimizer, "eval": TINY_EVAL}
    assert_resumes_to_the_bit(FinetuneSettings(model=str(folder), images=str(tmp_path), **fields), tmp_path / "runs")


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="config field caption_dropout"):
        FinetuneSettings(caption_dropout=1.5)
    with pytest.raises(UserError, match="config field optimizer.warmup_steps = 5: expected less than the 5 optimizer"):
        FinetuneSettings(train_steps=5, optimizer=OptimizerSettings(warmup_steps=5))
    assert dataclasses.replace(FinetuneSettings(), batch_size=6).batch_sizes() == {"batch_size": 6}
