"""The two steps of SPO training, each one compiled program: collect pairs with the policy, then update the policy."""

import jax
import jax.numpy as jnp
import optax

from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.policy import Pairs, Predict, pair_log_probs
from spo_jax.methods.common.state import TrainState, apply_gradients
from spo_jax.methods.spo.objective import spo_loss
from spo_jax.methods.spo.pairs import make_pairs, rank, shuffled_order
from spo_jax.methods.spo.resampler import Denoise, Draws, Score, judge, make_plan, rollout
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.parallel.mesh import devices_in_context, gathered, spread

_LOSS_METRICS = ("loss", "ratio/win", "ratio/lose", "clip_fraction/win", "clip_fraction/lose")
# Means over training batches; without one they are 0 and mean nothing.
UPDATE_METRICS = (*_LOSS_METRICS, "grad_norm")


def collect(
    denoise: Denoise, score: Score, settings: SPOSettings, process: Process, draws: Draws
) -> tuple[Pairs, dict[str, Array]]:
    """Rolls the policy out, judges the pools and makes pairs.

    Args:
      denoise: guided prediction of the policy.
      score: of clean latents.

    Returns:
      Pairs of all transitions and prompts, and metrics: share and number of valid pairs; per judgement (a vector) the
      mean score, the mean gap between winner and loser, and the share of valid pairs.
    """
    trajectory = rollout(denoise, settings, process, draws)
    scores = judge(score, trajectory, settings.decode_chunk)
    verdict = rank(scores, settings.threshold)
    # Valid pairs of all devices are shuffled together: every device gets all of them, and takes its part of a batch.
    pairs = gathered(make_pairs(trajectory, verdict, make_plan(settings)))
    metrics = {
        "valid_share": pairs.valid.mean(dtype=jnp.float32),
        "valid_pairs": pairs.valid.sum(),
        "spm_score": scores.mean((1, 2)),
        "spm_gap": (scores.max(1) - scores.min(1)).mean(1),
        "valid_share_at": verdict.valid.mean(1, dtype=jnp.float32),
    }
    return pairs, metrics


def batch_loss(
    lora: Params,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    batch: Pairs,
    weight: Float[Array, " n"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of the pairs' SPO losses times their weights, and the metrics of the curves, summed likewise.

    Args:
      predict: the policy with an adapter, the reference with None: the same base weights.
      weight: for a mean over a training batch, one over the number of its pairs; 0 for rows that are not trained on.
    """

    def policy(x: Array, t: Array, row: Array) -> Array:
        return predict(lora, x, t, row)

    def reference(x: Array, t: Array, row: Array) -> Array:
        return predict(None, x, t, row)

    def total(values: Array) -> Array:
        return jnp.sum(values * weight)

    def outside(ratio: Array) -> Array:
        return (jnp.abs(ratio - 1) > settings.eps).astype(jnp.float32)

    logp = pair_log_probs(policy, process, settings.eta, batch)
    ref_logp = pair_log_probs(reference, process, settings.eta, batch)
    out = spo_loss(logp[:, 0], logp[:, 1], ref_logp[:, 0], ref_logp[:, 1], beta=settings.beta, eps=settings.eps)
    loss = total(out.loss)
    return loss, {
        "loss": loss,
        "ratio/win": total(out.ratio_win),
        "ratio/lose": total(out.ratio_lose),
        "clip_fraction/win": total(outside(out.ratio_win)),
        "clip_fraction/lose": total(outside(out.ratio_lose)),
    }


def batch_gradients(
    lora: Params,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    pairs: Pairs,
    rows: Int[Array, " n"],
    count: Int[Array, ""],
) -> tuple[Params, dict[str, Array]]:
    """Gradients of the mean loss over the first ``count`` of the ``rows`` of ``pairs``, and the mean metrics.

    ``settings.train_chunk`` of them are in a device's memory at a time, and chunks beyond ``count`` are not computed.
    """
    chunk = settings.chunk(devices_in_context())
    rows = jnp.concatenate([rows, jnp.zeros(-len(rows) % chunk, rows.dtype)])

    def chunk_at(index: Array) -> tuple[Pairs, Array]:
        weight = (index * chunk + jnp.arange(chunk) < count) / jnp.maximum(count, 1)
        return spread(take_rows(pairs, jax.lax.dynamic_slice(rows, (index * chunk,), (chunk,)))), weight

    def loss(lora: Params, chunk: tuple[Pairs, Array]) -> tuple[Array, dict[str, Array]]:
        return batch_loss(lora, predict, process, settings, *chunk)

    zero_metrics = dict.fromkeys(_LOSS_METRICS, jnp.zeros(()))
    metrics, gradients = chunked_gradients(loss, lora, chunk_at, -(-count // chunk), zero_metrics)
    return gradients, metrics


def train_batch(
    state: TrainState,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    optimizer: optax.GradientTransformation,
    pairs: Pairs,
    rows: Int[Array, " n"],
    count: Int[Array, ""],
) -> tuple[TrainState, dict[str, Array], Params]:
    """One training batch: loss, gradients of the adapter alone (see `batch_gradients`), optimizer.

    Returns:
      (state, metrics with the gradients' global norm before the clip, gradients).
    """
    gradients, metrics = batch_gradients(state.params, predict, process, settings, pairs, rows, count)
    metrics["grad_norm"] = optax.global_norm(gradients)
    return apply_gradients(state, gradients, optimizer), metrics, gradients


def update(
    state: TrainState,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    optimizer: optax.GradientTransformation,
    pairs: Pairs,
    key: Key,
) -> tuple[TrainState, dict[str, Array]]:
    """Shuffles the valid pairs, cuts them into training batches and takes a step on each: one loop on the device.

    The number of valid pairs differs from rollout to rollout, shapes do not: valid pairs go to the front, and the
    loop runs over the batches that hold some. The last one may be partly empty; its loss is the mean of what it holds.

    Returns:
      (state, metrics averaged over the training batches; all 0 when no pair was valid).
    """
    size = settings.train_batch_size
    count = pairs.valid.sum()
    order = shuffled_order(key, pairs.valid)
    order = jnp.concatenate([order, jnp.zeros(-len(order) % size, order.dtype)])
    batches = -(-count // size)

    def body(index: Array, carry: tuple[TrainState, dict[str, Array]]) -> tuple[TrainState, dict[str, Array]]:
        state, sums = carry
        rows = jax.lax.dynamic_slice(order, (index * size,), (size,))
        left = jnp.minimum(count - index * size, size)
        state, metrics, _ = train_batch(state, predict, process, settings, optimizer, pairs, rows, left)
        return state, jax.tree.map(jnp.add, sums, metrics)

    state, sums = jax.lax.fori_loop(0, batches, body, (state, dict.fromkeys(UPDATE_METRICS, jnp.zeros(()))))
    metrics = jax.tree.map(lambda total: total / jnp.maximum(batches, 1), sums)
    return state, {**metrics, "train_batches": batches}
