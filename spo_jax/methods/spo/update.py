"""The two halves of an SPO batch, one compiled program each: collect pairs with the policy, then update the policy."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.first_ratio import FIRST_ERROR
from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.policy import Pairs, Predict
from spo_jax.methods.spo.judging import Score, judged_rollout
from spo_jax.methods.spo.objective import spo_loss
from spo_jax.methods.spo.objectives import objective_of
from spo_jax.methods.spo.pairs import NoisePairs, shuffled_order
from spo_jax.methods.spo.plan import make_plan, recorded_timesteps
from spo_jax.methods.spo.resampler import Denoise, Draws
from spo_jax.methods.spo.second import agreement
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.state import SPOState, mean_of, stepped
from spo_jax.parallel.mesh import devices_in_context, gathered, spread

_LOSS_METRICS = ("loss", "margin", "ratio/win", "ratio/lose", "clip_fraction/win", "clip_fraction/lose")
# Means over training batches; without any training batch they are 0, which means nothing.
_BATCH_METRICS = (*_LOSS_METRICS, "grad_norm")
# By timestep of the transition: means over the pairs of all training batches, NaN where there is none.
TIMESTEP_METRICS = ("ratio_at", "clip_fraction_at")
UPDATE_METRICS = (*_BATCH_METRICS, *TIMESTEP_METRICS, FIRST_ERROR)


def collect(
    denoise: Denoise, score: Score, settings: SPOSettings, process: Process, draws: Draws, second: Score | None = None
) -> tuple[Pairs | NoisePairs, dict[str, Array]]:
    """Rolls the policy out, judges the pools and makes pairs.

    Args:
      denoise: guided prediction of the policy.
      score: scores of clean latents, or of noisy ones.
      settings: settings of SPO.
      process: the diffusion process, divided into the rollout's steps.
      draws: all randomness of the rollout.
      second: scores of the clean latents of the last pools by the second judge; None if there is none.

    Returns:
      The pairs of all transitions and prompts, valid or not, and metrics: share and number of valid pairs as scalars;
      mean score, mean gap between winner and loser, and share of valid pairs as vectors over the judgements. With a
      second judge also those of `spo_jax.methods.spo.second.agreement`.
    """
    judged = judged_rollout(denoise, score, settings, process, draws, second)
    scores = judged.scores
    # The valid pairs of all devices are shuffled together: every device gets all pairs and takes its part of a batch.
    pairs = gathered(objective_of(settings).pairs(judged, draws, make_plan(settings)))
    metrics = {
        "valid_share": pairs.valid.mean(dtype=jnp.float32),
        "valid_pairs": pairs.valid.sum(),
        "judge_score": scores.mean((1, 2)),
        "judge_gap": (scores.max(1) - scores.min(1)).mean(1),
        "valid_share_at": judged.verdict.valid.mean(1, dtype=jnp.float32),
    }
    return pairs, metrics | (agreement(judged.twice) if judged.twice else {})


def batch_loss(
    lora: Params,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    batch: Pairs | NoisePairs,
    weight: Float[Array, " n"],
    mean: Params | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Sums the losses of pairs times their weights, and the metrics of the curves in the same way.

    The metrics by timestep are plain sums over the pairs whose weight is not 0: of both members' mean ratio, their
    clipped share and their mean distance |ratio - 1|, and the number of pairs.

    Args:
      lora: the adapter.
      predict: guided prediction of the policy with an adapter, and of the reference with None; the base weights are the
        same.
      process: the diffusion process, divided into the rollout's steps.
      settings: settings of SPO.
      batch: the pairs.
      weight: weights of the pairs: 1 / (number of pairs in the training batch) for a mean, 0 for rows to leave out.
      mean: running mean of the adapter; None if there is none.
    """

    def total(values: Array) -> Array:
        return jnp.sum(values * weight)

    def outside(ratio: Array) -> Array:
        return (jnp.abs(ratio - 1) > settings.eps).astype(jnp.float32)

    logp, ref_logp = objective_of(settings).likelihoods(lora, mean, predict, process, settings, batch)
    out = spo_loss(logp[:, 0], logp[:, 1], ref_logp[:, 0], ref_logp[:, 1], beta=settings.beta, eps=settings.eps)
    loss = total(out.loss)
    recorded = jnp.asarray(recorded_timesteps(settings, process.timesteps))
    here = (batch.t[:, None] == recorded[None]) & (weight > 0)[:, None]  # [n r]

    def at_timesteps(of_ratio: Callable[[Array], Array]) -> Array:
        both = (of_ratio(out.ratio_win) + of_ratio(out.ratio_lose)) / 2
        return jnp.where(here, both[:, None], 0).sum(0)  # [n r] -> [r]

    return loss, {
        "loss": loss,
        "margin": total((logp[:, 0] - ref_logp[:, 0]) - (logp[:, 1] - ref_logp[:, 1])),
        "ratio/win": total(out.ratio_win),
        "ratio/lose": total(out.ratio_lose),
        "clip_fraction/win": total(outside(out.ratio_win)),
        "clip_fraction/lose": total(outside(out.ratio_lose)),
        "pairs_at": here.sum(0, dtype=jnp.float32),
        "ratio_at": at_timesteps(lambda ratio: ratio),
        "clip_fraction_at": at_timesteps(outside),
        "error_at": at_timesteps(lambda ratio: jnp.abs(ratio - 1)),
    }


