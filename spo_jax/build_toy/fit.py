"""The optimisation loop for the networks of the toy pipeline."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spo_jax.core.progress import bar
from spo_jax.core.typing import Key, Params


def fit(
    loss: Callable[[Params, Any, Key], tuple[jax.Array, dict[str, jax.Array]]],
    params: Params,
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float,
    key: Key,
    ema: float = 0.999,
    weight_decay: float = 0.0,
    title: str = "",
    look: Callable[[int, Params], None] | None = None,
) -> Params:
    """Optimises with AdamW, warm-up, cosine decay and gradients clipped at global norm 1.

    Args:
      loss: function from (params, batch, key) to (scalar, metrics).
      params: initial weights.
      batches: iterator over at least ``steps`` batches of one shape.
      steps: number of training steps.
      learning_rate: peak learning rate.
      key: key from which each step's key is derived.
      ema: decay of the running mean of the weights.
      weight_decay: weight decay of AdamW.
      title: title of the progress bar.
      look: called after each step with the number of steps so far and the running mean of the weights.

    Returns:
      The running mean of the weights.
    """
    warmup = max(steps // 20, 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps, end_value=learning_rate / 100)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=weight_decay))

    @jax.jit
    def step(state, batch, index):
        params, average, moments = state
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, jax.random.fold_in(key, index))
        updates, moments = optimiser.update(gradients, moments, params)
        params = optax.apply_updates(params, updates)
        # The mean's memory is short at first, so that it forgets the early weights.
        decay = jnp.minimum(ema, (1 + index) / (10 + index))
        average = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, average, params)
        return (params, average, moments), metrics

    state = (params, params, optimiser.init(params))
    shown = bar(title, steps, "step", over=range(steps))
    for index in shown:
        state, metrics = step(state, next(batches), jnp.asarray(index))
        if look is not None:
            look(index + 1, state[1])
        if index % 50 == 0:
            values = {name: f"{float(value):.4f}" for name, value in metrics.items()}
            shown.set_postfix(values, refresh=False)
    _, average, _ = state
    return average
