"""Measures which details of the toy's images are still open when SPO diverts: the spread among images of one parent."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Key, Params, PyTree
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.models import open_pipeline
from spo_jax.models.base import Guidance, bind_denoise
from spo_jax.parallel.chunks import in_chunks
from spo_jax.toy.truth import DETAILS, aesthetic_terms

CHILDREN = 10  # images of each parent


def within_parents(
    settings: SPOTrainSettings, prompts: Sequence[str], seed: int = 77
) -> dict[str, tuple[float, float]]:
    """Draws parents up to the step at which SPO diverts, and `CHILDREN` images of each from there on.

    Args:
      settings: settings of SPO on the toy, of which the model and the sampler are used.
      prompts: one per parent.
      seed: seed of all noises.

    Returns:
      For each of `DETAILS`, the share of its variance that lies among the images of one parent, and the standard
      deviation of its logarithm there, by which terms of a geometric mean can be compared.
    """
    pipeline = open_pipeline(settings.model)
    process = pipeline.process(settings.spo.num_steps)
    unconditional = pipeline.encode_unconditional()

    @jax.jit
    def walk(params: Params, condition: PyTree, x: Float[Array, "b h w c"], key: Key, timesteps: Array):
        guidance = Guidance(condition, unconditional, settings.spo.guidance_scale)
        denoise = bind_denoise(pipeline, params[pipeline.TRAINED], None, guidance)

        def step(x: Array, t_and_key: tuple[Array, Key]) -> tuple[Array, None]:
            t, noise_key = t_and_key
            mean, std = process.step(*process.split(x, denoise(x, t), t), t, settings.spo.eta)
            return mean + std * jax.random.normal(noise_key, x.shape), None

        return jax.lax.scan(step, x, (timesteps, jax.random.split(key, len(timesteps))))[0]

    # Parents.
    first_key, walk_key, last_key = jax.random.split(jax.random.key(seed), 3)
    first, last = np.split(process.timesteps, [settings.spo.divert_start_step])
    condition = pipeline.encode_prompts(prompts)
    noise = jax.random.normal(first_key, (len(prompts), *pipeline.latent_shape))
    parents = walk(pipeline.params, condition, noise, walk_key, jnp.asarray(first))
    # Their children, which share a row of the condition.
    rows = np.repeat(np.arange(len(prompts)), CHILDREN)
    latents = walk(pipeline.params, take_rows(condition, rows), parents[rows], last_key, jnp.asarray(last))
    decode = jax.jit(lambda x: pipeline.decode(pipeline.params["vae"], x).astype(jnp.float32))
    terms = aesthetic_terms(np.asarray(in_chunks(decode, np.asarray(latents), 50)))
    # Variances, which are unbiased.
    found = {}
    for name in DETAILS:
        values = terms[name].reshape(len(prompts), CHILDREN)
        logs = np.log(np.maximum(values, 1e-3))
        inside = values.var(1, ddof=1).mean()
        between = values.mean(1).var(ddof=1) - inside / CHILDREN
        found[name] = (float(inside / (inside + max(between, 0))), float(np.sqrt(logs.var(1, ddof=1).mean())))
    return found
