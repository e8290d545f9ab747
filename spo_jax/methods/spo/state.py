"""The state of SPO: that of every method and, if the settings ask for it, a running mean of the adapter."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spo_jax.core.typing import Array, Int, Params
from spo_jax.methods.common.state import TrainState, apply_gradients


class MeanState(NamedTuple):
    """The state of a run with a running mean of the adapter.

    Attributes:
      params: the trained adapter in float32, which is what a run exports.
      opt_state: the optimizer's moments.
      step: number of finished training batches.
      mean: running mean of ``params``, matrix by matrix: of A and of B, and not of their products.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    mean: Params


SPOState = TrainState | MeanState


def with_mean(state: TrainState) -> MeanState:
    """Returns a state whose mean is the adapter as it is."""
    return MeanState(*state, mean=jax.tree.map(jnp.copy, state.params))


def mean_of(state: SPOState) -> Params | None:
    """Returns the running mean, or None if there is none."""
    return state.mean if isinstance(state, MeanState) else None


def sampling_params(state: SPOState) -> Params:
    """Returns the adapter that draws rollouts."""
    return state.mean if isinstance(state, MeanState) else state.params


def stepped(
    state: SPOState, gradients: Params, optimizer: optax.GradientTransformation, decay: float, accumulation: int
) -> SPOState:
    """Returns the state after one more training batch: mean ← d · mean + (1 - d) · params after an optimizer step.

    Args:
      state: the current state.
      gradients: gradients of the training batch.
      optimizer: the optimizer.
      decay: d.
      accumulation: number of training batches for each optimizer step.
    """
    state = apply_gradients(state, gradients, optimizer)
    if not isinstance(state, MeanState):
        return state
    decay = jnp.where(state.step % accumulation == 0, decay, 1.0)
    mean = jax.tree.map(lambda mean, now: decay * mean + (1 - decay) * now, state.mean, state.params)
    return state._replace(mean=mean)
