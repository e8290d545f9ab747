"""The training of a preference model as shapes with shardings: all that its step is compiled from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.shapes import blueprint_of, condition_shapes, pipeline_shapes, row_shapes
from spo_jax.methods.spm.programs import Frozen, Networks, Rows
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.update import SPMState, init_state, make_optimiser, state_shardings
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.parallel.mesh import check_divides, over_batch, replicated
from spo_jax.nn.shapes import clip_shapes


class SPMRunShapes(NamedTuple):
    """What `spo_jax.methods.spm.programs.compile_programs` takes."""

    networks: Networks
    state: SPMState
    frozen: Frozen
    rows: Rows


def spm_run_shapes(settings: SPMTrainSettings, mesh: Mesh) -> SPMRunShapes:
    """The run of ``settings`` on ``mesh``, whose devices need not be here.

    Raises:
      UserError: a model's config is not known, or the devices do not divide a batch.
    """
    check_divides("batch_size", settings.batch_size, mesh)
    dtype = jnp.dtype(settings.dtype)
    configs = blueprint_of(settings.model, settings.init)
    pipeline = pipeline_shapes(configs, dtype, mesh)
    clip = CLIPModel(CLIPConfig.from_dict(configs.spm, time_conditioned=True), settings.remat, dtype)
    networks = Networks(pipeline, clip, settings, mesh)
    state = jax.eval_shape(lambda params: init_state(params, make_optimiser(settings)), clip_shapes(clip))
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    state = jax.tree.map(place, state, state_shardings(state, mesh))
    text = tuple(pipeline.params[name] for name in ("text_encoder", "text_encoder_2") if name in pipeline.params)
    unconditional = row_shapes(1, condition_shapes(pipeline), replicated(mesh))
    return SPMRunShapes(
        networks, state, Frozen(pipeline.params["unet"], pipeline.params["vae"], text, unconditional),
        _rows(networks, len(text)),
    )  # fmt: skip


def _rows(networks: Networks, encoders: int) -> Rows:
    settings, side, lay = networks.settings, networks.side, over_batch(networks.mesh)
    count, length = settings.batch_size, networks.pipeline.tokenizer.length
    shape = lambda *axes, dtype: jax.ShapeDtypeStruct((count, *axes), dtype, sharding=lay)  # noqa: E731
    images = shape(2, side, side, 3, dtype=jnp.uint8)
    if settings.cache_latents:
        height, width, channels = networks.latent_shape
        parts = 2 if settings.posterior == "sample" else 1
        images = shape(2, height, width, parts * channels, dtype=jnp.dtype(settings.dtype))
    return Rows(
        images,
        shape(encoders, length, dtype=jnp.int32),
        shape(networks.clip.config.text.max_position_embeddings, dtype=jnp.int32),
        shape(2, dtype=jnp.float32),
        shape(dtype=jnp.float32),
    )
