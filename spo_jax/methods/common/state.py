"""The state that training changes."""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import optax

from spo_jax.core.typing import Array, Int, Params

# A state with the fields of `TrainState`, and perhaps more.
State = TypeVar("State")


class TrainState(NamedTuple):
    """The state of a run.

    Attributes:
      params: the trained weights in float32: an adapter's tree, or a whole network's.
      opt_state: the optimizer's moments.
      step: number of finished training batches.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first training batch."""
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def apply_gradients(state: State, gradients: Params, optimizer: optax.GradientTransformation) -> State:
    """Returns the state after one more training batch with these gradients.

    Args:
      state: a `TrainState`, or a NamedTuple of a method that has its fields and more.
      gradients: gradients with respect to ``state.params``.
      optimizer: the optimizer.
    """
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state, step=state.step + 1)
