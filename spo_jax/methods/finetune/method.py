"""A run of plain fine-tuning: the model with the adapter learns to predict the noise added to the latents of an image.

The loss is the mean squared error of the prediction at a timestep that is drawn uniformly. Networks that predict
something else (v, or the clean latents) are compared with that, as in diffusers' training scripts.
"""

import functools
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from spo_jax.core.progress import stage
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Key, Params, PyTree
from spo_jax.core.words import counted
from spo_jax.data.captioned_images import CaptionedImages
from spo_jax.methods.base import Programs
from spo_jax.methods.common.adapter import AdapterRun
from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.latents import encode_images
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.order import batch_rows
from spo_jax.methods.common.state import TrainState, apply_gradients
from spo_jax.methods.finetune.data import ImageData
from spo_jax.methods.finetune.settings import FinetuneSettings
from spo_jax.models.base import repeat_rows
from spo_jax.parallel.chunks import cut
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.sharding import place, shapes_of
from spo_jax.parallel.sizes import even_chunk
from spo_jax.run.loop import Progress, Row
from spo_jax.run.trend import trend


class Batch(NamedTuple):
    """The images of one optimizer step.

    Attributes:
      mean: mean of each image's latents, before `Pipeline.scale_latents`.
      std: their standard deviation.
      condition: encoded captions.
    """

    mean: Float[Array | np.ndarray, "b h w c"]
    std: Float[Array | np.ndarray, "b h w c"]
    condition: PyTree


def setup(
    settings: FinetuneSettings, mesh: Mesh, data: ImageData | None = None, folder: Path | None = None
) -> "FinetuneRun":
    """Loads the model; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: the model or a reward cannot be loaded, or they do not fit.
    """
    del folder
    abstract = data is None
    pipeline = open_model(settings, mesh, abstract)
    run = FinetuneRun(settings, pipeline, mesh, data and data.eval_prompts)
    run.images = data and data.images
    return run


class FinetuneRun(AdapterRun):
    """A run of plain fine-tuning; see `spo_jax.methods.base.Run`.

    Attributes:
      images: the training images; None in an abstract run.
    """

    METHOD = "finetune"
    progress = Progress(
        "Finetune", lambda rows: {"loss": trend(rows, "loss").shown(".4f")}, ("loss",), "Lower the learning rate"
    )
    charts = {
        "loss": ("Loss", "mean squared error of the prediction"),
        "grad_norm": ("Gradient norm", "global norm before clipping"),
    }
    images: CaptionedImages | None = None

    @property
    def total(self) -> int:
        """The number of batches."""
        return self.settings.train_steps

    @functools.cached_property
    def _empty(self) -> PyTree:
        """The encoded unconditional input, one row on every device."""
        return place(self.pipeline.encode_unconditional(), replicated(self.mesh))

    def update(
        self, state: TrainState, network: Params, empty: PyTree, batch: Batch, key: Key
    ) -> tuple[TrainState, dict[str, Array]]:
        """Trains on one batch; this is the compiled program.

        Everything random follows from the run's ``key`` and the step's number alone.

        Args:
          state: the current state.
          network: base weights.
          empty: encoded unconditional input, one row; it replaces the captions that are dropped.
          batch: the images.
          key: the run's key.

        Returns:
          The next state, and the scalars ``loss`` and ``grad_norm`` (the gradients' global norm before clipping).
        """
        settings = self.settings
        process = self.pipeline.process(1)
        count = len(batch.mean)

        # Draw everything for the whole batch, and then cut it into chunks.
        keys = jax.random.split(jax.random.fold_in(key, state.step), 4)
        latents = batch.mean + batch.std * jax.random.normal(keys[0], batch.mean.shape)
        noise = jax.random.normal(keys[1], latents.shape)
        t = jax.random.randint(keys[2], (count,), 0, process.num_train_timesteps)
        dropped = jax.random.bernoulli(keys[3], settings.caption_dropout, (count,))
        chunk = even_chunk(count, settings.chunk, self.mesh.size)
        chunks = cut((self.pipeline.scale_latents(latents), noise, t, dropped, batch.condition), chunk)

        def loss(lora: Params, chunk: Any) -> tuple[Array, Array]:
            latents, noise, t, dropped, condition = chunk

            def without_caption(one: Array, other: Array) -> Array:
                return jnp.where(dropped.reshape(-1, *[1] * (one.ndim - 1)), other, one)

            condition = jax.tree.map(without_caption, condition, repeat_rows(empty, len(t)))
            x = process.add_noise(latents, noise, t)
            prediction = self.pipeline.predict(network, lora, x, t, condition, settings.lora.scale)
            target = process.target(latents, noise, t)
            error = jnp.square(prediction.astype(jnp.float32) - target).mean((1, 2, 3)).sum() / count
            return error, error

        def chunk_at(index: Array) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), chunks)

        # Sum loss and gradients over the chunks, and update the adapter.
        error, gradients = chunked_gradients(loss, state.params, chunk_at, count // chunk, jnp.zeros(()))
        metrics = {"loss": error, "grad_norm": optax.global_norm(gradients)}
        return apply_gradients(state, gradients, self.optimizer), metrics

    def trace(self, state: TrainState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the program ``update``."""
        pipeline = self.pipeline
        whole = replicated(self.mesh)
        ids = jax.ShapeDtypeStruct((1, *pipeline.token_shape), "int32")
        condition = jax.eval_shape(pipeline.encode_tokens, pipeline.text_params, ids)
        latents = jax.ShapeDtypeStruct((1, *pipeline.latent_shape), jnp.float32)

        def rows(one: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (self.settings.batch_size, *one.shape[1:])
            return jax.ShapeDtypeStruct(shape, one.dtype, sharding=over_batch(self.mesh))

        batch = jax.tree.map(rows, Batch(latents, latents, condition))
        network = shapes_of(pipeline.params[pipeline.TRAINED])
        key = shapes_of(jax.eval_shape(lambda: jax.random.key(0)), whole)
        program = jax.jit(self.update, donate_argnums=0, out_shardings=whole, keep_unused=keep_unused)
        return {"update": program.trace(shapes_of(state), network, shapes_of(condition, whole), batch, key)}

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Encodes all images and captions once, and yields each batch's rows on the devices.

        Raises:
          UserError: an image is damaged, or the model's native size is not square.
        """
        settings = self.settings
        images = self.images
        moments = encode_images(self.pipeline, images.image, len(images))
        with stage(f"encoding {counted(len(images), 'caption')}"):
            captions = self.pipeline.encode_prompts(images.captions)
        jax.block_until_ready(self._empty)  # encoded before the loop, in which nothing compiles
        for number in range(start, self.total):
            rows = batch_rows(settings.seed, len(images), settings.batch_size, number)
            yield place(take_rows(Batch(*moments, captions), rows), over_batch(self.mesh))

    def step(
        self, programs: Programs, batches: Iterator[Batch], number: int, state: TrainState, key: Key
    ) -> tuple[TrainState, Row]:
        """Trains on the next batch; the state counts the steps."""
        del number
        batch = next(batches)
        begin = time.perf_counter()
        network = self.pipeline.params[self.pipeline.TRAINED]
        state, metrics = programs["update"](state, network, self._empty, batch, key)
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return state, {**row, "seconds/update": time.perf_counter() - begin}
