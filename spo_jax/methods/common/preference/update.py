"""One optimizer step on a batch of preference pairs: loss and gradients chunk by chunk, then AdamW."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from spo_jax.core.trees import flatten
from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.optimizer import learning_rate_at, make_optimizer
from spo_jax.methods.common.preference.loss import pair_accuracy, pair_losses
from spo_jax.methods.common.preference.settings import JudgeTrainSettings
from spo_jax.methods.common.state import TrainState, apply_gradients
from spo_jax.parallel.sharding import shardings

# Accuracies are reported for equal ranges of timesteps, because pairs are harder to tell apart at high noise.
BINS = 5


def optimizer_of(settings: JudgeTrainSettings) -> optax.GradientTransformation:
    """Makes the optimizer of a run."""
    return make_optimizer(settings.optimizer, settings.train_steps)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a state of arrays or shapes: over ``fsdp``, by the rules for weights.

    The optimizer's moments have the names of their weights, and therefore the same shardings.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    by_name = dict(zip(names, (leaf for _, leaf in leaves), strict=True))
    found = flatten(shardings(by_name, mesh, title="training state"))
    return jax.tree.unflatten(structure, [found[name] for name in names])


@runtime_checkable
class ScoredBatch(Protocol):
    """What is needed of a batch of pairs besides its scores.

    Attributes:
      t: timestep of each pair.
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      weights: weights, which sum to 1 over the whole batch.
    """

    t: Int[Array, " n"]
    labels: Float[Array, "n 2"]
    weights: Float[Array, " n"]


# Function from (weights, a batch of pairs) to the scores of both images of each, [n 2].
Scores = Callable[[Params, Any], Float[Array, "n 2"]]


def _chunk_loss(scores: Float[Array, "n 2"], batch: ScoredBatch, timesteps: int) -> tuple[Array, dict[str, Array]]:
    """Sums a chunk's losses and, for each range of t, counts the decided pairs and those that are ordered right."""
    loss = jnp.sum(pair_losses(scores, batch.labels) * batch.weights)
    right, decided = pair_accuracy(scores, batch.labels)
    of_range = jax.nn.one_hot(batch.t * BINS // timesteps, BINS)  # [n bins]
    return loss, {"loss": loss, "right": right @ of_range, "decided": decided @ of_range}


def gradients(
    scores: Scores,
    params: Params,
    make_batch: Callable[[Any], ScoredBatch],
    chunks: Any,
    timesteps: int,
    constrain: Callable[[Params], Params] = lambda tree: tree,
) -> tuple[Params, dict[str, Array]]:
    """Computes the gradients of a batch's loss, and its metrics, chunk by chunk.

    Args:
      scores: scores of a batch, which are differentiated.
      params: the judge's weights.
      make_batch: function from a chunk of ``chunks`` to the judge's input. It is not differentiated. The pairs' weights
        sum to 1 over all chunks.
      chunks: tree of arrays [parts chunk ...].
      timesteps: number of training timesteps.
      constrain: gives gradients the sharding of their weights.

    Returns:
      The gradients, and the metrics ``loss``, ``right`` and ``decided``; the last two count pairs by range of t.
    """
    count = len(jax.tree.leaves(chunks)[0])

    def chunk_at(index: Array) -> ScoredBatch:
        chunk = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), chunks)
        return jax.lax.stop_gradient(make_batch(chunk))

    def loss(params: Params, batch: ScoredBatch) -> tuple[Array, dict[str, Array]]:
        return _chunk_loss(scores(params, batch), batch, timesteps)

    counts = jnp.zeros(BINS)
    zero_metrics = {"loss": jnp.zeros(()), "right": counts, "decided": counts}
    metrics, total = chunked_gradients(loss, params, chunk_at, count, zero_metrics, constrain)
    return total, metrics


def apply_step(
    state: TrainState, gradient: Params, settings: JudgeTrainSettings
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Updates the weights.

    Returns:
      The next state, and the scalars ``grad_norm`` (before clipping), ``learning_rate`` and ``logit_scale`` (the factor
      of the cosine, before the update).
    """
    rate = learning_rate_at(settings.optimizer, settings.train_steps, state.step)
    metrics = {
        "grad_norm": optax.global_norm(gradient),
        "learning_rate": jnp.asarray(rate, jnp.float32),
        "logit_scale": jnp.exp(state.params["logit_scale"]),
    }
    return apply_gradients(state, gradient, optimizer_of(settings)), metrics


def flat_row(metrics: dict[str, Any], timesteps: int) -> dict[str, float]:
    """Makes a row of the curves from metrics on the host; accuracies without any decided pair are left out."""
    row = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
    right = metrics["right"]
    decided = metrics["decided"]
    if decided.sum():
        row["accuracy"] = float(right.sum() / decided.sum())
    for index in range(BINS):
        # Rounded up, because t · BINS // timesteps equals `index` from there on.
        first, last = (math.ceil(step * timesteps / BINS) for step in (index, index + 1))
        if decided[index]:
            row[f"accuracy_at/t{first:03d}-{last - 1:03d}"] = float(right[index] / decided[index])
    return row