def _zero_metrics(settings: SPOSettings, process: Process, scalars: Sequence[str]) -> dict[str, Array]:
    """Returns zeros in the shapes of the metrics of `batch_loss`, with ``scalars`` as the names of its scalars."""
    by_timestep = jnp.zeros(len(recorded_timesteps(settings, process.timesteps)))
    vectors = dict.fromkeys(("pairs_at", "ratio_at", "clip_fraction_at", "error_at"), by_timestep)
    return dict.fromkeys(scalars, jnp.zeros(())) | vectors


def batch_gradients(
    lora: Params,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    pairs: Pairs | NoisePairs,
    rows: Int[Array, " n"],
    count: Int[Array, ""],
    mean: Params | None = None,
) -> tuple[Params, dict[str, Array]]:
    """Computes the gradients of the mean loss over a training batch, and the mean metrics.

    Each device has ``settings.train_chunk`` pairs in memory at a time. Chunks beyond ``count`` are not computed.

    Args:
      lora: the adapter.
      predict: see `batch_loss`.
      process: see `batch_loss`.
      settings: settings of SPO.
      pairs: all pairs of a rollout.
      rows: rows of the training batch's pairs in ``pairs``.
      count: number of rows to train on, from the first on.
      mean: see `batch_loss`.

    Returns:
      The gradients, and the metrics of `batch_loss`.
    """
    chunk = settings.chunk(devices_in_context())
    rows = jnp.concatenate([rows, jnp.zeros(-len(rows) % chunk, rows.dtype)])

    def chunk_at(index: Array) -> tuple[Pairs | NoisePairs, Array]:
        weight = (index * chunk + jnp.arange(chunk) < count) / jnp.maximum(count, 1)
        return spread(take_rows(pairs, jax.lax.dynamic_slice(rows, (index * chunk,), (chunk,)))), weight

    def loss(lora: Params, chunk: tuple[Pairs | NoisePairs, Array]) -> tuple[Array, dict[str, Array]]:
        return batch_loss(lora, predict, process, settings, *chunk, mean)

    zero_metrics = _zero_metrics(settings, process, _LOSS_METRICS)
    metrics, gradients = chunked_gradients(loss, lora, chunk_at, -(-count // chunk), zero_metrics)
    return gradients, metrics


def train_batch(
    state: SPOState,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    optimizer: optax.GradientTransformation,
    pairs: Pairs | NoisePairs,
    rows: Int[Array, " n"],
    count: Int[Array, ""],
    accumulation: int = 1,
) -> tuple[SPOState, dict[str, Array], Params]:
    """Trains on one batch: loss, gradients of the adapter alone, and the optimizer.

    Args:
      state: the current state.
      predict: see `batch_loss`.
      process: see `batch_loss`.
      settings: settings of SPO.
      optimizer: the optimizer.
      pairs: see `batch_gradients`.
      rows: see `batch_gradients`.
      count: see `batch_gradients`.
      accumulation: number of training batches for each step of ``optimizer``.

    Returns:
      The next state; the metrics, with the gradients' global norm before clipping; and the gradients.
    """
    mean = mean_of(state)
    gradients, metrics = batch_gradients(state.params, predict, process, settings, pairs, rows, count, mean)
    metrics["grad_norm"] = optax.global_norm(gradients)
    return stepped(state, gradients, optimizer, settings.ema_decay, accumulation), metrics, gradients


def update(
    state: SPOState,
    predict: Predict,
    process: Process,
    settings: SPOSettings,
    optimizer: optax.GradientTransformation,
    pairs: Pairs | NoisePairs,
    key: Key,
    accumulation: int = 1,
) -> tuple[SPOState, dict[str, Array]]:
    """Shuffles the valid pairs, cuts them into training batches and trains on each, in one loop on the device.

    The number of valid pairs differs from rollout to rollout, but shapes must not. The valid pairs are therefore moved
    to the front, and the loop runs over the batches that hold any of them. The last batch may be partly empty; its loss
    is the mean over its valid pairs.

    Args:
      state: the current state.
      predict: see `batch_loss`.
      process: see `batch_loss`.
      settings: settings of SPO.
      optimizer: the optimizer.
      pairs: all pairs of a rollout.
      key: key for the order of the pairs.
      accumulation: see `train_batch`.

    Returns:
      The next state, and the metrics averaged over the training batches (0 if no pair was valid), with the number of
      training batches; `TIMESTEP_METRICS` as vectors over `recorded_timesteps`; and `FIRST_ERROR`, which rounding alone
      makes other than 0 if the state is a fresh one.
    """
    size = settings.train_batch_size
    count = pairs.valid.sum()
    order = shuffled_order(key, pairs.valid)
    order = jnp.concatenate([order, jnp.zeros(-len(order) % size, order.dtype)])
    batches = -(-count // size)

    def body(index: Array, carry: tuple[SPOState, dict[str, Array], Array]) -> tuple:
        state, sums, first = carry
        rows = jax.lax.dynamic_slice(order, (index * size,), (size,))
        left = jnp.minimum(count - index * size, size)
        batch = (pairs, rows, left)
        state, metrics, _ = train_batch(state, predict, process, settings, optimizer, *batch, accumulation)
        error = (metrics["error_at"] / jnp.maximum(metrics["pairs_at"], 1)).max()
        return state, jax.tree.map(jnp.add, sums, metrics), jnp.where(index == 0, error, first)

    start = state, _zero_metrics(settings, process, _BATCH_METRICS), jnp.zeros(())
    state, sums, first = jax.lax.fori_loop(0, batches, body, start)
    metrics = {name: sums[name] / jnp.maximum(batches, 1) for name in _BATCH_METRICS}
    metrics |= {name: sums[name] / sums["pairs_at"] for name in TIMESTEP_METRICS}
    return state, {**metrics, FIRST_ERROR: first, "train_batches": batches}
