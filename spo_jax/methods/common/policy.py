"""A LoRA on a frozen model as a policy, and the log-probabilities of its steps."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from spo_jax.core.rows import joined_rows, take_rows
from spo_jax.core.typing import Array, Bool, DType, Float, Int, Params, PyTree
from spo_jax.diffusion.process import Process, log_prob
from spo_jax.models.base import Guidance, Pipeline, bind_denoise, denoise
from spo_jax.nn.lora import merge
from spo_jax.parallel.mesh import platform_in_context

# Function from (adapter or None for the reference, x [n h w c], t [n], row [n]) to guided prediction.
Predict = Callable[[Params | None, Array, Array, Array], Float[Array, "n h w c"]]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Guided predictions of a model with an adapter, and of the model alone, which is the reference.

    Attributes:
      pipeline: the model.
      guidance_scale: classifier-free guidance scale w.
      lora_scale: alpha / r.
    """

    pipeline: Pipeline
    guidance_scale: float
    lora_scale: float

    def at_rest(self, network: Params, lora: Params) -> tuple[Params, Params | None]:
        """Returns the weights of a policy that does not change for a while, merged where that loses no precision.

        In 16-bit weights, the adapter's small steps would be rounded away; accelerators multiply float32 weights with
        fewer bits, too.

        Args:
          network: base weights.
          lora: the adapter.

        Returns:
          The merged weights and None on the CPU in float32; otherwise both arguments unchanged.
        """
        if self.pipeline.dtype != jnp.float32 or platform_in_context() != "cpu":
            return network, lora
        return merge(network, lora, self.lora_scale), None

    def sampler(
        self, network: Params, lora: Params | None, condition: PyTree, unconditional: PyTree
    ) -> Callable[[Array, Array], Array]:
        """Returns the function from (x, t) to guided prediction.

        Args:
          network: base weights.
          lora: the adapter; None for the base weights alone.
          condition: encoded prompts; x has a row for each of them, or copies in leading axes.
          unconditional: encoded unconditional input.
        """
        guidance = Guidance(condition, unconditional, self.guidance_scale)
        return bind_denoise(self.pipeline, network, lora, guidance, self.lora_scale)

    def predictor(self, network: Params, condition: PyTree, unconditional: PyTree) -> Predict:
        """Returns the function from (adapter or None, x, t, row) to guided prediction.

        Args:
          network: base weights.
          condition: encoded prompts; ``row`` names the one that belongs to each x.
          unconditional: encoded unconditional input.
        """

        def predict(lora: Params | None, x: Array, t: Array, row: Array) -> Array:
            guidance = Guidance(take_rows(condition, row), unconditional, self.guidance_scale)
            return denoise(self.pipeline, network, lora, guidance, x, t, self.lora_scale)

        return predict


def equal_rounding(dtype: DType) -> dict[str, bool]:
    """Returns the compiler's options for programs whose likelihood ratios compare two passes of a network.

    XLA may leave out the rounding to 16 bits between operations that it fuses, and it does not fuse the policy's pass,
    which keeps activations for the gradient, as it fuses the reference's. Then likelihood ratios are not 1 where the
    two agree: by 8 % at t = 51 (`docs/parity.md`). With these options, both passes round where the code says, at no
    measurable cost.

    Args:
      dtype: dtype of the network's activations.
    """
    return {} if dtype == jnp.float32 else {"xla_allow_excess_precision": False}


class Pairs(NamedTuple):
    """Training pairs of a winner and a loser.

    Attributes:
      x_t: a single parent (m = 1) if winner and loser share it, otherwise the winner's and the loser's (m = 2).
      x_prev: x_{t'} of the winner and of the loser.
      t: timestep of the transition.
      row: row of the pair's prompt in the batch of prompts.
      valid: whether to train on the pair.
    """

    x_t: Float[Array, "n m h w c"]
    x_prev: Float[Array, "n 2 h w c"]
    t: Int[Array, " n"]
    row: Int[Array, " n"]
    valid: Bool[Array, " n"]


def pair_log_probs(predict: Callable, process: Process, eta: float, batch: Pairs) -> Float[Array, "n 2"]:
    """Computes log p(x_{t'} | x_t) of winner and loser.

    If they share x_t, the network is evaluated once per pair, which halves the work.

    Args:
      predict: function from (x [n h w c], t [n], row [n]) to guided prediction, of the policy or of the reference.
      process: the diffusion process, divided into the rollout's steps.
      eta: stochasticity of the steps; greater than 0.
      batch: the pairs.
    """
    return step_log_probs(predict, process, eta, batch.x_t, batch.x_prev, batch.t, batch.row)


def step_log_probs(
    predict: Callable,
    process: Process,
    eta: float,
    x_t: Float[Array, "n m h w c"],
    x_prev: Float[Array, "n k h w c"],
    t: Int[Array, " n"],
    row: Int[Array, " n"],
) -> Float[Array, "n k"]:
    """Computes log p(x_{t'} | x_t) of steps, the mean over pixels and channels.

    Args:
      predict: as in `pair_log_probs`.
      process: as in `pair_log_probs`.
      eta: as in `pair_log_probs`.
      x_t: latents before the steps; a single one (m = 1) if the k steps of a row share it, otherwise m = k.
      x_prev: latents after the steps.
      t: timestep of each row.
      row: row of its prompt in the batch of prompts.
    """
    members = x_t.shape[1]
    x = joined_rows(x_t)  # [n m h w c] -> [n·m h w c]
    t = jnp.repeat(t, members)
    row = jnp.repeat(row, members)
    x0, noise = process.split(x, predict(x, t, row), t)
    mean, std = process.step(x0, noise, t, eta)

    def unfold(x: Array) -> Array:  # [n·m ...] -> [n m ...]
        return x.reshape(-1, members, *x.shape[1:])

    return log_prob(x_prev, unfold(mean), unfold(std))
