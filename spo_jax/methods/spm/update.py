"""One optimiser step on a batch of preference pairs: loss and gradients chunk by chunk, then AdamW."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from spo_jax.core.trees import flatten
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.methods.spm.loss import PairBatch, pair_accuracy, pair_losses, pair_scores
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.mesh import devices_in_context, spread
from spo_jax.parallel.sharding import shardings

# Accuracies are told apart by timestep in so many equal ranges: at high noise there is less to be right about.
BINS = 5


class SPMState(NamedTuple):
    """What training changes: float32 weights, the optimiser's moments, and the number of steps so far."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def learning_rate(settings: SPMTrainSettings) -> optax.Schedule:
    """From the number of finished steps: linear from 0 up, then linear to 0 (transformers'
    ``get_linear_schedule_with_warmup``)."""
    peak, warmup, total = settings.learning_rate, settings.warmup_steps, settings.num_steps
    fall = optax.linear_schedule(peak, 0.0, total - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup]) if warmup else fall


def make_optimiser(settings: SPMTrainSettings) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay after a clip of the global norm."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            learning_rate(settings),
            b1=settings.adam_beta1,
            b2=settings.adam_beta2,
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
        ),
    )


def init_state(params: Params, optimiser: optax.GradientTransformation) -> SPMState:
    """The state before the first step."""
    return SPMState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Where each of the state's arrays (or shapes) lies: cut over ``fsdp`` by the rules for weights.

    Moments are named as the weights that they belong to, and lie where those do.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    by_name = dict(zip(names, (leaf for _, leaf in leaves), strict=True))
    found = flatten(shardings(by_name, mesh, title="training state"))
    return jax.tree.unflatten(structure, [found[name] for name in names])


def chunk_size(batch: int, most: int, devices: int) -> int:
    """Pairs in memory at a time, on all devices: the largest share of ``batch`` that cuts it evenly.

    Args:
      batch: a multiple of ``devices``. most: pairs that a device may have in memory.
    """
    share = batch // devices
    return devices * max(size for size in range(1, min(most, share) + 1) if share % size == 0)


def cut(tree: PyTree, chunk: int) -> PyTree:
    """[n ...] -> [parts chunk ...], every part with rows of every device, so that none has to be moved.

    Rows change their order; `joined` puts them back.
    """
    devices = devices_in_context()

    def split(x: Array) -> Array:
        x = x.reshape(devices, -1, chunk // devices, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(-1, chunk, *x.shape[3:])

    return spread(jax.tree.map(split, tree), axis=1)


def joined(x: Array) -> Array:
    """[parts chunk ...] -> [n ...], the inverse of `cut`."""
    devices = devices_in_context()
    parts, chunk = x.shape[:2]
    x = x.reshape(parts, devices, chunk // devices, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1).reshape(parts * chunk, *x.shape[3:])


def _sums(clip: CLIPModel, params: Params, batch: PairBatch, timesteps: int) -> tuple[Array, dict[str, Array]]:
    """Loss summed over a chunk's pairs, and how many are ordered right, of how many decided, by range of t."""
    scores = pair_scores(clip, params, batch)
    loss = jnp.sum(pair_losses(scores, batch.labels) * batch.weights)
    right, decided = pair_accuracy(scores, batch.labels)
    of_range = jax.nn.one_hot(batch.t * BINS // timesteps, BINS)
    return loss, {"loss": loss, "right": right @ of_range, "decided": decided @ of_range}


def gradients(
    clip: CLIPModel,
    params: Params,
    make_batch: Callable[[Any], PairBatch],
    chunks: Any,
    timesteps: int,
    constrain: Callable[[Params], Params] = lambda tree: tree,
) -> tuple[Params, dict[str, Array]]:
    """Gradients of a batch's loss, and its sums, chunk by chunk.

    Args:
      make_batch: a chunk's inputs to pixels; nothing is differentiated in there. Weights sum to 1 over all chunks.
      chunks: trees of arrays [parts chunk ...].
      timesteps: how many there are.
      constrain: keeps gradients where their weights lie.
    """

    def body(sums, chunk):
        batch = jax.lax.stop_gradient(make_batch(chunk))
        gradient, metrics = jax.grad(lambda params: _sums(clip, params, batch, timesteps), has_aux=True)(params)
        return jax.tree.map(jnp.add, sums, (constrain(gradient), metrics)), None

    counts = jnp.zeros(BINS)
    zeros = constrain(jax.tree.map(jnp.zeros_like, params)), {"loss": jnp.zeros(()), "right": counts, "decided": counts}
    sums, _ = jax.lax.scan(body, zeros, chunks)
    return sums


def apply_gradients(
    state: SPMState, gradient: Params, settings: SPMTrainSettings
) -> tuple[SPMState, dict[str, Float[Array, ""]]]:
    """The optimiser's step; with the gradients' norm before the clip, the learning rate, the scale of the cosine."""
    updates, opt_state = make_optimiser(settings).update(gradient, state.opt_state, state.params)
    metrics = {
        "grad_norm": optax.global_norm(gradient),
        "learning_rate": jnp.asarray(learning_rate(settings)(state.step), jnp.float32),
        "logit_scale": jnp.exp(state.params["logit_scale"]),
    }
    return SPMState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), metrics


def flat_row(metrics: dict[str, Any], timesteps: int) -> dict[str, float]:
    """Metrics on the host as a row of the curves; an accuracy without a decided pair is left out."""
    row = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
    right, decided = metrics["right"], metrics["decided"]
    if decided.sum():
        row["accuracy"] = float(right.sum() / decided.sum())
    for index in range(BINS):
        # Rounded up: t · BINS // timesteps is `index` from there on.
        first, last = (math.ceil(step * timesteps / BINS) for step in (index, index + 1))
        if decided[index]:
            row[f"accuracy_at/t{first:03d}-{last - 1:03d}"] = float(right[index] / decided[index])
    return row
