"""Fine-tuning of the LoRA on an array of images: a training method that is not part of the package."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.config import setting
from spo_jax.core.errors import UserError
from spo_jax.data.prompts import load_prompts
from spo_jax.methods.common.adapter import AdapterRun
from spo_jax.methods.common.latents import encode_images
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.order import batch_rows
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.methods.common.state import apply_gradients
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.sharding import place, shapes_of
from spo_jax.run.loop import Progress


@dataclasses.dataclass(frozen=True)
class Settings(AdapterSettings):
    """All settings of a run."""

    BATCHES: ClassVar = {"batch_size": "images"}

    method: str = setting("my_methods.denoising", "Training method.")
    images: str = setting("images.npz", "File with the arrays images, uint8 [n side side 3], and captions [n].")
    train_steps: int = setting(100, "Number of batches of the whole run.", at_least=1)
    batch_size: int = setting(4, "Images of an optimizer step, over all devices.", at_least=1)


class Data(NamedTuple):
    """The content of the file, and the prompts of the images before and after."""

    images: np.ndarray
    captions: list[str]
    eval_prompts: list[str]
    digests: list[str]


def read_data(settings):
    """Reads everything into memory."""
    try:
        with np.load(settings.images) as file:
            images, captions = file["images"], file["captions"].tolist()
    except (OSError, KeyError) as error:
        raise UserError(f"config field images = {settings.images!r}: {error}") from error
    return Data(images, captions, load_prompts(settings.eval.prompts), [str(hash(images.tobytes()))])


def setup(settings, mesh, data=None, folder=None):
    """Loads the model, or its shapes where there is no data."""
    pipeline = open_model(settings, mesh, abstract=data is None)
    run = DenoisingRun(settings, pipeline, mesh, data and data.eval_prompts)
    run.data = data
    return run


class DenoisingRun(AdapterRun):
    """The mean squared error of the prediction for a noised image."""

    METHOD = "denoising"
    progress = Progress("Denoise", lambda rows: {"loss": str(rows[-1]["loss"])}, ("loss",), "Lower the learning rate")
    charts = {"loss": ("Loss", "mean squared error of the prediction")}

    @property
    def total(self):
        """Number of batches."""
        return self.settings.train_steps

    def update(self, state, network, latents, condition, key):
        """One optimizer step."""
        process = self.pipeline.process(1)
        noise_key, t_key = jax.random.split(jax.random.fold_in(key, state.step))
        noise = jax.random.normal(noise_key, latents.shape)
        t = jax.random.randint(t_key, (len(latents),), 0, process.num_train_timesteps)
        x = process.add_noise(latents, noise, t)

        def loss(lora):
            prediction = self.pipeline.predict(network, lora, x, t, condition, self.settings.lora.scale)
            return jnp.square(prediction - process.target(latents, noise, t)).mean()

        error, gradients = jax.value_and_grad(loss)(state.params)
        return apply_gradients(state, gradients, self.optimizer), error

    def trace(self, state, keep_unused=False):
        """The program ``update``, traced for shapes."""
        pipeline, size, rows = self.pipeline, self.settings.batch_size, over_batch(self.mesh)
        tokens = jax.ShapeDtypeStruct((size, *pipeline.token_shape), "int32", sharding=rows)
        condition = shapes_of(jax.eval_shape(pipeline.encode_tokens, pipeline.text_params, tokens), rows)
        latents = jax.ShapeDtypeStruct((size, *pipeline.latent_shape), "float32", sharding=rows)
        key = shapes_of(jax.eval_shape(lambda: jax.random.key(0)), replicated(self.mesh))
        network = shapes_of(pipeline.params[pipeline.TRAINED])
        update = jax.jit(self.update, out_shardings=replicated(self.mesh), keep_unused=keep_unused)
        return {"update": update.trace(shapes_of(state), network, latents, condition, key)}

    def batches(self, start):
        """Latents and conditions of each batch, on the devices."""
        images, captions, *_ = self.data
        mean, _ = encode_images(self.pipeline, lambda row, side: images[row], len(images))
        latents = np.asarray(self.pipeline.scale_latents(jnp.asarray(mean)))
        condition = self.pipeline.encode_prompts(captions)
        for number in range(start, self.total):
            rows = batch_rows(self.settings.seed, len(images), self.settings.batch_size, number)
            yield place(jax.tree.map(lambda x, rows=rows: x[rows], (latents, condition)), over_batch(self.mesh))

    def step(self, programs, batches, number, state, key):
        """One optimizer step on the next batch."""
        network = self.pipeline.params[self.pipeline.TRAINED]
        state, error = programs["update"](state, network, *next(batches), key)
        return state, {"loss": float(error)}
