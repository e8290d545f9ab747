"""The errors of predictions, and the loss and metrics of a chunk of pairs."""

from collections.abc import Callable

import jax.numpy as jnp

from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Float, Params, PyTree
from spo_jax.methods.diffusion_dpo.inputs import Inputs
from spo_jax.methods.diffusion_dpo.objective import margins, objective, ordered_right
from spo_jax.methods.diffusion_dpo.settings import DPOSettings
from spo_jax.models.base import repeat_rows

# Function from (adapter or None for the reference, x [n h w c], t [n], condition) to the network's prediction.
Predict = Callable[[Params | None, Array, Array, PyTree], Float[Array, "n h w c"]]


def errors(predict: Predict, lora: Params | None, inputs: Inputs) -> Float[Array, "n 2"]:
    """Computes the mean squared error of the prediction for both images of every pair, in one call of the network.

    Args:
      predict: the network.
      lora: the adapter; None for the reference.
      inputs: the pairs.
    """
    t = jnp.repeat(inputs.t, 2)
    prediction = predict(lora, joined_rows(inputs.x), t, repeat_rows(inputs.condition, 2))
    squares = jnp.square(prediction.astype(jnp.float32) - joined_rows(inputs.target))
    return squares.mean((1, 2, 3)).reshape(-1, 2)  # [2n] -> [n 2]


def chunk_loss(
    lora: Params, predict: Predict, settings: DPOSettings, timesteps: int, inputs: Inputs, count: int
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Computes a chunk's share of the batch's mean loss, and of the metrics in the same way.

    Args:
      lora: the adapter.
      predict: the network.
      settings: the objective.
      timesteps: number of training timesteps.
      inputs: the pairs of the chunk.
      count: number of pairs in the batch.

    Returns:
      The loss, and the metrics of `metric_names`.
    """
    policy = errors(predict, lora, inputs)
    reference = inputs.reference
    out = objective(settings.objective, policy, reference, inputs.weight, settings.beta, timesteps)

    def mean(values: Array) -> Array:
        return values.sum(axis=0) / count

    loss = mean(out.loss)
    values = {
        "loss": loss,
        "implicit_accuracy": mean(ordered_right(out.logit)),
        "mse/win": mean(policy[:, 0]),
        "mse/lose": mean(policy[:, 1]),
    }
    if reference is not None:
        change = mean(policy - reference)
        values |= {
            "margin": mean(margins(policy, reference)),
            "mse_change/win": change[0],
            "mse_change/lose": change[1],
            "mse_reference/win": mean(reference[:, 0]),
            "mse_reference/lose": mean(reference[:, 1]),
        }
    if settings.objective == "smpo":
        values["label_weight"] = mean(inputs.weight)
    return loss, values


def metric_names(settings: DPOSettings) -> list[str]:
    """Returns the names of the metrics of `chunk_loss`, all of which are scalars."""
    names = ["loss", "implicit_accuracy", "mse/win", "mse/lose"]
    if settings.has_reference:
        changes = ["mse_change/win", "mse_change/lose", "mse_reference/win", "mse_reference/lose"]
        names += ["margin", *changes]
    return [*names, "label_weight"] if settings.objective == "smpo" else names
