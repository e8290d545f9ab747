"""The two steps of SPO training, each one compiled program: collect pairs with the policy, then update the policy."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spo_jax.core.errors import UserError
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.diffusion.ddim import log_prob, predict_x0, step_moments
from spo_jax.diffusion.schedule import Schedule
from spo_jax.methods.spo import pairs as pairs_lib
from spo_jax.methods.spo.objective import spo_loss
from spo_jax.methods.spo.pairs import Pairs
from spo_jax.methods.spo.resampler import Denoise, Draws, ResamplerConfig, Score, judge, make_plan, rollout
from spo_jax.parallel.mesh import devices_in_context, gathered, spread

# (adapter tree or None for the reference, x [n h w c], t [n], prompt row [n]) to guided prediction.
Predict = Callable[
    [Params | None, Float[Array, "n h w c"], Int[Array, " n"], Int[Array, " n"]], Float[Array, "n h w c"]
]


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """Settings of the objective and the optimiser; defaults are the published ones of SD 1.5.

    Attributes:
      beta, eps: strength and clip range of the objective.
      eta: stochasticity of the steps whose likelihood is compared; the rollout's.
      train_batch_size: pairs per training batch, over all devices.
      train_chunk: pairs that a device has in memory at a time; gradients of a batch add up, but for float rounding.
      gradient_accumulation_steps: training batches per optimiser step.
      max_grad_norm: clip of the global norm. The reference names 1.0 and clips nothing, by a slip.
    """

    beta: float = 10.0
    eps: float = 0.1
    eta: float = 1.0
    train_batch_size: int = 10
    train_chunk: int = 10
    gradient_accumulation_steps: int = 1
    learning_rate: float = 6e-5
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(UpdateConfig):
            value, zero_allowed = getattr(self, field.name), field.name in ("adam_beta1", "weight_decay")
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
                expected = "0 or more" if zero_allowed else "more than 0, and finite"
                raise UserError(f"config field spo.{field.name} = {value}: expected {expected}")
        if not self.eps < 1:
            raise UserError(f"config field spo.eps = {self.eps}: expected less than 1, for the ratio stays positive")

    def chunk(self, devices: int) -> int:
        """Pairs that are in memory at a time, on all devices together: of a batch that has to be cut, equal parts."""
        parts = math.ceil(self.train_batch_size / (self.train_chunk * devices))
        return math.ceil(self.train_batch_size / (parts * devices)) * devices


_LOSS_METRICS = ("loss", "ratio/win", "ratio/lose", "clip_fraction/win", "clip_fraction/lose")
# Means over training batches; without one they are 0 and say nothing.
UPDATE_METRICS = (*_LOSS_METRICS, "grad_norm")


class TrainState(NamedTuple):
    """What training changes: the adapter, the optimiser's moments, and the number of training batches so far."""

    lora: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def make_optimiser(config: UpdateConfig) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay after a clip of the global norm, accumulating if asked to."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            config.learning_rate,
            b1=config.adam_beta1,
            b2=config.adam_beta2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        ),
    )
    if config.gradient_accumulation_steps > 1:
        optimiser = optax.MultiSteps(optimiser, config.gradient_accumulation_steps).gradient_transformation()
    return optimiser


