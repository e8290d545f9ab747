"""Training on the steps of trajectories: passes, training batches, and chunks of a batch, in loops on the device."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from spo_jax.core.typing import Array, Float, Int, Key, Params
from spo_jax.methods.common.first_ratio import FIRST_ERROR
from spo_jax.methods.common.gradients import chunked_gradients
from spo_jax.methods.common.state import State, apply_gradients
from spo_jax.methods.common.trajectory_settings import TrajectorySettings
from spo_jax.parallel.mesh import devices_in_context

# Function from (adapter, item [c], number of the step [c], weight [c]) to the weighted sums of the losses of these
# steps, of their metrics, and of |ratio - 1| [c].
StepLoss = Callable[
    [Params, Int[Array, " c"], Int[Array, " c"], Float[Array, " c"]],
    tuple[Float[Array, ""], dict[str, Float[Array, ""]], Float[Array, " c"]],
]


def batch_gradients(
    lora: Params,
    loss: StepLoss,
    settings: TrajectorySettings,
    item: Int[Array, " n"],
    times: Int[Array, "n s"],
    metrics: Sequence[str],
) -> tuple[Params, dict[str, Array]]:
    """Computes the gradients of the mean loss over all steps of a training batch.

    The reference accumulates the gradients of one step of every item after the other, so rows are in that order here.

    Args:
      lora: the adapter.
      loss: the loss of some steps.
      settings: the method's settings.
      item: the items of the batch.
      times: numbers of the steps of each item, in the order in which they are trained on.
      metrics: names of the metrics that ``loss`` returns.

    Returns:
      The gradients, and the mean metrics; among them ``error_at`` and ``weight_at``, |ratio - 1| and the weight of the
      rows as sums over each step.
    """
    count, steps = times.shape
    chunk = settings.chunk(count, devices_in_context())
    total = count * steps

    def chunk_at(index: Array) -> tuple[Array, Array, Array]:
        row = index * chunk + jnp.arange(chunk)
        weight = (row < total) / total
        row = jnp.minimum(row, total - 1)
        return item[row % count], times[row % count, row // count], weight

    def chunk_loss(lora: Params, chunk: tuple[Array, Array, Array]) -> tuple[Array, dict[str, Array]]:
        value, sums, error = loss(lora, *chunk)
        _, step, weight = chunk
        zeros = jnp.zeros(settings.num_steps)
        by_step = {"error_at": zeros.at[step].add(error), "weight_at": zeros.at[step].add(weight)}
        return value, {**sums, **by_step}

    zero_metrics = dict.fromkeys(metrics, jnp.zeros(()))
    zero_metrics |= dict.fromkeys(("error_at", "weight_at"), jnp.zeros(settings.num_steps))
    found, gradients = chunked_gradients(chunk_loss, lora, chunk_at, -(-total // chunk), zero_metrics)
    return gradients, found


def train(
    state: State,
    loss: StepLoss,
    settings: TrajectorySettings,
    optimizer: optax.GradientTransformation,
    items: int,
    key: Key,
    metrics: Sequence[str],
) -> tuple[State, dict[str, Array]]:
    """Trains on all items of a rollout, as often as the settings say.

    Every pass draws a new order of the items, and a new order of the steps of each item.

    Args:
      state: the current state.
      loss: the loss of some steps.
      settings: the method's settings; ``train_batch_size`` divides ``items``.
      optimizer: the optimizer.
      items: number of items.
      key: key for the orders.
      metrics: names of the metrics that ``loss`` returns.

    Returns:
      The next state, and the metrics averaged over the training batches, with the gradients' global norm before
      clipping, `FIRST_ERROR` and the number of training batches.
    """
    size = settings.train_batch_size
    in_pass = items // size
    batches = settings.passes * in_pass

    def orders(index: Array) -> tuple[Array, Array]:
        order_key, time_key = jax.random.split(jax.random.fold_in(key, index))
        times = jnp.argsort(jax.random.uniform(time_key, (items, settings.num_steps)), axis=1)
        return jax.random.permutation(order_key, items), times[:, : settings.trained_steps]

    def body(index: Array, carry: tuple[State, dict[str, Array], Array]) -> tuple[State, dict[str, Array], Array]:
        state, sums, first = carry
        order, times = orders(index // in_pass)
        item = jax.lax.dynamic_slice(order, (index % in_pass * size,), (size,))
        gradients, found = batch_gradients(state.params, loss, settings, item, times[item], metrics)
        error = (found.pop("error_at") / jnp.maximum(found.pop("weight_at"), 1e-9)).max()
        found["grad_norm"] = optax.global_norm(gradients)
        state = apply_gradients(state, gradients, optimizer)
        return state, jax.tree.map(jnp.add, sums, found), jnp.where(index == 0, error, first)

    zeros = dict.fromkeys((*metrics, "grad_norm"), jnp.zeros(()))
    state, sums, first = jax.lax.fori_loop(0, batches, body, (state, zeros, jnp.zeros(())))
    means = {name: value / batches for name, value in sums.items()}
    return state, {**means, FIRST_ERROR: first, "train_batches": jnp.int32(batches)}
