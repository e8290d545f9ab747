"""Single networks of a run of SPO as programs, at the shapes that the run gives them: quick to compile and to compare.

A whole rollout compiles for an hour, its decoder for minutes. A part is what the rollout or the update repeats:

| part | program |
|---|---|
| ``decode`` | the decoder on as many latents as a device decodes at a time |
| ``unet`` | one guided prediction of the policy for a whole pool of candidates |
| ``judge`` | the judge on as many decoded images as there are at a time |
| ``update`` | loss and gradients of as many pairs as a device trains on at a time |
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spo_jax.core.errors import UserError
from spo_jax.core.typing import PyTree
from spo_jax.methods.base import Run
from spo_jax.methods.common.decoding import images_at_a_time
from spo_jax.methods.common.policy import equal_rounding
from spo_jax.methods.spo.method import SPORun
from spo_jax.methods.spo.programs import SPO
from spo_jax.methods.spo.state import sampling_params
from spo_jax.methods.spo.update import batch_loss
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.sharding import shapes_of


def trace_part(run: Run, part: str) -> jax.stages.Traced:
    """Traces one network of an abstract run, whose mesh is in context.

    Args:
      run: the run.
      part: a name in `PARTS`.

    Raises:
      UserError: the method's run is not made of these parts, or its judge decodes nothing.
    """
    if not isinstance(run, SPORun):
        raise UserError(f"--part={part}: expected a config whose method is spo; name whole programs with --programs")
    return PARTS[part](run)


def rows_of_part(run: SPORun, part: str) -> int:
    """Returns the images or pairs of all devices that a part computes at a time; candidates for ``unet``."""
    settings = run.settings
    decoded = images_at_a_time(settings.spo.decode_chunk, run.spo.pipeline.latent_shape) * run.mesh.size
    return {
        "decode": decoded,
        "unet": settings.spo.num_candidates * settings.prompts_per_batch,
        "judge": decoded,
        "update": settings.spo.chunk(run.mesh.size),
    }[part]


def _decode(run: SPORun) -> jax.stages.Traced:
    decode, params = _decoder(run.spo)
    return jax.jit(decode).trace(params, _latents(run, rows_of_part(run, "decode")))


def _unet(run: SPORun) -> jax.stages.Traced:
    spo = run.spo
    pool = jax.ShapeDtypeStruct(
        (spo.settings.spo.num_candidates, spo.settings.prompts_per_batch, *spo.pipeline.latent_shape),
        jnp.float32,
        sharding=over_batch(run.mesh, 1),
    )

    def predict(lora: PyTree, network: PyTree, condition: PyTree, unconditional: PyTree, x: PyTree, t: PyTree):
        network, lora = spo.policy.at_rest(network, lora)
        return spo.policy.sampler(network, lora, condition, unconditional)(x, t)

    frozen = spo.frozen_shapes()
    t = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(run.mesh))
    condition = spo.feature_shapes().condition
    return jax.jit(predict).trace(_adapter(run), frozen.network, condition, frozen.unconditional, pool, t)


def _judge(run: SPORun) -> jax.stages.Traced:
    decode, params = _decoder(run.spo)
    rows = rows_of_part(run, "judge")
    images = jax.eval_shape(decode, params, _latents(run, rows))
    features = _rows(run.spo.judge.feature_shapes(), rows, run)
    t = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=over_batch(run.mesh))
    images = shapes_of(images, over_batch(run.mesh))
    return jax.jit(run.spo.judge.reward.score).trace(shapes_of(run.spo.judge.params["reward"]), images, features, t)


def _update(run: SPORun) -> jax.stages.Traced:
    spo = run.spo
    frozen = spo.frozen_shapes()
    features = spo.feature_shapes()
    lora = _adapter(run)
    key = shapes_of(jax.eval_shape(lambda: jax.random.key(0)), replicated(run.mesh))
    rows = rows_of_part(run, "update")
    pairs = _rows(jax.eval_shape(spo.collect, lora, frozen, features, key)[0], rows, run)
    weight = jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=over_batch(run.mesh))

    def gradients(lora: PyTree, network: PyTree, condition: PyTree, unconditional: PyTree, pairs: PyTree, weight: Any):
        predict = spo.policy.predictor(network, condition, unconditional)
        return jax.grad(batch_loss, has_aux=True)(lora, predict, spo.process, spo.settings.spo, pairs, weight)

    program = jax.jit(gradients, compiler_options=equal_rounding(spo.pipeline.dtype))
    condition = shapes_of(features.condition, replicated(run.mesh))
    return program.trace(lora, frozen.network, condition, frozen.unconditional, pairs, weight)


def _decoder(spo: SPO) -> tuple[Callable, PyTree]:
    decoder = spo.judge.decoder
    if decoder is None:
        raise UserError("--part: this judge reads latents, so nothing is decoded; expected unet or update")
    return decoder.apply, shapes_of(spo.judge.params["decoder"])


def _latents(run: SPORun, rows: int) -> jax.ShapeDtypeStruct:
    shape = (rows, *run.spo.pipeline.latent_shape)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=over_batch(run.mesh))


def _adapter(run: SPORun) -> PyTree:
    return sampling_params(shapes_of(run.state_shapes()))


def _rows(tree: PyTree, count: int, run: SPORun) -> PyTree:
    """Returns the shapes of ``count`` rows like those of a tree, cut over all devices."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=over_batch(run.mesh)), tree
    )


PARTS: dict[str, Callable[[SPORun], jax.stages.Traced]] = {
    "decode": _decode,
    "unet": _unet,
    "judge": _judge,
    "update": _update,
}