def init_state(lora: Params, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first batch."""
    return TrainState(lora, optimiser.init(lora), jnp.zeros((), jnp.int32))


def collect(
    denoise: Denoise,
    score: Score,
    config: ResamplerConfig,
    schedule: Schedule,
    draws: Draws,
    threshold: float,
    chunk: int,
) -> tuple[Pairs, dict[str, Array]]:
    """Rolls the policy out, judges the pools and makes pairs.

    Args:
      denoise: guided prediction of the policy.
      score: of decoded latents.
      threshold: how clear a verdict has to be. chunk: pictures decoded and judged at a time.

    Returns:
      Pairs of all transitions and prompts, and metrics: share and number of valid pairs; per judgement (a vector) the
      mean score, the mean gap between winner and loser, and the share of valid pairs.
    """
    trajectory = rollout(denoise, config, schedule, draws)
    scores = judge(score, trajectory, chunk)
    verdict = pairs_lib.rank(scores, threshold)
    # Valid pairs of all devices are shuffled together: every device gets all of them, and takes its part of a batch.
    pairs = gathered(pairs_lib.make_pairs(trajectory, verdict, make_plan(config)))
    metrics = {
        "valid_share": pairs.valid.mean(dtype=jnp.float32),
        "valid_pairs": pairs.valid.sum(),
        "spm_score": scores.mean((1, 2)),
        "spm_gap": (scores.max(1) - scores.min(1)).mean(1),
        "valid_share_at": verdict.valid.mean(1, dtype=jnp.float32),
    }
    return pairs, metrics


def pair_log_probs(predict: Callable, schedule: Schedule, eta: float, batch: Pairs) -> Float[Array, "n 2"]:
    """log p(x_{t'} | x_t) of winner and loser; one network call where they share x_t, half of the work.

    Args:
      predict: (x [n h w c], t [n], row [n]) to guided prediction, of the policy or of the reference.
    """
    members = batch.x_t.shape[1]
    x, t, row = _folded(batch.x_t), jnp.repeat(batch.t, members), jnp.repeat(batch.row, members)
    x0, eps = predict_x0(schedule, x, predict(x, t, row), t)
    mean, std = step_moments(schedule, x0, eps, t, eta)
    unfold = lambda x: x.reshape(-1, members, *x.shape[1:])  # noqa: E731
    return log_prob(batch.x_prev, unfold(mean), unfold(std))


def _folded(x: Float[Array, "n m ..."]) -> Float[Array, "nm ..."]:
    return x.reshape(-1, *x.shape[2:])


def batch_loss(
    lora: Params,
    predict: Predict,
    schedule: Schedule,
    config: UpdateConfig,
    batch: Pairs,
    weight: Float[Array, " n"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Sum of the pairs' SPO losses times their weights, and the metrics of the curves, summed likewise.

    Args:
      predict: policy with an adapter, reference with None: the same base weights.
      weight: for a mean over a training batch, one over the number of its pairs; 0 for rows that are not trained on.
    """
    policy = pair_log_probs(lambda *args: predict(lora, *args), schedule, config.eta, batch)
    reference = pair_log_probs(lambda *args: predict(None, *args), schedule, config.eta, batch)
    out = spo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta=config.beta, eps=config.eps)
    total = lambda values: jnp.sum(values * weight)  # noqa: E731
    outside = lambda ratio: (jnp.abs(ratio - 1) > config.eps).astype(jnp.float32)  # noqa: E731
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
    schedule: Schedule,
    config: UpdateConfig,
    pairs: Pairs,
    rows: Int[Array, " n"],
    count: Int[Array, ""],
) -> tuple[dict[str, Array], Params]:
    """Gradients of the mean loss over the first ``count`` of the ``rows`` of ``pairs``, and the mean metrics.

    ``config.train_chunk`` of them are in a device's memory at a time, and chunks beyond ``count`` are not computed.
    """
    chunk = config.chunk(devices_in_context())
    rows = jnp.concatenate([rows, jnp.zeros(-len(rows) % chunk, rows.dtype)])
    gradient = jax.grad(batch_loss, has_aux=True)

    def body(index, sums):
        weight = (index * chunk + jnp.arange(chunk) < count) / jnp.maximum(count, 1)
        batch = spread(take_rows(pairs, jax.lax.dynamic_slice(rows, (index * chunk,), (chunk,))))
        gradients, metrics = gradient(lora, predict, schedule, config, batch, weight)
        return jax.tree.map(jnp.add, sums, (metrics, gradients))

    zeros = dict.fromkeys(_LOSS_METRICS, jnp.zeros(())), jax.tree.map(jnp.zeros_like, lora)
    return jax.lax.fori_loop(0, -(-count // chunk), body, zeros)


def train_batch(
    state: TrainState,
    predict: Predict,
    schedule: Schedule,
    config: UpdateConfig,
    pairs: Pairs,
    rows: Int[Array, " n"],
    count: Int[Array, ""],
) -> tuple[TrainState, dict[str, Array], Params]:
    """One training batch: loss, gradients of the adapter alone (see `batch_gradients`), optimiser.

    Returns:
      (state, metrics with the gradients' global norm before the clip, gradients).
    """
    metrics, gradients = batch_gradients(state.lora, predict, schedule, config, pairs, rows, count)
    updates, opt_state = make_optimiser(config).update(gradients, state.opt_state, state.lora)
    metrics["grad_norm"] = optax.global_norm(gradients)
    return TrainState(optax.apply_updates(state.lora, updates), opt_state, state.step + 1), metrics, gradients


def update(
    state: TrainState, predict: Predict, schedule: Schedule, config: UpdateConfig, pairs: Pairs, key: Key
) -> tuple[TrainState, dict[str, Array]]:
    """Shuffles the valid pairs, cuts them into training batches and takes a step on each: one loop on the device.

    The number of valid pairs differs from rollout to rollout, shapes do not: valid pairs go to the front, and the
    loop runs over the batches that hold some. The last one may be part empty; its loss is the mean of what it holds.

    Returns:
      (state, metrics averaged over the training batches; all 0 when no pair was valid).
    """
    size, count = config.train_batch_size, pairs.valid.sum()
    order = pairs_lib.shuffled_order(key, pairs.valid)
    order = jnp.concatenate([order, jnp.zeros(-len(order) % size, order.dtype)])
    batches = -(-count // size)

    def body(index, carry):
        state, sums = carry
        rows = jax.lax.dynamic_slice(order, (index * size,), (size,))
        left = jnp.minimum(count - index * size, size)
        state, metrics, _ = train_batch(state, predict, schedule, config, pairs, rows, left)
        return state, jax.tree.map(jnp.add, sums, metrics)

    state, sums = jax.lax.fori_loop(0, batches, body, (state, dict.fromkeys(UPDATE_METRICS, jnp.zeros(()))))
    metrics = jax.tree.map(lambda total: total / jnp.maximum(batches, 1), sums)
    return state, {**metrics, "train_batches": batches}
